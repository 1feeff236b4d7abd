//! A cluster's API server, for suites that judge objects: a namespace of a test's own, the CRD of this checkout, the
//! audit log.

use std::{collections::BTreeMap, env, ffi::OsStr, fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1::Deployment, core::v1::Namespace},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
    core::ApiResource,
    runtime::wait::{await_condition, conditions},
};
use mcp_mqtt_operator::crd::{self, McpService};
use serde_json::{Value, json};
use tokio::{sync::OnceCell, time::timeout};

use crate::{
    audit::{Audit, Request},
    binaries::workspace,
};

/// `cargo xtask in-cluster` names the cluster here; KUBECONFIG is that cluster's then.
const VARIABLE: &str = "MCP_MQTT_CLUSTER";

/// How long anything may take before a test calls it hung.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// Who changes things in tests.
const FIELD_MANAGER: &str = "mcp-mqtt-tests";

/// A namespace of a test's own. A test that fails leaves it to look at.
#[derive(Clone)]
pub struct Space {
    /// The API server.
    pub kube: Client,
    /// The namespace.
    pub namespace: String,
}

/// The CRD is there, and nobody who would interfere.
static READY: OnceCell<()> = OnceCell::const_new();

/// An `McpService` that was refused, in the API server's words.
pub type Refusal = String;

/// The smallest spec there is, with an image that does not exist: for what is about objects, not pods.
pub fn smallest(replicas: i32) -> Value {
    json!({
        "replicas": replicas,
        "transport": {"stdio": {"command": ["node", "server.js"]}},
        "server": {"image": "registry.example/weather:3", "imagePullPolicy": "Never"},
    })
}

impl Space {
    /// Makes a namespace, on a cluster that has the CRD of this checkout.
    ///
    /// # Errors
    /// When there is no cluster, or one in which an installed operator would interfere.
    pub async fn new(test: &str) -> Result<Self> {
        let kube = client().await?;
        READY.get_or_try_init(|| prepare(&kube)).await?;
        let namespace = format!("api-{test}-{:06x}", fastrand::u32(..1 << 24));
        let metadata = ObjectMeta { name: Some(namespace.clone()), ..ObjectMeta::default() };
        let object = Namespace { metadata, ..Namespace::default() };
        Api::all(kube.clone()).create(&PostParams::default(), &object).await?;
        Ok(Self { kube, namespace })
    }

    /// Objects of the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.kube.clone(), &self.namespace)
    }

    /// The `McpServices` of the namespace, as YAML has them: what Rust's types would not let through, too.
    pub fn services(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.kube.clone(), &self.namespace, &ApiResource::erase::<McpService>(&()))
    }

    /// Creates an `McpService`, as `kubectl create --validate=strict` does.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn create(&self, name: &str, spec: &Value) -> Result<DynamicObject> {
        Ok(self.services().create(&strict(), &service(name, spec)?).await?)
    }

    /// Tries to create an `McpService` and gives the API server's words on why it will not have it.
    ///
    /// # Errors
    /// When it takes it.
    pub async fn refused(&self, name: &str, spec: &Value) -> Result<Refusal> {
        let parameters = PostParams { dry_run: true, ..strict() };
        match self.services().create(&parameters, &service(name, spec)?).await {
            Ok(_) => bail!("it was taken: {spec}"),
            Err(error) => words(error),
        }
    }

    /// Changes an `McpService` by a JSON merge patch.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn patch(&self, name: &str, patch: Value) -> Result<DynamicObject> {
        Ok(self.services().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?)
    }

    /// Applies any object, given as JSON.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn apply<K>(&self, object: Value) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let object: K = serde_json::from_value(object)?;
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        Ok(self.api().patch(&object.name_any(), &parameters, &Patch::Apply(&object)).await?)
    }

    /// Waits until the status of an `McpService` fulfils a condition.
    ///
    /// # Errors
    /// After [`PATIENCE`]; the message has the last status.
    pub async fn status(&self, name: &str, mut condition: impl FnMut(&Value) -> bool) -> Result<Value> {
        let api = self.services();
        let mut last = Value::Null;
        let found = eventually(PATIENCE, async || {
            last = api.get_opt(name).await.ok()??.data["status"].clone();
            condition(&last).then(|| last.clone())
        })
        .await;
        found.with_context(|| format!("status of {name}: {last:#}"))
    }

    /// Waits until a condition of an `McpService` has this status and reason; its message.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub async fn condition(&self, name: &str, type_: &str, status: &str, reason: &str) -> Result<String> {
        let of = |value: &Value| {
            let all = value["conditions"].as_array().cloned().unwrap_or_default();
            let found = all.into_iter().find(|condition| condition["type"] == type_)?;
            (found["status"] == status && found["reason"] == reason).then_some(found)
        };
        let value = self.status(name, |value| of(value).is_some()).await;
        let value = value.with_context(|| format!("{type_}={status}, {reason} was wanted"))?;
        Ok(of(&value).and_then(|found| Some(found["message"].as_str()?.to_owned())).unwrap_or_default())
    }

    /// Waits for an object.
    ///
    /// # Errors
    /// After [`PATIENCE`].
    pub async fn appears<K>(&self, name: &str) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api = self.api::<K>();
        let found = eventually(PATIENCE, async || api.get_opt(name).await.ok()?).await;
        found.with_context(|| format!("{} {name} does not appear", K::kind(&())))
    }

    /// Waits until an object is gone.
    ///
    /// # Errors
    /// After [`PATIENCE`].
    pub async fn disappears<K>(&self, name: &str) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api = self.api::<K>();
        let gone = eventually(PATIENCE, async || api.get_opt(name).await.ok()?.is_none().then_some(())).await;
        gone.with_context(|| format!("{} {name} does not go", K::kind(&())))
    }

    /// Every write in this namespace by this user agent, so far.
    ///
    /// # Errors
    /// When the cluster is not one of `cargo xtask cluster`.
    pub fn audited_writes(&self, user_agent: &str) -> Result<Vec<String>> {
        let requests = Audit::from_start()?.read(&self.namespace)?;
        let ours = |request: &Request| {
            request.is_write()
                && request.namespace == self.namespace
                && request.user_agent.starts_with(user_agent)
        };
        Ok(requests
            .iter()
            .filter(|request| ours(request))
            .map(|it| format!("{} {}", it.verb, it.uri))
            .collect())
    }

    /// Versions of all objects that an `McpService` brings about, by kind and name: two of these are alike if
    /// nothing was written in between.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn versions(&self) -> Result<BTreeMap<String, String>> {
        use k8s_openapi::api::{
            core::v1::{Secret, ServiceAccount},
            networking::v1::NetworkPolicy,
            policy::v1::PodDisruptionBudget,
        };
        async fn add<K>(api: Api<K>, all: &mut BTreeMap<String, String>) -> Result<()>
        where
            K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
        {
            for object in api.list_metadata(&ListParams::default()).await? {
                let version = object.resource_version().unwrap_or_default();
                all.insert(format!("{} {}", K::kind(&()), object.name_any()), version);
            }
            Ok(())
        }
        let mut all = BTreeMap::new();
        add(self.api::<McpService>(), &mut all).await?;
        add(self.api::<Deployment>(), &mut all).await?;
        add(self.api::<ServiceAccount>(), &mut all).await?;
        add(self.api::<Secret>(), &mut all).await?;
        add(self.api::<PodDisruptionBudget>(), &mut all).await?;
        add(self.api::<NetworkPolicy>(), &mut all).await?;
        Ok(all)
    }

    /// Removes the namespace; what is in it goes in its own time.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn remove(self) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.kube);
        namespaces.delete(&self.namespace, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// The API server of a cluster of `cargo xtask cluster`, and of no other: the suites install and uninstall releases, and
/// would do so in whatever cluster a person's kubeconfig names.
///
/// # Errors
/// When this process was not started by `cargo xtask in-cluster`.
pub async fn client() -> Result<Client> {
    ensure_own()?;
    Client::try_default().await.context("the cluster does not answer; bring it up by: cargo xtask cluster up")
}

/// Whether this process is to act on a cluster of `cargo xtask cluster`.
///
/// # Errors
/// When it was not started by `cargo xtask in-cluster`.
pub fn ensure_own() -> Result<()> {
    let clusters = workspace().join("target/cluster");
    judge_environment(&clusters, env::var_os(VARIABLE).as_deref(), env::var_os("KUBECONFIG").as_deref())
}

/// A person may have set the one variable or the other; only `cargo xtask in-cluster` sets both to the same cluster.
fn judge_environment(clusters: &Path, cluster: Option<&OsStr>, kubeconfig: Option<&OsStr>) -> Result<()> {
    let own = cluster.zip(kubeconfig).is_some_and(|(cluster, kubeconfig)| {
        let one = fs::canonicalize(clusters.join(cluster).join("kubeconfig"));
        one.ok().is_some_and(|one| fs::canonicalize(kubeconfig).is_ok_and(|other| one == other))
    });
    ensure!(
        own,
        "this suite changes a whole cluster, so it takes one of `cargo xtask cluster` only, and {} is none: run it by \
         `cargo xtask test`, or run its binary by `cargo xtask in-cluster -- BINARY`",
        kubeconfig.map_or("the current kubeconfig's".into(), OsStr::to_string_lossy)
    );
    Ok(())
}

/// The API server's words.
///
/// # Errors
/// An error of another sort.
pub fn words(error: kube::Error) -> Result<Refusal> {
    match error {
        kube::Error::Api(answer) => Ok(answer.message.clone()),
        other => Err(other.into()),
    }
}

/// The API server's words on a change that it must refuse.
///
/// # Errors
/// When it takes it.
pub fn refusal<T>(result: Result<T>) -> Result<Refusal> {
    let Err(error) = result else { bail!("it was taken") };
    let answer: Option<&kube::Error> = error.downcast_ref();
    match answer {
        Some(kube::Error::Api(answer)) => Ok(answer.message.clone()),
        _ => Err(error),
    }
}

/// Looks again and again until there is something.
///
/// # Errors
/// When there is nothing after `patience`.
pub async fn eventually<T>(patience: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let search = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    timeout(patience, search).await.with_context(|| format!("not within {patience:?}"))
}

fn strict() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

fn service(name: &str, spec: &Value) -> Result<DynamicObject> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "mcp-mqtt.io/v1alpha1", "kind": "McpService", "metadata": {"name": name}, "spec": spec,
    }))?)
}

/// Installs the CRD of this checkout, once a process.
async fn prepare(kube: &Client) -> Result<()> {
    let operators = Api::<Deployment>::all(kube.clone())
        .list_metadata(
            &ListParams::default()
                .labels("app.kubernetes.io/name=mcp-mqtt-operator,app.kubernetes.io/component=operator"),
        )
        .await?;
    let of_everything: Vec<String> = operators
        .iter()
        .map(|found| format!("{}/{}", found.namespace().unwrap_or_default(), found.name_any()))
        .collect();
    ensure!(
        of_everything.is_empty(),
        "the operator {} is installed here and would do the work of the one under test: use a new cluster",
        of_everything.join(", ")
    );
    let mut crd: CustomResourceDefinition = crd::crd();
    // So that a later `helm install` of the chart takes it over instead of refusing it.
    crd.metadata.labels =
        Some(BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "Helm".to_owned())]));
    let release = [("meta.helm.sh/release-name", "mcp-mqtt"), ("meta.helm.sh/release-namespace", "mcp-mqtt")];
    crd.metadata.annotations = Some(release.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    let api = Api::<CustomResourceDefinition>::all(kube.clone());
    let name = crd.name_any();
    // As Helm: another chart's CRD is no conflict with it then.
    match api.patch(&name, &PatchParams::apply("helm").force(), &Patch::Apply(&crd)).await {
        Ok(_) => {}
        Err(kube::Error::Api(answer)) => {
            bail!("the API server refuses the CRD: {}", answer.message)
        }
        Err(error) => return Err(error.into()),
    }
    let established = await_condition(api, &name, conditions::is_crd_established());
    timeout(PATIENCE, established).await.context("the CRD is not established")??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_is_not_the_projects_own_is_refused() -> Result<()> {
        let clusters = tempfile::tempdir()?;
        let ours = clusters.path().join("test/kubeconfig");
        for cluster in ["test", "demo"] {
            fs::create_dir(clusters.path().join(cluster))?;
            fs::write(clusters.path().join(cluster).join("kubeconfig"), "")?;
        }
        let judge = |cluster: Option<&str>, kubeconfig: Option<&str>| {
            judge_environment(clusters.path(), cluster.map(OsStr::new), kubeconfig.map(OsStr::new))
        };
        assert!(judge(Some("test"), ours.to_str()).is_ok());
        for (cluster, kubeconfig) in [
            (None, None),
            (None, ours.to_str()),
            (Some("test"), None),
            (Some("demo"), ours.to_str()),
            (Some("test"), Some("/root/.kube/config")),
        ] {
            let error = judge(cluster, kubeconfig).expect_err("it is somebody else's").to_string();
            assert!(error.contains("cargo xtask test"), "{error}");
        }
        Ok(())
    }
}
