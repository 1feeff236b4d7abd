use kube::client::Body;
use mcp_mqtt_sidecar::{
    config::ADMIN_PORT,
    status::{GatewayStatus, reason},
};
use mcp_mqtt_transport::{
    jsonrpc::{Message, RequestId},
    mqtt::Received,
    topic::ClientId,
    user_property,
};

use bytes::Bytes;

use super::*;
use crate::{
    controller::{fixtures, problems::tests::gateway, resolve::ReferenceMemory, validate::Sleep},
    registry::{Asked, presences::SETTLE, scale_to_zero::Need},
    watched::tests::watched,
};

/// A controller of no service, whose API server answers nothing and whose brokers are not there.
pub(super) fn controller() -> RegistryController {
    let api = tower::service_fn(|_: http::Request<Body>| {
        std::future::pending::<Result<http::Response<Body>, tower::BoxError>>()
    });
    let mut controller = RegistryController::new(Setting {
        client: Client::new(api, "meteo"),
        cluster: "north".to_owned(),
        mark: "k".to_owned(),
        salt: fixtures::salt(),
        client_id: "north.operators.operator_operator".to_owned(),
        default_broker: None,
        default_secret: None,
        watched: [watched(None, Vec::new(), Vec::new())].into_iter().collect(),
        registry: RegistryFeed::default(),
        metrics: Arc::new(Metrics::new()),
        pulse: Pulse::default(),
    });
    controller.happenings = mpsc::channel(HAPPENINGS).0;
    controller
}

pub(super) fn wanted() -> Wanted {
    let valid = fixtures::validated(fixtures::STDIO).unwrap();
    let (settings, references) = (fixtures::settings(), ReferenceMemory::default());
    Wanted::of(&valid, &settings, &references, None, &fixtures::salt()).unwrap()
}

fn weather() -> ServiceRef {
    ServiceRef::new("weather").within("meteo")
}

fn initialize(client: u32, bytes: usize) -> Unclaimed {
    let parameters = serde_json::json!({"padding": "x".repeat(bytes)});
    let request = Message::request(RequestId::string("1"), "initialize", Some(&parameters)).unwrap();
    Unclaimed {
        client: ClientId::new(&format!("client-{client}")).unwrap(),
        payload: request.into_raw(),
        since: Instant::now(),
        server_name: None,
    }
}

#[tokio::test]
async fn what_comes_for_an_unknown_service_has_no_more_room_than_the_rest() {
    let mut controller = controller();
    controller.told(&weather(), Arc::new(wanted()));
    let key = wanted().broker.key;
    for client in 0..300 {
        controller.heard(&key, "north.meteo.sun_service", initialize(client, 60 << 10), &mut None);
    }
    let held = controller.held();
    assert!(held.messages > 100 && held.bytes <= pending::BYTES_IN_ALL / 2, "{held:?}");
}

#[tokio::test]
async fn a_broker_that_no_service_uses_keeps_its_connection_by_nothing_new() {
    let mut controller = controller();
    controller.told(&weather(), Arc::new(wanted()));
    let key = wanted().broker.key;
    let hear = |controller: &mut RegistryController, client: u32| {
        controller.heard(&key, "north.meteo.sun_service", initialize(client, 0), &mut None);
        controller.held().messages
    };
    assert_eq!(hear(&mut controller, 1), 1);
    controller.gone(&weather());
    assert_eq!(hear(&mut controller, 2), 1, "only what was kept before");
    assert_eq!(key, wanted::DEFAULT);
    controller.first_look = first_look::FirstLook::Until(Instant::now() + Duration::from_mins(1));
    assert_eq!(hear(&mut controller, 3), 2, "an operator that has just started finds what was asked before");
}

#[tokio::test]
async fn a_message_waits_for_a_namespace_to_be_listed_but_not_for_long() {
    let mut controller = controller();
    let (unsynced, stores) = tokio::sync::watch::channel(vec!["McpServices"]);
    let mut tools = watched(Some("tools"), Vec::new(), Vec::new());
    tools.stores.unsynced = stores;
    controller.setting.watched = [tools].into_iter().collect();
    controller.told(&weather(), Arc::new(wanted()));
    let (key, start) = (wanted().broker.key, Instant::now());
    let hear = |controller: &mut RegistryController, namespace: &str, message: Unclaimed| {
        controller.heard(&key, &format!("north.{namespace}.clock_service"), message, &mut None);
    };
    let left = |controller: &mut RegistryController, seconds: u64| {
        let (setting, broker) = (&controller.setting, controller.brokers.get_mut(&key).unwrap());
        broker.forget_unclaimed(start + Duration::from_secs(seconds), |id| setting.is_unlisted(id));
        broker.unclaimed().messages
    };
    hear(&mut controller, "meteo", initialize(1, 0));
    hear(&mut controller, "tools", initialize(1, 0));
    let before = start.checked_sub(Duration::from_mins(2)).unwrap();
    hear(&mut controller, "tools", Unclaimed { since: before, ..initialize(2, 0) });
    assert_eq!(left(&mut controller, 29), 3, "all of them for as long as ever");
    assert_eq!(left(&mut controller, 31), 1, "one is not watched, and the client of another has given up");
    assert_eq!((left(&mut controller, 59), left(&mut controller, 61)), (1, 0));
    // The first reconciles take their time.
    hear(&mut controller, "tools", initialize(1, 0));
    assert_eq!(left(&mut controller, 20), 1);
    unsynced.send_replace(Vec::new());
    assert_eq!((left(&mut controller, 49), left(&mut controller, 51)), (1, 0));
}

#[tokio::test]
async fn a_broker_that_sends_without_end_leaves_room_for_the_others() {
    let mut controller = controller();
    let asleep = |key: &str, service: &str| {
        let mut wanted = wanted();
        key.clone_into(&mut wanted.broker.key);
        wanted.standby = ServerId::new(&format!("north.meteo.{service}_service")).unwrap();
        let (idle, wake_timeout) = (Duration::MAX, Duration::from_mins(1));
        wanted.sleep = Some(crate::controller::validate::Sleep { idle, wake_timeout });
        Arc::new(wanted)
    };
    controller.told(&ServiceRef::new("weather").within("meteo"), asleep("one", "weather"));
    controller.told(&ServiceRef::new("sun").within("meteo"), asleep("another", "sun"));
    let hear = |controller: &mut RegistryController, key: &str, service: &str, clients: u32, bytes: usize| {
        let before = controller.held().messages;
        for client in 0..clients {
            let standby = format!("north.meteo.{service}_service");
            controller.heard(key, &standby, initialize(client, bytes), &mut None);
        }
        controller.held().messages - before
    };
    // For a service that is known, for many that are not, and with as many bytes as may be.
    assert_eq!(hear(&mut controller, "one", "weather", 300, 0), pending::PER_SERVICE);
    for service in 0..40 {
        hear(&mut controller, "one", &format!("unknown-{service}"), 300, 0);
    }
    assert_eq!(controller.held().messages, pending::IN_ALL / 2);
    assert_eq!(hear(&mut controller, "one", "weather-2", 1, 0), 0);
    assert_eq!(hear(&mut controller, "another", "sun", 200, 0), 200);
    hear(&mut controller, "another", "unknown", 300, 60 << 10);
    let all = controller.held();
    assert!(all.bytes > pending::BYTES_IN_ALL / 4 && all.bytes < pending::BYTES_IN_ALL * 3 / 4, "{all:?}");
    controller.told(&ServiceRef::new("wind").within("meteo"), asleep("a third", "wind"));
    assert_eq!(hear(&mut controller, "a third", "wind", 50, 10 << 10), 50);
}

#[tokio::test]
async fn a_broker_whose_registry_has_no_end_is_as_good_as_away_and_another_is_not() {
    let mut controller = controller();
    controller.told(&weather(), Arc::new(wanted()));
    let (one, standby) = (wanted().broker.key, ServerId::new("north.meteo.sun_service").unwrap());
    let sun = ServiceRef::new("sun").within("meteo");
    let broker = wanted::Broker { key: "another".to_owned(), ..wanted().broker };
    controller.told(&sun, Arc::new(Wanted { standby, broker, ..wanted() }));
    let links = |controller: &RegistryController| {
        [weather(), sun.clone()].map(|service| controller.services[&service].machine.observed.link)
    };
    let now = Instant::now();
    for broker in controller.brokers.values_mut() {
        broker.presences.subscribed(now);
        assert!(broker.presences.settle(now + Duration::from_mins(1)));
    }
    controller.look_at_place(&weather());
    controller.look_at_place(&sun);
    assert_eq!(links(&controller), [true, true]);
    for number in 0..100_000 {
        let received = Received {
            topic: format!("$mcp-server/presence/north.meteo.weather-{number}/meteo/weather"),
            payload: bytes::Bytes::from_static(b"{}"),
            retain: true,
            user_properties: Vec::new(),
            ack: None,
        };
        controller.received(&one, received, &mut None);
    }
    assert_eq!(links(&controller), [false, true]);
    assert_eq!(controller.brokers[&one].presences.iter().count(), 0);
    assert!(controller.brokers[&one].resumed(), "what the services have subscribed stays");
}

#[tokio::test]
async fn brokers_whose_registries_are_large_have_no_more_memory_together_than_two() {
    let mut controller = controller();
    for (number, key) in ["the default", "one", "another", "a third"].into_iter().enumerate() {
        let standby = ServerId::new(&format!("north.meteo.service-{number}_service")).unwrap();
        let broker = wanted::Broker { key: key.to_owned(), is_default: number == 0, ..wanted().broker };
        let service = ServiceRef::new(&format!("service-{number}")).within("meteo");
        controller.told(&service, Arc::new(Wanted { standby, broker, ..wanted() }));
    }
    let mut number = 0;
    let mut fill = |controller: &mut RegistryController, key: &str, mebibytes: usize| {
        let bytes = |controller: &RegistryController| controller.brokers[key].presences.bytes();
        let enough = bytes(controller) + (mebibytes << 20);
        while bytes(controller) < enough {
            number += 1;
            let name = format!("meteo/{}", "n".repeat(500));
            let received = Received {
                topic: format!("$mcp-server/presence/north.meteo.weather-{number}/{name}"),
                payload: Bytes::from_static(b"{}"),
                retain: true,
                user_properties: Vec::new(),
                ack: None,
            };
            controller.received(key, received, &mut None);
        }
    };
    let given_up = |controller: &RegistryController| {
        let all = controller.brokers.iter().filter(|(_, broker)| broker.presences.are_too_many());
        all.map(|(key, _)| key.clone()).collect::<Vec<_>>()
    };
    for (key, mebibytes) in [("the default", 15), ("one", 6), ("another", 9)] {
        fill(&mut controller, key, mebibytes);
    }
    assert_eq!(given_up(&controller), [""; 0]);
    fill(&mut controller, "a third", 3);
    assert_eq!(given_up(&controller), ["another"], "not the operator's own, not the one that came last");
    fill(&mut controller, "a third", 5);
    assert_eq!(given_up(&controller), ["another"], "there is room again");
}

#[tokio::test]
async fn of_a_service_at_zero_nothing_is_told_before_the_broker_has_let_its_presence_in_or_not() {
    let mut controller = controller();
    controller.setting.watched = std::iter::empty().collect();
    let sleep = Some(Sleep { idle: Duration::MAX, wake_timeout: Duration::from_mins(1) });
    let wanted = Wanted { sleep, replicas: 0, ..wanted() };
    let registry = controller.setting.registry.clone();
    let sun = ServiceRef::new("sun").within("meteo");
    let standby = ServerId::new("north.meteo.sun_service").unwrap();
    let settle = |broker: &mut Broker| {
        broker.presences.subscribed(Instant::now());
        assert!(broker.presences.settle(Instant::now() + SETTLE));
    };
    registry.tell(&weather(), Asked::Usable(wanted.clone()), None);
    controller.told(&weather(), Arc::new(wanted.clone()));
    controller.brokers.values_mut().for_each(settle);
    controller.look_at_place(&weather());
    controller.show(&weather());
    assert_eq!(registry.seen(&weather()), None);
    let machine = &mut controller.services.get_mut(&weather()).unwrap().machine;
    machine.forbid(Need::Place, "allow it".to_owned(), Instant::now());
    controller.show(&weather());
    assert_eq!(registry.seen(&weather()).unwrap().forbidden.as_deref(), Some("allow it"));
    // One that is awaited no more.
    controller.told(&sun, Arc::new(Wanted { standby, ..wanted }));
    controller.show(&sun);
    assert!(registry.seen(&sun).is_some_and(|seen| !seen.sleeps), "the broker may have dropped it");
}

#[tokio::test]
async fn with_other_credentials_whoever_waits_is_asked_to_try_again() {
    let mut controller = controller();
    controller.told(&weather(), Arc::new(wanted()));
    let known = controller.services.get_mut(&weather()).unwrap();
    let wake_timeout = Duration::from_mins(1);
    known.machine.observed.sleep = Some(Sleep { idle: Duration::MAX, wake_timeout });
    controller.take_unclaimed(&weather(), initialize(1, 0), &mut None);
    assert_eq!(controller.held().messages, 1);
    let mut rotated = wanted();
    rotated.broker.key = "another".to_owned();
    controller.told(&weather(), Arc::new(rotated));
    assert_eq!((controller.held(), controller.brokers.len()), (pending::Held::default(), 2));
    let rejected = controller.brokers.values().any(|broker| broker.refusals == 1);
    assert!(rejected, "nobody hears that it waits no more");
    let Some(Done::Reject(rejection)) = controller.done.next().await else { panic!("another future") };
    assert_eq!(rejection.refusal.reason(), "moved");
}

#[tokio::test]
async fn a_shared_connection_goes_by_the_reference_of_a_service_that_uses_it() {
    let mut controller = controller();
    let of = |secret: &str| {
        let mut wanted = wanted();
        wanted.broker.files = vec![("password", wanted::Origin::Text(secret.to_owned()))];
        wanted
    };
    let sun = ServiceRef::new("sun").within("meteo");
    let goes_by = |controller: &RegistryController, secret: &str| {
        controller.choose_references();
        controller.brokers.values().all(|broker| broker.goes_by(&of(secret).broker))
    };
    controller.told(&weather(), Arc::new(of("first")));
    let standby = ServerId::new("north.meteo.sun_service").unwrap();
    controller.told(&sun, Arc::new(Wanted { standby, ..of("second") }));
    assert!(goes_by(&controller, "first"), "no change without a need");
    let refused = Some("ReferenceNotFound".to_owned());
    controller.told(&weather(), Arc::new(Wanted { refused, ..of("first") }));
    assert!(goes_by(&controller, "second"), "the first one's Secret may be gone");
    controller.gone(&sun);
    assert!(goes_by(&controller, "first"));
}

#[tokio::test]
async fn of_a_namespace_that_is_not_listed_nothing_is_doubted() {
    let mut controller = controller();
    let (unsynced, stores) = tokio::sync::watch::channel(vec!["Pods"]);
    let (mut tools, meteo) =
        (watched(Some("tools"), Vec::new(), Vec::new()), watched(Some("meteo"), Vec::new(), Vec::new()));
    tools.stores.unsynced = stores;
    controller.setting.watched = [meteo, tools].into_iter().collect();
    controller.told(&weather(), Arc::new(wanted()));
    let broker = controller.brokers.values_mut().next().unwrap();
    let (name, now) = (wanted().server_name, Instant::now());
    let mark = vec![(user_property::OWNER.to_owned(), "k".to_owned())];
    broker.presences.unlinked();
    broker.presences.subscribed(now);
    for id in ["north.tools.clock-1", "north.tools.clock_service", "north.meteo.sun-1"] {
        broker.presences.received(id, name.as_str(), true, &wanted().parked, &mark, now);
    }
    assert!(broker.presences.settle(now + SETTLE));
    assert_eq!(controller.suspected(), ["north.meteo.sun-1"]);
    unsynced.send_replace(Vec::new());
    assert_eq!(
        controller.suspected(),
        ["north.meteo.sun-1", "north.tools.clock-1", "north.tools.clock_service"],
        "once it is listed, the API server is asked"
    );
}

/// A gateway that answers each question for its status, or (none) takes it and says nothing.
async fn gateway_at(ip: &str, answer: Option<GatewayStatus>) -> tokio::task::JoinHandle<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind((ip, ADMIN_PORT)).await.unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if let Some(answer) = &answer {
                let body = serde_json::to_string(answer).unwrap();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all((head + &body).as_bytes()).await;
            }
            open.push(stream);
        }
    })
}

/// Whether a service that has nothing left to do but the last look goes to sleep after it.
async fn sleeps_after_a_last_look(ip: &str, answers: bool) -> bool {
    let idle = GatewayStatus {
        idle_seconds: Some(600),
        ..gateway((reason::BACKEND_READY, true), (reason::REGISTERED, true))
    };
    let gateway = gateway_at(ip, answers.then(|| idle.clone())).await;
    let pod = serde_json::json!({
        "metadata": {
            "name": "weather-1", "namespace": "meteo", "uid": "u",
            "annotations": {"mcp-mqtt.io/service-name": "weather"},
        },
        "status": {
            "phase": "Running", "podIP": ip,
            "initContainerStatuses": [{
                "name": "gateway", "ready": true, "restartCount": 0, "image": "", "imageID": "",
                "state": {"running": {}},
            }],
        },
    });
    let mut controller = controller();
    let part =
        watched(None, vec![fixtures::service(fixtures::STDIO)], vec![serde_json::from_value(pod).unwrap()]);
    part.observations.set("u", Ok(idle)); // a moment before
    controller.setting.watched = [part].into_iter().collect();
    let sleep = Some(Sleep { idle: Duration::from_mins(5), wake_timeout: Duration::from_mins(1) });
    controller.told(&weather(), Arc::new(Wanted { sleep, replicas: 1, ..wanted() }));
    controller.look_at_instances(Instant::now());
    let machine = &mut controller.services.get_mut(&weather()).unwrap().machine;
    machine.observed.link = true;
    let (mut now, mut out) = (Instant::now(), Vec::new());
    machine.step(now, &mut out);
    machine.subscribed(true, now, &mut out);
    machine.observed.place = ServicePresence::Parked;
    for _ in 0..3 {
        machine.step(now, &mut out);
        now += Duration::from_secs(1);
    }
    assert_eq!(out.last(), Some(&Action::Ask), "{out:?}");
    controller.ask(&weather());
    let done = controller.done.next().await.unwrap();
    controller.take_done(done);
    gateway.abort();
    controller.services[&weather()].scaling
}

#[tokio::test]
async fn a_gateway_that_does_not_answer_the_last_look_may_have_sessions() {
    assert!(sleeps_after_a_last_look("127.8.0.79", true).await);
    assert!(!sleeps_after_a_last_look("127.8.0.80", false).await, "what it said before may be over");
}

#[tokio::test]
async fn the_default_broker_is_looked_at_once_without_a_service_until_nothing_there_is_doubted() {
    let mut controller = controller();
    let (url, now) = (url::Url::parse("mqtt://127.0.0.1:1").unwrap(), Instant::now());
    controller.setting.default_broker = Some(DefaultBroker { url, secret: None, token: None });
    let (unsynced, stores) = tokio::sync::watch::channel(vec!["McpServices"]);
    let mut part = watched(None, Vec::new(), Vec::new());
    part.stores.unsynced = stores;
    controller.setting.watched = [part].into_iter().collect();
    let look = |controller: &mut RegistryController, now| {
        controller.look_at_default_broker(now);
        controller.close_unused();
        controller.brokers.len()
    };
    assert_eq!(look(&mut controller, now), 0, "all would be doubted");
    unsynced.send_replace(Vec::new());
    assert_eq!((look(&mut controller, now), look(&mut controller, now)), (1, 1));
    let told = |controller: &mut RegistryController, payload: Bytes| {
        let presences = &mut controller.brokers.get_mut(wanted::DEFAULT).unwrap().presences;
        let mark = [(user_property::OWNER.to_owned(), "k".to_owned())];
        presences.received("north.meteo.sun_service", "meteo/sun", true, &payload, &mark, now);
        presences.subscribed(now);
        presences.settle(now + SETTLE);
    };
    told(&mut controller, wanted().parked);
    assert_eq!(look(&mut controller, now), 1, "whose is it?");
    told(&mut controller, Bytes::new());
    assert_eq!((look(&mut controller, now), look(&mut controller, now)), (0, 0), "once");

    controller.first_look = first_look::FirstLook::Due;
    assert_eq!(look(&mut controller, now), 1);
    assert_eq!(look(&mut controller, now + Duration::from_mins(2)), 0, "it cannot be reached");
}
