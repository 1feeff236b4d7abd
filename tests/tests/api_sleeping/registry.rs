//! The registry is true: what nobody stands behind goes, and what is to stand there comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams, PostParams};
use mcp_mqtt_tests::{
    cluster::{PATIENCE, Space, eventually, smallest},
    operator::Operator,
    presences::Presences,
    proxy::Manner,
};
use mcp_mqtt_transport::{
    client::Instance,
    presence::Online,
    topic::{self, ServerId},
    user_property,
};
use serde_json::json;
use tokio::time::timeout;

use crate::{NAME, Scene, asleep, client, instances, server_name};

/// A pod that the operator watches, and that no node takes.
async fn bare_pod(space: &Space, name: &str) -> Result<()> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"mcp-mqtt.io/service": "elsewhere"}},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "server", "image": "registry.example/weather:3"}]},
    }))?;
    let api = space.api::<Pod>();
    // The namespace's ServiceAccount comes a moment after it.
    let made = async || api.create(&PostParams::default(), &pod).await.ok().map(drop);
    eventually(PATIENCE, made).await.with_context(|| format!("the pod {name} cannot be made"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_stands_behind_is_cleared_and_what_is_cleared_by_mistake_comes_back() -> Result<()> {
    let Scene { space, mut broker, operator, instance } = Scene::asleep("true").await?;
    let name = server_name(&space)?;
    let place = topic::server_presence(&instance.server_id, &name);
    let mut presences = Presences::of(&broker.url(), &name).await?;
    let mark = presences.next_at(&place, false).await?.user_properties;
    ensure!(user_property::find(&mark, user_property::OWNER).is_some(), "{mark:?}");
    let online = Online::new(name.as_str(), "", None).to_payload();
    let id = |name: &str| ServerId::new(&format!("kubernetes.{}.{name}", space.namespace));
    let stranger = topic::server_presence(&id("stranger-1")?, &name);
    presences.write(&stranger, online.clone(), &Vec::new()).await?;
    let pods = ["living-1", "evicted-1"];
    for pod in pods {
        bare_pod(&space, pod).await?;
    }
    let watching = client(&broker).await?;
    let mut watch = watching.watch(name.as_str()).await?;
    for ours in ["ghost-1", "ghost_service"].into_iter().chain(pods) {
        presences.write(&topic::server_presence(&id(ours)?, &name), online.clone(), &mark).await?;
    }
    let start = Instant::now();
    let shows = |all: &[Instance], who: &str| all.iter().any(|one| one.server_id.as_str().ends_with(who));
    let no_ghosts = |all: &[Instance]| shows(all, "evicted-1") && !shows(all, "ghost-1") && all.len() == 4;
    timeout(PATIENCE, watch.until(no_ghosts)).await.with_context(|| format!("{:?}", watch.instances()))?;
    println!("ghosts are cleared after {:?}", start.elapsed());
    // The kubelet evicts it: its object stays.
    let evicted = Patch::Merge(json!({"status": {"phase": "Failed", "reason": "Evicted"}}));
    space.api::<Pod>().patch_status("evicted-1", &PatchParams::default(), &evicted).await?;
    let start = Instant::now();
    let gone = timeout(PATIENCE, watch.until(|all| !shows(all, "evicted-1"))).await;
    gone.context("the presence of the evicted pod stays")?;
    println!("an evicted pod's presence is cleared after {:?}", start.elapsed());
    let left = watch.instances();
    ensure!(left.len() == 3 && shows(&left, "stranger-1") && shows(&left, "living-1"), "{left:?}");
    watching.close(PATIENCE).await?;

    presences.write(&place, Bytes::new(), &mark).await?;
    instances(&space, &broker, |all| all.iter().any(|instance| instance.online.is_parked())).await?;
    // A broker that has forgotten all is told all again.
    broker.restart().await?;
    asleep(&space, &broker).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_the_broker_was_away_is_put_right_within_five_seconds_of_its_return() -> Result<()>
{
    /// By then attempts to connect are as seldom as they get.
    const AWAY: Duration = Duration::from_secs(20);
    /// As of a broker that was restored from an old store.
    const GHOSTS: usize = 500;
    let (Scene { space, broker, operator, instance }, proxy) = Scene::asleep_behind_a_proxy("away").await?;
    let name = server_name(&space)?;
    let place = topic::server_presence(&instance.server_id, &name);
    let mut presences = Presences::of(&broker.url(), &name).await?;
    let mark = presences.next_at(&place, false).await?.user_properties;
    proxy.behave(Manner { refuses: Some(0x88), ..Manner::default() });
    proxy.cut();
    let online = Online::new(name.as_str(), "", None).to_payload();
    let away = Instant::now();
    for number in 0..GHOSTS {
        let ghost = ServerId::new(&format!("kubernetes.{}.ghost-{number}", space.namespace))?;
        presences.write(&topic::server_presence(&ghost, &name), online.clone(), &mark).await?;
    }
    println!("{GHOSTS} ghosts are there after {:?}", away.elapsed());
    tokio::time::sleep(AWAY.saturating_sub(away.elapsed())).await;
    let watching = client(&broker).await?;
    let mut watch = watching.watch(name.as_str()).await?;
    timeout(PATIENCE, watch.until(|all| all.len() == GHOSTS + 1)).await?;
    proxy.behave(Manner::default());
    let back = Instant::now();
    timeout(PATIENCE, watch.until(|all| all.len() == 1)).await.context("ghosts stay")?;
    ensure!(watch.instances()[0].online.is_parked(), "{:?}", watch.instances());
    println!("put right {:?} after the broker was back", back.elapsed());
    ensure!(back.elapsed() < Duration::from_secs(5), "only after {:?}", back.elapsed());
    watching.close(PATIENCE).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_may_sleep_no_more_or_goes_leaves_nothing_in_the_registry() -> Result<()> {
    let Scene { space, broker, operator, .. } = Scene::asleep("leaves").await?;
    let watching = client(&broker).await?;
    let mut watch = watching.watch(server_name(&space)?.as_str()).await?;
    timeout(PATIENCE, watch.until(|all| all.len() == 1)).await?;
    let awake = json!({"minReplicas": 1, "maxReplicas": 3, "idleSeconds": null, "wakeTimeoutSeconds": null});
    space.patch(NAME, json!({"spec": {"autoscaling": awake}})).await?;
    timeout(PATIENCE, watch.until(<[Instance]>::is_empty)).await.context("it may sleep no more")?;
    space.patch(NAME, json!({"spec": {"autoscaling": {"minReplicas": 0}}})).await?;
    timeout(PATIENCE, watch.until(|all| all.len() == 1)).await.context("it sleeps again")?;
    space.services().delete(NAME, &kube::api::DeleteParams::default()).await?;
    timeout(PATIENCE, watch.until(<[Instance]>::is_empty)).await.context("it is gone")?;
    watching.close(PATIENCE).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_of_a_sleeping_service_while_the_operator_was_away_is_published() -> Result<()> {
    let Scene { space, broker, operator, instance } = Scene::asleep("described").await?;
    ensure!(instance.online.description.is_empty(), "{instance:?}");
    operator.kill().await?;
    let role = json!({
        "name": "reader", "description": "reads", "allowedMethods": "all", "allowedTools": ["forecast"],
        "allowedResources": "all",
    });
    let spec = json!({"description": "tells the weather", "rbac": {"roles": [role]}});
    space.patch(NAME, json!({"spec": spec})).await?;
    let operator = Operator::start(&space, &[]).await?;
    let says = |what| move |all: &[Instance]| all.iter().any(|one| one.online.description == what);
    let found = instances(&space, &broker, says("tells the weather")).await?.pop().context("one")?;
    ensure!(
        found.online.is_parked() && found.online.meta["rbac"]["roles"][0]["name"] == "reader",
        "{found:?}"
    );
    // At once, where the operator is there.
    space.patch(NAME, json!({"spec": {"description": "tells the tides"}})).await?;
    instances(&space, &broker, says("tells the tides")).await?;
    operator.stop().await?;
    space.remove().await
}

/// What the operator relies on where a person scales a service while it does.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_scales_nothing_that_has_changed_since() -> Result<()> {
    let space = Space::new("version").await?;
    space.create(NAME, &smallest(0)).await?;
    let services = space.services();
    let decided = services.get(NAME).await?.metadata.resource_version;
    let scale = async |replicas: i32, version: Option<&String>| {
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}});
        services.patch_scale(NAME, &PatchParams::default(), &Patch::Merge(patch)).await
    };
    scale(5, None).await?;
    let late = scale(1, decided.as_ref()).await;
    ensure!(matches!(&late, Err(kube::Error::Api(answer)) if answer.is_conflict()), "{late:?}");
    ensure!(services.get(NAME).await?.data["spec"]["replicas"] == 5);
    let now = services.get(NAME).await?.metadata.resource_version;
    scale(1, now.as_ref()).await?;
    ensure!(services.get(NAME).await?.data["spec"]["replicas"] == 1);
    space.remove().await
}
