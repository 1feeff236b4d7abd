//! Services that sleep, and the registry, at a real API server and real brokers. No pod runs here: a gateway of this
//! test's own takes the place of one, when and if the test wants it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use k8s_openapi::api::{autoscaling::v2::HorizontalPodAutoscaler, core::v1::Pod};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    cluster::{PATIENCE, Space, eventually},
    gateway::{Gateway, Options, call},
    operator::Operator,
    proxy::{Manner, Proxy, is, kind},
};
use mcp_mqtt_transport::{
    client::{Client, ClientOptions, Instance, OpenError, Session, Unhandled},
    jsonrpc::RpcError,
    mqtt::{ConnectOptions, Connection, Event, Filter, Publication, Qos},
    presence::Online,
    topic::{self, ClientId, ServerId, ServerName},
    user_property::{self, UserProperties},
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
    let Scene { space, broker, operator, instance } = Scene::asleep("heirs").await?;
    space.patch(NAME, json!({"spec": {"replicas": 2}})).await?;
    let one_is_named = |all: &[Instance]| all.len() == 1 && all[0].online.meta.contains_key("heir");
    let named = instances(&space, &broker, one_is_named).await?.pop().context("one")?;
    let pods = space.api::<Pod>().list(&ListParams::default()).await?;
    let pods: Vec<String> = pods.items.into_iter().filter_map(|pod| pod.metadata.name).collect();
    let ids: Vec<ServerId> = pods
        .iter()
        .map(|pod| Ok(ServerId::new(&format!("kubernetes.{}.{pod}", space.namespace))?))
        .collect::<Result<_>>()?;
    ensure!(ids.len() == 2, "{ids:?}");
    let (heirs, others): (Vec<_>, Vec<_>) =
        pods.iter().zip(&ids).partition(|(_, id)| named.online.is_left_to(id));
    let [(heir, _)] = heirs[..] else { bail!("{:?} of {ids:?}", named.online) };
    let [(other, other_id)] = others[..] else { bail!("{:?} of {ids:?}", named.online) };

    // The other one first: it has all the time to take what is not its own.
    let mut other = pod(&space, &broker, other)?;
    let shows =
        |all: &[Instance]| all.len() == 2 && all.iter().any(|instance| instance.server_id == *other_id);
    let both = instances(&space, &broker, shows).await?;
    ensure!(both.iter().any(|instance| instance.online.is_parked()), "{both:?}");
    let client = client(&broker).await?;
    let (session, heir) = tokio::join!(initialize(&client, &instance), async { pod(&space, &broker, heir) });
    echoes(&session?).await?;
    let mut heir = heir?;
    ensure!(heir.status().await?.server_id == standby(&space)?.as_str());
    let both_awake =
        |all: &[Instance]| all.len() == 2 && all.iter().all(|instance| !instance.online.is_parked());
    instances(&space, &broker, both_awake).await?;
    for pod in [&mut heir, &mut other] {
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
    let (space, broker) = (Space::new(test).await?, Mosquitto::start().await?);
    let proxy = Proxy::start(broker.port(), Manner::default()).await?;
    let operator = Operator::start(&space, &[]).await?;
    let mut spec = sleepy(&broker);
    spec["broker"]["url"] = json!(proxy.url().as_str().trim_end_matches('/'));
    space.create(NAME, &spec).await?;
    let instance = asleep(&space, &broker).await?;
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
    let watching = self::client(&broker).await?;
    let mut watch = watching.watch(server_name(&space)?.as_str()).await?;
    watch.until(|all| all.len() == 1).await;
    let gap = tokio::spawn(async move { watch.until(<[Instance]>::is_empty).await });
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

/// The user properties of a retained message.
async fn properties(connection: &mut Connection, topic: &str) -> Result<UserProperties> {
    connection.publisher.subscribe(vec![Filter::new(topic, Qos::AtLeastOnce)], PATIENCE).await?;
    let event = timeout(PATIENCE, connection.events.recv()).await?;
    connection.publisher.unsubscribe(vec![topic.to_owned()])?.await?;
    match event {
        Some(Event::Received(received)) => Ok(received.user_properties),
        other => anyhow::bail!("no presence but {other:?}"),
    }
}

async fn retain(connection: &Connection, topic: &str, payload: Bytes, mark: &UserProperties) -> Result<()> {
    let publication = Publication {
        retain: true,
        user_properties: mark.clone(),
        ..Publication::new(topic, payload, Qos::AtLeastOnce)
    };
    Ok(connection.publisher.publish_confirmed(publication, PATIENCE).await?)
}

/// A pod that the operator watches, and that no node takes.
async fn bare_pod(space: &Space, name: &str) -> Result<()> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"mcp-mqtt.io/service": "elsewhere"}},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "server", "image": "registry.example/weather:3"}]},
    }))?;
    let api = space.api::<Pod>();
    // The namespace's ServiceAccount comes a moment after it.
    let made = async || api.create(&PostParams::default(), &pod).await.ok().map(drop);
    eventually(PATIENCE, made).await.with_context(|| format!("the pod {name} cannot be made"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_stands_behind_is_cleared_and_what_is_cleared_by_mistake_comes_back() -> Result<()> {
    let Scene { space, mut broker, operator, instance } = Scene::asleep("true").await?;
    let mut meddler = Connection::open(&ConnectOptions::new(broker.url(), "meddler")).await?;
    let (name, place) =
        (server_name(&space)?, topic::server_presence(&instance.server_id, &instance.server_name));
    let mark = properties(&mut meddler, &place).await?;
    ensure!(user_property::find(&mark, user_property::KEEPER).is_some(), "{mark:?}");
    let online = Online::new(name.as_str(), "", None).to_payload();
    let id = |name: &str| ServerId::new(&format!("kubernetes.{}.{name}", space.namespace));
    let stranger = topic::server_presence(&id("stranger-1")?, &name);
    retain(&meddler, &stranger, online.clone(), &Vec::new()).await?;
    let pods = ["living-1", "evicted-1"];
    for pod in pods {
        bare_pod(&space, pod).await?;
    }
    let watching = client(&broker).await?;
    let mut watch = watching.watch(name.as_str()).await?;
    for ours in ["ghost-1", "ghost_service"].into_iter().chain(pods) {
        retain(&meddler, &topic::server_presence(&id(ours)?, &name), online.clone(), &mark).await?;
    }
    let start = Instant::now();
    let shows = |all: &[Instance], who: &str| all.iter().any(|one| one.server_id.as_str().ends_with(who));
    let no_ghosts = |all: &[Instance]| shows(all, "evicted-1") && !shows(all, "ghost-1") && all.len() == 4;
    timeout(PATIENCE, watch.until(no_ghosts)).await.with_context(|| format!("{:?}", watch.instances()))?;
    println!("ghosts are cleared after {:?}", start.elapsed());
    // The kubelet evicts it: its object stays.
    let evicted = Patch::Merge(json!({"status": {"phase": "Failed", "reason": "Evicted"}}));
    space.api::<Pod>().patch_status("evicted-1", &PatchParams::default(), &evicted).await?;
    let start = Instant::now();
    let gone = timeout(PATIENCE, watch.until(|all| !shows(all, "evicted-1"))).await;
    gone.context("the presence of the evicted pod stays")?;
    println!("an evicted pod's presence is cleared after {:?}", start.elapsed());
    let left = watch.instances();
    ensure!(left.len() == 3 && shows(&left, "stranger-1") && shows(&left, "living-1"), "{left:?}");
    watching.close(PATIENCE).await?;

    retain(&meddler, &place, Bytes::new(), &mark).await?;
    instances(&space, &broker, |all| all.iter().any(|instance| instance.online.is_parked())).await?;
    // A broker that has forgotten all is told all again.
    broker.restart().await?;
    asleep(&space, &broker).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_the_broker_was_away_is_put_right_within_five_seconds_of_its_return() -> Result<()>
{
    /// By then attempts to connect are as seldom as they get.
    const AWAY: Duration = Duration::from_secs(20);
    let (space, broker) = (Space::new("away").await?, Mosquitto::start().await?);
    let proxy = Proxy::start(broker.port(), Manner::default()).await?;
    let operator = Operator::start(&space, &[]).await?;
    let mut spec = sleepy(&broker);
    spec["broker"]["url"] = json!(proxy.url().as_str().trim_end_matches('/'));
    space.create(NAME, &spec).await?;
    let instance = asleep(&space, &broker).await?;
    let mut meddler = Connection::open(&ConnectOptions::new(broker.url(), "meddler")).await?;
    let (name, place) =
        (server_name(&space)?, topic::server_presence(&instance.server_id, &instance.server_name));
    let mark = properties(&mut meddler, &place).await?;
    proxy.behave(Manner { refuses: Some(0x88), ..Manner::default() });
    proxy.cut();
    let ghost = ServerId::new(&format!("kubernetes.{}.ghost-1", space.namespace))?;
    let online = Online::new(name.as_str(), "", None).to_payload();
    retain(&meddler, &topic::server_presence(&ghost, &name), online, &mark).await?;
    tokio::time::sleep(AWAY).await;
    instances(&space, &broker, |all| all.len() == 2).await?;
    proxy.behave(Manner::default());
    let back = Instant::now();
    asleep(&space, &broker).await?;
    println!("put right {:?} after the broker was back", back.elapsed());
    ensure!(back.elapsed() < Duration::from_secs(5), "only after {:?}", back.elapsed());
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_cannot_be_reached_concerns_its_own_services_only() -> Result<()> {
    let (space, broker) = (Space::new("brokers").await?, Mosquitto::start().await?);
    let mut gone = Mosquitto::start().await?;
    gone.kill()?;
    let operator = Operator::start(&space, &[]).await?;
    space.create("elsewhere", &sleepy(&gone)).await?;
    space.create(NAME, &sleepy(&broker)).await?;
    asleep(&space, &broker).await?;
    space.condition(NAME, "Ready", "True", "Asleep").await?;
    let told = |status: &Value| status["conditions"][2]["message"].as_str().unwrap_or_default().to_owned();
    space.status("elsewhere", |status| told(status).contains("cannot reach the broker at 127.0.0.1")).await?;
    gone.restart().await?;
    space.condition("elsewhere", "Ready", "True", "Asleep").await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_may_sleep_no_more_or_goes_leaves_nothing_in_the_registry() -> Result<()> {
    let Scene { space, broker, operator, .. } = Scene::asleep("leaves").await?;
    let awake = json!({"minReplicas": 1, "maxReplicas": 3, "idleSeconds": null, "wakeTimeoutSeconds": null});
    space.patch(NAME, json!({"spec": {"autoscaling": awake}})).await?;
    instances(&space, &broker, <[Instance]>::is_empty).await?;
    space.patch(NAME, json!({"spec": {"autoscaling": {"minReplicas": 0}}})).await?;
    asleep(&space, &broker).await?;
    space.services().delete(NAME, &kube::api::DeleteParams::default()).await?;
    instances(&space, &broker, <[Instance]>::is_empty).await?;
    operator.stop().await?;
    space.remove().await
}
