//! Instances without a kubelet: the pods that the controller manager made are called running and ready, each with an
//! address of the loopback, where one listener answers for all their gateways.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use axum::{Json, Router, extract::State, http::HeaderMap, routing::get};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use mcp_mqtt_operator::names::SERVICE_ANNOTATION;
use mcp_mqtt_sidecar::{
    config::ADMIN_PORT,
    status::{GatewayStatus, Part, ServerInfo, reason},
};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::stage::AT_ONCE;

/// Pods in a page of the list.
const PAGE: u32 = 500;

/// By address.
type Gateways = Arc<HashMap<String, GatewayStatus>>;

/// Answers until it is dropped.
pub(crate) struct Instances(JoinHandle<()>);

impl Instances {
    /// Brings up what is pending, and answers for it.
    pub(crate) async fn bring_up(pods: &Api<Pod>) -> Result<Self> {
        let mut found = Vec::new();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = pods.list_metadata(&page).await?;
            let next = list.metadata.continue_.clone().filter(|next| !next.is_empty());
            found.extend(list.items);
            match next {
                Some(next) => page = ListParams::default().limit(PAGE).continue_token(&next),
                None => break,
            }
        }
        let placed: Vec<(String, String, String)> = found
            .iter()
            .enumerate()
            .map(|(number, pod)| {
                let service = pod.annotations().get(SERVICE_ANNOTATION).cloned().unwrap_or_default();
                (pod.name_any(), address(number), service)
            })
            .collect();
        let namespace = found.first().and_then(ResourceExt::namespace).context("there are no pods")?;
        let gateways: Gateways = Arc::new(
            placed.iter().map(|(pod, ip, service)| (ip.clone(), gateway(&namespace, service, pod))).collect(),
        );
        let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], ADMIN_PORT))).await?;
        let app = Router::new().route("/status", get(answer)).with_state(gateways);
        let task = tokio::spawn(async move { drop(axum::serve(listener, app).await) });
        let placing = futures::stream::iter(&placed).map(|(pod, ip, _)| async move {
            pods.patch_status(pod, &PatchParams::default(), &Patch::Merge(running(ip))).await.map(drop)
        });
        placing.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        Ok(Self(task))
    }
}

impl Drop for Instances {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn address(number: usize) -> String {
    format!("127.{}.{}.{}", 1 + number / 62_500, number / 250 % 250, 1 + number % 250)
}

async fn answer(State(gateways): State<Gateways>, headers: HeaderMap) -> Json<Option<GatewayStatus>> {
    let host = headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
    Json(host.split(':').next().and_then(|ip| gateways.get(ip)).cloned())
}

fn gateway(namespace: &str, service: &str, pod: &str) -> GatewayStatus {
    let part = |reason: &str, message: &str| Part {
        ok: true,
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    GatewayStatus {
        server_id: format!("kubernetes.{namespace}.{pod}"),
        server_name: format!("{namespace}/{service}"),
        backend: part(reason::BACKEND_READY, "the server answers initialize"),
        broker: part(reason::REGISTERED, "the broker has the presence"),
        draining: false,
        sessions: 0,
        in_flight: 0,
        idle_seconds: None,
        refused_sessions: 0,
        server: Some(ServerInfo {
            name: "weather".to_owned(),
            version: "3.0.0".to_owned(),
            protocol_version: "2025-11-25".to_owned(),
        }),
        workers: Vec::new(),
    }
}

/// As a kubelet tells it.
fn running(ip: &str) -> serde_json::Value {
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string();
    let id = |name: &str| format!("containerd://{}", name.repeat(16).chars().take(64).collect::<String>());
    let condition = |type_: &str| json!({"type": type_, "status": "True", "lastTransitionTime": now});
    let container = |name: &str, state: serde_json::Value| {
        json!({
            "name": name, "ready": true, "started": true, "restartCount": 0, "image": "registry.example/weather:3",
            "imageID": format!("registry.example/weather@sha256:{}", "0".repeat(64)),
            "containerID": id("0123456789abcdef"), "state": state, "lastState": {},
        })
    };
    let running = json!({"running": {"startedAt": now}});
    let conditions = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
        .map(condition);
    json!({"status": {
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "198.18.0.1", "startTime": now, "qosClass": "Burstable",
        "conditions": conditions,
        "initContainerStatuses": [container("gateway", running.clone())],
        "containerStatuses": [container("server", running)],
    }})
}
