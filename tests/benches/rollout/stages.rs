//! What a wake consists of, by the words of those who take part, each with its time.

use std::{fmt, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures::TryStreamExt;
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::{ListParams, LogParams, WatchEvent, WatchParams},
};
use mcp_mqtt_tests::{
    cluster::eventually,
    platform::{Deployed, NAMESPACE, PATIENCE, Platform},
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

/// What the time goes into, one after the other.
pub(crate) const STAGES: [&str; 8] = [
    "the operator hears of it, and has it written down",
    "Kubernetes makes a pod of it",
    "and finds a node for it",
    "the kubelet has its sandbox and starts the gateway",
    "the binary is installed; the kubelet looks, and starts the server",
    "the server starts, until it listens",
    "the gateway has its answer, and registers in the service's place",
    "the operator passes `initialize` on, and it is answered",
];

/// A time in a request for a log may be so much later.
const ROUNDED: Duration = Duration::from_secs(1);

/// How long each took.
pub(crate) struct Stages([Duration; STAGES.len()]);

/// A pod that came: its name, when it was there, and when it had a node.
#[derive(Debug, Clone)]
struct Born {
    name: String,
    created: Timestamp,
    scheduled: Option<Timestamp>,
}

/// Sees pods come.
pub(crate) struct Pods {
    born: watch::Receiver<Option<Born>>,
    watching: JoinHandle<()>,
}

impl Pods {
    /// From now on, and the first one only.
    pub(crate) async fn watch(service: &Deployed) -> Result<Self> {
        let pods = service.pods();
        let version = pods.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
        let events = pods.watch(&WatchParams::default(), &version).await?;
        let (tell, born) = watch::channel(None);
        let watching = tokio::spawn(async move {
            let mut events = std::pin::pin!(events);
            while let Ok(Some(event)) = events.try_next().await {
                if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event {
                    tell.send_modify(|born| see(born, &pod));
                }
            }
        });
        Ok(Self { born, watching })
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

fn see(born: &mut Option<Born>, pod: &Pod) {
    let (name, now) = (pod.name_any(), Timestamp::now());
    let born = born.get_or_insert_with(|| Born { name: name.clone(), created: now, scheduled: None });
    let has_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    if born.name == name && has_node {
        born.scheduled.get_or_insert(now);
    }
}

impl Stages {
    /// Of the wake between these two times.
    pub(crate) async fn read(
        platform: &Platform,
        service: &Deployed,
        pods: &Pods,
        [said, answered]: [Timestamp; 2],
    ) -> Result<Self> {
        let mut born = pods.born.clone();
        let scheduled = |born: &Option<Born>| born.as_ref().is_some_and(|born| born.scheduled.is_some());
        let born = timeout(PATIENCE, born.wait_for(scheduled)).await??.clone().context("no pod came")?;
        let of_pods = service.pods();
        // The answer may be there before the API server knows that its server runs.
        let log = async |container: &str| {
            let lines = async || log(&of_pods, &born.name, Some(container), said).await.ok();
            eventually(PATIENCE, lines).await.with_context(|| format!("no log of {container}"))
        };
        let (gateway, server) = (log("gateway").await?, log("server").await?);
        let since_then = [
            said,
            wakes(platform, service, said).await?,
            born.created,
            born.scheduled.context("it has no node")?,
            first(&gateway, "")?,
            first(&server, "runs")?,
            first(&server, "listening on port")?,
            first(&gateway, "registered as")?,
            answered,
        ];
        let mut took = [Duration::ZERO; STAGES.len()];
        for (took, times) in took.iter_mut().zip(since_then.windows(2)) {
            // What a watch brings may be told a little after what followed.
            *took = times[1].duration_since(times[0]).try_into().unwrap_or_default();
        }
        Ok(Self(took))
    }

    /// How long the stage of this number took.
    pub(crate) fn took(&self, stage: usize) -> Duration {
        self.0[stage]
    }
}

/// When the operator asked for an instance.
async fn wakes(platform: &Platform, service: &Deployed, said: Timestamp) -> Result<Timestamp> {
    let api: Api<Pod> = Api::namespaced(platform.kube.clone(), NAMESPACE);
    let operators = ListParams::default().labels("app.kubernetes.io/component=operator");
    let mut lines = Vec::new();
    for pod in api.list(&operators).await? {
        lines.extend(log(&api, &pod.name_any(), None, said).await?);
    }
    lines.retain(|(_, line)| line.contains(&service.namespace));
    first(&lines, "\"wakes\"")
}

type Line = (Timestamp, Arc<str>);

async fn log(pods: &Api<Pod>, pod: &str, container: Option<&str>, since: Timestamp) -> Result<Vec<Line>> {
    let parameters = LogParams {
        container: container.map(str::to_owned),
        since_time: Some(since - ROUNDED), // which goes in whole seconds
        timestamps: true,
        ..LogParams::default()
    };
    let text = pods.logs(pod, &parameters).await?;
    let lines = text.lines().filter_map(|line| {
        let (time, line) = line.split_once(' ')?;
        Some((time.parse().ok()?, line.into()))
    });
    Ok(lines.filter(|(time, _)| *time >= since).collect())
}

/// When that was said first.
fn first(lines: &[Line], words: &str) -> Result<Timestamp> {
    let line = lines.iter().find(|(_, line)| line.contains(words));
    Ok(line.with_context(|| format!("nobody said {words:?} in {lines:#?}"))?.0)
}

impl fmt::Display for Stages {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, took) in self.0.iter().enumerate() {
            write!(to, "{}{:.2}", if index == 0 { "" } else { " " }, took.as_secs_f64())?;
        }
        Ok(())
    }
}
