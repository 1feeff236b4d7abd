//! Faults in the cluster, under closed-loop clients that run throughout: every request is answered or explicitly
//! refused, none hangs, none is lost; and when the fault is over the service is whole again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ContainerStatus;
use kube::api::DeleteParams;
use mcp_mqtt_tests::{
    baseline,
    cluster::eventually,
    gateway::metric_at,
    load::{Account, Load},
    node,
    platform::{Deployed, PATIENCE, Platform, call, everything_over_http, everything_over_stdio, text, with},
};
use serde_json::{Value, json};

use crate::conditions::condition;

/// Clients of each test: over stdio each has a process of its own, which takes a second of CPU to start.
const CLIENTS: usize = 8;
const STDIO_CLIENTS: usize = 4;

/// How long the clients run before and after a fault.
const AROUND: Duration = Duration::from_secs(3);

/// Runs the clients, the fault among them, and waits until the service is whole.
async fn under_load<F>(
    name: &str,
    spec: Value,
    fault: impl FnOnce(Platform, Arc<Deployed>) -> F,
) -> Result<Account>
where
    F: Future<Output = Result<()>>,
{
    let platform = Platform::get().await?;
    let clients = if spec["transport"]["stdio"].is_null() { CLIENTS } else { STDIO_CLIENTS };
    // Calls of a second are to finish, however slowly new pods come.
    let patient = json!({ "replicas": 2, "drain": { "timeoutSeconds": 60 } });
    let service = Arc::new(platform.deploy(name, with(spec, patient)).await?);
    let load = Load::start(&platform.broker, &service.server_name(), clients);
    load.all_answered().await?;
    tokio::time::sleep(AROUND).await;
    let start = Instant::now();
    fault(platform.clone(), service.clone()).await?;
    service.registered(2).await?;
    println!("{name}: whole again {:?} after the fault", start.elapsed());
    load.all_answered().await?;
    tokio::time::sleep(AROUND).await;
    let account = load.finish().await?;
    // The end of the fault is the end of refusals: a fresh client is served.
    let client = platform.client().await?;
    let session = service.plain_session(&client).await?;
    assert_eq!(text(&call(&session, "echo", json!({ "message": "after" })).await?)?, "Echo: after");
    client.close(PATIENCE).await?;
    let service = Arc::into_inner(service).context("the fault kept the service")?;
    service.remove().await?;
    Ok(account)
}

/// Kills the first process of a container, from inside the node.
async fn kill_container(service: &Deployed, container: &str) -> Result<()> {
    let pod = service.live_pods().await?.into_iter().next().context("no pod")?;
    let before = container_status(service, &pod, container).await?;
    node::kill_container(before.container_id.as_deref().context("the container does not run")?)?;
    let restarted = async {
        while container_status(service, &pod, container).await?.restart_count == before.restart_count {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, restarted)
        .await
        .with_context(|| format!("{container} was not restarted"))?
}

pub(crate) async fn container_status(
    service: &Deployed,
    pod: &str,
    container: &str,
) -> Result<ContainerStatus> {
    let status = service.pods().get(pod).await?.status.context("a pod without status")?;
    let all = status
        .container_statuses
        .into_iter()
        .flatten()
        .chain(status.init_container_statuses.into_iter().flatten());
    all.into_iter()
        .find(|status| status.name == container)
        .with_context(|| format!("no container {container}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_killed() -> Result<()> {
    let kill = |_, service: Arc<Deployed>| async move {
        let pod = service.live_pods().await?.into_iter().next().context("no pod")?;
        service
            .pods()
            .delete(&pod, &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() })
            .await?;
        Ok(())
    };
    under_load("podkill", everything_over_http(), kill).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_container_is_killed() -> Result<()> {
    under_load("serverkill", everything_over_http(), |_, service| async move {
        kill_container(&service, "server").await
    })
    .await
    .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stdio_server_container_is_killed() -> Result<()> {
    under_load("shimkill", everything_over_stdio(), |_, service| async move {
        kill_container(&service, "server").await
    })
    .await
    .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_container_is_killed() -> Result<()> {
    under_load("gatewaykill", everything_over_stdio(), |_, service| async move {
        kill_container(&service, "gateway").await
    })
    .await
    .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_container_before_a_server_over_http_is_killed() -> Result<()> {
    under_load("httpgateway", everything_over_http(), |_, service| async move {
        kill_container(&service, "gateway").await
    })
    .await
    .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_is_rolled_over_to_a_new_template() -> Result<()> {
    let roll = |_: Platform, service: Arc<Deployed>| async move {
        let before = service.live_pods().await?;
        service.patch(json!({ "spec": { "server": { "env": [{ "name": "PORT", "value": "3001" }, { "name": "ROLLED", "value": "1" }] } } })).await?;
        let rolled = async {
            loop {
                let now = service.live_pods().await?;
                if now.len() == 2 && now.iter().all(|pod| !before.contains(pod)) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(PATIENCE, rolled).await.context("the rollout does not end")?
    };
    let account = under_load("rollout", everything_over_http(), roll).await?;
    none_cut(&account)
}

/// What could finish within the drain did: sessions ended, but no call that a server may have begun was cut off.
fn none_cut(account: &Account) -> Result<()> {
    ensure!(account.cut == 0, "{} calls were cut off: {:?}", account.cut, account.reasons);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_is_scaled_out_and_in() -> Result<()> {
    let account = under_load("scale", everything_over_http(), |_, service| async move {
        service.patch(json!({ "spec": { "replicas": 3 } })).await?;
        service.registered(3).await?;
        service.patch(json!({ "spec": { "replicas": 1 } })).await?;
        service.registered(1).await?;
        service.patch(json!({ "spec": { "replicas": 2 } })).await
    })
    .await?;
    none_cut(&account)
}

/// Half-open connections on a real network: nobody hears anybody, and no socket says so.
#[tokio::test(flavor = "multi_thread")]
async fn packets_between_a_gateway_and_the_broker_are_dropped() -> Result<()> {
    let platform = Platform::get().await?;
    let spec = with(everything_over_http(), json!({ "gateway": { "keepAlive": "5s" } }));
    let service = platform.deploy("blackhole", spec).await?;
    let pod = service.live_pods().await?.into_iter().next().context("no pod")?;
    let before = container_status(&service, &pod, "gateway").await?;
    let gateway = node::first_process(before.container_id.as_deref().context("the gateway does not run")?)?;
    let admin = service.admin(&pod).await?;
    let descriptors = || baseline::fds(gateway.as_raw_nonzero().get().unsigned_abs());
    let held = descriptors();

    let client = platform.client().await?;
    let session = service.plain_session(&client).await?;
    let calling = session.clone();
    let waiting = tokio::spawn(async move {
        call(&calling, "trigger-long-running-operation", json!({ "duration": 60, "steps": 1 })).await
    });
    eventually(PATIENCE, async || (metric_at(admin, "requests_in_flight").await.ok()? == 1).then_some(()))
        .await
        .context("the call does not reach the gateway")?;
    let start = Instant::now();
    let blackhole = node::Blackhole::of_port(gateway, 1883)?;

    // The broker misses the keep-alive, and tells by the gateway's will.
    let error =
        tokio::time::timeout(PATIENCE, waiting).await.context("the call hangs")??.expect_err("unheard");
    println!("blackhole: the client was told after {:?}: {error:#}", start.elapsed());
    service.registered(0).await?;
    // The gateway misses the answer to its ping, tries again, and is not heard then either.
    let told = service.status(|status| condition(status, "Registered")["status"] == "False").await?;
    let message = condition(&told, "Registered")["message"].as_str().unwrap_or_default();
    println!("blackhole: {:?}: {message}", start.elapsed());
    eventually(PATIENCE, async || {
        (metric_at(admin, "broker_connect_failures_total{reason=\"BrokerUnreachable\"}").await.ok()? >= 1)
            .then_some(())
    })
    .await
    .context("the gateway does not try to connect")?;
    assert_eq!(metric_at(admin, "sessions_ended_total{reason=\"broker-lost\"}").await?, 1);
    assert_eq!(metric_at(admin, "sessions").await?, 0);

    blackhole.close()?;
    let over = Instant::now();
    service.registered(1).await?;
    println!("blackhole: registered again {:?} after its end", over.elapsed());
    assert_eq!(metric_at(admin, "broker_reconnects_total").await?, 1);
    let session = service.plain_session(&client).await?;
    assert_eq!(text(&call(&session, "echo", json!({ "message": "after" })).await?)?, "Echo: after");
    session.close();
    let after = container_status(&service, &pod, "gateway").await?;
    assert_eq!(after.container_id, before.container_id, "nothing is gained by a restart");
    eventually(PATIENCE, async || (descriptors() <= held + 2).then_some(()))
        .await
        .with_context(|| format!("{} descriptors, {held} before", descriptors()))?;
    client.close(PATIENCE).await?;
    service.remove().await
}
