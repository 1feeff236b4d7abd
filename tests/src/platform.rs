//! The product as a user has it: the chart installed on the cluster, its broker, services applied to it.

use std::{fs::File, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service as KubeService};
use kube::{
    Api, Client as Kube, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use mcp_mqtt_operator::crd::McpService;
use mcp_mqtt_sidecar::config::ADMIN_PORT;
use mcp_mqtt_transport::{
    client::{Client, ClientOptions, Instance, Session, SessionHandler, Unhandled, Watch},
    topic::{ClientId, ServerName},
};
use serde_json::{Value, json, value::RawValue};
use tokio::time::{Instant, timeout};
use url::Url;

use crate::{binaries::workspace, cluster, helm};

/// Where the chart is installed.
pub const NAMESPACE: &str = "mcp-mqtt";

/// How long anything in the cluster may take before a test calls it hung.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// The registry is as it is when nothing has changed in it for so long.
const SETTLED: Duration = Duration::from_millis(300);

/// The installed product.
#[derive(Clone)]
pub struct Platform {
    /// The API server.
    pub kube: Kube,
    /// The chart's own broker.
    pub broker: Url,
}

impl Platform {
    /// Installs the chart with the images of `cargo xtask images`, or brings an installed one up to date.
    ///
    /// # Errors
    /// When there is no cluster (`cargo xtask test` brings one up), or helm refuses.
    pub async fn get() -> Result<Self> {
        Self::with(&[]).await
    }

    /// [`Self::get`] with further values: `name=value`.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn with(values: &[&str]) -> Result<Self> {
        let further: Vec<&str> = values.iter().flat_map(|value| ["--set", *value]).collect();
        let kube = cluster::client().await?;
        // Tests of several binaries may start at one time; helm takes one change of a release at a time.
        let lock = File::create(workspace().join("target/platform.lock"))?;
        let _locked = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
        let chart = helm::chart();
        let values = workspace().join("examples/demo-values.yaml");
        let arguments =
            ["upgrade", "--install", "mcp-mqtt", &chart.to_string_lossy(), "--namespace", NAMESPACE];
        let more =
            ["--create-namespace", "--values", &values.to_string_lossy(), "--wait", "--timeout", "120s"];
        helm::helm_ok(&[&arguments[..], &more[..], &further[..]].concat()).await?;
        let service =
            Api::<KubeService>::namespaced(kube.clone(), NAMESPACE).get("mcp-mqtt-mosquitto").await?;
        let address =
            service.spec.and_then(|spec| spec.cluster_ip).context("the broker's Service has no address")?;
        let platform = Self { kube, broker: Url::parse(&format!("mqtt://{address}:1883"))? };
        platform.client().await?.close(PATIENCE).await?;
        Ok(platform)
    }

    /// Connects an MCP client to the chart's broker. As any client does, it tries more than once: the address of a
    /// Service that was made a moment ago may be refused, and after the broker's pod was killed a connection may meet
    /// the node's memory of one to the dead pod.
    ///
    /// # Errors
    /// When the broker does not take it within [`PATIENCE`].
    pub async fn client(&self) -> Result<Client> {
        let start = Instant::now();
        loop {
            match connect(&self.broker).await {
                Err(_) if start.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(100)).await,
                result => return result,
            }
        }
    }

    /// Applies an `McpService` in a namespace of its own and waits until all its instances are registered.
    ///
    /// # Errors
    /// When they are not within [`PATIENCE`]; the message has the service's status.
    pub async fn deploy(&self, name: &str, spec: Value) -> Result<Deployed> {
        let deployed = self.apply(name, spec).await?;
        let replicas = deployed.api().get(&deployed.name).await?.spec.replicas;
        deployed.registered(usize::try_from(replicas)?).await?;
        Ok(deployed)
    }

    /// Applies an `McpService` that begins asleep, in a namespace of its own, and waits until it can be woken.
    ///
    /// # Errors
    /// As [`deploy`](Self::deploy).
    pub async fn deploy_asleep(&self, name: &str, spec: Value) -> Result<Deployed> {
        let deployed = self.apply(name, spec).await?;
        deployed.registered(1).await?;
        Ok(deployed)
    }

    /// Applies an `McpService` in a namespace of its own.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn apply(&self, name: &str, spec: Value) -> Result<Deployed> {
        let namespace = format!("e2e-{name}-{:06x}", fastrand::u32(..1 << 24));
        let metadata = ObjectMeta { name: Some(namespace.clone()), ..ObjectMeta::default() };
        Api::all(self.kube.clone())
            .create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() })
            .await?;
        let deployed = Deployed { platform: self.clone(), namespace, name: name.to_owned() };
        let service: McpService = serde_json::from_value(json!({
            "apiVersion": "mcp-mqtt.io/v1alpha1",
            "kind": "McpService",
            "metadata": { "name": name, "namespace": deployed.namespace },
            "spec": spec,
        }))?;
        deployed.api().create(&PostParams::default(), &service).await?;
        Ok(deployed)
    }
}

/// An `McpService` in a namespace of its own. [`Deployed::remove`] takes both away; a test that fails leaves them to look at.
pub struct Deployed {
    platform: Platform,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Deployed {
    /// The API server.
    pub fn kube(&self) -> Kube {
        self.platform.kube.clone()
    }

    /// The `McpServices` of its namespace.
    pub fn api(&self) -> Api<McpService> {
        Api::namespaced(self.platform.kube.clone(), &self.namespace)
    }

    /// The pods of its namespace.
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.platform.kube.clone(), &self.namespace)
    }

    /// The server name: the default one.
    pub fn server_name(&self) -> ServerName {
        ServerName::new(&format!("{}/{}", self.namespace, self.name))
            .expect("a namespace and a name make one")
    }

    /// Waits until exactly so many instances stand in the registry, for more than the moment in which a client that has
    /// just come hears of one after the other.
    ///
    /// # Errors
    /// After [`PATIENCE`]; the message has the service's status.
    pub async fn registered(&self, instances: usize) -> Result<Vec<Instance>> {
        let client = self.platform.client().await?;
        let mut watch = client.watch(self.server_name().as_str()).await?;
        let found = async {
            loop {
                let found = self.until(&mut watch, |all| all.len() == instances).await?;
                let unchanged = timeout(SETTLED, watch.changed()).await.is_err();
                if unchanged {
                    return Ok::<_, anyhow::Error>(found);
                }
            }
        }
        .await;
        client.close(PATIENCE).await?;
        found.with_context(|| format!("{instances} instances were wanted"))
    }

    /// Waits until a condition holds for the watched registry.
    ///
    /// # Errors
    /// As [`registered`](Self::registered).
    pub async fn until(
        &self,
        watch: &mut Watch,
        condition: impl FnMut(&[Instance]) -> bool,
    ) -> Result<Vec<Instance>> {
        match timeout(PATIENCE, watch.until(condition)).await {
            Ok(Some(instances)) => Ok(instances),
            Ok(None) => anyhow::bail!("the watch of the registry ended"),
            Err(_) => {
                let status = self.api().get(&self.name).await.map(|service| service.status);
                anyhow::bail!(
                    "the registry has {:?} after {PATIENCE:?}; status: {status:?}",
                    watch.instances()
                )
            }
        }
    }

    /// Waits until the service's status fulfils a condition.
    ///
    /// # Errors
    /// After [`PATIENCE`]; the message has the last status.
    pub async fn status(&self, mut condition: impl FnMut(&Value) -> bool) -> Result<Value> {
        let api = self.api();
        let mut last = Value::Null;
        let wait = async {
            loop {
                if let Ok(service) = api.get(&self.name).await {
                    last = serde_json::to_value(&service.status)?;
                    if condition(&last) {
                        return anyhow::Ok(());
                    }
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        match timeout(PATIENCE, wait).await {
            Ok(result) => result.map(|()| last),
            Err(_) => anyhow::bail!("status after {PATIENCE:?}: {last:#}"),
        }
    }

    /// Waits until it sleeps: its status says so, no pod is left, and the registry has its one presence.
    ///
    /// # Errors
    /// After [`PATIENCE`] for each of these.
    pub async fn asleep(&self) -> Result<Instance> {
        let ready = |status: &Value| status["conditions"][1].clone();
        let rests = |status: &Value| ready(status)["reason"] == "Asleep" && status["ready"] == "0/0";
        let status = self.status(rests).await?;
        ensure!(ready(&status)["status"] == "True", "{status}");
        let gone = async {
            while !self.pods().list(&ListParams::default()).await?.items.is_empty() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, gone).await.context("its pods stay")??;
        let instance = self.registered(1).await?.pop().context("a presence")?;
        ensure!(instance.online.is_parked(), "{instance:?}");
        Ok(instance)
    }

    /// Opens a session with any of its instances, as a client with these capabilities.
    ///
    /// # Errors
    /// When none can be found or opened.
    pub async fn session(
        &self,
        client: &Client,
        capabilities: &Value,
        handler: Arc<dyn SessionHandler>,
    ) -> Result<Session> {
        let instance = client.find(&self.server_name(), PATIENCE).await?;
        let capabilities = RawValue::from_string(capabilities.to_string())?;
        Ok(client.open_session(&instance, &capabilities, handler, PATIENCE).await?)
    }

    /// Opens a session as a client that can do nothing.
    ///
    /// # Errors
    /// As [`session`](Self::session).
    pub async fn plain_session(&self, client: &Client) -> Result<Session> {
        self.session(client, &json!({}), Arc::new(Unhandled)).await
    }

    /// Changes the service by a JSON merge patch.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn patch(&self, patch: Value) -> Result<()> {
        self.api().patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Where a pod's gateway serves `/metrics` and the rest.
    ///
    /// # Errors
    /// When the pod has no address.
    pub async fn admin(&self, pod: &str) -> Result<SocketAddr> {
        let status = self.pods().get(pod).await?.status;
        let address = status.and_then(|status| status.pod_ip).context("the pod has no address")?;
        Ok(SocketAddr::new(address.parse()?, ADMIN_PORT))
    }

    /// The pod of an instance: the last part of its server id.
    ///
    /// # Errors
    /// When the server id is not `<cluster>.<namespace>.<pod>`.
    pub fn pod_of(&self, instance: &Instance) -> Result<String> {
        let id = instance.server_id.as_str();
        let (_, pod) =
            id.split_once(&format!(".{}.", self.namespace)).with_context(|| format!("odd server id {id}"))?;
        Ok(pod.to_owned())
    }

    /// The names of its pods that are not on their way out.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn live_pods(&self) -> Result<Vec<String>> {
        let pods = self.pods().list(&ListParams::default()).await?;
        let live = pods.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(live.map(ResourceExt::name_any).collect())
    }

    /// Removes its namespace and all that is in it, and waits until it is gone. Its pods are killed: Node as the first
    /// process of a container heeds no SIGTERM, and all that a test has to say of a graceful end it has said before.
    ///
    /// # Errors
    /// When it is not gone within [`PATIENCE`].
    pub async fn remove(self) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.platform.kube.clone());
        namespaces.delete(&self.namespace, &DeleteParams::default()).await?;
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let gone = async {
            while namespaces.get_opt(&self.namespace).await?.is_some() {
                self.pods().delete_collection(&at_once, &ListParams::default()).await?;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, gone).await.with_context(|| format!("namespace {} does not go", self.namespace))?
    }
}

/// Connects an MCP client to a broker.
///
/// # Errors
/// When the broker does not take it.
pub async fn connect(broker: &Url) -> Result<Client> {
    let id = ClientId::new(&format!("e2e-{:x}", fastrand::u64(..)))?;
    let mut options = ClientOptions::new(broker.clone(), id);
    options.connect_timeout = Duration::from_secs(3);
    Client::connect(options).await.with_context(|| format!("cannot connect to {broker}"))
}

/// Calls a tool and returns its result.
///
/// # Errors
/// When it is not answered with a result.
pub async fn call(session: &Session, tool: &str, arguments: Value) -> Result<Value> {
    let params = json!({ "name": tool, "arguments": arguments });
    let result = session
        .request("tools/call", Some(&params), PATIENCE)
        .await
        .with_context(|| format!("tools/call {tool}"))?;
    Ok(serde_json::from_str(result.get())?)
}

/// The text of a tool's answer, where it is text.
///
/// # Errors
/// When it is not.
pub fn text(result: &Value) -> Result<&str> {
    ensure!(result["isError"] != true, "the tool failed: {result}");
    result["content"][0]["text"].as_str().with_context(|| format!("no text in {result}"))
}

/// Spec of `server-everything` over Streamable HTTP.
pub fn everything_over_http() -> Value {
    json!({
        "transport": { "streamableHttp": { "port": 3001, "path": "/mcp" } },
        "server": {
            "image": "mcp-servers:dev",
            "args": ["mcp-server-everything", "streamableHttp"],
            "env": [{ "name": "PORT", "value": "3001" }],
        },
        "drain": { "timeoutSeconds": 8 },
    })
}

/// Spec of `server-everything` over HTTP+SSE.
pub fn everything_over_sse() -> Value {
    json!({
        "transport": { "sse": { "port": 3001 } },
        "server": {
            "image": "mcp-servers:dev",
            "args": ["mcp-server-everything", "sse"],
            "env": [{ "name": "PORT", "value": "3001" }],
        },
        "drain": { "timeoutSeconds": 8 },
    })
}

/// Spec of `server-everything` over stdio.
pub fn everything_over_stdio() -> Value {
    json!({
        "transport": { "stdio": { "command": ["mcp-server-everything", "stdio"], "prewarm": 1 } },
        "server": { "image": "mcp-servers:dev" },
        "drain": { "timeoutSeconds": 8 },
    })
}

/// A spec with something changed: fields of `change` take the place of those of `spec`.
#[must_use]
pub fn with(mut spec: Value, change: Value) -> Value {
    merge(&mut spec, change);
    spec
}

fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change,
    }
}
