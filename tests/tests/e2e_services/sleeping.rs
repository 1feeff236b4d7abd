//! Services that sleep when nobody uses them, and wake with the first `initialize`: nobody who calls one is turned
//! away, and the registry shows it throughout.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use mcp_mqtt_tests::{
    load::Load,
    platform::{NAMESPACE, PATIENCE, Platform, call, everything_over_http, text, with},
    presences::Presences,
};
use mcp_mqtt_transport::{
    client::{Client, Instance, OpenError, Session, Unhandled},
    jsonrpc::RpcError,
};
use serde_json::{Value, json, value::RawValue};

use crate::OPERATOR;

/// A service that sleeps after so many seconds.
fn sleepy(idle: u32, change: Value) -> Value {
    let autoscaling =
        json!({ "minReplicas": 0, "maxReplicas": 2, "idleSeconds": idle, "wakeTimeoutSeconds": 110 });
    with(with(everything_over_http(), json!({ "autoscaling": autoscaling })), change)
}

async fn open(client: &Client, instance: &Instance) -> Result<Session, OpenError> {
    let capabilities = RawValue::from_string("{}".to_owned()).expect("an object");
    client.open_session(instance, &capabilities, Arc::new(Unhandled), PATIENCE).await
}

/// The error that the operator itself said.
fn told(error: &OpenError) -> Option<&RpcError> {
    match error {
        OpenError::Initialize(error) => error.rpc(),
        _ => None,
    }
}

async fn echoes(session: &Session) -> Result<()> {
    let answer = call(session, "echo", json!({ "message": "awake" })).await?;
    ensure!(text(&answer)? == "Echo: awake", "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_nobody_uses_sleeps_and_the_first_call_wakes_it() -> Result<()> {
    let platform = Platform::get().await?;
    let service = platform.deploy("drowsy", sleepy(3, json!({}))).await?;
    // From now on the registry is never without it.
    service.registered(1).await?;
    let gap = Presences::of(&platform.broker, &service.server_name()).await?.gap().await?;
    let mut woken = Vec::new();
    for round in 0..3 {
        let instance = service.asleep().await?;
        let client = platform.client().await?;
        let start = Instant::now();
        let session = open(&client, &instance).await?;
        woken.push(start.elapsed());
        echoes(&session).await?;
        let awake = service.registered(1).await?.pop().context("a presence")?;
        ensure!(awake.server_id == instance.server_id && !awake.online.is_parked(), "{awake:?}");
        ensure!(service.api().get(&service.name).await?.spec.replicas == 1, "round {round}");
        service.status(|status| status["sessions"] == 1 && status["ready"] == "1/1").await?;
        client.close(PATIENCE).await?;
    }
    println!("from the first initialize to its answer: {woken:?}");
    ensure!(!gap.is_finished(), "for a moment the registry did not show it");
    gap.abort();
    service.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_clients_that_come_at_once_are_all_answered() -> Result<()> {
    const CLIENTS: usize = 100;
    let platform = Platform::get().await?;
    let room = json!({ "replicas": 0, "gateway": { "maxSessions": CLIENTS } });
    let service = platform.deploy_asleep("crowded", sleepy(60, room)).await?;
    let instance = service.asleep().await?;
    let mut clients = Vec::with_capacity(CLIENTS);
    for _ in 0..CLIENTS {
        clients.push(platform.client().await?);
    }
    let start = Instant::now();
    let sessions = try_join_all(clients.iter().map(|client| open(client, &instance))).await?;
    println!("{CLIENTS} clients are answered {:?} after they asked a sleeping service", start.elapsed());
    try_join_all(sessions.iter().map(echoes)).await?;
    for client in clients {
        client.close(PATIENCE).await?;
    }
    service.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_scaled_out_from_its_sleep_ends_no_session() -> Result<()> {
    let platform = Platform::get().await?;
    // The autoscaler finds one instance enough for so few sessions; that is not what this is about.
    let stays = json!({ "scaleDown": { "selectPolicy": "Disabled" } });
    let wide = json!({ "replicas": 0, "autoscaling": { "maxReplicas": 3, "behavior": stays } });
    let service = platform.deploy_asleep("stirred", sleepy(60, wide)).await?;
    service.asleep().await?;
    service.patch(json!({ "spec": { "replicas": 3 } })).await?;
    // They come before any instance does, and stay.
    let load = Load::start(&platform.broker, &service.server_name(), 8);
    service.registered(3).await?;
    load.all_answered().await?;
    let account = load.finish().await?;
    ensure!(account.refused == 0 && account.reasons.is_empty(), "{:?}", account.reasons);
    service.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_dies_in_the_middle_of_a_wake_loses_nobody() -> Result<()> {
    const CLIENTS: usize = 10;
    let platform = Platform::get().await?;
    let service = platform.deploy_asleep("orphaned", sleepy(60, json!({ "replicas": 0 }))).await?;
    let instance = service.asleep().await?;
    let mut clients = Vec::with_capacity(CLIENTS);
    for _ in 0..CLIENTS {
        clients.push(platform.client().await?);
    }
    let alone = OPERATOR.write().await;
    let opening = try_join_all(clients.iter().map(|client| open(client, &instance)));
    let operators = Api::<Pod>::namespaced(platform.kube.clone(), NAMESPACE);
    let kill = async {
        // Half of them while it wakes, the others while there is no operator.
        let ours = ListParams::default().labels("app.kubernetes.io/component=operator");
        for pod in operators.list(&ours).await? {
            let name = pod.metadata.name.context("a name")?;
            operators.delete(&name, &DeleteParams::default().grace_period(0)).await?;
        }
        anyhow::Ok(())
    };
    let start = Instant::now();
    let (sessions, killed) = tokio::join!(opening, kill);
    killed?;
    println!("answered {:?} after they asked, with the operator killed meanwhile", start.elapsed());
    drop(alone);
    try_join_all(sessions?.iter().map(echoes)).await?;
    for client in clients {
        client.close(PATIENCE).await?;
    }
    service.remove().await
}

/// Far below the time that an `initialize` may wait here, and that a client waits.
const SOON: Duration = Duration::from_secs(30);

/// What the operator says to who wakes a service that cannot start.
async fn refused(name: &str, change: Value) -> Result<RpcError> {
    let platform = Platform::get().await?;
    let spec = sleepy(60, with(json!({ "replicas": 0 }), change));
    let service = platform.deploy_asleep(name, spec).await?;
    let instance = service.asleep().await?;
    let client = platform.client().await?;
    let _lives = OPERATOR.read().await;
    let start = Instant::now();
    let error = open(&client, &instance).await.expect_err("it cannot start");
    println!("refused after {:?}: {error}", start.elapsed());
    ensure!(start.elapsed() < SOON, "only after {:?}", start.elapsed());
    let rpc = told(&error).context("the operator's own words")?.clone();
    ensure!(rpc.reason() == Some("wake-failed"), "{rpc:?}");
    client.close(PATIENCE).await?;
    service.remove().await?;
    Ok(rpc)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wakes_what_has_no_image_is_told_so() -> Result<()> {
    let image = json!({ "image": "localhost/no-such-server:1", "imagePullPolicy": "Never" });
    let rpc = refused("broken", json!({ "server": image })).await?;
    ensure!(rpc.message.contains("ErrImageNeverPull"), "{rpc:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wakes_what_ends_at_its_start_is_told_how() -> Result<()> {
    let ends = json!({ "command": ["sh", "-c", "echo no key >&2; exit 7"], "args": [] });
    let rpc = refused("crashing", json!({ "server": ends })).await?;
    ensure!(rpc.message.contains("container server: ended with exit code 7"), "{rpc:?}");
    ensure!(rpc.message.contains("CrashLoopBackOff") && rpc.message.contains("kubectl logs"), "{rpc:?}");
    Ok(())
}
