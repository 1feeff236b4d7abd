//! The control plane, a namespace in it, and the operator as it is shipped.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use mcp_mqtt_tests::{
    audit::Audit,
    baseline, binaries,
    cluster::Space,
    node,
    operator::{BROKER, Log, Operator},
};
use serde_json::{Value, json};
use tokio::{process::Command, time::sleep};

use crate::{CALM, instances::Instances, look::Look, meter::Requests};

/// Names the operator's binary; without it, the one of this build is taken.
const BINARY: &str = "MCP_MQTT_OPERATOR_BINARY";
/// What the node's own programs would do is not what is measured, and takes the same processors.
const HALTED: [&str; 4] = ["kubelet", "kube-scheduler", "kube-proxy", "coredns"];
/// Requests of this measurement under way at one time.
pub(crate) const AT_ONCE: usize = 32;
/// How long it may take until nothing is written any more.
const LIMIT: Duration = Duration::from_mins(10);

/// All of it.
pub(crate) struct Stage {
    pub(crate) space: Space,
    pub(crate) binary: PathBuf,
    pub(crate) look: Look,
    pub(crate) audit: Audit,
    /// What answers for the gateways, once there are any.
    pub(crate) instances: Option<Instances>,
    /// How long the operator is watched at rest.
    pub(crate) rest: Duration,
    halted: Vec<u32>,
    operator: Option<Operator>,
}

impl Stage {
    /// Sets it, with an operator that has nothing to do.
    pub(crate) async fn set(rest: Duration) -> Result<Self> {
        let space = Space::new("bench").await?;
        let halted = HALTED.iter().map(|name| node::component(name)).collect::<Result<Vec<u32>>>()?;
        let binary = std::env::var_os(BINARY).map_or_else(|| binaries::operator().to_owned(), PathBuf::from);
        let look = Look::at(Api::namespaced(space.kube.clone(), &space.namespace)).await?;
        let mut stage = Self {
            space,
            binary,
            look,
            audit: Audit::from_now()?,
            instances: None,
            rest,
            halted,
            operator: None,
        };
        stage.halt()?;
        stage.start(&[]).await?;
        Ok(stage)
    }

    /// Halts what is not measured.
    pub(crate) fn halt(&self) -> Result<()> {
        self.halted.iter().try_for_each(|pid| node::halt(*pid))
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) -> Result<()> {
        self.halted.iter().try_for_each(|pid| node::go_on(*pid))
    }

    /// Takes it down.
    pub(crate) async fn strike(mut self) -> Result<()> {
        self.stop().await?;
        self.go_on()?;
        self.space.remove().await
    }

    /// Starts the operator; when it was started.
    pub(crate) async fn start(&mut self, arguments: &[&str]) -> Result<Instant> {
        let mut command = Command::new(&self.binary);
        command.args(["run", "--namespace", &self.space.namespace, "--admin-address", "127.0.0.1:0"]);
        if !arguments.contains(&"--default-broker-url") {
            command.args(["--default-broker-url", BROKER]);
        }
        if !arguments.contains(&"--sidecar-image") {
            command.args(["--sidecar-image", "registry.example/mcp-mqtt-sidecar:1"]);
        }
        command.args(arguments);
        let start = Instant::now();
        self.operator = Some(Operator::launch(command, Log::Dropped).await?.ready().await?);
        Ok(start)
    }

    /// Ends the operator as Kubernetes does.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        match self.operator.take() {
            Some(operator) => operator.stop().await,
            None => Ok(()),
        }
    }

    pub(crate) fn operator(&self) -> Result<&Operator> {
        self.operator.as_ref().context("no operator runs")
    }

    /// The operator's resident memory.
    pub(crate) fn resident(&self) -> Result<u64> {
        Ok(baseline::memory(self.operator()?.process()?))
    }

    /// Who works here.
    pub(crate) fn parts(&self) -> Result<Vec<(&'static str, u32)>> {
        let mut parts = vec![
            ("API server", node::component("kube-apiserver")?),
            ("etcd", node::component("etcd")?),
            ("controller manager", node::component("kube-controller-manager")?),
            ("this measurement", std::process::id()),
        ];
        if let Some(operator) = &self.operator {
            parts.push(("operator", operator.process()?));
        }
        Ok(parts)
    }

    /// Creates services of these names, all alike, as fast as the API server takes them.
    pub(crate) async fn create(&self, names: &[String], spec: &Value) -> Result<()> {
        let creating = futures::stream::iter(names)
            .map(|name| async move { self.space.create(name, spec).await.map(drop) });
        creating.buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Deletes services and waits until all that was made of them has gone.
    pub(crate) async fn delete(&self, names: &[String]) -> Result<()> {
        let services = &self.space.services();
        let deleting = futures::stream::iter(names)
            .map(|name| async move { services.delete(name, &DeleteParams::default()).await.map(drop) });
        deleting.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        let begin = Instant::now();
        while names.iter().any(|name| self.look.get(name).is_some()) {
            ensure!(begin.elapsed() < LIMIT, "the garbage collector does not take the Deployments");
            sleep(Duration::from_millis(200)).await;
        }
        self.emptied().await
    }

    /// Waits until there is no pod.
    pub(crate) async fn emptied(&self) -> Result<()> {
        let pods: Api<Pod> = self.space.api();
        let begin = Instant::now();
        while !pods.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty() {
            ensure!(begin.elapsed() < LIMIT, "the garbage collector does not take the pods");
            sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    /// Waits until the operator has written nothing for a while; all it asked since the last look.
    pub(crate) async fn settled(&mut self, what: &str) -> Result<Requests> {
        let mut requests = Requests::default();
        let begin = Timestamp::now();
        loop {
            requests.add(&mut self.audit)?;
            let calm =
                Timestamp::now().duration_since(requests.last_write.map_or(begin, |last| last.max(begin)));
            if calm.unsigned_abs() >= CALM {
                return Ok(requests);
            }
            let waited = Timestamp::now().duration_since(begin).unsigned_abs();
            ensure!(waited < LIMIT, "the operator goes on writing");
            eprintln!("{what}: {} writes so far", requests.writes);
            sleep(Duration::from_millis(500)).await;
        }
    }
}

/// A small service as people write it.
pub(crate) fn spec(replicas: u32) -> Value {
    json!({
        "replicas": replicas,
        "description": "What the weather will be.",
        "transport": {"stdio": {"command": ["node", "/app/server.js", "--stdio"]}},
        "server": {
            "image": "registry.example/weather:3",
            "env": [{"name": "LOG_LEVEL", "value": "info"}, {"name": "REGION", "value": "north"}],
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        },
        "gateway": {"maxSessions": 20},
    })
}

/// `service-0000` …
pub(crate) fn names(prefix: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("{prefix}-{number:05}")).collect()
}
