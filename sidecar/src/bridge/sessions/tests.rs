//! The table: who has a session, and what happens to those who have none.

use std::time::Duration;

use super::*;
use crate::{
    backend::{BackendEnd, FromBackend},
    bridge::tests::shorthand::{RULES, assert_actions, client, message},
};

/// A table in which nothing is closed, at most two sessions.
struct Scene {
    sessions: Sessions,
    now: Instant,
    out: Vec<Action>,
}

impl Scene {
    fn new() -> Self {
        let mut sessions = Sessions::new(RULES, 2, 2, 0);
        sessions.backend_up();
        Self { sessions, now: Instant::now(), out: Vec::new() }
    }

    fn initialize(&mut self, who: &str, id: u64) -> Option<SessionId> {
        let message = message(&format!("{id} initialize"));
        let request = Initialize {
            client: client(who),
            via: self.sessions.place(who),
            id: RequestId::number(id),
            message,
            max_to_client: 1000,
        };
        let mut opened = None;
        let session =
            self.sessions.initialize(request, self.now, &mut self.out, |session| opened = Some(session));
        assert_eq!(opened, session, "a backend session for each session, and for nothing else");
        session
    }

    fn open(&mut self, who: &str) -> SessionId {
        let session = self.initialize(who, 0).unwrap();
        self.sessions.subscribed(session, Ok(()), self.now, &mut self.out);
        self.server(session, "0 ok");
        self.out.clear();
        session
    }

    fn client(&mut self, who: &str, text: &str) {
        let came_by = self.sessions.link_of(who).unwrap_or(LinkId::REGISTERING);
        self.sessions.client_message(&client(who), came_by, message(text), self.now, &mut self.out);
    }

    fn refuse(&mut self, who: &str, id: u64) {
        let (who, id, came_by) = (client(who), RequestId::number(id), LinkId::REGISTERING);
        self.sessions.refuse(&who, came_by, &id, &Refusal::NotInitialize, &mut self.out);
    }

    fn server(&mut self, session: SessionId, text: &str) {
        let event = FromBackend::Message(message(text));
        self.sessions.backend_event(session, event, self.now, &mut self.out);
    }

    fn wait(&mut self, duration: Duration) {
        self.now += duration;
        self.sessions.expire(self.now, &mut self.out);
    }

    #[track_caller]
    fn expect(&mut self, expected: &[&str]) {
        assert_actions(&mut self.out, expected);
    }
}

#[test]
fn a_session_beyond_the_limit_is_refused_a_little_later_and_one_that_ends_makes_room() {
    let mut scene = Scene::new();
    scene.open("a");
    scene.open("b");
    assert_eq!(scene.initialize("c", 5), None);
    scene.expect(&[]);
    assert_eq!(scene.sessions.next_deadline(), Some(scene.now + REFUSAL_DELAY));
    scene.wait(REFUSAL_DELAY);
    scene.expect(&["c < 5 error max-sessions"]);
    scene.sessions.client_left(&client("a"), LinkId::REGISTERING, scene.now, &mut scene.out);
    scene.expect(&["unsubscribe a", "ended a client-left"]);
    assert!(scene.initialize("c", 6).is_some());
    assert_eq!(scene.sessions.len(), 2);
}

#[test]
fn a_flood_of_refused_initializes_is_answered_and_kept_within_bounds() {
    let mut scene = Scene::new();
    scene.sessions.backend_down("it is away");
    for id in 0..=DELAYED_REFUSALS as u64 {
        scene.initialize("a", id);
    }
    scene.expect(&[&format!("a < {DELAYED_REFUSALS} error backend-down")]);
    scene.wait(REFUSAL_DELAY);
    assert_eq!(scene.out.len(), DELAYED_REFUSALS);
}

#[test]
fn initialize_again_replaces_the_session_and_keeps_the_subscriptions() {
    let mut scene = Scene::new();
    scene.open("b");
    let old = scene.open("a");
    scene.client("a", "1 tools/call");
    scene.out.clear();
    // Even with the table full.
    let new = scene.initialize("a", 7).unwrap();
    assert_ne!(old, new);
    scene.expect(&[
        "a < 1 error session-ended",
        "ended a replaced",
        "subscribe a",
        &format!("server {} < 7 initialize", new.0),
    ]);
    scene.server(old, "1 ok");
    scene.expect(&["dropped session-over"]);
    scene.sessions.subscribed(old, Err("late".to_owned()), scene.now, &mut scene.out);
    scene.expect(&[]);
    scene.sessions.subscribed(new, Ok(()), scene.now, &mut scene.out);
    scene.server(new, "7 ok");
    scene.expect(&["a < 7 ok", "opened a"]);
    let end = FromBackend::Ended(BackendEnd::Closed);
    scene.sessions.backend_event(old, end, scene.now, &mut scene.out);
    scene.expect(&[]);
    assert_eq!(scene.sessions.of_client("a"), Some(new));
}

#[test]
fn while_the_backend_is_down_or_a_drain_runs_nobody_gets_a_session_and_an_old_one_stays() {
    let mut scene = Scene::new();
    scene.sessions.backend_down("it is away");
    assert_eq!(scene.initialize("a", 1), None);
    scene.wait(REFUSAL_DELAY);
    scene.expect(&["a < 1 error backend-down"]);
    scene.sessions.backend_up();
    scene.open("a");
    scene.client("a", "1 tools/call");
    scene.expect(&["server 1 < 1 tools/call"]);
    scene.sessions.drain(scene.now, &mut scene.out);
    scene.sessions.backend_up();
    assert_eq!(scene.initialize("a", 2), None);
    scene.wait(REFUSAL_DELAY);
    scene.expect(&["a < 2 error draining"]);
    assert_eq!(scene.sessions.in_flight(), 1, "the call is not lost by it");
}

// tests/PROTOCOL.md, item 22.
#[test]
fn who_has_no_session_is_told_so_where_there_is_an_id_to_answer() {
    let mut scene = Scene::new();
    scene.client("x", "1 tools/call");
    scene.expect(&["x < 1 error no-session"]);
    scene.client("x", "notifications/initialized");
    scene.client("x", "1 ok");
    scene.expect(&["dropped no-session", "dropped no-session"]);
    scene.client("x", "notifications/disconnected");
    scene.sessions.client_left(&client("x"), LinkId::REGISTERING, scene.now, &mut scene.out);
    scene.expect(&[]);
    scene.sessions.drain(scene.now, &mut scene.out);
    scene.client("x", "2 tools/call");
    scene.expect(&["x < 2 error draining"]);
}

#[test]
fn a_refusal_never_answers_another_request_of_the_same_id() {
    let mut scene = Scene::new();
    scene.open("a");
    scene.client("a", "1 tools/call");
    scene.out.clear();
    scene.refuse("a", 1);
    scene.refuse("a", 2);
    scene.expect(&["dropped not-initialize", "a < 2 error not-initialize"]);
}

#[test]
fn the_earliest_deadline_of_all_sessions_comes_first() {
    let mut scene = Scene::new();
    let (a, b) = (scene.open("a"), scene.open("b"));
    scene.client("a", "1 tools/call");
    scene.wait(Duration::from_secs(1));
    scene.client("b", "1 ping");
    scene.out.clear();
    // The call's own deadline was armed before its answer came: it is still visited, and nothing is due.
    scene.wait(Duration::from_secs(10));
    scene.expect(&["b < 1 error timed-out", &format!("server {} < notifications/cancelled 1", b.0)]);
    scene.wait(Duration::from_secs(49));
    scene.expect(&["a < 1 error timed-out", &format!("server {} < notifications/cancelled 1", a.0)]);
    scene.wait(Duration::from_mins(10));
    scene.expect(&[]);
    assert_eq!((scene.sessions.next_deadline(), scene.sessions.in_flight()), (None, 0));
}

#[test]
fn a_call_and_its_answer_leave_one_entry_among_the_deadlines() {
    let mut scene = Scene::new();
    let a = scene.open("a");
    for id in 1..1000 {
        scene.client("a", &format!("{id} tools/call"));
        scene.server(a, &format!("{id} ok"));
        scene.now += Duration::from_micros(100);
    }
    assert!(scene.sessions.deadlines.len() <= 1);
    scene.wait(Duration::from_mins(2));
    assert_eq!(scene.sessions.deadlines.len(), 0);
}

#[test]
fn at_the_end_of_all_sessions_what_was_delayed_is_answered_unless_nobody_hears() {
    for (reason, expected) in [(EndReason::Drained, 1), (EndReason::BrokerLost, 0)] {
        let mut scene = Scene::new();
        scene.sessions.drain(scene.now, &mut scene.out);
        scene.initialize("a", 1);
        scene.sessions.end_all(&reason, scene.now, &mut scene.out);
        scene.out.retain(|action| matches!(action, Action::ToClient { .. }));
        assert_eq!(scene.out.len(), expected, "{reason}");
        assert_eq!(scene.sessions.next_deadline(), None);
    }
}

#[test]
fn sessions_spread_over_the_workers_and_a_lost_one_ends_only_its_own() {
    let mut scene = Scene::new();
    scene.sessions.link_up(LinkId(1));
    scene.sessions.link_up(LinkId(2));
    scene.initialize("a", 0);
    scene.expect(&["subscribe a@1", "server 1 < 0 initialize"]);
    let b = scene.open("b");
    assert_eq!((scene.sessions.on_link(LinkId(1)), scene.sessions.on_link(LinkId(2))), (1, 1));
    scene.client("b", "1 tools/call");
    scene.out.clear();
    scene.sessions.link_lost(LinkId(1), scene.now, &mut scene.out);
    // Its client is told by whatever stands in for it, and need not hear a goodbye from what never opened.
    scene.expect(&["a@1 < 0 error connection-lost", "ended a connection-lost"]);
    scene.server(b, "1 ok");
    scene.expect(&["b@2 < 1 ok"]);
    scene.client("b", "2 tools/call");
    scene.out.clear();
    scene.sessions.link_lost(LinkId(2), scene.now, &mut scene.out);
    scene.expect(&[
        "b@2 < 2 error connection-lost",
        "b@2 < notifications/disconnected",
        "ended b connection-lost",
    ]);
    scene.initialize("a", 1);
    scene.expect(&["subscribe a", "server 3 < 1 initialize"]);
    scene.sessions.link_up(LinkId(2));
    scene.initialize("b", 1);
    scene.expect(&["subscribe b@2", "server 4 < 1 initialize"]);
    scene.initialize("a", 2);
    assert_eq!(scene.sessions.place("a"), LinkId::REGISTERING, "what replaces a session stays where it was");
}

#[test]
fn what_comes_by_a_connection_that_its_session_was_on_before_concerns_the_next_one_in_nothing() {
    let mut scene = Scene::new();
    scene.sessions.link_up(LinkId(1));
    let first = scene.open("a");
    scene.open("b");
    scene.sessions.link_up(LinkId(2));
    scene.sessions.client_left(&client("a"), LinkId(1), scene.now, &mut scene.out);
    let second = scene.open("a");
    assert_ne!(first, second);
    assert_eq!(scene.sessions.place("a"), LinkId(2), "for this test to be one");
    // Each message of it comes twice, until the broker has taken the old subscription back.
    for link in [LinkId(1), LinkId(2)] {
        let call = message("1 tools/call");
        scene.sessions.client_message(&client("a"), link, call, scene.now, &mut scene.out);
    }
    scene.expect(&["dropped stale-connection", "server 3 < 1 tools/call"]);
    scene.sessions.client_left(&client("a"), LinkId(1), scene.now, &mut scene.out);
    scene.expect(&["dropped stale-connection"]);
    assert!(scene.sessions.is_elsewhere("a", LinkId(1)) && !scene.sessions.is_elsewhere("x", LinkId(1)));
    scene.sessions.client_left(&client("a"), LinkId(2), scene.now, &mut scene.out);
    scene.expect(&["unsubscribe a@2", "ended a client-left"]);
}

#[test]
fn what_a_worker_hears_late_of_the_session_before_is_not_taken_for_the_next_one() {
    let mut scene = Scene::new();
    scene.sessions.link_up(LinkId(1));
    scene.open("a");
    // The client said goodbye, and began anew: the worker's connection is slower than the registering one.
    let second = scene.initialize("a", 1).unwrap();
    scene.out.clear();
    scene.sessions.client_left(&client("a"), LinkId(1), scene.now, &mut scene.out);
    scene.expect(&["dropped stale-connection"]);
    scene.client("a", "notifications/cancelled 0");
    scene.expect(&["dropped stale-connection"]);
    // Who waits is answered, unless it would take the answer for that of `initialize`.
    scene.client("a", "7 tools/call");
    scene.expect(&["a@1 < 7 error not-initialized"]);
    scene.client("a", "1 tools/call");
    scene.expect(&["dropped not-initialized"]);
    scene.server(second, "1 ok");
    scene.sessions.subscribed(second, Ok(()), scene.now, &mut scene.out);
    scene.expect(&["a@1 < 1 ok", "opened a"]);
    scene.sessions.client_left(&client("a"), LinkId(1), scene.now, &mut scene.out);
    scene.expect(&["unsubscribe a@1", "ended a client-left"]);
}

#[test]
fn who_leaves_while_its_session_opens_on_the_only_connection_is_heard() {
    let mut scene = Scene::new();
    scene.initialize("a", 1);
    scene.out.clear();
    scene.sessions.client_left(&client("a"), LinkId::REGISTERING, scene.now, &mut scene.out);
    scene.expect(&["unsubscribe a", "ended a client-left"]);
}
