//! What a person is told in the cluster: by conditions when something is wrong, by the registry when it is gone.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Secret, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use mcp_mqtt_sidecar::config::BIN_DIR;
use mcp_mqtt_tests::{
    broker_pod::{BrokerPod, create},
    cluster::eventually,
    platform::{Deployed, PATIENCE, Platform, everything_over_stdio, with},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::scaling::events;

/// The condition of that type.
pub(crate) fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let all = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

fn has(status: &Value, kind: &str, value: &str, reason: &str) -> bool {
    let condition = condition(status, kind);
    condition["status"] == value && condition["reason"] == reason
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_told_in_one_or_two_statuses_and_one_event() -> Result<()> {
    let platform = Platform::get().await?;
    let service = platform.apply("begins", with(everything_over_stdio(), json!({ "replicas": 1 }))).await?;
    let mut told: Vec<Value> = Vec::new();
    let ready = |status: &Value| {
        if !status.is_null() && told.last() != Some(status) {
            told.push(status.clone());
        }
        has(status, "Ready", "True", "Ready")
    };
    service.status(ready).await?;
    ensure!(told.len() <= 2, "{told:#?}");
    eventually(PATIENCE, async || (events(&service, "Ready").await.ok()?.len() == 1).then_some(()))
        .await
        .context("no Event of the service's being ready")?;
    ensure!(events(&service, "Applied").await?.len() == 1, "what is applied at once is one Event");
    if told.len() == 1 {
        ensure!(events(&service, "Registered").await?.is_empty(), "one Event tells of both");
    }
    service.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_refuses_the_credentials_is_named_in_the_condition() -> Result<()> {
    let platform = Platform::get().await?;
    // The broker stands in the service's own namespace, which is there with the service: so that starts at zero.
    let service = platform.apply("refused", with(everything_over_stdio(), json!({ "replicas": 0 }))).await?;
    service.status(|status| has(status, "Registered", "False", "ScaledToZero")).await?;

    let broker = BrokerPod::create(&platform.kube, &service.namespace, &[], false).await?;
    service.patch(json!({ "spec": { "replicas": 1, "broker": { "url": broker.url.as_str() } } })).await?;
    let refused = |status: &Value| has(status, "Registered", "False", "BrokerRefusedCredentials");
    let status = service.status(refused).await?;
    let message = condition(&status, "Registered")["message"].as_str().unwrap_or_default().to_owned();
    ensure!(message.contains("closed."), "the message does not name the broker: {message}");
    ensure!(status["registered"] == 0, "{status}");
    service.remove().await
}

/// The usual mistake: `#` does not cover topics that begin with a dollar.
const WITHOUT_DOLLAR: &str = "user gateway\ntopic readwrite #\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_acl_forbids_the_topics_is_named_in_the_condition() -> Result<()> {
    let platform = Platform::get().await?;
    let service =
        platform.apply("forbidden", with(everything_over_stdio(), json!({ "replicas": 0 }))).await?;
    service.status(|status| has(status, "Registered", "False", "ScaledToZero")).await?;

    let (kube, namespace, users) = (&platform.kube, &service.namespace, [("gateway", "word")]);
    let broker = BrokerPod::create_with_acl(kube, namespace, &users, false, Some(WITHOUT_DOLLAR)).await?;
    let login = json!({
        "metadata": { "name": "login" }, "stringData": { "username": "gateway", "password": "word" },
    });
    create::<Secret>(kube, namespace, login).await?;
    let at = json!({ "url": broker.url.as_str(), "auth": { "passwordSecret": "login" } });
    service.patch(json!({ "spec": { "replicas": 1, "broker": at } })).await?;
    let status = service.status(|status| has(status, "Registered", "False", "BrokerNotAuthorized")).await?;
    let message = condition(&status, "Registered")["message"].as_str().unwrap_or_default();
    // The topic that is forbidden, and where to allow it.
    ensure!(message.contains("$mcp-server/presence/") && message.contains("ACL"), "{message}");
    ensure!(status["registered"] == 0, "{status}");
    service.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_there_is_named_in_the_condition() -> Result<()> {
    let platform = Platform::get().await?;
    let image = json!({ "server": { "image": "no-such-image:1", "imagePullPolicy": "Never" } });
    let service = platform.apply("noimage", with(everything_over_stdio(), image)).await?;
    let status = service.status(|status| has(status, "Ready", "False", "ErrImageNeverPull")).await?;
    let message = condition(&status, "Ready")["message"].to_string();
    ensure!(message.contains("no-such-image:1"), "{message}");
    service.remove().await
}

/// A kubelet with a gateway that cannot write where the binary goes: that is in the volume's mount, so the test makes an
/// instance by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_binary_that_cannot_be_installed_is_named_in_the_condition_and_no_server_starts() -> Result<()> {
    let platform = Platform::get().await?;
    let image = json!({ "server": { "image": "no-such-image:1", "imagePullPolicy": "Never" } });
    let service = platform.apply("noinstall", with(everything_over_stdio(), image)).await?;
    service.status(|status| has(status, "Ready", "False", "ErrImageNeverPull")).await?;
    let deployments = Api::<Deployment>::namespaced(platform.kube.clone(), &service.namespace);
    let template = deployments.get(&service.name).await?.spec.context("no spec")?.template;
    let mut pod =
        Pod { metadata: template.metadata.context("no labels")?, spec: template.spec, status: None };
    pod.metadata.name = Some("handmade".to_owned());
    let spec = pod.spec.as_mut().context("no containers")?;
    spec.containers[0].image = Some("mcp-servers:dev".to_owned());
    let mounts =
        spec.init_containers.iter_mut().flatten().flat_map(|gateway| gateway.volume_mounts.iter_mut());
    let installed =
        mounts.flatten().find(|mount| mount.mount_path == BIN_DIR).context("nowhere to install")?;
    installed.read_only = Some(true);
    service.pods().create(&PostParams::default(), &pod).await?;

    let told = |status: &Value| {
        let message = condition(status, "Ready")["message"].as_str().unwrap_or_default();
        message.contains("container gateway: cannot install mcp-mqtt-sidecar into /mcp-mqtt/bin: Read-only")
    };
    service.status(told).await?;
    let status = service.pods().get("handmade").await?.status.context("no status")?;
    let server = status.container_statuses.into_iter().flatten().next().context("no server")?;
    ensure!(
        server.started != Some(true)
            && server.restart_count == 0
            && server.last_state.is_none_or(|last| last.terminated.is_none()),
        "the server ran"
    );
    service.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_service_leaves_no_presence_and_no_object() -> Result<()> {
    let platform = Platform::get().await?;
    let service = platform.deploy("deleted", with(everything_over_stdio(), json!({ "replicas": 2 }))).await?;
    let client = platform.client().await?;
    let mut registry = client.watch(service.server_name().as_str()).await?;
    service.until(&mut registry, |all| all.len() == 2).await?;

    service.api().delete(&service.name, &DeleteParams::default()).await?;
    service.until(&mut registry, <[_]>::is_empty).await?;
    gone::<Deployment>(&platform, &service).await?;
    gone::<PodDisruptionBudget>(&platform, &service).await?;
    gone::<ServiceAccount>(&platform, &service).await?;
    gone::<Pod>(&platform, &service).await?;
    client.close(PATIENCE).await?;
    service.remove().await
}

/// Waits until the service has no object of a kind.
async fn gone<K>(platform: &Platform, service: &Deployed) -> Result<()>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
    K::DynamicType: Default,
{
    let api = Api::<K>::namespaced(platform.kube.clone(), &service.namespace);
    let ours = ListParams::default().labels("app.kubernetes.io/managed-by=mcp-mqtt-operator");
    let gone = async {
        while !api.list(&ours).await?.items.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .with_context(|| format!("{} stays", std::any::type_name::<K>()))?
}
