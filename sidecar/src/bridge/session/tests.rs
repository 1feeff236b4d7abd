//! Each row: what happens, and what the session does about it.

mod ends;
mod idle;

use std::time::Duration;

use super::*;
use crate::{
    backend::{BackendEnd, failure},
    bridge::tests::shorthand::{self, RULES, assert_actions, client},
};

/// A session of client `c`, backend session 1, that can be told things.
struct Scene {
    session: Session,
    now: Instant,
    out: Vec<Action>,
}

/// What can happen to a session.
enum Does {
    /// The client sends.
    Client(&'static str),
    /// Its server sends.
    Server(&'static str),
    /// The server's side reports.
    Backend(FromBackend),
    /// The broker answers the subscriptions.
    Subscribed(Result<(), &'static str>),
    /// So many seconds pass.
    Seconds(u64),
    /// The server does not take the message.
    Busy(&'static str),
    /// The broker does not take the message.
    Undelivered(&'static str),
    /// A drain begins.
    Drain,
    /// It is ended.
    End(EndReason),
}
use Does::{Backend, Busy, Client, Drain, End, Seconds, Server, Subscribed, Undelivered};

impl Scene {
    fn opening() -> Self {
        let now = Instant::now();
        let mut out = Vec::new();
        let mut turn = Turn { now, rules: &RULES, out: &mut out };
        let initialize = (RequestId::number(0), shorthand::message("0 initialize"));
        let session =
            Session::begin(SessionId(1), (client("c"), LinkId::REGISTERING), initialize, 500, &mut turn);
        assert_actions(&mut out, &["subscribe c", "server 1 < 0 initialize"]);
        Self { session, now, out }
    }

    fn open() -> Self {
        let mut scene = Self::opening();
        scene.play(&[(Subscribed(Ok(())), &[]), (Server("0 ok"), &["c < 0 ok", "opened c"])]);
        scene
    }

    fn play(&mut self, rows: &[(Does, &[&str])]) {
        for (does, expected) in rows {
            if let Seconds(seconds) = does {
                self.now += Duration::from_secs(*seconds);
            }
            let mut turn = Turn { now: self.now, rules: &RULES, out: &mut self.out };
            match does {
                Client(text) => self.session.client_message(shorthand::message(text), &mut turn),
                Server(text) => {
                    self.session.backend_event(FromBackend::Message(shorthand::message(text)), &mut turn);
                }
                Backend(event) => self.session.backend_event(copy(event), &mut turn),
                Subscribed(result) => self.session.subscribed(result.map_err(str::to_owned), &mut turn),
                Seconds(_) => self.session.expire(&mut turn),
                Busy(text) => self.session.backend_busy(&shorthand::message(text), &mut turn),
                Undelivered(text) => self.session.undelivered(&shorthand::message(text), "quota", &mut turn),
                Drain => self.session.drain(&mut turn),
                End(reason) => self.session.end(reason.clone(), &mut turn),
            }
            assert_actions(&mut self.out, expected);
        }
    }
}

fn copy(event: &FromBackend) -> FromBackend {
    match event {
        FromBackend::Message(message) => FromBackend::Message(message.clone()),
        FromBackend::RequestFailed { id, reason, detail } => {
            FromBackend::RequestFailed { id: id.clone(), reason, detail: detail.clone() }
        }
        FromBackend::Malformed { detail } => FromBackend::Malformed { detail: detail.clone() },
        FromBackend::Ended(end) => FromBackend::Ended(end.clone()),
    }
}

fn exited() -> FromBackend {
    FromBackend::Ended(BackendEnd::Exited("exit code 1".to_owned()))
}

fn failed(id: u64) -> FromBackend {
    FromBackend::RequestFailed {
        id: RequestId::number(id),
        reason: failure::CONNECTION_BROKEN,
        detail: "broken".to_owned(),
    }
}

// tests/PROTOCOL.md, item 9.

#[test]
fn the_initialize_result_waits_for_the_subscriptions() {
    Scene::opening().play(&[(Server("0 ok"), &[]), (Subscribed(Ok(())), &["c < 0 ok", "opened c"])]);
}

#[test]
fn the_subscriptions_wait_for_the_initialize_result() {
    Scene::opening().play(&[(Subscribed(Ok(())), &[]), (Server("0 ok"), &["c < 0 ok", "opened c"])]);
}

#[test]
fn a_refused_subscription_answers_initialize_with_an_error() {
    let ends = &["c < 0 error subscription-refused", "unsubscribe c", "ended c subscription-refused"];
    Scene::opening().play(&[(Server("0 ok"), &[]), (Subscribed(Err("no")), ends)]);
    Scene::opening().play(&[(Subscribed(Err("no")), ends)]);
}

#[test]
fn an_error_of_the_server_to_initialize_is_passed_on_and_ends_the_session() {
    Scene::opening().play(&[
        (Server("0 error"), &[]),
        (Subscribed(Ok(())), &["c < 0 error", "unsubscribe c", "ended c initialize-failed"]),
    ]);
}

#[test]
fn initialize_that_fails_in_the_backend_or_is_too_late_or_too_large_is_an_error_and_ends_the_session() {
    let end = |error: &'static str| [error, "unsubscribe c", "ended c initialize-failed"];
    Scene::opening().play(&[(Backend(failed(0)), &end("c < 0 error connection-broken"))]);
    Scene::opening().play(&[(Seconds(30), &end("c < 0 error timed-out"))]);
    Scene::opening().play(&[(Server("0 ok {501}"), &end("c < 0 error message-too-large"))]);
    Scene::opening().play(&[(Busy("0 initialize"), &end("c < 0 error backend-busy"))]);
    Scene::opening().play(&[(
        Backend(exited()),
        &["c < 0 error backend-ended", "unsubscribe c", "ended c backend-ended"],
    )]);
}

#[test]
fn before_the_initialize_result_only_ping_is_taken() {
    Scene::opening().play(&[
        (Client("1 tools/list"), &["c < 1 error not-initialized"]),
        (Client("2 ping"), &["server 1 < 2 ping"]),
        (Client("notifications/initialized"), &["dropped not-initialized"]),
        (Client("notifications/cancelled 0"), &["dropped not-initialized"]),
        (Server("2 ok"), &["c < 2 ok"]),
        (Client("notifications/disconnected"), &["unsubscribe c", "ended c client-left"]),
    ]);
}

#[test]
fn before_the_initialize_result_the_server_may_only_ping_and_log() {
    Scene::opening().play(&[
        (Server("notifications/tools/list_changed"), &["dropped not-initialized"]),
        (Server("notifications/message"), &["c < notifications/message"]),
        (Server("7 roots/list"), &["server 1 < 7 error not-initialized"]),
        (Server("8 ping"), &["server 1 < 8 ok"]),
        (Server("8 ping"), &["server 1 < 8 ok"]),
        (Server("9 ok"), &["dropped unknown-answer-of-server"]),
    ]);
}

#[test]
fn a_second_answer_to_initialize_goes_nowhere() {
    Scene::opening().play(&[
        (Server("0 ok"), &[]),
        (Server("0 ok"), &["dropped unknown-answer-of-server"]),
        (Subscribed(Ok(())), &["c < 0 ok", "opened c"]),
        (Server("0 ok"), &["dropped unknown-answer-of-server"]),
        (Subscribed(Ok(())), &[]),
    ]);
}

// Items 10 and 11.

#[test]
fn what_concerns_all_clients_is_broadcast_and_the_rest_goes_to_its_client() {
    Scene::open().play(&[
        (Server("notifications/tools/list_changed"), &["all < notifications/tools/list_changed"]),
        (Server("notifications/prompts/list_changed"), &["all < notifications/prompts/list_changed"]),
        (Server("notifications/resources/list_changed"), &["all < notifications/resources/list_changed"]),
        (Server("notifications/resources/updated"), &["all < notifications/resources/updated"]),
        (Server("notifications/message"), &["c < notifications/message"]),
        (Server("notifications/progress p1"), &["c < notifications/progress p1"]),
        (Server("notifications/own"), &["c < notifications/own"]),
        (Server("1 sampling/createMessage"), &["c < 1 sampling/createMessage"]),
        (Client("1 ok"), &["server 1 < 1 ok"]),
    ]);
}

#[test]
fn the_two_directions_have_ids_of_their_own() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Server("1 roots/list"), &["c < 1 roots/list"]),
        (Client("1 ok"), &["server 1 < 1 ok"]),
        (Server("1 ok"), &["c < 1 ok"]),
    ]);
}

#[test]
fn a_request_is_answered_once_and_an_unknown_answer_goes_nowhere() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Server("1 error"), &["c < 1 error"]),
        (Server("1 ok"), &["dropped unknown-answer-of-server"]),
        (Server("2 ok"), &["dropped unknown-answer-of-server"]),
        (Client("2 ok"), &["dropped unknown-answer-of-client"]),
        (Backend(failed(1)), &["dropped unknown-answer-of-server"]),
    ]);
}

#[test]
fn an_id_in_flight_cannot_be_used_again_until_it_is_answered() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Client("1 tools/list"), &["c < 1 error duplicate-id"]),
        (Server("1 ok"), &["c < 1 ok"]),
        (Client("1 tools/list"), &["server 1 < 1 tools/list"]),
    ]);
}

#[test]
fn requests_in_flight_are_bounded_either_way() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Client("2 tools/call"), &["server 1 < 2 tools/call"]),
        (Client("3 tools/call"), &["server 1 < 3 tools/call"]),
        (Client("4 tools/call"), &["c < 4 error too-many-in-flight"]),
        (Server("1 roots/list"), &["c < 1 roots/list"]),
        (Server("2 roots/list"), &["c < 2 roots/list"]),
        (Server("3 roots/list"), &["c < 3 roots/list"]),
        (Server("4 roots/list"), &["server 1 < 4 error too-many-in-flight"]),
    ]);
}

#[test]
fn cancelled_requests_take_no_place_of_new_ones_up_to_as_many_again() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Client("2 tools/call"), &["server 1 < 2 tools/call"]),
        (Client("3 tools/call"), &["server 1 < 3 tools/call"]),
        (Client("notifications/cancelled 1"), &["server 1 < notifications/cancelled 1"]),
        (Client("notifications/cancelled 2"), &["server 1 < notifications/cancelled 2"]),
        (Client("notifications/cancelled 3"), &["server 1 < notifications/cancelled 3"]),
        (Client("4 tools/call"), &["server 1 < 4 tools/call"]),
        (Client("5 tools/call"), &["server 1 < 5 tools/call"]),
        (Client("6 tools/call"), &["server 1 < 6 tools/call"]),
        (Client("7 tools/call"), &["c < 7 error too-many-in-flight"]),
        // Six are known, and nobody waits for four of them.
        (Client("notifications/cancelled 4"), &["server 1 < notifications/cancelled 4"]),
        (Client("7 tools/call"), &["c < 7 error too-many-in-flight"]),
        (Server("1 error"), &["c < 1 error"]),
        (Client("7 tools/call"), &["server 1 < 7 tools/call"]),
        (Seconds(10), &[]),
        (Client("8 tools/call"), &["c < 8 error too-many-in-flight"]),
        (Server("5 ok"), &["c < 5 ok"]),
        (Client("8 tools/call"), &["server 1 < 8 tools/call"]),
    ]);
}

#[test]
fn a_server_that_does_not_read_is_an_error_to_its_caller_at_once() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Busy("1 tools/call"), &["c < 1 error backend-busy"]),
        (Busy("notifications/own"), &["dropped backend-busy"]),
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
    ]);
}

#[test]
fn an_answer_that_found_no_room_is_an_error_to_the_server_once() {
    Scene::open().play(&[
        (Server("1 roots/list"), &["c < 1 roots/list"]),
        (Client("1 ok"), &["server 1 < 1 ok"]),
        (Busy("1 ok"), &["dropped backend-busy", "server 1 < 1 error backend-busy"]),
        (Busy("1 error backend-busy"), &["dropped backend-busy"]),
    ]);
}

#[test]
fn a_cancellation_is_passed_on_and_a_late_answer_too() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Client("notifications/cancelled 1"), &["server 1 < notifications/cancelled 1"]),
        (Server("1 error"), &["c < 1 error"]),
        (Client("notifications/cancelled 1"), &["dropped unknown-request-cancelled"]),
        (Client("2 tools/call"), &["server 1 < 2 tools/call"]),
        (Client("notifications/cancelled 2"), &["server 1 < notifications/cancelled 2"]),
        (Seconds(60), &[]),
        (Server("2 ok"), &["dropped unknown-answer-of-server"]),
        (Server("5 elicitation/create"), &["c < 5 elicitation/create"]),
        (Server("notifications/cancelled 5"), &["c < notifications/cancelled 5"]),
        (Client("5 ok"), &["dropped unknown-answer-of-client"]),
    ]);
}

// tests/PROTOCOL.md, item 17.

#[test]
fn each_method_has_its_time_and_a_late_request_is_cancelled_in_the_backend() {
    let table = [("ping", 10), ("tools/list", 30), ("tools/call", 60), ("completion/complete", 60)];
    for (method, seconds) in table {
        let mut scene = Scene::open();
        let request: &'static str = format!("1 {method}").leak();
        scene.play(&[
            (Client(request), &[format!("server 1 < {request}").as_str()]),
            (Seconds(seconds - 1), &[]),
            (Seconds(1), &["c < 1 error timed-out", "server 1 < notifications/cancelled 1"]),
            (Server("1 ok"), &["dropped unknown-answer-of-server"]),
        ]);
    }
}

#[test]
fn progress_extends_the_time_up_to_the_limit() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Seconds(50), &[]),
        (Server("notifications/progress p1"), &["c < notifications/progress p1"]),
        (Seconds(49), &[]),
        (Server("notifications/progress p1"), &["c < notifications/progress p1"]),
        (Seconds(1), &["c < 1 error timed-out", "server 1 < notifications/cancelled 1"]),
    ]);
}

// Items 17 and 18.

#[test]
fn a_client_that_does_not_answer_stays_and_its_server_gets_an_error() {
    Scene::open().play(&[
        (Server("1 ping"), &["c < 1 ping"]),
        (Server("2 sampling/createMessage"), &["c < 2 sampling/createMessage"]),
        (Seconds(10), &["server 1 < 1 error timed-out", "c < notifications/cancelled 1"]),
        (Client("notifications/progress p2"), &["server 1 < notifications/progress p2"]),
        (Seconds(59), &[]),
        (Seconds(1), &["server 1 < 2 error timed-out", "c < notifications/cancelled 2"]),
        (Client("2 ok"), &["dropped unknown-answer-of-client"]),
        (Client("1 tools/list"), &["server 1 < 1 tools/list"]),
    ]);
}

// tests/PROTOCOL.md, item 20.

#[test]
fn a_message_too_large_is_an_error_to_whoever_waits_for_it() {
    Scene::open().play(&[
        (Client("1 tools/call {1000}"), &["server 1 < 1 tools/call"]),
        (Client("2 tools/call {1001}"), &["c < 2 error message-too-large"]),
        (Client("1 tools/call {1001}"), &["dropped message-too-large"]),
        (Server("1 ok {501}"), &["c < 1 error message-too-large"]),
        (Server("1 roots/list"), &["c < 1 roots/list"]),
        (Client("1 ok {1001}"), &["server 1 < 1 error message-too-large"]),
        (Client("1 ok"), &["dropped unknown-answer-of-client"]),
        (Server("2 sampling/createMessage {501}"), &["server 1 < 2 error message-too-large"]),
        (Server("notifications/message {501}"), &["dropped message-too-large"]),
        (Client("notifications/own {1001}"), &["dropped message-too-large"]),
        (Client("3 tools/list"), &["server 1 < 3 tools/list"]),
        (Server("3 ok {500}"), &["c < 3 ok"]),
    ]);
}

#[test]
fn a_message_that_the_broker_refuses_is_an_error_to_whoever_waits_for_it() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Server("1 ok"), &["c < 1 ok"]),
        (Undelivered("1 ok"), &["c < 1 error undelivered"]),
        (Server("5 roots/list"), &["c < 5 roots/list"]),
        (Undelivered("5 roots/list"), &["server 1 < 5 error undelivered"]),
        (Undelivered("5 roots/list"), &[]),
        (Undelivered("notifications/message"), &[]),
        // The client uses the id again: it does not wait for the first answer any more.
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Undelivered("1 ok"), &[]),
        (Server("1 ok"), &["c < 1 ok"]),
    ]);
}

#[test]
fn a_client_to_which_not_even_an_error_can_be_sent_has_no_session_any_more() {
    let error = Refusal::Undelivered("quota".to_owned()).answer(&RequestId::number(1));
    let mut scene = Scene::open();
    scene.play(&[(Client("2 tools/call"), &["server 1 < 2 tools/call"])]);
    let mut turn = Turn { now: scene.now, rules: &RULES, out: &mut scene.out };
    scene.session.undelivered(&error, "quota", &mut turn);
    assert_actions(
        &mut scene.out,
        &[
            "c < 2 error session-ended",
            "c < notifications/disconnected",
            "unsubscribe c",
            "ended c undeliverable",
        ],
    );
}

#[test]
fn an_initialize_result_that_the_broker_refuses_is_an_error_and_ends_the_session() {
    Scene::open().play(&[(
        Undelivered("0 ok"),
        &["c < 0 error undelivered", "unsubscribe c", "ended c initialize-failed"],
    )]);
}

// tests/PROTOCOL.md, item 21.

#[test]
fn a_replaced_session_answers_what_was_in_flight_and_keeps_the_subscriptions() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Client("7 tools/call"), &["server 1 < 7 tools/call"]),
        (End(EndReason::Replaced(RequestId::number(7))), &["c < 1 error session-ended", "ended c replaced"]),
    ]);
}

// tests/PROTOCOL.md, item 24.

#[test]
fn initialize_on_the_rpc_topic_is_refused() {
    Scene::open().play(&[(Client("5 initialize"), &["c < 5 error initialize-on-rpc"])]);
}

#[test]
fn what_the_server_garbles_goes_nowhere() {
    let detail = "not JSON".to_owned();
    Scene::open().play(&[(Backend(FromBackend::Malformed { detail }), &["dropped malformed-from-server"])]);
}

#[test]
fn every_request_is_counted_once_with_its_outcome() {
    let mut scene = Scene::open();
    for text in ["1 tools/call", "2 tools/call", "3 ping"] {
        let mut turn = Turn { now: scene.now, rules: &RULES, out: &mut scene.out };
        scene.session.client_message(shorthand::message(text), &mut turn);
    }
    let mut turn = Turn { now: scene.now + Duration::from_secs(10), rules: &RULES, out: &mut scene.out };
    scene.session.backend_event(FromBackend::Message(shorthand::message("1 ok")), &mut turn);
    scene.session.expire(&mut turn);
    scene.session.end(EndReason::ClientLeft, &mut turn);
    let counted: Vec<_> = scene
        .out
        .iter()
        .filter_map(|action| match action {
            Action::Resolved { asker, outcome, elapsed, .. } => Some((*asker, *outcome, elapsed.as_secs())),
            _ => None,
        })
        .collect();
    assert_eq!(
        counted,
        [
            (Asker::Client, Outcome::Ok, 10),
            (Asker::Client, Outcome::TimedOut, 10),
            (Asker::Client, Outcome::Abandoned, 10)
        ]
    );
    assert_eq!(scene.session.in_flight(), 0);
}
