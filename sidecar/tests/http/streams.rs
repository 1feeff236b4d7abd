//! Streams that break, and the server's own stream.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use mcp_mqtt_sidecar::backend::{BackendEnd, failure};
use serde_json::json;

use crate::fake::{Fake, SESSION, Script, Seen, Then, event, events, json_status, result, status};

/// Replies to the nth `what` (from 0) by `reply`, where it has one.
fn nth(
    reply: impl Fn(&str, usize, &Seen) -> Option<axum::response::Response> + Send + Sync + 'static,
) -> impl Fn(Seen) -> Script + Send + Sync {
    let (gets, calls) = (AtomicUsize::new(0), AtomicUsize::new(0));
    move |seen| {
        let n = match seen.what() {
            "GET" => gets.fetch_add(1, Ordering::Relaxed),
            "tools/call" => calls.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        let reply = reply(seen.what(), n, &seen);
        Box::pin(async move { reply })
    }
}

/// A GET that resumes, not the server's own stream.
fn resumes(seen: &Seen) -> bool {
    seen.what() == "GET" && seen.header("last-event-id").is_some()
}

#[tokio::test]
async fn a_stream_that_breaks_without_an_id_fails_its_request() {
    let fake = Fake::start(nth(|what, n, _| {
        (what == "tools/call" && n == 0).then(|| events(&[": begun\n\ndata: {\"jsonrpc\""], Then::Break))
    }))
    .await;
    let mut client = fake.session().await;
    client.request(1, "tools/call").await;
    let (id, reason, detail) = client.failure().await;
    assert_eq!((id.as_str(), reason), ("1", failure::CONNECTION_BROKEN), "{detail}");
    client.request(2, "tools/call").await;
    assert_eq!(client.message().await["id"], 2);
}

#[tokio::test]
async fn a_stream_with_an_id_is_resumed_where_it_broke_after_the_servers_retry() {
    for then in [Then::Break, Then::Close] {
        let fake = Fake::start(nth(move |what, _, seen| match what {
            "tools/call" => Some(events(
                &[
                    "id: e1\nretry: 300\ndata:\n\n",
                    "id: e2\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\"}\n\nid: e3\ndata: {\"half",
                ],
                then,
            )),
            // Once more nothing, as a server does that would rather be polled.
            "GET" if seen.header("last-event-id") == Some("e2") => Some(events(&["id: e4\ndata:\n\n"], then)),
            "GET" if seen.header("last-event-id") == Some("e4") => Some(events(&[&event(&result(1))], Then::Stay)),
            _ => None,
        }))
        .await;
        let mut client = fake.session().await;
        client.request(1, "tools/call").await;
        assert_eq!(client.message().await["method"], "notifications/progress");
        assert_eq!(client.message().await["id"], 1);
        let call = fake.nth("tools/call", 0).await;
        let resumed: Vec<Seen> = fake.seen().into_iter().filter(resumes).collect();
        assert_eq!(resumed.len(), 2);
        assert!(resumed[0].at - call.at >= Duration::from_millis(300));
        assert!(resumed[1].at - resumed[0].at >= Duration::from_millis(300));
        assert_eq!(resumed[0].header("mcp-session-id"), Some(SESSION));
        client.close().await;
    }
}

#[tokio::test]
async fn a_stream_that_cannot_be_resumed_fails_its_request() {
    let fake = Fake::start(nth(|what, _, _| {
        (what == "tools/call").then(|| events(&["retry: 20\nid: e1\ndata:\n\n"], Then::Break))
    }))
    .await;
    let mut client = fake.session().await;
    client.request(1, "tools/call").await;
    let (id, reason, detail) = client.failure().await;
    assert_eq!((id.as_str(), reason), ("1", failure::CONNECTION_BROKEN));
    assert!(detail.contains("resume"), "{detail}");
}

#[tokio::test]
async fn a_stream_is_resumed_by_a_server_that_has_trouble_for_a_while() {
    let fake = Fake::start(nth(|what, n, _| match (what, n) {
        ("tools/call", _) => Some(events(&["retry: 20\nid: e1\ndata:\n\n"], Then::Break)),
        ("GET", 1) => Some(status(500, "")),
        ("GET", 2) => Some(status(502, "<h1>Bad Gateway</h1>")),
        ("GET", 3) => Some(status(409, "")),
        ("GET", 4) => Some(events(&[&event(&result(1))], Then::Close)),
        _ => None,
    }))
    .await;
    let mut client = fake.session().await;
    fake.nth("GET", 0).await; // its own stream, which it does not have
    client.request(1, "tools/call").await;
    assert_eq!(client.message().await["id"], 1);
}

#[tokio::test]
async fn a_stream_that_cannot_be_resumed_for_long_fails_its_request_with_the_last_reason() {
    let fake = Fake::start(nth(|what, _, seen| match what {
        "tools/call" => Some(events(&["retry: 20\nid: e1\ndata:\n\n"], Then::Break)),
        "GET" if resumes(seen) => Some(status(503, "too busy")),
        _ => None,
    }))
    .await;
    let mut client = fake.session().await;
    client.request(1, "tools/call").await;
    let (id, reason, detail) = client.failure().await;
    assert_eq!((id.as_str(), reason), ("1", failure::CONNECTION_BROKEN));
    assert!(detail.contains("the stream broke") && detail.contains("too busy"), "{detail}");
    assert_eq!(fake.seen().iter().filter(|seen| resumes(seen)).count(), 5);
}

#[tokio::test]
async fn a_session_lost_while_resuming_is_over() {
    let fake = Fake::start(nth(|what, _, seen| match what {
        "tools/call" => Some(events(&["retry: 20\nid: e1\ndata:\n\n"], Then::Break)),
        "GET" if resumes(seen) => Some(status(404, "")),
        _ => None,
    }))
    .await;
    let mut client = fake.session().await;
    client.request(1, "tools/call").await;
    assert!(matches!(client.end().await, BackendEnd::SessionLost(_)));
}

#[tokio::test]
async fn the_servers_own_stream_is_opened_after_the_handshake_and_opened_again() {
    let said = |n: usize| json!({"jsonrpc": "2.0", "method": format!("notifications/{n}")});
    let fake = Fake::start(nth(move |what, n, _| {
        (what == "GET").then(|| {
            let piece = format!("retry: 30\nid: e{n}\n{}", event(&said(n)));
            match n {
                0 => events(&[&piece], Then::Close),
                1 => events(&[&piece], Then::Break),
                2 => status(503, ""),
                _ => events(&[&piece], Then::Stay),
            }
        })
    }))
    .await;
    let mut client = fake.session().await;
    for n in [0, 1, 3] {
        assert_eq!(client.message().await["method"], format!("notifications/{n}"));
    }
    let gets: Vec<Seen> = fake.seen().into_iter().filter(|seen| seen.what() == "GET").collect();
    let resumed: Vec<Option<&str>> = gets.iter().map(|seen| seen.header("last-event-id")).collect();
    assert_eq!(resumed, [None, Some("e0"), Some("e1"), Some("e1")]);
    let initialized = fake.nth("notifications/initialized", 0).await;
    assert!(gets[0].at > initialized.at);
    client.close().await;
}

#[tokio::test]
async fn a_server_that_closes_its_own_stream_at_once_is_asked_less_and_less() {
    let fake =
        Fake::start(nth(|what, _, _| (what == "GET").then(|| events(&["retry: 0\n\n"], Then::Close)))).await;
    let client = fake.session().await;
    let first = fake.nth("GET", 0).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let asked = fake.seen().iter().filter(|seen| seen.what() == "GET").count();
    // 40, 80, 160, 320, 640 ms
    assert!((3..=7).contains(&asked), "{asked} times in {:?}", first.at.elapsed());
    client.close().await;
}

#[tokio::test]
async fn the_servers_own_stream_begins_anew_where_it_cannot_be_resumed() {
    let unknown = r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Invalid event ID"},"id":null}"#;
    let said = json!({"jsonrpc": "2.0", "method": "notifications/again"});
    let fake = Fake::start(nth(move |what, n, seen| match (what, n) {
        ("GET", 0) => Some(events(&["retry: 20\nid: e1\ndata:\n\n"], Then::Close)),
        ("GET", _) if resumes(seen) => Some(json_status(400, unknown)),
        ("GET", _) => Some(events(&[&event(&said)], Then::Stay)),
        _ => None,
    }))
    .await;
    let mut client = fake.session().await;
    assert_eq!(client.message().await["method"], "notifications/again");
    let gets: Vec<Seen> = fake.seen().into_iter().filter(|seen| seen.what() == "GET").collect();
    let ids: Vec<Option<&str>> = gets.iter().map(|seen| seen.header("last-event-id")).collect();
    assert_eq!(ids, [None, Some("e1"), None]);
}

#[tokio::test]
async fn a_server_without_a_stream_of_its_own_is_asked_once() {
    for code in [405, 404, 400] {
        let fake = Fake::start(nth(move |what, _, _| (what == "GET").then(|| status(code, "")))).await;
        let mut client = fake.session().await;
        fake.nth("GET", 0).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        client.request(1, "ping").await;
        assert_eq!(client.message().await["id"], 1, "{code}");
        assert_eq!(fake.whats().iter().filter(|what| *what == "GET").count(), 1, "{code}");
    }
}

#[tokio::test]
async fn a_server_that_forgot_the_session_tells_on_its_own_stream() {
    let lost = r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID provided"},"id":null}"#;
    let fake = Fake::start(nth(move |what, n, _| {
        (what == "GET")
            .then(|| if n == 0 { events(&["retry: 20\n\n"], Then::Break) } else { json_status(400, lost) })
    }))
    .await;
    let mut client = fake.session().await;
    assert!(matches!(client.end().await, BackendEnd::SessionLost(_)));
}
