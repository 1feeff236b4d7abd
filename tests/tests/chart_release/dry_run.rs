//! Every object of every rendering, as the real API server judges it: strictly, and without keeping it.

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    discovery::{Scope, pinned_kind},
};
use mcp_mqtt_tests::{
    cluster,
    helm::{template, values_files},
};
use serde_json::Value;

use crate::{ONE_AT_A_TIME, site::namespace};

/// Kinds whose API comes with the Prometheus Operator, which is not on this cluster.
const NOT_SERVED: [&str; 3] = ["ServiceMonitor", "PodMonitor", "PrometheusRule"];

#[tokio::test]
async fn the_api_server_takes_every_object_of_every_rendering() -> Result<()> {
    let _guard = ONE_AT_A_TIME.lock().await;
    let client = cluster::client().await?;
    for name in ["mcp-mqtt", "tools", "agents", "elsewhere"] {
        namespace(&client, name).await?;
    }
    let mut judged = 0;
    for file in values_files()? {
        for mut object in template(&["--values", &file.to_string_lossy()]).await? {
            if NOT_SERVED.iter().any(|kind| object["kind"] == *kind) {
                continue;
            }
            if object["kind"] == "Pod" {
                // Admission looks the ServiceAccount up, and a dry run has made none.
                object["spec"]["serviceAccountName"] = "default".into();
            }
            let what = format!("{} {} of {}", object["kind"], object["metadata"]["name"], file.display());
            apply_dry(&client, object).await.with_context(|| what)?;
            judged += 1;
        }
    }
    assert!(judged > 50, "only {judged} objects were judged");
    Ok(())
}

#[tokio::test]
async fn an_operator_that_runs_can_become_that_of_every_rendering() -> Result<()> {
    let _guard = ONE_AT_A_TIME.lock().await;
    let client = cluster::client().await?;
    namespace(&client, "mcp-mqtt").await?;
    let operator = async |values: &[&str]| {
        let objects = template(values).await?;
        let operator = |object: &Value| {
            object["kind"] == "Deployment" && object["metadata"]["name"] == "mcp-mqtt-operator"
        };
        anyhow::Ok(objects.into_iter().find(operator))
    };
    apply(&client, operator(&["--set", "replicaCount=0"]).await?.context("Deployment")?, manager()).await?;
    let mut judged = 0;
    for file in values_files()? {
        // Others have other names.
        let Some(next) = operator(&["--values", &file.to_string_lossy()]).await? else { continue };
        apply_dry(&client, next).await.with_context(|| file.display().to_string())?;
        judged += 1;
    }
    assert!(judged > 2, "only {judged} were judged");
    let deployments = Api::<Deployment>::namespaced(client.clone(), "mcp-mqtt");
    deployments.delete("mcp-mqtt-operator", &DeleteParams::default()).await?;
    Ok(())
}

#[tokio::test]
async fn the_api_server_refuses_a_field_that_it_does_not_know() -> Result<()> {
    let client = cluster::client().await?;
    namespace(&client, "mcp-mqtt").await?;
    let objects = template(&["--set", "affinity.podAffinty=x"]).await?;
    let deployment =
        objects.into_iter().find(|object| object["kind"] == "Deployment").context("Deployment")?;
    let error = apply_dry(&client, deployment).await.map_err(|error| format!("{error:#}"));
    assert!(error.as_ref().is_err_and(|error| error.contains("podAffinty")), "{error:?}");
    Ok(())
}

/// With `fieldValidation=Strict`.
fn manager() -> PatchParams {
    PatchParams::apply("chart-suite").force().validation_strict()
}

/// A server-side apply with `dryRun=All`.
pub(crate) async fn apply_dry(client: &Client, object: Value) -> Result<()> {
    apply(client, object, manager().dry_run()).await
}

async fn apply(client: &Client, object: Value, params: PatchParams) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object)?;
    let types = object.types.clone().context("no apiVersion")?;
    let kind = GroupVersionKind::try_from(&types)?;
    let (resource, capabilities) = pinned_kind(client, &kind).await?;
    let name = object.metadata.name.clone().context("no name")?;
    let api: Api<DynamicObject> = match (&capabilities.scope, &object.metadata.namespace) {
        (Scope::Namespaced, Some(namespace)) => Api::namespaced_with(client.clone(), namespace, &resource),
        _ => Api::all_with(client.clone(), &resource),
    };
    api.patch(&name, &params, &Patch::Apply(&object)).await?;
    Ok(())
}
