//! Services that sleep, woken one after the other: what the client waits for that comes first.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use kube::api::ListParams;
use mcp_mqtt_tests::{
    cluster::eventually,
    platform::{Deployed, PATIENCE, Platform, everything_over_http, with},
};
use mcp_mqtt_transport::client::Unhandled;
use serde_json::{json, value::RawValue};

/// From a client's `initialize` to its answer, each time.
pub(crate) struct Wakes(Vec<Duration>);

impl Wakes {
    /// Lets a service fall asleep and wakes it, so many times.
    pub(crate) async fn measure(count: usize) -> Result<Self> {
        let platform = Platform::get().await?;
        let autoscaling = json!({ "minReplicas": 0, "maxReplicas": 1, "idleSeconds": 1 });
        let spec = json!({ "autoscaling": autoscaling, "drain": { "timeoutSeconds": 1 } });
        let service = platform.deploy("wakes", with(everything_over_http(), spec)).await?;
        let capabilities = RawValue::from_string("{}".to_owned())?;
        let mut took = Vec::with_capacity(count);
        for number in 1..=count {
            asleep(&service).await?;
            let client = platform.client().await?;
            let instance = client.find(&service.server_name(), PATIENCE).await?;
            let begin = Instant::now();
            client.open_session(&instance, &capabilities, Arc::new(Unhandled), PATIENCE).await?;
            took.push(begin.elapsed());
            eprintln!("wake {number} of {count}: {:.2} s", begin.elapsed().as_secs_f64());
            client.close(PATIENCE).await?;
        }
        service.remove().await?;
        took.sort_unstable();
        Ok(Self(took))
    }
}

/// Waits until it has no pod any more, and can be woken.
async fn asleep(service: &Deployed) -> Result<()> {
    service.status(|status| status["conditions"][1]["reason"] == "Asleep").await?;
    let pods = service.pods();
    let none = async || pods.list(&ListParams::default()).await.ok()?.items.is_empty().then_some(());
    eventually(PATIENCE, none).await.context("its pods stay")
}

impl fmt::Display for Wakes {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |index: usize| self.0.get(index).copied().unwrap_or_default().as_secs_f64();
        let (median, longest) = (at(self.0.len() / 2), at(self.0.len().saturating_sub(1)));
        write!(
            to,
            "{} wakes of a service asleep, its image on the node: initialize to answer, median {median:.2} s, longest \
             {longest:.2} s (aim: 3 s)",
            self.0.len()
        )
    }
}
