//! Services that sleep, woken one after the other: what the client waits for that comes first, and for what in it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use mcp_mqtt_tests::{
    cluster::eventually,
    platform::{Deployed, PATIENCE, Platform, everything_over_http, with},
};
use mcp_mqtt_transport::client::Unhandled;
use serde_json::{json, value::RawValue};

use crate::stages::{Pods, STAGES, Stages};

/// So soon a client is to have its answer, each time.
const AIM: Duration = Duration::from_secs(3);

/// The kubelet looks so often what has become of containers. That the last pod has gone is seen at such a look: who begins
/// then sees the same part of the time between two of them at each wake.
const LOOKS: Duration = Duration::from_secs(1);

/// Says that its container runs, and ends when it is told to, as Node as the first process of a container does not: the
/// next wake waits for that.
const SERVER: &str = "echo runs; \"$@\" & trap 'kill $!' TERM; wait";

/// From a client's `initialize` to its answer, each time.
pub(crate) struct Wakes(Vec<(Duration, Stages)>);

impl Wakes {
    /// Lets a service fall asleep and wakes it, so many times.
    pub(crate) async fn measure(count: usize) -> Result<Self> {
        let platform = Platform::get().await?;
        let spec = json!({
            "autoscaling": { "minReplicas": 0, "maxReplicas": 1, "idleSeconds": 1 },
            "drain": { "timeoutSeconds": 1 },
            "server": { "command": ["sh", "-c", SERVER, "server"] },
        });
        let service = platform.deploy("wakes", with(everything_over_http(), spec)).await?;
        let capabilities = RawValue::from_string("{}".to_owned())?;
        let mut took = Vec::with_capacity(count);
        for number in 1..=count {
            asleep(&service).await?;
            let client = platform.client().await?;
            let instance = client.find(&service.server_name(), PATIENCE).await?;
            let pods = Pods::watch(&service).await?;
            tokio::time::sleep(LOOKS.mul_f64(fastrand::f64())).await;
            let (begin, said) = (Instant::now(), Timestamp::now());
            client.open_session(&instance, &capabilities, Arc::new(Unhandled), PATIENCE).await?;
            let (waited, answered) = (begin.elapsed(), Timestamp::now());
            let stages = Stages::read(&platform, &service, &pods, [said, answered]).await?;
            eprintln!("wake {number} of {count}: {:.2} s ({stages})", waited.as_secs_f64());
            took.push((waited, stages));
            client.close(PATIENCE).await?;
        }
        service.remove().await?;
        took.sort_unstable_by_key(|(waited, _)| *waited);
        Ok(Self(took))
    }

    /// Whether the aim was met each time.
    ///
    /// # Errors
    /// It was not.
    pub(crate) fn check(&self) -> Result<()> {
        let late = self.0.iter().filter(|(waited, _)| *waited > AIM).count();
        ensure!(late == 0, "{late} of {} wakes took longer than {AIM:?}", self.0.len());
        Ok(())
    }
}

/// Waits until it has no pod any more, and can be woken.
async fn asleep(service: &Deployed) -> Result<()> {
    service.status(|status| status["conditions"][1]["reason"] == "Asleep").await?;
    let pods = service.pods();
    let none = async || pods.list(&ListParams::default()).await.ok()?.items.is_empty().then_some(());
    eventually(PATIENCE, none).await.context("its pods stay")
}

/// The median and the longest, in seconds.
fn spread(times: impl Iterator<Item = Duration>) -> (f64, f64) {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default().as_secs_f64();
    (at(times.len() / 2), at(times.len().saturating_sub(1)))
}

impl fmt::Display for Wakes {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (median, longest) = spread(self.0.iter().map(|(waited, _)| *waited));
        writeln!(
            to,
            "{} wakes of a service asleep, its image on the node: initialize to answer (aim: {} s)\n\n{:65} │ {:>8} {:>9}",
            self.0.len(),
            AIM.as_secs(),
            "",
            "median s",
            "longest s"
        )?;
        for (index, stage) in STAGES.iter().enumerate() {
            let (median, longest) = spread(self.0.iter().map(|(_, stages)| stages.took(index)));
            writeln!(to, "{stage:65} │ {median:>8.2} {longest:>9.2}")?;
        }
        write!(to, "{:65} │ {median:>8.2} {longest:>9.2}", "all of it")
    }
}
