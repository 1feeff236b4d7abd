//! Scaling that knows sessions: Kubernetes' own autoscaler goes by them, and the emptiest instance goes first.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{autoscaling::v2::HorizontalPodAutoscaler, events::v1::Event};
use kube::{Api, ResourceExt, api::ListParams};
use mcp_mqtt_tests::platform::{
    Deployed, PATIENCE, Platform, call, everything_over_http, everything_over_stdio, text, with,
};
use mcp_mqtt_transport::client::{Client, Instance, Session, Unhandled};
use serde_json::{Value, json, value::RawValue};
use tokio::time::Instant;

/// Opens a session with this very instance.
async fn open(client: &Client, instance: &Instance) -> Result<Session> {
    let capabilities = RawValue::from_string("{}".to_owned())?;
    Ok(client.open_session(instance, &capabilities, std::sync::Arc::new(Unhandled), PATIENCE).await?)
}

/// One client a session: a client has one session with a server.
async fn clients(platform: &Platform, count: usize) -> Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        clients.push(platform.client().await?);
    }
    Ok(clients)
}

async fn echoes(session: &Session, message: &str) -> Result<()> {
    let answer = call(session, "echo", json!({ "message": message })).await?;
    ensure!(text(&answer)? == format!("Echo: {message}"), "{answer}");
    Ok(())
}

/// Waits until it has so many instances; asks kindly, as an autoscaler takes its time.
async fn until_instances(service: &Deployed, count: usize) -> Result<Vec<String>> {
    let wait = async {
        loop {
            let pods = service.live_pods().await?;
            if pods.len() == count {
                return anyhow::Ok(pods);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    if let Ok(pods) = tokio::time::timeout(PATIENCE + PATIENCE, wait).await {
        return pods;
    }
    let status = service.status(|_| true).await?;
    anyhow::bail!("not {count} instances, but {:?}; {status:#}", service.live_pods().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_instances_without_sessions_go_first_and_the_others_sessions_go_on() -> Result<()> {
    let platform = Platform::get().await?;
    let service =
        platform.deploy("shrinking", with(everything_over_http(), json!({ "replicas": 3 }))).await?;
    let instances = service.registered(3).await?;
    // By its own rules Kubernetes would end the youngest pods first: the youngest one is made the busy one.
    let pods = service.pods().list(&ListParams::default()).await?;
    let youngest = pods.items.iter().max_by_key(|pod| {
        pod.status.as_ref().and_then(|status| status.start_time.as_ref().map(|time| time.0))
    });
    let youngest = youngest.context("a pod")?.name_any();
    let busy = instances.iter().find(|instance| service.pod_of(instance).is_ok_and(|pod| pod == youngest));
    let busy = busy.context("the youngest pod's instance")?;
    let clients = clients(&platform, 3).await?;
    let mut sessions = Vec::new();
    for client in &clients {
        sessions.push(open(client, busy).await?);
    }
    service.status(|status| status["sessions"] == 3).await?;

    service.patch(json!({ "spec": { "replicas": 1 } })).await?;
    let left = until_instances(&service, 1).await?;
    ensure!(left == [service.pod_of(busy)?], "{left:?} is left, and not the one with sessions");
    for session in &sessions {
        echoes(session, "still here").await?;
    }
    let pod = service.pods().get(&left[0]).await?;
    ensure!(
        pod.annotations().get("controller.kubernetes.io/pod-deletion-cost").map(String::as_str) == Some("3"),
        "{:?}",
        pod.annotations()
    );
    for client in clients {
        client.close(PATIENCE).await?;
    }
    service.remove().await
}

/// The Events of this reason about the service, by what they say.
pub(crate) async fn events(service: &Deployed, reason: &str) -> Result<Vec<String>> {
    let events = Api::<Event>::namespaced(service.kube(), &service.namespace);
    let all = events.list(&ListParams::default()).await?.items;
    let told = all.into_iter().filter(|event| {
        let about = event.regarding.as_ref().and_then(|about| about.kind.as_deref());
        event.reason.as_deref() == Some(reason) && about == Some("McpService")
    });
    Ok(told.filter_map(|event| event.note).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_goes_down_and_waits_for_its_sessions_is_told_of_until_they_are_over() -> Result<()>
{
    /// The status tells of sessions every few seconds, and of the drain after that.
    const CALL_SECONDS: u32 = 30;
    let platform = Platform::get().await?;
    let two = json!({ "replicas": 2, "drain": { "timeoutSeconds": 60 } });
    let service = platform.deploy("lingering", with(everything_over_stdio(), two)).await?;
    let instances = service.registered(2).await?;
    let clients = clients(&platform, 2).await?;
    // One at each instance, so that whichever goes has a session and a call under way.
    let (mut sessions, mut calls) = (Vec::new(), Vec::new());
    for (client, instance) in clients.iter().zip(&instances) {
        let session = open(client, instance).await?;
        sessions.push(session.clone()); // it ends with its last handle
        calls.push(tokio::spawn(async move {
            let arguments = json!({ "duration": CALL_SECONDS, "steps": 2 });
            call(&session, "trigger-long-running-operation", arguments).await
        }));
    }
    service.status(|status| status["sessions"] == 2).await?;
    let reason = |status: &Value| status["conditions"][1]["reason"].clone();
    ensure!(events(&service, "DrainingSessions").await?.is_empty(), "nothing goes down yet");
    service.patch(json!({ "spec": { "replicas": 1 } })).await?;
    let status = service.status(|status| reason(status) == "DrainingSessions").await?;
    let under_way = calls.iter().filter(|call| !call.is_finished()).count();
    ensure!(under_way == 2, "it is told of when the calls are over");
    let [left] = &service.live_pods().await?[..] else { anyhow::bail!("one instance was to stay") };
    let pods = instances.iter().map(|instance| service.pod_of(instance)).collect::<Result<Vec<_>>>()?;
    let leaves = pods.iter().find(|pod| *pod != left).context("the one that goes")?;
    let said = format!("1 of 1 instances ready; {leaves} is draining and has 1 session left");
    ensure!(status["conditions"][1]["status"] == "True", "{status}");
    ensure!(status["conditions"][1]["message"] == said.as_str(), "{status}");
    for call in calls {
        let answer = call.await?.context("a call that was under way when its instance had to go")?;
        ensure!(text(&answer)?.contains("completed"), "{answer}");
    }
    service.status(|status| reason(status) == "Ready" && status["sessions"] == 1).await?;
    let told = events(&service, "DrainingSessions").await?;
    ensure!(told == [said], "{told:?}");
    for client in clients {
        client.close(PATIENCE).await?;
    }
    service.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_own_autoscaler_goes_by_the_sessions() -> Result<()> {
    let platform = Platform::get().await?;
    let autoscaling = json!({
        "maxReplicas": 3,
        "sessions": { "targetPerReplica": 2 },
        "inFlight": { "targetPerReplica": 100 },
        "behavior": { "scaleDown": { "stabilizationWindowSeconds": 0 } },
    });
    let service = platform
        .deploy("elastic", with(everything_over_stdio(), json!({ "autoscaling": autoscaling })))
        .await?;
    let clients = clients(&platform, 5).await?;
    let mut sessions = Vec::new();
    for client in &clients {
        sessions.push(service.plain_session(client).await?);
    }
    until_instances(&service, 3).await?;
    service.registered(3).await?;
    for session in &sessions {
        echoes(session, "while it grew").await?;
    }
    let autoscalers = Api::<HorizontalPodAutoscaler>::namespaced(platform.kube.clone(), &service.namespace);
    let autoscaler = autoscalers.list(&ListParams::default()).await?.items.pop().context("an autoscaler")?;
    let seen: Value = serde_json::to_value(autoscaler.status)?;
    ensure!(seen["conditions"].to_string().contains("ScalingActive"), "{seen}");
    for (at, name) in ["mcp_sessions", "mcp_requests_in_flight"].into_iter().enumerate() {
        let metric = &seen["currentMetrics"][at]["object"];
        ensure!(metric["metric"]["name"] == name && metric["current"].is_object(), "no {name}: {seen}");
    }

    // All but one leave: one instance is enough, and it is the one where the last session is.
    let last = sessions.pop().context("a session")?;
    for session in sessions {
        session.close();
    }
    until_instances(&service, 1).await?;
    echoes(&last, "alone").await?;
    ensure!(service.api().get(&service.name).await?.spec.replicas == 1, "who wrote it?");
    for client in clients {
        client.close(PATIENCE).await?;
    }
    service.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_refused_count_where_they_are_to() -> Result<()> {
    let platform = Platform::get().await?;
    // What is open alone would never ask for more than one instance.
    let spec = json!({
        "gateway": { "maxSessions": 2 },
        "autoscaling": { "maxReplicas": 2, "sessions": { "targetUtilization": 100, "includeRefused": true } },
    });
    let service = platform.deploy("refusing", with(everything_over_stdio(), spec)).await?;
    let clients = clients(&platform, 3).await?;
    let only = service.registered(1).await?.pop().context("an instance")?;
    let mut sessions = Vec::new();
    for client in &clients[..2] {
        sessions.push(open(client, &only).await?);
    }
    let begun = Instant::now();
    while service.live_pods().await?.len() < 2 {
        ensure!(begun.elapsed() < PATIENCE, "nobody heeds those that are refused");
        ensure!(open(&clients[2], &only).await.is_err(), "two sessions are all");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let instances = service.registered(2).await?;
    let other = instances.iter().find(|instance| **instance != only).context("another instance")?;
    echoes(&open(&clients[2], other).await?, "at last").await?;
    for client in clients {
        client.close(PATIENCE).await?;
    }
    service.remove().await
}
