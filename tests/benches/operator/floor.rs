//! The floor: the same Deployments, applied by this measurement without an operator. Whatever is beyond it, the operator
//! takes; what is below it, no operator can save.

use std::time::Instant;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use mcp_mqtt_operator::{
    cli::PullPolicy,
    controller::{
        build::{Surroundings, build},
        fetch::Fetched,
        validate::validate,
    },
    crd::McpService,
    salt::Salt,
    settings::{DefaultBroker, Settings},
};
use mcp_mqtt_tests::operator::BROKER;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    look::Seen,
    meter::Meter,
    report::{Table, median, seconds},
    rounds::{BETWEEN, CHANGES},
    stage::{AT_ONCE, Stage, names, spec},
};

/// What the operator would apply for a service of this name, but for what ties it to the service.
fn deployment(name: &str, namespace: &str, sidecar_image: &str) -> Result<Deployment> {
    let settings = Settings {
        cluster_name: "floor".to_owned(),
        sidecar_image: sidecar_image.to_owned(),
        sidecar_image_pull_policy: PullPolicy::IfNotPresent,
        image_pull_secrets: Vec::new(),
        default_broker: Some(DefaultBroker { url: BROKER.parse()?, secret: None, token: None }),
        network_policy_from: None,
        serves_sessions: true,
        keda_scaler: None,
    };
    let service: McpService = serde_json::from_value(json!({
        "apiVersion": "mcp-mqtt.io/v1alpha1", "kind": "McpService",
        "metadata": {"name": name, "namespace": namespace, "uid": "none"}, "spec": spec(1),
    }))?;
    let valid = validate(&service, &Fetched::default(), &settings)?;
    let surroundings = Surroundings {
        settings: &settings,
        default_broker_secret: None,
        references_hash: None,
        salt: &Salt::new([0; 32]),
    };
    let mut deployment = build(&valid, surroundings).deployment;
    // There is no service that could own it, and no account made for it.
    deployment.metadata.owner_references = None;
    let template = deployment.spec.as_mut().and_then(|spec| spec.template.spec.as_mut());
    template.context("a Deployment without pods")?.service_account_name = None;
    Ok(deployment)
}

async fn apply(api: &Api<Deployment>, name: &str, namespace: &str, image: &str) -> Result<()> {
    let parameters = PatchParams::apply("floor").force();
    api.patch(name, &parameters, &Patch::Apply(deployment(name, namespace, image)?)).await?;
    Ok(())
}

/// Creates each `McpService` and applies its Deployment, without an operator.
pub(crate) async fn floor(stage: &mut Stage, table: &mut Table, objects: usize) -> Result<()> {
    table.head(format!("the floor: the same requests by this measurement, and no operator ({objects})"));
    stage.stop().await?;
    stage.settled("before").await?;
    let (api, namespace): (Api<Deployment>, _) = (stage.space.api(), stage.space.namespace.clone());

    let singles = names("floor-single", 0..CHANGES);
    let mut created = Vec::new();
    for name in &singles {
        let begin = Instant::now();
        stage.space.create(name, &spec(1)).await?;
        apply(&api, name, &namespace, "registry.example/mcp-mqtt-sidecar:1").await?;
        created.push(stage.look.until(name, |_| true).await? - begin);
        sleep(BETWEEN).await;
    }
    table.row("  one: create → Deployment", median(created), "");
    let mut changed = Vec::new();
    for name in &singles {
        let before = stage.look.get(name).context("its Deployment is gone")?;
        let begin = Instant::now();
        stage.space.patch(name, json!({"spec": {"server": {"image": "registry.example/weather:4"}}})).await?;
        apply(&api, name, &namespace, "registry.example/mcp-mqtt-sidecar:2").await?;
        changed.push(stage.look.until(name, |seen| seen.generation > before.generation).await? - begin);
        sleep(BETWEEN).await;
    }
    table.row("  one: image change → Deployment", median(changed), "");

    let all = names("floor", 0..objects);
    let meter = Meter::start(stage.parts()?);
    let begin = Instant::now();
    let creating = futures::stream::iter(&all).map(|name| {
        let (stage, api, namespace) = (&*stage, &api, &namespace);
        async move {
            stage.space.create(name, &spec(1)).await?;
            apply(api, name, namespace, "registry.example/mcp-mqtt-sidecar:1").await
        }
    });
    creating.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let made = stage.look.until_all(objects, "the floor", |name, _| name.starts_with("floor-0")).await?;
    let cost = meter.until(made).await?;
    table.row("  created at once → all Deployments", seconds(made - begin), "");
    table.cost(&cost);
    // What Kubernetes' own controllers have to do after that stands before any last word on a service.
    let through = stage.look.until_calm().await?;
    table.row("  → the controllers are through", seconds(through - begin), "");

    let begin = Instant::now();
    let changing = futures::stream::iter(&all)
        .map(|name| apply(&api, name, &namespace, "registry.example/mcp-mqtt-sidecar:2"));
    changing.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let wanted = |name: &str, seen: &Seen| name.starts_with("floor-0") && seen.generation > 1;
    let changed = stage.look.until_all(objects, "the floor, changed", wanted).await?;
    table.row("  another gateway image → all Deployments", seconds(changed - begin), "");

    eprintln!("deleting them all");
    let services = stage.space.services();
    for all in [&singles, &all] {
        let deleting = futures::stream::iter(all).map(|name| {
            let (services, api) = (&services, &api);
            async move {
                services.delete(name, &DeleteParams::default()).await?;
                api.delete(name, &DeleteParams::background()).await?;
                anyhow::Ok(())
            }
        });
        deleting.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    }
    stage.emptied().await?;
    stage.start(&[]).await?;
    Ok(())
}
