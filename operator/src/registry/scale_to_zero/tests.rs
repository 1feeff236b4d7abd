mod presence;
mod properties;
mod successors;

use bytes::Bytes;
use mcp_mqtt_transport::{jsonrpc::RequestId, topic::ClientId};

use super::*;
use crate::{controller::validate::Sleep, registry::pending::Held};

const IDLE: Duration = Duration::from_secs(100);
const WAKE_TIMEOUT: Duration = Duration::from_secs(40);

/// A service, and a broker and an API server that do what they are asked for.
struct Scene {
    machine: ScaleToZero,
    now: Instant,
    /// What was asked for, in words.
    log: Vec<String>,
    /// Whether they do.
    obeys: bool,
    next_id: u64,
}

impl Scene {
    fn new(replicas: i32, place: ServicePresence) -> Self {
        let mut machine = ScaleToZero::new();
        let sleep = Some(Sleep { idle: IDLE, wake_timeout: WAKE_TIMEOUT });
        machine.observed = Observed { sleep, replicas, link: true, place, ..Observed::default() };
        let mut scene = Self { machine, now: Instant::now(), log: Vec::new(), obeys: true, next_id: 0 };
        scene.step();
        scene
    }

    fn with(&mut self, what: impl FnOnce(&mut ScaleToZero, Instant, &mut Vec<Action>)) {
        let mut out = Vec::new();
        what(&mut self.machine, self.now, &mut out);
        for action in out {
            self.act(&action);
        }
    }

    fn act(&mut self, action: &Action) {
        self.log.push(match action {
            Action::Subscribe => "subscribe".to_owned(),
            Action::Unsubscribe => "unsubscribe".to_owned(),
            Action::Park => "park".to_owned(),
            Action::Clear => "clear".to_owned(),
            Action::Scale { to, .. } => format!("scale {to}"),
            Action::Ask => "ask".to_owned(),
            Action::Nudge(instance) => format!("nudge {instance}"),
            Action::Keep(held) => format!("keep {}", held.client),
            Action::Drop(held) => format!("drop {}", held.client),
            Action::Forward(held) => format!("forward {}", held.client),
            Action::Refuse(held, refusal) => format!("refuse {} {}", held.client, refusal.reason()),
        });
        if !self.obeys {
            return;
        }
        match action {
            Action::Subscribe => self.with(|machine, now, out| machine.subscribed(true, now, out)),
            Action::Park => {
                self.machine.observed.named = self.machine.successor().cloned();
                self.machine.observed.outdated = false;
                self.place(ServicePresence::Parked);
            }
            Action::Clear => self.place(ServicePresence::Empty),
            Action::Scale { from, to } => {
                assert_eq!(self.machine.observed.replicas, *from);
                self.machine.observed.replicas = *to;
                self.with(|machine, now, out| machine.scaled(*to, Ok(()), now, out));
            }
            _ => {}
        }
    }

    fn place(&mut self, place: ServicePresence) {
        self.machine.observed.place = place;
        self.step();
    }

    fn step(&mut self) {
        self.with(ScaleToZero::step);
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(250);
            if let Idle::For(idle) = &mut self.machine.observed.idle {
                *idle += Duration::from_millis(250);
            }
            self.step();
        }
    }

    fn initialize(&mut self, client: &str) {
        self.next_id += 1;
        let held = PendingInitialize {
            client: ClientId::new(client).unwrap(),
            id: RequestId::number(self.next_id),
            payload: Bytes::from_static(b"{}"),
            since: self.now,
        };
        self.with(|machine, now, out| machine.initialize(held, true, now, out));
    }

    #[track_caller]
    fn expect(&mut self, expected: &[&str]) {
        assert_eq!(std::mem::take(&mut self.log), expected);
    }
}

fn under_its_own_id(instance: &str) -> Elsewhere {
    let id = ServerId::new(instance).unwrap();
    Elsewhere { instance: id.clone(), at: id, busy: false }
}

#[test]
fn who_is_not_used_is_heard_then_shown_then_asked_once_more_and_then_ended() {
    let mut scene = Scene::new(2, ServicePresence::Empty);
    scene.machine.observed.idle = Idle::For(Duration::ZERO);
    scene.pass(IDLE.checked_sub(Duration::from_secs(1)).unwrap());
    scene.expect(&[]);
    scene.pass(Duration::from_secs(3));
    scene.expect(&["subscribe", "park", "ask"]);
    let idle = scene.machine.observed.idle;
    scene.with(|machine, now, out| machine.asked(idle, now, out));
    scene.expect(&["scale 0"]);
    assert!(scene.machine.sleeps());
    scene.machine.observed.idle = Idle::Unknown;
    scene.pass(IDLE * 3);
    scene.expect(&[]);
}

#[test]
fn a_session_at_the_last_moment_keeps_it_awake() {
    let mut scene = Scene::new(1, ServicePresence::Empty);
    scene.machine.observed.idle = Idle::For(IDLE);
    scene.machine.observed.elsewhere = vec![under_its_own_id("weather-1")];
    scene.pass(Duration::from_secs(2));
    scene.expect(&["subscribe", "park", "ask"]);
    scene.with(|machine, now, out| machine.asked(Idle::Busy, now, out));
    scene.pass(ELSEWHERE + Duration::from_secs(1));
    assert_eq!(scene.machine.observed.replicas, 1);
    assert!(scene.log.contains(&"nudge weather-1".to_owned()), "{:?}", scene.log);
    assert_eq!(scene.log[scene.log.len() - 2..], ["clear", "unsubscribe"]);
}

#[test]
fn the_first_initialize_wakes_it_and_what_was_held_is_passed_on_in_order() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.expect(&["subscribe"]);
    scene.initialize("a");
    scene.expect(&["keep a", "scale 1"]);
    scene.initialize("b");
    scene.pass(Duration::from_secs(2));
    assert!(scene.machine.wakes());
    scene.expect(&["keep b"]);
    scene.place(ServicePresence::Taken);
    scene.expect(&["unsubscribe", "forward a", "forward b"]);
    // The broker delivered it before the unsubscribe: the instance may not have listened then.
    scene.initialize("c");
    scene.expect(&["forward c"]);
}

#[test]
fn it_is_shown_as_asleep_until_the_api_server_shows_that_it_is_to_wake() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.obeys = false;
    scene.with(|machine, now, out| machine.subscribed(true, now, out));
    scene.initialize("a");
    scene.expect(&["subscribe", "keep a", "scale 1"]);
    assert!(scene.machine.sleeps(), "a status would say meanwhile that nobody finds it");
    scene.machine.observed.replicas = 1;
    scene.step();
    assert!(!scene.machine.sleeps() && scene.machine.wakes());
}

#[test]
fn it_is_shown_as_asleep_as_soon_as_no_instance_is_asked_for() {
    let mut scene = Scene::new(1, ServicePresence::Empty);
    scene.machine.observed.idle = Idle::For(IDLE);
    scene.pass(Duration::from_secs(2));
    scene.obeys = false;
    scene.with(|machine, now, out| machine.asked(Idle::For(IDLE), now, out));
    assert_eq!(scene.log.last().map(String::as_str), Some("scale 0"));
    assert!(scene.machine.sleeps(), "the API server does not show it yet");
}

#[test]
fn a_service_without_instances_that_does_not_show_is_shown() {
    let mut scene = Scene::new(0, ServicePresence::Empty);
    scene.expect(&["subscribe", "park"]);
    assert!(scene.machine.sleeps());
    scene.place(ServicePresence::Empty); // an instance that was killed had its will cleared it
    scene.pass(AGAIN);
    scene.expect(&["park"]);
}

#[test]
fn a_service_that_was_never_accepted_is_not_put_into_the_registry_and_heard_where_it_stands() {
    let mut scene = Scene::new(0, ServicePresence::Empty);
    scene.expect(&["subscribe", "park"]);
    let mut scene = Scene::new(1, ServicePresence::Empty);
    scene.machine.observed.unaccepted = true;
    scene.machine.observed.replicas = 0;
    scene.pass(Duration::from_secs(2));
    scene.expect(&["subscribe"]);
    scene.place(ServicePresence::Parked);
    scene.initialize("a");
    scene.expect(&["keep a", "scale 1"]);
}

#[test]
fn who_could_not_be_woken_is_not_put_to_sleep() {
    let mut scene = Scene::new(1, ServicePresence::Empty);
    scene.machine.observed.idle = Idle::For(IDLE);
    scene.machine.observed.refused = true;
    scene.pass(Duration::from_secs(5));
    scene.expect(&[]);
}

#[test]
fn what_keeps_the_pods_from_starting_is_told_to_all_who_wait_and_to_the_next_at_once() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.initialize("a");
    scene.machine.observed.problem = Some(obstacle(true));
    scene.pass(PROBLEM + Duration::from_secs(1));
    scene.initialize("b");
    scene.expect(&[
        "subscribe",
        "keep a",
        "scale 1",
        "refuse a wake-failed",
        "keep b",
        "refuse b wake-failed",
    ]);
}

#[test]
fn a_service_that_is_refused_or_paused_is_neither_woken_nor_put_to_sleep() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.machine.observed.refused = true;
    scene.machine.observed.problem = Some(obstacle(true));
    scene.initialize("a");
    scene.pass(PROBLEM + Duration::from_secs(1));
    scene.expect(&["subscribe", "keep a", "refuse a wake-failed"]);
    let mut scene = Scene::new(1, ServicePresence::Parked);
    scene.machine.observed.refused = true;
    scene.pass(IDLE.max(PARKING_PAUSE) + Duration::from_secs(5));
    scene.expect(&["subscribe"]);
}

fn obstacle(hopeless: bool) -> Obstacle {
    Obstacle { why: "no such image".to_owned(), hopeless }
}

#[test]
fn what_may_pass_is_waited_for_and_told_in_the_end() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.initialize("a");
    scene.machine.observed.problem = Some(obstacle(false));
    scene.pass(WAKE_TIMEOUT.checked_sub(Duration::from_secs(1)).unwrap());
    scene.expect(&["subscribe", "keep a", "scale 1"]);
    scene.pass(Duration::from_secs(2));
    scene.expect(&["refuse a wake-failed"]);
}

#[test]
fn nobody_waits_longer_than_was_said() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.initialize("a");
    scene.pass(Duration::from_secs(10));
    scene.initialize("b");
    scene.pass(WAKE_TIMEOUT.checked_sub(Duration::from_secs(10)).unwrap());
    scene.expect(&["subscribe", "keep a", "scale 1", "keep b", "refuse a wake-timed-out"]);
    scene.pass(Duration::from_secs(11));
    scene.expect(&["refuse b wake-timed-out"]);
}

#[test]
fn one_that_wakes_for_nobody_goes_back_to_sleep() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.initialize("a");
    scene.with(|machine, _, out| machine.client_left("a", out));
    scene.expect(&["subscribe", "keep a", "scale 1", "drop a"]);
    scene.pass(IDLE + Duration::from_secs(1));
    scene.expect(&["scale 0"]);
}

#[test]
fn a_client_that_asks_anew_or_twice_waits_once() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.initialize("a");
    scene.next_id -= 1;
    scene.initialize("a");
    scene.initialize("a");
    // Twice the same: it is written down again, as the first line may not have reached the broker.
    scene.expect(&["subscribe", "keep a", "scale 1", "keep a", "refuse a replaced", "keep a"]);
    assert_eq!(scene.machine.waiting().held(), Held { messages: 1, bytes: 2 });
}

#[test]
fn without_room_or_too_large_it_is_refused() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    let held = |client: &str, payload| PendingInitialize {
        client: ClientId::new(client).unwrap(),
        id: RequestId::number(1),
        payload,
        since: Instant::now(),
    };
    let large = held("a", Bytes::from(vec![b' '; super::super::pending::MAX_BYTES + 1]));
    scene.with(|machine, now, out| machine.initialize(large, true, now, out));
    let small = held("b", Bytes::new());
    scene.with(|machine, now, out| machine.initialize(small, false, now, out));
    scene.expect(&["subscribe", "refuse a message-too-large", "refuse b wake-too-many"]);
}

#[test]
fn what_came_before_the_broker_told_all_waits_for_that() {
    let mut scene = Scene::new(1, ServicePresence::Empty);
    scene.machine.unlinked();
    scene.initialize("a");
    scene.expect(&["keep a"]);
    scene.machine.observed.link = true;
    scene.place(ServicePresence::Taken);
    scene.expect(&["forward a"]);
}

#[test]
fn who_took_the_place_while_the_connection_was_lost_is_listened_to_no_more() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.initialize("a");
    scene.expect(&["subscribe", "keep a", "scale 1"]);
    let resume = |scene: &mut Scene, resumed: bool| {
        scene.machine.unlinked();
        scene.machine.resumed = resumed;
        scene.machine.observed.link = true;
        scene.place(ServicePresence::Taken);
    };
    resume(&mut scene, true);
    scene.expect(&["unsubscribe", "forward a"]);
    scene.pass(Duration::from_secs(2));
    scene.expect(&[]);
    // The packet may have been lost with the connection; a broker without the session has nothing subscribed.
    resume(&mut scene, true);
    scene.machine.not_unsubscribed(); // no room
    scene.pass(Duration::from_secs(2));
    scene.expect(&["unsubscribe", "unsubscribe"]);
    resume(&mut scene, false);
    scene.expect(&[]);
}

#[test]
fn a_service_that_may_sleep_no_more_or_is_deleted_leaves_nothing_behind() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.initialize("a");
    scene.machine.observed.sleep = None;
    scene.step();
    scene.expect(&["subscribe", "keep a", "scale 1", "clear", "unsubscribe", "refuse a not-asleep"]);
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.initialize("a");
    scene.obeys = false;
    scene.with(|machine, _, out| machine.end(&WakeError::Gone, out));
    scene.expect(&["subscribe", "keep a", "scale 1", "refuse a gone", "clear", "unsubscribe"]);
}

#[test]
fn whoever_scales_a_service_while_it_goes_to_sleep_keeps_it_awake() {
    let mut scene = Scene::new(1, ServicePresence::Empty);
    scene.machine.observed.idle = Idle::For(IDLE);
    scene.pass(Duration::from_secs(2));
    scene.obeys = false;
    scene.log.clear();
    scene.with(|machine, now, out| machine.asked(Idle::For(IDLE), now, out));
    scene.expect(&["scale 0"]);
    // What follows would be of what we asked for, whether or not it shows.
    let mut out = Vec::new();
    scene.machine.scale(1, scene.now + AGAIN, &mut out);
    assert_eq!(out, [Action::Scale { from: 0, to: 1 }]);
    scene.machine.scale(0, scene.now + AGAIN, &mut out);
    scene.machine.observed.replicas = 5;
    scene.with(|machine, now, out| machine.outrun(0, now, out));
    assert_eq!(scene.machine.replicas(), 5);
    scene.log.clear();
    scene.place(ServicePresence::Empty);
    scene.pass(PARKING_PAUSE / 2);
    assert!(!scene.log.contains(&"park".to_owned()), "{:?}", scene.log);
}

#[test]
fn whoever_scales_a_service_while_it_wakes_has_woken_it() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.obeys = false;
    scene.with(|machine, now, out| machine.subscribed(true, now, out));
    scene.initialize("a");
    scene.expect(&["subscribe", "keep a", "scale 1"]);
    scene.with(|machine, now, out| machine.outrun(1, now, out));
    assert_eq!((scene.machine.replicas(), scene.machine.unscaled()), (0, None));
    scene.machine.observed.replicas = 5;
    scene.pass(AGAIN * 2);
    scene.expect(&[]);
    assert!(scene.machine.waiting().holds("a"));
}

#[test]
fn who_wakes_a_service_that_may_not_be_scaled_hears_why() {
    let obstacle = |hopeless| Obstacle { why: "pods \"weather\" is forbidden".to_owned(), hopeless };
    let refused = |scene: &mut Scene, hopeless| {
        scene.with(|machine, now, out| machine.scaled(1, Err(obstacle(hopeless)), now, out));
    };
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.obeys = false;
    scene.with(|machine, now, out| machine.subscribed(true, now, out));
    scene.initialize("a");
    refused(&mut scene, true);
    scene.now += AGAIN;
    scene.step();
    assert_eq!(scene.machine.unscaled(), Some(obstacle(true).why.as_str()));
    scene.log.clear();
    refused(&mut scene, true);
    scene.now += PROBLEM;
    scene.step();
    assert!(scene.log.contains(&"refuse a wake-failed".to_owned()), "{:?}", scene.log);
    // The next one is not refused without another attempt.
    scene.log.clear();
    scene.initialize("b");
    assert_eq!(scene.log.first().map(String::as_str), Some("keep b"), "{:?}", scene.log);
    assert!(!scene.log.contains(&"refuse b wake-failed".to_owned()), "{:?}", scene.log);
    // An API server that does not answer may yet do so.
    refused(&mut scene, false);
    scene.now += WAKE_TIMEOUT;
    scene.step();
    assert!(scene.log.contains(&"refuse b wake-failed".to_owned()), "{:?}", scene.log);
    assert_eq!(scene.machine.unscaled(), None, "it may have passed");
    // Whoever scales it by hand has woken it.
    refused(&mut scene, true);
    assert!(scene.machine.unscaled().is_some());
    scene.machine.observed.replicas = 1;
    scene.step();
    assert_eq!(scene.machine.unscaled(), None);
}

#[test]
fn what_the_broker_does_not_allow_is_asked_for_less_and_less_often_and_told() {
    let asked = |scene: &Scene, what: &str| scene.log.iter().filter(|action| *action == what).count();
    let wait = |scene: &mut Scene, need: Need| {
        for _ in 0..600 {
            scene.pass(Duration::from_millis(500));
            scene.machine.forbid(need, "allow it".to_owned(), scene.now);
        }
    };
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.machine.unlinked();
    (scene.machine.observed.link, scene.obeys) = (true, false);
    wait(&mut scene, Need::Control);
    assert!((8..30).contains(&asked(&scene, "subscribe")), "in five minutes: {:?}", scene.log);
    assert!(!scene.machine.sleeps() && scene.machine.forbidden() == Some("allow it"));
    scene.obeys = true;
    scene.pass(Duration::from_secs(30));
    assert!(scene.machine.sleeps() && scene.machine.forbidden().is_none(), "{:?}", scene.log);

    let mut scene = Scene::new(0, ServicePresence::Parked);
    (scene.machine.observed.place, scene.obeys) = (ServicePresence::Empty, false);
    scene.log.clear();
    wait(&mut scene, Need::Place);
    assert!((8..30).contains(&asked(&scene, "park")), "in five minutes: {:?}", scene.log);
    assert_eq!(scene.machine.forbidden(), Some("allow it"));
    scene.obeys = true;
    scene.pass(Duration::from_secs(31));
    assert!(scene.machine.sleeps() && scene.machine.forbidden().is_none(), "{:?}", scene.log);
}

#[test]
fn who_is_awake_and_may_not_be_put_to_sleep_is_told_why_until_it_sleeps() {
    let mut scene = Scene::new(1, ServicePresence::Empty);
    (scene.machine.observed.idle, scene.obeys) = (Idle::For(IDLE), false);
    scene.pass(Duration::from_secs(1));
    scene.machine.forbid(Need::Control, "allow it".to_owned(), scene.now);
    scene.pass(PARKING);
    assert_eq!((scene.machine.phase, scene.machine.forbidden()), (Phase::Steady, Some("allow it")));
    scene.machine.observed.sleep = None;
    assert_eq!(scene.machine.forbidden(), None, "it is not to sleep");
}
