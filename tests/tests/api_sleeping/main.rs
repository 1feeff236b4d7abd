//! Services that sleep, and the registry, at a real API server and real brokers. No pod runs here: a gateway of this
//! test's own takes the place of one, when and if the test wants it.

mod brokers;
mod missing;
mod namespaces;
mod refused;
mod registry;
mod rights;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::{autoscaling::v2::HorizontalPodAutoscaler, core::v1::Pod};
use kube::api::ListParams;
use mcp_mqtt_tests::{
    broker::Mosquitto,
    cluster::{PATIENCE, Space, eventually},
    gateway::{Gateway, Options, call},
    operator::Operator,
    presences::Presences,
    proxy::{Manner, Proxy, is, kind},
};
use mcp_mqtt_transport::{
    client::{Client, ClientOptions, Instance, OpenError, Session, Unhandled},
    jsonrpc::RpcError,
    topic::{ClientId, ServerId, ServerName},
};
use serde_json::{Value, json, value::RawValue};
use tokio::time::timeout;

const NAME: &str = "weather";
/// The cluster's autoscaler looks every five seconds.
const AUTOSCALER_LOOKS: Duration = Duration::from_secs(12);

/// A service that sleeps, with a broker and an operator of its own.
struct Scene {
    space: Space,
    broker: Mosquitto,
    operator: Operator,
    /// As it stands in the registry.
    instance: Instance,
}

impl Scene {
    async fn asleep(test: &str) -> Result<Self> {
        Self::asleep_with(test, sleepy).await
    }

    /// The operator reaches the broker through the proxy.
    async fn asleep_behind_a_proxy(test: &str) -> Result<(Self, Proxy)> {
        let (space, broker) = (Space::new(test).await?, Mosquitto::start().await?);
        let proxy = Proxy::start(broker.port(), Manner::default()).await?;
        let operator = Operator::start(&space, &[]).await?;
        let mut spec = sleepy(&broker);
        spec["broker"]["url"] = json!(proxy.url().as_str().trim_end_matches('/'));
        space.create(NAME, &spec).await?;
        let instance = asleep(&space, &broker).await?;
        Ok((Self { space, broker, operator, instance }, proxy))
    }

    async fn asleep_with(test: &str, spec: impl FnOnce(&Mosquitto) -> Value) -> Result<Self> {
        let (space, broker) = (Space::new(test).await?, Mosquitto::start().await?);
        let operator = Operator::start(&space, &[]).await?;
        space.create(NAME, &spec(&broker)).await?;
        let instance = asleep(&space, &broker).await?;
        Ok(Self { space, broker, operator, instance })
    }
}

/// A service that sleeps, at this broker; its pods wait for a scheduler that is not there.
fn sleepy(broker: &Mosquitto) -> Value {
    json!({
        "replicas": 0,
        "autoscaling": {"minReplicas": 0, "maxReplicas": 3, "idleSeconds": 1, "wakeTimeoutSeconds": 50},
        "transport": {"stdio": {"command": ["node", "server.js"]}},
        "server": {"image": "registry.example/weather:3", "imagePullPolicy": "Never"},
        "podTemplate": {"spec": {"schedulerName": "nobody"}},
        "broker": {"url": broker.url().as_str().trim_end_matches('/')},
    })
}

fn server_name(space: &Space) -> Result<ServerName> {
    Ok(ServerName::new(&format!("{}/{NAME}", space.namespace))?)
}

fn standby(space: &Space) -> Result<ServerId> {
    Ok(ServerId::new(&format!("kubernetes.{}.{NAME}_service", space.namespace))?)
}

async fn client(broker: &Mosquitto) -> Result<Client> {
    let id = ClientId::new(&format!("client-{:08x}", fastrand::u32(..)))?;
    Ok(Client::connect(ClientOptions::new(broker.url(), id)).await?)
}

/// The instances of the service, once there are some that fulfil this.
async fn instances(
    space: &Space,
    broker: &Mosquitto,
    condition: impl FnMut(&[Instance]) -> bool,
) -> Result<Vec<Instance>> {
    let client = client(broker).await?;
    let mut watch = client.watch(server_name(space)?.as_str()).await?;
    let found = timeout(PATIENCE, watch.until(condition)).await;
    let seen = watch.instances();
    client.close(PATIENCE).await?;
    found.with_context(|| format!("the registry has {seen:?}"))?.context("the connection is over")
}

/// The service as it sleeps in the registry.
async fn asleep(space: &Space, broker: &Mosquitto) -> Result<Instance> {
    let only_parked = |all: &[Instance]| all.len() == 1 && all[0].online.is_parked();
    instances(space, broker, only_parked).await?.pop().context("one")
}

/// A gateway as the operator would start it in a pod.
fn pod(space: &Space, broker: &Mosquitto, pod: &str) -> Result<Gateway> {
    Options::new(&broker.url())
        .server_name(server_name(space)?.as_str())
        .server_id(&format!("kubernetes.{}.{pod}", space.namespace))
        .arg(&format!("--standby-id={}", standby(space)?))
        .start()
}

async fn initialize(client: &Client, instance: &Instance) -> Result<Session, OpenError> {
    let capabilities = RawValue::from_string("{}".to_owned()).expect("an object");
    client.open_session(instance, &capabilities, std::sync::Arc::new(Unhandled), PATIENCE).await
}

/// The error that the operator itself said.
fn told(error: &OpenError) -> Option<&RpcError> {
    match error {
        OpenError::Initialize(error) => error.rpc(),
        _ => None,
    }
}

async fn echoes(session: &Session) -> Result<()> {
    let answer = call(session, "echo", json!({"message": "awake"})).await?;
    ensure!(answer == "awake", "{answer}");
    Ok(())
}

async fn replicas(space: &Space, wanted: i64) -> Result<()> {
    eventually(PATIENCE, async || {
        let service = space.services().get(NAME).await.ok()?;
        (service.data["spec"]["replicas"] == wanted).then_some(())
    })
    .await
    .with_context(|| format!("it is not to have {wanted} instances"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_instances_is_found_and_the_first_initialize_wakes_it() -> Result<()> {
    let Scene { space, broker, operator, instance } = Scene::asleep("wake").await?;
    ensure!(instance.server_id == standby(&space)?, "{instance:?}");
    let said = space.condition(NAME, "Registered", "True", "Asleep").await?;
    ensure!(said.contains("wakes it"), "{said}");
    space.condition(NAME, "Ready", "True", "Asleep").await?;

    let client = client(&broker).await?;
    let wake = async {
        replicas(&space, 1).await?;
        let pod = pod(&space, &broker, "weather-1")?;
        pod.wait_ready().await?;
        anyhow::Ok(pod)
    };
    let (session, pod) = tokio::join!(initialize(&client, &instance), wake);
    let (session, pod) = (session?, pod?);
    echoes(&session).await?;
    let awake = instances(&space, &broker, |all| all.len() == 1 && !all[0].online.is_parked()).await?;
    ensure!(awake[0].server_id == standby(&space)?, "{awake:?}");
    // Who comes later goes to the instance straight, and one more instance has a place of its own.
    let another = self::client(&broker).await?;
    echoes(&initialize(&another, &awake[0]).await?).await?;
    let second = self::pod(&space, &broker, "weather-2")?;
    second.wait_ready().await?;
    instances(&space, &broker, |all| all.len() == 2).await?;
    drop((pod, second));
    operator.stop().await?;
    space.remove().await
}

/// Why the autoscaler does or does not work; none: its controller has not looked at it yet.
async fn autoscaler_says(space: &Space) -> Option<String> {
    let autoscaler = space.api::<HorizontalPodAutoscaler>().get(NAME).await.ok()?;
    let conditions = autoscaler.status?.conditions?;
    conditions.into_iter().find(|condition| condition.type_ == "ScalingActive")?.reason
}

#[tokio::test(flavor = "multi_thread")]
async fn the_autoscaler_rests_while_the_service_sleeps_and_comes_back_by_itself() -> Result<()> {
    let Scene { space, broker, operator, instance } = Scene::asleep("autoscaler").await?;
    let rests = async || autoscaler_says(&space).await.filter(|reason| reason == "ScalingDisabled");
    eventually(PATIENCE, rests).await.context("it does not rest")?;
    let before = space.api::<HorizontalPodAutoscaler>().get(NAME).await?;
    // It looks every few seconds, and leaves the service asleep.
    tokio::time::sleep(AUTOSCALER_LOOKS).await;
    replicas(&space, 0).await?;
    asleep(&space, &broker).await?;

    let client = client(&broker).await?;
    let waking = tokio::spawn({
        let instance = instance.clone();
        async move { initialize(&client, &instance).await.map(drop) }
    });
    replicas(&space, 1).await?;
    // There is no pod, and so nothing to be measured: it tries.
    let tries = async || autoscaler_says(&space).await.filter(|reason| reason != "ScalingDisabled");
    eventually(PATIENCE, tries).await.context("it does not come back")?;
    let after = space.api::<HorizontalPodAutoscaler>().get(NAME).await?;
    ensure!(before.metadata.uid == after.metadata.uid && before.spec == after.spec, "{after:?}");
    waking.abort();
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_pods_that_wake_at_once_one_has_the_services_place_and_both_are_found() -> Result<()> {
    let Scene { space, broker, operator, instance } = Scene::asleep("twins").await?;
    let client = client(&broker).await?;
    let wake = async {
        replicas(&space, 1).await?;
        anyhow::Ok((pod(&space, &broker, "weather-1")?, pod(&space, &broker, "weather-2")?))
    };
    let (session, pods) = tokio::join!(initialize(&client, &instance), wake);
    let (mut one, mut other) = pods?;
    // Who was with the one that lost the place hears at once that it went, and asks again.
    match session {
        Ok(session) => drop(session),
        Err(error) => ensure!(error.to_string().contains("session ended"), "{error}"),
    }
    let all = instances(&space, &broker, |all| {
        all.len() == 2 && all.iter().all(|instance| !instance.online.is_parked())
    });
    let all = all.await?;
    let standby = standby(&space)?;
    let holders = all.iter().filter(|instance| instance.server_id == standby).count();
    ensure!(holders == 1, "not one of them has the service's place: {all:?}");
    for found in &all {
        let client = self::client(&broker).await?;
        echoes(&initialize(&client, found).await?).await?;
        client.close(PATIENCE).await?;
    }
    for pod in [&mut one, &mut other] {
        pod.wait_for("registered", |status| status.broker.ok).await?;
        pod.terminate()?;
        pod.wait_ended().await?;
    }
    operator.stop().await?;
    space.remove().await
}

/// By the names of the Deployment's own pods, of which nothing else runs here.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_pods_that_are_wanted_at_once_one_is_named_and_the_other_does_not_even_try() -> Result<()> {
    let Scene { space, broker, operator, instance } = Scene::asleep("successors").await?;
    space.patch(NAME, json!({"spec": {"replicas": 2}})).await?;
    let one_is_named = |all: &[Instance]| all.len() == 1 && all[0].online.meta.contains_key("successor");
    let named = instances(&space, &broker, one_is_named).await?.pop().context("one")?;
    let pods = space.api::<Pod>().list(&ListParams::default()).await?;
    let pods: Vec<String> = pods.items.into_iter().filter_map(|pod| pod.metadata.name).collect();
    let ids: Vec<ServerId> = pods
        .iter()
        .map(|pod| Ok(ServerId::new(&format!("kubernetes.{}.{pod}", space.namespace))?))
        .collect::<Result<_>>()?;
    ensure!(ids.len() == 2, "{ids:?}");
    let (successors, others): (Vec<_>, Vec<_>) =
        pods.iter().zip(&ids).partition(|(_, id)| named.online.is_left_to(id));
    let [(successor, _)] = successors[..] else { bail!("{:?} of {ids:?}", named.online) };
    let [(other, other_id)] = others[..] else { bail!("{:?} of {ids:?}", named.online) };

    // The other one first: it has all the time to take what is not its own.
    let mut other = pod(&space, &broker, other)?;
    let shows =
        |all: &[Instance]| all.len() == 2 && all.iter().any(|instance| instance.server_id == *other_id);
    let both = instances(&space, &broker, shows).await?;
    ensure!(both.iter().any(|instance| instance.online.is_parked()), "{both:?}");
    let client = client(&broker).await?;
    let (session, successor) =
        tokio::join!(initialize(&client, &instance), async { pod(&space, &broker, successor) });
    echoes(&session?).await?;
    let mut successor = successor?;
    ensure!(successor.status().await?.server_id == standby(&space)?.as_str());
    let both_awake =
        |all: &[Instance]| all.len() == 2 && all.iter().all(|instance| !instance.online.is_parked());
    instances(&space, &broker, both_awake).await?;
    for pod in [&mut successor, &mut other] {
        pod.terminate()?;
        pod.wait_ended().await?;
    }
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_is_killed_in_the_middle_of_a_wake_loses_no_message() -> Result<()> {
    let Scene { space, broker, operator, instance } = Scene::asleep("killed").await?;
    space.condition(NAME, "Ready", "True", "Asleep").await?;
    let (early, late) = (client(&broker).await?, client(&broker).await?);
    let restart = async {
        replicas(&space, 1).await?;
        operator.kill().await?;
        // One was held by the operator that is gone, one comes while there is none.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let operator = Operator::start(&space, &[]).await?;
        let pod = pod(&space, &broker, "weather-1")?;
        pod.wait_ready().await?;
        anyhow::Ok((operator, pod))
    };
    let come_late = async {
        replicas(&space, 1).await.ok();
        tokio::time::sleep(Duration::from_millis(500)).await;
        initialize(&late, &instance).await
    };
    let (first, second, rest) = tokio::join!(initialize(&early, &instance), come_late, restart);
    let (operator, _pod) = rest?;
    echoes(&first?).await?;
    echoes(&second?).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_counts_as_taken_only_when_it_is_written_down() -> Result<()> {
    taken("taken", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_comes_again_is_written_down_again() -> Result<()> {
    taken("again", true).await
}

async fn taken(test: &str, again: bool) -> Result<()> {
    // The broker never gets what the operator writes down of the message: its connection ends there, and it dies.
    let dies = Manner { closes_on: Some((kind::PUBLISH, "mcp-mqtt/held")), ..Manner::default() };
    let (Scene { space, broker, operator, instance }, proxy) = Scene::asleep_behind_a_proxy(test).await?;
    proxy.behave(dies);
    let client = client(&broker).await?;
    let wake = async {
        proxy.wait_sent(kind::PUBLISH, "mcp-mqtt/held").await?;
        if again {
            // On its next connection it gets the message once more, and has it already.
            let sent = proxy.sent().len();
            proxy.behave(Manner::default());
            eventually(PATIENCE, async || {
                proxy.sent()[sent..]
                    .iter()
                    .any(|packet| is(packet, kind::PUBLISH, "mcp-mqtt/held"))
                    .then_some(())
            })
            .await
            .context("it does not write it down again")?;
        }
        operator.kill().await?;
        proxy.behave(Manner::default());
        let next = Operator::start(&space, &[]).await?;
        replicas(&space, 1).await?;
        let pod = pod(&space, &broker, "weather-1")?;
        pod.wait_ready().await?;
        anyhow::Ok((next, pod))
    };
    let (session, woken) = tokio::join!(initialize(&client, &instance), wake);
    let (next, pod) = woken?;
    echoes(&session?).await?;
    drop(pod);
    next.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_the_pods_from_starting_is_the_answer() -> Result<()> {
    let unscheduled = |broker: &Mosquitto| {
        let mut spec = sleepy(broker);
        spec["podTemplate"] = json!({});
        spec
    };
    let Scene { space, broker, operator, instance } = Scene::asleep_with("hopeless", unscheduled).await?;
    let client = client(&broker).await?;
    for _ in 0..2 {
        let start = Instant::now();
        let error = initialize(&client, &instance).await.expect_err("no image of the sidecar");
        let rpc = told(&error).context("the operator's own words")?.clone();
        println!("refused after {:?}: {}", start.elapsed(), rpc.message);
        ensure!(rpc.reason() == Some("wake-failed") && rpc.message.contains("ErrImageNeverPull"), "{rpc:?}");
    }
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_relieved_leaves_the_presence_alone() -> Result<()> {
    let Scene { space, broker, operator, instance } = Scene::asleep("relieved").await?;
    let client = client(&broker).await?;
    let wake = async {
        replicas(&space, 1).await?;
        pod(&space, &broker, "weather-1")
    };
    let (session, pod) = tokio::join!(initialize(&client, &instance), wake);
    echoes(&session?).await?;
    let mut pod = pod?;
    let gap = Presences::of(&broker.url(), &server_name(&space)?).await?.gap().await?;
    // By hand: nobody asks an instance that is no pod whether it is idle.
    client.close(PATIENCE).await?;
    pod.wait_for("no session", |status| status.sessions == 0).await?;
    space.patch(NAME, json!({"spec": {"replicas": 0}})).await?;
    pod.wait_for("relieved", |status| status.broker.reason == "Relieved").await?;
    pod.terminate()?;
    pod.wait_ended().await?;
    asleep(&space, &broker).await?;
    space.condition(NAME, "Ready", "True", "Asleep").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(!gap.is_finished(), "for a moment the registry did not show it");
    gap.abort();
    operator.stop().await?;
    space.remove().await
}
