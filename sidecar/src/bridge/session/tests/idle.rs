//! When a session is idle, and what is said at its end.

use std::time::Duration;

use super::super::*;
use crate::bridge::tests::shorthand::{self, RULES, assert_actions, client, message};

const IDLE: Duration = Duration::from_secs(40);

struct Scene {
    session: Session,
    rules: Rules,
    now: Instant,
    out: Vec<Action>,
}

impl Scene {
    fn new(idle_timeout: Option<Duration>) -> Self {
        let mut scene = Self::silent(idle_timeout);
        scene.session.initialized_by = None;
        scene
    }

    /// Its client has said nothing yet.
    fn silent(idle_timeout: Option<Duration>) -> Self {
        let rules = Rules { idle_timeout, ..RULES };
        let (now, mut out) = (Instant::now(), Vec::new());
        let initialize = (RequestId::number(0), message("0 initialize"));
        let mut turn = Turn { now, rules: &rules, out: &mut out };
        let mut session =
            Session::begin(SessionId(1), (client("c"), LinkId::REGISTERING), initialize, 500, &mut turn);
        session.subscribed(Ok(()), &mut turn);
        session.backend_event(FromBackend::Message(message("0 ok")), &mut turn);
        out.clear();
        Self { session, rules, now, out }
    }

    fn step(&mut self, step: impl FnOnce(&mut Session, &mut Turn<'_>)) {
        step(&mut self.session, &mut Turn { now: self.now, rules: &self.rules, out: &mut self.out });
    }

    fn client(&mut self, text: &str) {
        self.step(|session, turn| session.client_message(message(text), turn));
    }

    fn server(&mut self, text: &str) {
        self.step(|session, turn| session.backend_event(FromBackend::Message(message(text)), turn));
    }

    /// The clock goes on; the session is called at its deadlines only, as the table does.
    fn seconds(&mut self, seconds: u64) {
        let until = self.now + Duration::from_secs(seconds);
        while let Some(deadline) = self.session.next_deadline().filter(|deadline| *deadline <= until) {
            self.now = deadline;
            self.step(Session::expire);
        }
        self.now = until;
    }
}

#[test]
fn a_session_in_which_nothing_is_said_ends_and_its_client_is_told() {
    let mut scene = Scene::new(Some(IDLE));
    scene.seconds(39);
    assert!(scene.out.is_empty() && !scene.session.is_over());
    scene.seconds(1);
    assert_actions(&mut scene.out, &["c < notifications/disconnected", "unsubscribe c", "ended c idle"]);
    assert!(scene.session.is_over());
}

#[test]
fn without_the_timeout_a_session_waits_for_ever() {
    let mut scene = Scene::new(None);
    assert_eq!(scene.session.next_deadline(), None);
    scene.seconds(1_000_000);
    assert!(scene.out.is_empty());
}

#[test]
fn whatever_is_said_either_way_keeps_it_but_for_the_servers_pings() {
    for said in ["notifications/progress p1", "notifications/tools/list_changed", "7 roots/list"] {
        let mut scene = Scene::new(Some(IDLE));
        scene.seconds(30);
        scene.server(said);
        scene.seconds(39);
        assert!(!scene.session.is_over(), "{said}");
    }
    let mut scene = Scene::new(Some(IDLE));
    scene.seconds(30);
    scene.client("notifications/roots/list_changed");
    scene.seconds(39);
    assert!(!scene.session.is_over());

    // Every 9 s, so that each is answered by nobody, and by a time-out to the server.
    let mut scene = Scene::new(Some(IDLE));
    for id in 0..4 {
        scene.seconds(9);
        scene.server(&format!("{id} ping"));
    }
    assert!(!scene.session.is_over());
    scene.seconds(4);
    assert!(scene.session.is_over(), "nobody knows whether the client is there");
}

#[test]
fn a_client_in_a_long_call_is_not_idle_and_has_its_time_after_the_answer() {
    let mut scene = Scene::new(Some(IDLE));
    scene.client("1 tools/call");
    scene.seconds(59);
    assert!(!scene.session.is_over(), "the call may take a minute");
    scene.server("1 ok");
    scene.seconds(39);
    assert!(!scene.session.is_over());
    scene.seconds(1);
    assert!(scene.session.is_over());
}

#[test]
fn a_call_that_was_cancelled_keeps_nobody() {
    let mut scene = Scene::new(Some(IDLE));
    scene.client("1 tools/call");
    scene.client("notifications/cancelled 1");
    scene.seconds(40);
    assert!(scene.session.is_over());
}

#[test]
fn the_end_tells_what_the_session_was() {
    let mut scene = Scene::new(None);
    scene.client("1 tools/list");
    scene.server("1 ok");
    scene.client("2 tools/call");
    scene.server("2 error");
    scene.client("3 initialize"); // refused
    scene.now += Duration::from_secs(5);
    scene.step(|session, turn| session.end(EndReason::ClientLeft, turn));
    let ended = scene.out.iter().find_map(|action| match action {
        Action::Ended { summary, .. } => Some(*summary),
        _ => None,
    });
    let sizes = |texts: &[&str]| texts.iter().map(|text| shorthand::json(text).len() as u64).sum::<u64>();
    let refusal = Refusal::InitializeOnRpc.answer(&RequestId::number(3)).raw().len() as u64;
    assert_eq!(
        ended,
        Some(Summary {
            lasted: Duration::from_secs(5),
            requests: 4,
            errors: 2,
            received_bytes: sizes(&["0 initialize", "1 tools/list", "2 tools/call", "3 initialize"]),
            sent_bytes: sizes(&["0 ok", "1 ok", "2 error"]) + refusal,
        })
    );
    let refused: Vec<_> =
        scene.out.iter().filter(|action| matches!(action, Action::Refused { .. })).collect();
    assert!(matches!(refused[..], [Action::Refused { reason: "initialize-on-rpc" }]), "{refused:?}");
}

#[test]
fn a_client_that_is_not_heard_after_its_initialize_has_no_session_for_long() {
    let mut scene = Scene::silent(None);
    scene.server("log");
    scene.seconds(59);
    scene.out.clear();
    assert!(!scene.session.is_over());
    scene.seconds(1);
    assert_actions(
        &mut scene.out,
        &["c < notifications/disconnected", "unsubscribe c", "ended c never-initialized"],
    );
    for word in ["notifications/initialized", "7 ping", "notifications/progress p1"] {
        let mut scene = Scene::silent(None);
        scene.client(word);
        assert_eq!(scene.session.next_deadline().is_some(), word == "7 ping", "the call's own");
        scene.server("7 ok");
        scene.seconds(3600);
        assert!(!scene.session.is_over(), "{word}: its client is there");
    }
}
