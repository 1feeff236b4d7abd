//! Services that sleep and are not to be had: whoever wakes one hears why.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{ResourceQuota, Secret},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    cluster::{PATIENCE, Space, eventually},
    operator::Operator,
};
use mcp_mqtt_transport::{
    client::{Client, Instance},
    mqtt::{ConnectOptions, Connection, Event, Filter, Publication, Qos},
    topic::{self, ClientId},
    user_property::{self, Component},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{NAME, Scene, asleep, client, echoes, initialize, pod, replicas, sleepy, told};

/// For an operator to get what the broker kept, and to write it down: a good deal more than it takes.
const HELD: Duration = Duration::from_secs(3);
/// Far below the 50 s that an `initialize` may wait here.
const SOON: Duration = Duration::from_secs(20);

/// Nothing is in the way any more: the service is woken, and answers.
async fn wakes(space: &Space, broker: &Mosquitto, client: &Client, instance: &Instance) -> Result<()> {
    let wake = async {
        replicas(space, 1).await?;
        pod(space, broker, "weather-1")
    };
    let (session, _pod) = tokio::join!(initialize(client, instance), wake);
    echoes(&session?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_went_while_the_operator_was_away_is_the_answer() -> Result<()> {
    let (space, broker) = (Space::new("refused").await?, Mosquitto::start().await?);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"api-key": "1"},
    });
    space.apply::<Secret>(secret.clone()).await?;
    let operator = Operator::start(&space, &[]).await?;
    let mut spec = sleepy(&broker);
    let from = json!({"secretKeyRef": {"name": "keys", "key": "api-key"}});
    spec["server"]["env"] = json!([{"name": "API_KEY", "valueFrom": from}]);
    space.create(NAME, &spec).await?;
    let instance = asleep(&space, &broker).await?;
    operator.kill().await?;
    space.api::<Secret>().delete("keys", &DeleteParams::default()).await?;

    let operator = Operator::start(&space, &[]).await?;
    space.condition(NAME, "Accepted", "False", "ReferenceNotFound").await?;
    let client = client(&broker).await?;
    let error = initialize(&client, &instance).await.expect_err("no pod can be made");
    let rpc = told(&error).context("the operator's own words")?.clone();
    ensure!(rpc.reason() == Some("wake-failed") && rpc.message.contains("keys does not exist"), "{rpc:?}");

    space.apply::<Secret>(secret).await?;
    space.condition(NAME, "Accepted", "True", "Accepted").await?;
    let instance = asleep(&space, &broker).await?;
    wakes(&space, &broker, &client, &instance).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_typo_that_was_made_while_the_operator_was_away_is_the_answer() -> Result<()> {
    let (space, broker) = (Space::new("typo").await?, Mosquitto::start().await?);
    // This broker takes any login; the operator has to read it all the same.
    let login = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login"},
        "stringData": {"username": "north", "password": "1"},
    });
    space.apply::<Secret>(login).await?;
    let operator = Operator::start(&space, &[]).await?;
    let mut spec = sleepy(&broker);
    spec["broker"]["auth"] = json!({"passwordSecret": "login"});
    space.create(NAME, &spec).await?;
    space.condition(NAME, "Ready", "True", "Asleep").await?;
    let instance = asleep(&space, &broker).await?;
    operator.kill().await?;
    space.patch(NAME, json!({"spec": {"podTemplate": {"spec": {"nodeSelecter": {}}}}})).await?;

    let operator = Operator::start(&space, &[]).await?;
    space.condition(NAME, "Accepted", "False", "InvalidPodTemplate").await?;
    let client = client(&broker).await?;
    let start = Instant::now();
    let error = initialize(&client, &instance).await.expect_err("no pod can be made");
    let rpc = told(&error).context("the operator's own words")?.clone();
    ensure!(rpc.reason() == Some("wake-failed") && rpc.message.contains("nodeSelecter"), "{rpc:?}");
    ensure!(start.elapsed() < SOON, "only after {:?}", start.elapsed());
    // Clients find it, and it says so.
    space.condition(NAME, "Ready", "True", "Asleep").await?;

    space.patch(NAME, json!({"spec": {"podTemplate": {"spec": {"nodeSelecter": null}}}})).await?;
    space.condition(NAME, "Accepted", "True", "Accepted").await?;
    let instance = asleep(&space, &broker).await?;
    wakes(&space, &broker, &client, &instance).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_leaves_no_room_for_the_pod_is_the_answer() -> Result<()> {
    let Scene { space, broker, operator, instance } = Scene::asleep("quota").await?;
    let quota = json!({"metadata": {"name": "none-left"}, "spec": {"hard": {"pods": "0"}}});
    space.apply::<ResourceQuota>(quota).await?;
    // Until its controller has counted, the API server refuses pods for that.
    let counted = async || {
        let quota = space.api::<ResourceQuota>().get("none-left").await.ok()?;
        quota.status?.used
    };
    eventually(PATIENCE, counted).await.context("the quota is not counted")?;
    let client = client(&broker).await?;
    let start = Instant::now();
    let error = initialize(&client, &instance).await.expect_err("no pod can be made");
    let rpc = told(&error).context("the operator's own words")?.clone();
    println!("refused after {:?}: {}", start.elapsed(), rpc.message);
    ensure!(start.elapsed() < SOON, "only after {:?}", start.elapsed());
    ensure!(
        rpc.reason() == Some("wake-failed") && rpc.message.contains("exceeded quota: none-left"),
        "{rpc:?}"
    );

    // Once it sleeps again, and there is room, it can be woken.
    replicas(&space, 0).await?;
    let instance = asleep(&space, &broker).await?;
    space.api::<ResourceQuota>().delete("none-left", &DeleteParams::default()).await?;
    wakes(&space, &broker, &client, &instance).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admission_policy_that_lets_nobody_scale_the_service_is_the_answer() -> Result<()> {
    let Scene { space, broker, operator, instance } = Scene::asleep("unscaled").await?;
    let name = space.namespace.clone();
    let scaling = json!([{"apiGroups": ["mcp-mqtt.io"], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": ["mcpservices/scale"]}]);
    let policy: ValidatingAdmissionPolicy = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": scaling},
            "validations": [{"expression": "object.spec.replicas == 0", "message": "nothing runs at night"}],
        },
    }))?;
    let here = json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
    let binding: ValidatingAdmissionPolicyBinding = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector": here}},
    }))?;
    let policies = Api::<ValidatingAdmissionPolicy>::all(space.kube.clone());
    let bindings = Api::<ValidatingAdmissionPolicyBinding>::all(space.kube.clone());
    policies.create(&PostParams::default(), &policy).await?;
    bindings.create(&PostParams::default(), &binding).await?;
    let scaled = async || {
        let patch = Patch::Merge(json!({"spec": {"replicas": 1}}));
        let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
        space.services().patch_scale(NAME, &dry_run, &patch).await
    };
    let refused = eventually(PATIENCE, async || scaled().await.err().map(drop)).await;
    refused.context("the policy does not take effect")?;

    let client = client(&broker).await?;
    let start = Instant::now();
    let error = initialize(&client, &instance).await.expect_err("nobody may wake it");
    let rpc = told(&error).context("the operator's own words")?.clone();
    println!("refused after {:?}: {}", start.elapsed(), rpc.message);
    ensure!(start.elapsed() < SOON, "only after {:?}", start.elapsed());
    let said = "nothing runs at night";
    ensure!(rpc.reason() == Some("wake-failed") && rpc.message.ends_with(said), "{rpc:?}");
    let status = space.condition(NAME, "Ready", "False", "ScaledToZero").await?;
    ensure!(status.contains(said), "{status}");

    // Whoever asks once it may be scaled wakes it.
    bindings.delete(&name, &DeleteParams::default()).await?;
    policies.delete(&name, &DeleteParams::default()).await?;
    eventually(PATIENCE, async || scaled().await.ok().map(drop)).await.context("the policy stays")?;
    wakes(&space, &broker, &client, &instance).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_fights_over_its_autoscaler_keeps_no_client_from_waking_it() -> Result<()> {
    let Scene { space, broker, operator, instance } = Scene::asleep("contest").await?;
    let autoscalers = space.api::<HorizontalPodAutoscaler>();
    let rival = Patch::Merge(json!({"spec": {"maxReplicas": 9}}));
    let by_rival = PatchParams { field_manager: Some("tuner".to_owned()), ..PatchParams::default() };
    eventually(PATIENCE, async || {
        if autoscalers.get(NAME).await.ok()?.spec?.max_replicas == 3 {
            autoscalers.patch(NAME, &by_rival, &rival).await.ok()?;
        }
        let service = space.services().get(NAME).await.ok()?;
        (service.data["status"]["conditions"][0]["reason"] == "FieldsContested").then_some(())
    })
    .await
    .context("nobody is told")?;
    let client = client(&broker).await?;
    wakes(&space, &broker, &client, &instance).await?;
    let now = autoscalers.get(NAME).await?.spec.context("a spec")?;
    ensure!(now.max_replicas == 9, "it was not contested any more");
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_service_that_went_while_the_operator_was_away_is_answered() -> Result<()> {
    let Scene { space, broker, operator, instance } = Scene::asleep("unknown").await?;
    // Another one keeps the operator at this broker, which keeps for it what was asked meanwhile.
    space.create("tides", &sleepy(&broker)).await?;
    space.condition("tides", "Ready", "True", "Asleep").await?;
    operator.kill().await?;
    space.services().delete(NAME, &DeleteParams::default()).await?;
    let mut client = asks(&broker, &instance).await?;

    // The next life of the operator holds it, writes it down and dies; the one after that has only what was written.
    let operator = Operator::start(&space, &[]).await?;
    space.condition("tides", "Ready", "True", "Asleep").await?;
    tokio::time::sleep(HELD).await;
    operator.kill().await?;
    let operator = Operator::start(&space, &[]).await?;
    not_served(&mut client).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_service_of_the_default_broker_leaves_nothing_there_when_it_goes_unseen() -> Result<()> {
    let (space, broker) = (Space::new("last").await?, Mosquitto::start().await?);
    let url = broker.url();
    let default = ["--default-broker-url", url.as_str().trim_end_matches('/')];
    let operator = Operator::start(&space, &default).await?;
    let mut spec = sleepy(&broker);
    spec.as_object_mut().context("a spec")?.remove("broker");
    space.create(NAME, &spec).await?;
    let instance = asleep(&space, &broker).await?;
    operator.kill().await?;
    space.services().delete(NAME, &DeleteParams::default()).await?;
    let mut asking = asks(&broker, &instance).await?;
    let watching = client(&broker).await?;
    let mut watch = watching.watch(instance.server_name.as_str()).await?;
    timeout(PATIENCE, watch.until(|all| all.len() == 1)).await?;

    let operator = Operator::start(&space, &default).await?;
    timeout(PATIENCE, watch.until(<[Instance]>::is_empty)).await.context("its presence stays")?;
    not_served(&mut asking).await?;
    operator.stop().await?;
    space.remove().await
}

/// A client that has asked for this service, and hears what is answered.
async fn asks(broker: &Mosquitto, instance: &Instance) -> Result<Connection> {
    let id = ClientId::new("client-1")?;
    let client = Connection::open(&ConnectOptions::new(broker.url(), id.as_str())).await?;
    let answers = topic::rpc(&id, &instance.server_id, &instance.server_name);
    client.publisher.subscribe(vec![Filter::no_local(answers, Qos::AtLeastOnce)], PATIENCE).await?;
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}});
    let control = topic::control(&instance.server_id, &instance.server_name);
    let publication = Publication {
        user_properties: user_property::of_publish(Component::Client, id.as_str()),
        ..Publication::new(control, request.to_string().into_bytes(), Qos::AtLeastOnce)
    };
    client.publisher.publish_confirmed(publication, PATIENCE).await?;
    Ok(client)
}

async fn not_served(client: &mut Connection) -> Result<()> {
    let answer = match timeout(PATIENCE, client.events.recv()).await.context("no answer")? {
        Some(Event::Received(received)) => serde_json::from_slice::<Value>(&received.payload)?,
        other => bail!("no answer but {other:?}"),
    };
    ensure!(answer["id"] == 1 && answer["error"]["data"]["reason"] == "not-served", "{answer}");
    Ok(())
}
