//! One release over the whole cluster: install, test, upgrade, uninstall, install again.

use anyhow::{Context, Result};
use k8s_openapi::api::{apps::v1::Deployment, policy::v1::PodDisruptionBudget};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    discovery::{Scope, pinned_kind},
};
use mcp_mqtt_operator::crd::McpService;
use mcp_mqtt_tests::{cluster, helm::helm_ok};
use serde_json::{Value, json};

use crate::{
    ONE_AT_A_TIME,
    dry_run::apply_dry,
    site::{
        apply, delete, drop_namespace, generation, namespace, operator_log, pods, ready, service, tested,
        uninstall_all, upgrade,
    },
};

// The demo's names: whoever installs the chart there next finds a CRD that is its own.
const RELEASE: &str = "mcp-mqtt";
const NAMESPACE: &str = "mcp-mqtt";
const OPERATOR: &str = "mcp-mqtt-operator";
const TOOLS: &str = "chart-cycle";

#[tokio::test]
async fn services_survive_an_upgrade_and_an_uninstall_and_meet_the_next_install() -> Result<()> {
    let _guard = ONE_AT_A_TIME.lock().await;
    let client = cluster::client().await?;
    uninstall_all().await?;
    for name in [NAMESPACE, TOOLS] {
        namespace(&client, name).await?;
    }

    // Install: ready, tested, and it serves. Both namespaces enforce the restricted standard.
    let notes = upgrade(RELEASE, NAMESPACE, &["mosquitto.enabled=true"]).await?;
    let (_, manifest) = notes.split_once("<<'END'\n").context("no manifest to paste")?;
    let (manifest, _) = manifest.split_once("\nEND\n").context("no end of it")?;
    apply_dry(&client, serde_yaml::from_str(manifest)?).await.context("the manifest in the notes")?;
    tested(RELEASE, NAMESPACE, "all namespaces").await?;
    apply(&client, &service(TOOLS, "clock")).await?;
    let before = ready(&client, TOOLS, "clock", 1).await?;
    let built = generation(&client, TOOLS, "clock").await?;

    // Upgrade: two operators with a budget; what runs is left alone, and what is asked for still happens.
    upgrade(RELEASE, NAMESPACE, &["mosquitto.enabled=true", "replicaCount=2", "log.level=debug"]).await?;
    let deployment: Deployment = Api::namespaced(client.clone(), NAMESPACE).get(OPERATOR).await?;
    assert_eq!(deployment.status.and_then(|status| status.ready_replicas), Some(2));
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), NAMESPACE);
    assert!(budgets.get_opt(OPERATOR).await?.is_some());
    tested(RELEASE, NAMESPACE, "all namespaces").await?;
    assert_eq!(
        ready(&client, TOOLS, "clock", 1).await?,
        before,
        "an upgrade of the operator restarts no instance"
    );
    assert_eq!(generation(&client, TOOLS, "clock").await?, built);
    scale(&client, 2).await?;
    let two = ready(&client, TOOLS, "clock", 2).await?;
    let log = operator_log(&client, NAMESPACE).await?;
    assert!(!log.contains("forbidden"), "the operator lacks a permission:\n{log}");

    // Uninstall: all that the release made is gone, but for the CRD; what runs goes on.
    let manifest = helm_ok(&["get", "manifest", RELEASE, "--namespace", NAMESPACE]).await?;
    let objects: Vec<Value> = serde_yaml::from_multiple(&manifest)?;
    helm_ok(&["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout", "2m"]).await?;
    for object in objects {
        let stays = object["kind"] == "CustomResourceDefinition";
        assert_eq!(
            exists(&client, &object).await?,
            stays,
            "{} {}",
            object["kind"],
            object["metadata"]["name"]
        );
    }
    let services: Api<McpService> = Api::namespaced(client.clone(), TOOLS);
    assert!(services.get_opt("clock").await?.is_some(), "the McpService survives");
    assert_eq!(pods(&client, TOOLS, "clock").await?, two, "its instances run on");

    // Install again: the CRD is taken over, the service found as it was, and the operator works on it.
    upgrade(RELEASE, NAMESPACE, &["mosquitto.enabled=true"]).await?;
    assert_eq!(ready(&client, TOOLS, "clock", 2).await?, two, "a new install restarts no instance");
    scale(&client, 1).await?;
    ready(&client, TOOLS, "clock", 1).await?;
    delete(&client, TOOLS, "clock").await?;

    helm_ok(&["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"]).await?;
    drop_namespace(&client, TOOLS).await
}

async fn scale(client: &Client, replicas: i32) -> Result<()> {
    let api: Api<McpService> = Api::namespaced(client.clone(), TOOLS);
    let patch = json!({"spec": {"replicas": replicas}});
    api.patch_scale("clock", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

async fn exists(client: &Client, object: &Value) -> Result<bool> {
    let object: DynamicObject = serde_json::from_value(object.clone())?;
    let kind = GroupVersionKind::try_from(&object.types.clone().context("no apiVersion")?)?;
    let (resource, capabilities) = pinned_kind(client, &kind).await?;
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Namespaced => Api::namespaced_with(client.clone(), NAMESPACE, &resource),
        Scope::Cluster => Api::all_with(client.clone(), &resource),
    };
    Ok(api.get_opt(&object.metadata.name.context("no name")?).await?.is_some())
}
