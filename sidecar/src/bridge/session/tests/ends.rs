//! Who ends a session, and what is said then.

use super::*;

// Items 12, 13, 14.

#[test]
fn a_client_that_leaves_is_told_nothing() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Client("notifications/disconnected"), &["unsubscribe c", "ended c client-left"]),
        (End(EndReason::Drained), &[]),
    ]);
}

#[test]
fn the_end_of_its_backend_is_an_error_for_what_is_in_flight_then_disconnected_then_unsubscribed() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Client("2 tools/call"), &["server 1 < 2 tools/call"]),
        (Client("notifications/cancelled 2"), &["server 1 < notifications/cancelled 2"]),
        (Server("1 roots/list"), &["c < 1 roots/list"]),
        (
            Backend(exited()),
            &[
                "c < 1 error backend-ended",
                "c < notifications/disconnected",
                "unsubscribe c",
                "ended c backend-ended",
            ],
        ),
    ]);
}

#[test]
fn a_drain_lets_what_is_in_flight_finish_and_takes_nothing_new() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Drain, &[]),
        (Client("2 tools/list"), &["c < 2 error draining"]),
        (Server("1 roots/list"), &["c < 1 roots/list"]),
        (Client("1 ok"), &["server 1 < 1 ok"]),
        (Server("1 ok"), &["c < 1 ok", "c < notifications/disconnected", "unsubscribe c", "ended c drained"]),
    ]);
}

#[test]
fn a_drain_ends_an_idle_session_at_once_and_an_opening_one_when_it_is_open() {
    Scene::open().play(&[(Drain, &["c < notifications/disconnected", "unsubscribe c", "ended c drained"])]);
    Scene::opening().play(&[
        (Drain, &[]),
        (Server("0 ok"), &[]),
        (
            Subscribed(Ok(())),
            &["c < 0 ok", "opened c", "c < notifications/disconnected", "unsubscribe c", "ended c drained"],
        ),
    ]);
}

#[test]
fn at_the_deadline_of_a_drain_what_is_in_flight_gets_its_error() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (Drain, &[]),
        (
            End(EndReason::Drained),
            &["c < 1 error drained", "c < notifications/disconnected", "unsubscribe c", "ended c drained"],
        ),
    ]);
}

// tests/PROTOCOL.md, item 16.

#[test]
fn a_lost_broker_ends_the_session_without_a_word() {
    Scene::open().play(&[
        (Client("1 tools/call"), &["server 1 < 1 tools/call"]),
        (End(EndReason::BrokerLost), &["ended c broker-lost"]),
    ]);
}
