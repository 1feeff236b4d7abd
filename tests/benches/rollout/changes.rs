//! The changes: each takes instances away, and ends when the service is whole again.

use std::{fmt, time::Duration};

use anyhow::{Context, Result};
use kube::api::EvictParams;
use mcp_mqtt_tests::{
    cluster::eventually,
    platform::{Deployed, PATIENCE, Platform},
};
use serde_json::json;

use crate::REPLICAS;

/// Between two tries to evict a pod that its `PodDisruptionBudget` protects for now.
const AGAIN: Duration = Duration::from_millis(500);

/// Something that takes instances away on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// The server's environment changes.
    Template,
    /// Half of the instances go.
    ScaleIn,
    /// The pods are evicted, as `kubectl drain` does it.
    Eviction,
    /// Operator and gateway come from images of other names.
    Upgrade,
}

/// In the order in which they are made.
pub(crate) const CHANGES: [Change; 4] =
    [Change::Template, Change::ScaleIn, Change::Eviction, Change::Upgrade];

impl fmt::Display for Change {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.pad(match self {
            Self::Template => "rolling update",
            Self::ScaleIn => "scale-in, 4 to 2",
            Self::Eviction => "drain of the node",
            Self::Upgrade => "upgrade of operator and gateway",
        })
    }
}

impl Change {
    /// Makes it, and waits until the service is whole.
    pub(crate) async fn make(self, service: &Deployed) -> Result<()> {
        let before = service.live_pods().await?;
        match self {
            Self::Template => {
                let env = json!([{ "name": "PORT", "value": "3001" }, { "name": "ROLLED", "value": "1" }]);
                service.patch(json!({ "spec": { "server": { "env": env } } })).await?;
                replaced(service, &before).await
            }
            Self::ScaleIn => {
                service.patch(json!({ "spec": { "replicas": REPLICAS / 2 } })).await?;
                service.registered(REPLICAS / 2).await.map(drop)
            }
            Self::Eviction => {
                for pod in &before {
                    evict(service, pod).await?;
                }
                replaced(service, &before).await
            }
            Self::Upgrade => {
                // The same images under their long names: to Kubernetes they are others.
                let names = ["image", "sidecar.image"].map(|image| {
                    let name = if image == "image" { "operator" } else { "sidecar" };
                    format!("{image}.repository=docker.io/library/mcp-mqtt-{name}")
                });
                Platform::with(&names.each_ref().map(String::as_str)).await?;
                replaced(service, &before).await
            }
        }
    }
}

/// Waits until all instances are others and stand in the registry.
async fn replaced(service: &Deployed, before: &[String]) -> Result<()> {
    eventually(2 * PATIENCE, async || {
        let now = service.live_pods().await.ok()?;
        (now.len() == before.len() && now.iter().all(|pod| !before.contains(pod))).then_some(())
    })
    .await
    .context("the pods are not replaced")?;
    service.registered(before.len()).await.map(drop)
}

/// Evicts a pod as soon as its `PodDisruptionBudget` allows, and waits until it is gone.
async fn evict(service: &Deployed, pod: &str) -> Result<()> {
    let pods = service.pods();
    eventually(2 * PATIENCE, async || match pods.evict(pod, &EvictParams::default()).await {
        Err(kube::Error::Api(answer)) if answer.code == 429 => {
            tokio::time::sleep(AGAIN).await;
            None
        }
        answer => Some(answer),
    })
    .await
    .with_context(|| format!("{pod} may not be evicted"))??;
    let gone = async || matches!(pods.get_opt(pod).await, Ok(None)).then_some(());
    eventually(PATIENCE, gone).await.with_context(|| format!("{pod} does not go"))
}
