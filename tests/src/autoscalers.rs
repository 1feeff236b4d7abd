//! metrics-server and KEDA, as processes on the cluster's node: built by `cargo xtask cluster autoscalers`, and led to
//! by an `APIService` as if they ran in pods.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::{
    api::core::v1::{Namespace, Node},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, Client as Kube, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

use crate::{binaries::workspace, certificates::Authority, ports::Port};

/// How long one may take until the API server serves what it has to say.
const PATIENCE: Duration = Duration::from_mins(3);
/// Where their Services stand.
const NAMESPACE: &str = "kube-system";
/// Who made them.
const FIELD_MANAGER: &str = "mcp-mqtt-tests";

/// An API that a process on the node serves. [`Served::stop`] takes it away again; dropped, only the processes end.
pub struct Served {
    kube: Kube,
    api: String,
    service: &'static str,
    processes: Vec<Child>,
    ports: Vec<Port>,
    directory: TempDir,
}

impl Served {
    /// metrics-server: CPU and memory of pods, as the autoscaler asks for them.
    ///
    /// # Errors
    /// It is not built, or does not come up.
    pub async fn metrics_server(kube: &Kube) -> Result<Self> {
        let mut served = Self::new(kube, "v1beta1.metrics.k8s.io", "metrics-server")?;
        let port = served.port()?;
        let mut command = program("metrics-server")?;
        command
            .args(kubeconfigs(&["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"])?)
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", served.directory.path().display()))
            .args(["--kubelet-insecure-tls", "--kubelet-preferred-address-types=InternalIP"])
            .arg("--metric-resolution=15s");
        served.spawn(command)?;
        served.publish(port).await?;
        Ok(served)
    }

    /// KEDA: its operator and the adapter that the autoscaler asks, with KEDA's own CRDs.
    ///
    /// # Errors
    /// It is not built, or does not come up.
    pub async fn keda(kube: &Kube) -> Result<Self> {
        let mut served = Self::new(kube, "v1beta1.external.metrics.k8s.io", "keda-adapter")?;
        let crds = Api::<CustomResourceDefinition>::all(kube.clone());
        for crd in serde_yaml::from_multiple::<Value>(&fs::read_to_string(built("keda-crds.yaml")?)?)? {
            let name = crd["metadata"]["name"].as_str().context("a CRD's name")?.to_owned();
            crds.patch(&name, &parameters(), &Patch::Apply(&crd)).await.with_context(|| name)?;
        }
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "keda"}});
        Api::<Namespace>::all(kube.clone()).patch("keda", &parameters(), &Patch::Apply(&namespace)).await?;

        let directory = served.directory.path().to_owned();
        let authority = Authority::new("KEDA")?;
        let leaf = authority.sign("localhost", &["localhost", "127.0.0.1"])?;
        fs::write(directory.join("ca.crt"), &authority.certificate)?;
        fs::write(directory.join("tls.crt"), leaf.certificate)?;
        fs::write(directory.join("tls.key"), leaf.key)?;
        let [grpc, metrics, health, port] = [served.port()?, served.port()?, served.port()?, served.port()?];
        let mut operator = with_cluster_dns("keda-operator", &directory)?;
        operator
            .args(["--zap-log-level=info", "--enable-webhook-patching=false"])
            .arg("--enable-apiservice-patching=false")
            .arg(format!("--cert-dir={}", directory.display()))
            .arg(format!("--metrics-bind-address=127.0.0.1:{metrics}"))
            .arg(format!("--health-probe-bind-address=127.0.0.1:{health}"))
            .arg(format!("--metrics-service-bind-address=127.0.0.1:{grpc}"))
            .envs([
                ("POD_NAMESPACE", "keda"),
                ("KEDA_CLUSTER_OBJECT_NAMESPACE", "keda"),
                ("WATCH_NAMESPACE", ""),
            ]);
        served.spawn(operator)?;
        let mut adapter = with_cluster_dns("keda-adapter", &directory)?;
        let kubeconfigs =
            kubeconfigs(&["lister-kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"])?;
        adapter
            .args(kubeconfigs)
            .arg(format!("--secure-port={port}"))
            .arg(format!("--port={}", served.port()?))
            .arg(format!("--cert-dir={}", directory.display()))
            .arg(format!("--metrics-service-address=localhost:{grpc}"))
            .envs([("POD_NAMESPACE", "keda"), ("WATCH_NAMESPACE", "")]);
        served.spawn(adapter)?;
        served.publish(port).await?;
        Ok(served)
    }

    /// Takes the API away and ends what served it.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn stop(mut self) -> Result<()> {
        // The API first: a group without a server keeps namespaces from being deleted.
        Api::<APIService>::all(self.kube.clone()).delete(&self.api, &DeleteParams::default()).await?;
        let services = Api::<k8s_openapi::api::core::v1::Service>::namespaced(self.kube.clone(), NAMESPACE);
        services.delete(self.service, &DeleteParams::default()).await?;
        for process in &mut self.processes {
            process.kill().await?;
        }
        Ok(())
    }

    /// What its processes said.
    pub fn log(&self) -> String {
        let all = fs::read_to_string(self.log_file()).unwrap_or_default();
        let last: Vec<&str> = all.lines().rev().take(60).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn new(kube: &Kube, api: &str, service: &'static str) -> Result<Self> {
        Ok(Self {
            kube: kube.clone(),
            api: api.to_owned(),
            service,
            processes: Vec::new(),
            ports: Vec::new(),
            directory: tempfile::tempdir()?,
        })
    }

    /// One that nobody else is given while this lives.
    fn port(&mut self) -> Result<u16> {
        let port = Port::reserve()?;
        let number = port.number();
        self.ports.push(port);
        Ok(number)
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn spawn(&mut self, mut command: Command) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_file())?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        self.processes.push(command.spawn().context("it cannot be started")?);
        Ok(())
    }

    /// Leads the API server to a port of the node, and waits until it is content.
    async fn publish(&mut self, port: u16) -> Result<()> {
        let nodes = Api::<Node>::all(self.kube.clone()).list(&ListParams::default()).await?;
        let addresses = nodes.items.into_iter().filter_map(|node| node.status?.addresses).flatten();
        let address = addresses.into_iter().find(|address| address.type_ == "InternalIP");
        let node: SocketAddr = format!("{}:{port}", address.context("a node's address")?.address).parse()?;
        let (version, group) = self.api.split_once('.').context("version.group")?;
        let metadata = json!({"name": self.service, "namespace": NAMESPACE});
        let objects = [
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": metadata,
                "spec": {"ports": [{"name": "https", "port": 443, "targetPort": port}]},
            }),
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": self.service, "namespace": NAMESPACE,
                    "labels": {"kubernetes.io/service-name": self.service},
                },
                "addressType": "IPv4",
                "endpoints": [{"addresses": [node.ip().to_string()], "conditions": {"ready": true}}],
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            }),
            json!({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": self.api},
                "spec": {
                    "group": group, "version": version, "insecureSkipTLSVerify": true,
                    "groupPriorityMinimum": 100, "versionPriority": 100,
                    "service": {"name": self.service, "namespace": NAMESPACE},
                },
            }),
        ];
        for object in objects {
            apply(&self.kube, &object).await?;
        }
        let apis = Api::<APIService>::all(self.kube.clone());
        let begun = Instant::now();
        loop {
            let conditions = apis.get(&self.api).await?.status.and_then(|status| status.conditions);
            let available = |condition: &&_| {
                let condition: &k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIServiceCondition = condition;
                condition.type_ == "Available"
            };
            let last = conditions.iter().flatten().find(available).cloned();
            if last.as_ref().is_some_and(|condition| condition.status == "True") {
                return Ok(());
            }
            for process in &mut self.processes {
                if let Some(status) = process.try_wait()? {
                    bail!("it ended with {status}:\n{}", self.log());
                }
            }
            ensure!(begun.elapsed() < PATIENCE, "{} is not available: {last:?}\n{}", self.api, self.log());
            sleep(Duration::from_millis(250)).await;
        }
    }
}

async fn apply(kube: &Kube, object: &Value) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object.clone())?;
    let kind = GroupVersionKind::try_from(&object.types.clone().context("no apiVersion")?)?;
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = match object.namespace() {
        Some(namespace) => Api::namespaced_with(kube.clone(), &namespace, &resource),
        None => Api::all_with(kube.clone(), &resource),
    };
    api.patch(&object.name_any(), &parameters(), &Patch::Apply(&object)).await?;
    Ok(())
}

fn parameters() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

fn built(name: &str) -> Result<PathBuf> {
    let path = workspace().join("target/cluster/bin").join(name);
    ensure!(path.exists(), "{} is not there; cargo xtask cluster autoscalers builds it", path.display());
    Ok(path)
}

fn program(name: &str) -> Result<Command> {
    Ok(Command::new(built(name)?))
}

/// A program that finds Services by their names, as in a pod: it gets a view of the machine's files of its own.
fn with_cluster_dns(name: &str, directory: &Path) -> Result<Command> {
    let dns = directory.join("resolv.conf");
    fs::write(&dns, "nameserver 10.96.0.10\nsearch cluster.local\noptions ndots:5\n")?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#])
        .arg(dns)
        .arg(built(name)?);
    Ok(command)
}

fn kubeconfigs(flags: &[&str]) -> Result<Vec<String>> {
    let file = std::env::var("KUBECONFIG").context("KUBECONFIG is not set")?;
    Ok(flags.iter().map(|flag| format!("--{flag}={file}")).collect())
}
