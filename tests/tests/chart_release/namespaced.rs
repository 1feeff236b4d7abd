//! An operator that watches one namespace, beside another release that owns the CRD.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::Secret,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use mcp_mqtt_operator::{crd::McpService, names};
use mcp_mqtt_tests::{cluster, helm::helm_ok};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    ONE_AT_A_TIME,
    site::{
        apply, delete, drop_namespace, namespace, operator_log, ready, service, tested, uninstall_all, until,
        upgrade,
    },
};

const OPERATOR: &str = "chart-operator";
const WATCHED: &str = "chart-watched";
const BROKER: &str = "broker.url=mqtt://mcp-mqtt-mosquitto.mcp-mqtt.svc:1883";
const UNWATCHED: &str = "chart-unwatched";

/// Long enough for an operator that watched the namespace after all: it starts on a new object within a second.
const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn an_operator_of_one_namespace_serves_that_one_and_may_do_nothing_elsewhere() -> Result<()> {
    let _guard = ONE_AT_A_TIME.lock().await;
    let client = cluster::client().await?;
    uninstall_all().await?;
    for name in ["mcp-mqtt", OPERATOR, WATCHED, UNWATCHED] {
        namespace(&client, name).await?;
    }
    // The release that owns the CRD: here the broker alone, and no operator that could interfere.
    upgrade("mcp-mqtt", "mcp-mqtt", &["replicaCount=0", "mosquitto.enabled=true"]).await?;
    credentials(&client, "first").await?;
    let watching = format!("watchNamespaces={{{WATCHED}}}");
    let scoped = [&*watching, BROKER, "crds.enabled=false", "rbac.aggregateClusterRoles=false"];
    upgrade("scoped", OPERATOR, &[&scoped[..], &["broker.secret=credentials"]].concat()).await?;
    tested("scoped", OPERATOR, &format!("the namespace {WATCHED}")).await?;

    apply(&client, &service(UNWATCHED, "clock")).await?;
    apply(&client, &service(WATCHED, "clock")).await?;
    ready(&client, WATCHED, "clock", 1).await?;
    sleep(PATIENCE).await;
    let unwatched: Api<McpService> = Api::namespaced(client.clone(), UNWATCHED);
    assert!(unwatched.get("clock").await?.status.is_none(), "nobody serves it");
    lacks_nothing(&client).await?;

    for (namespace, group, resource, verb, expected) in [
        (Some(WATCHED), "", "secrets", "get", true),
        (Some(WATCHED), "apps", "deployments", "patch", true),
        (Some(UNWATCHED), "", "secrets", "get", false),
        (Some(UNWATCHED), "mcp-mqtt.io", "mcpservices", "list", false),
        (Some(OPERATOR), "", "secrets", "list", false),
        (None, "mcp-mqtt.io", "mcpservices", "list", false),
        (None, "", "secrets", "list", false),
    ] {
        let allowed = may(&client, namespace, group, resource, verb).await?;
        assert_eq!(allowed, expected, "{verb} {resource} in {namespace:?}");
    }

    // The credentials are handed on, a new password too, and taken back when the broker asks for none any more.
    copied(&client, Some("first")).await?;
    credentials(&client, "second").await?;
    copied(&client, Some("second")).await?;
    lacks_nothing(&client).await?; // while the pods are there that did it
    upgrade("scoped", OPERATOR, &scoped).await?;
    copied(&client, None).await?;
    ready(&client, WATCHED, "clock", 1).await?;
    lacks_nothing(&client).await?;

    delete(&client, WATCHED, "clock").await?;
    helm_ok(&["uninstall", "scoped", "--namespace", OPERATOR, "--wait"]).await?;
    helm_ok(&["uninstall", "mcp-mqtt", "--namespace", "mcp-mqtt", "--wait"]).await?;
    for name in [OPERATOR, WATCHED, UNWATCHED] {
        drop_namespace(&client, name).await?;
    }
    Ok(())
}

/// That the operator was refused nothing.
async fn lacks_nothing(client: &Client) -> Result<()> {
    let log = operator_log(client, OPERATOR).await?;
    ensure!(log.contains("INFO") && !log.contains("forbidden"), "the operator lacks a permission:\n{log}");
    Ok(())
}

/// The Secret that `broker.secret` names. The broker lets everyone in; what matters here is who may read and write it.
async fn credentials(client: &Client, password: &str) -> Result<()> {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "credentials"},
        "stringData": {"username": "operator", "password": password},
    });
    let api: Api<Secret> = Api::namespaced(client.clone(), OPERATOR);
    api.patch("credentials", &PatchParams::apply("chart-suite").force(), &Patch::Apply(&secret)).await?;
    Ok(())
}

/// Waits until the service's copy of the credentials has this password; none: until there is no copy.
async fn copied(client: &Client, password: Option<&str>) -> Result<()> {
    let api: Api<Secret> = Api::namespaced(client.clone(), WATCHED);
    until("the copy of the credentials is as it should be", Duration::from_secs(30), || async {
        let secret = api.get_opt(&names::broker_secret("clock")).await?;
        let copy = secret.as_ref().and_then(|secret| secret.data.as_ref()?.get("password"));
        let is = copy.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
        Ok(if is.as_deref() == password { Ok(()) } else { Err(is) })
    })
    .await
}

/// Whether the API server lets the operator's `ServiceAccount` do this; no namespace: in all of them.
async fn may(
    client: &Client,
    namespace: Option<&str>,
    group: &str,
    resource: &str,
    verb: &str,
) -> Result<bool> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{OPERATOR}:scoped-mcp-mqtt-operator")),
            resource_attributes: Some(ResourceAttributes {
                namespace: namespace.map(str::to_owned),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                verb: Some(verb.to_owned()),
                ..Default::default()
            }),
            ..Default::default()
        },
        ..Default::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    Ok(api.create(&PostParams::default(), &review).await?.status.context("no answer")?.allowed)
}
