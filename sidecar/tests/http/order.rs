//! What goes with a request, and what may overtake what.

use std::time::{Duration, Instant};

use mcp_mqtt_sidecar::backend::failure;
use serde_json::json;

use crate::fake::{
    Client, Fake, MAX_IN_FLIGHT, SESSION, Seen, Then, events, initialize_result, json, on, status,
};

#[tokio::test]
async fn the_handshake_names_session_and_revision_from_then_on() {
    let fake = Fake::start(on("GET", |_| events(&[], Then::Stay))).await;
    let mut client = fake.session().await;
    client.request(1, "tools/list").await;
    client.message().await;
    fake.nth("GET", 0).await;
    client.close().await;
    for seen in fake.seen() {
        let opening = seen.what() == "initialize";
        assert_eq!(seen.header("mcp-session-id"), (!opening).then_some(SESSION), "{}", seen.what());
        assert_eq!(
            seen.header("mcp-protocol-version"),
            (!opening).then_some("2025-11-25"),
            "{}",
            seen.what()
        );
        let accept = seen.header("accept");
        match seen.what() {
            "GET" => assert_eq!(accept, Some("text/event-stream")),
            "DELETE" => {}
            _ => {
                assert_eq!(accept, Some("application/json, text/event-stream"));
                assert_eq!(seen.header("content-type"), Some("application/json"));
            }
        }
    }
    assert_eq!(fake.whats().last().unwrap(), "DELETE");
}

#[tokio::test]
async fn a_server_of_2025_03_26_without_sessions_gets_neither_header_nor_delete() {
    let old = |seen: &Seen| json(&initialize_result(&seen.body["id"], "2025-03-26").to_string());
    let fake = Fake::start(on("initialize", old)).await;
    let mut client = fake.session().await;
    client.request(1, "ping").await;
    client.message().await;
    client.close().await;
    for seen in fake.seen() {
        assert_eq!(seen.header("mcp-session-id"), None);
        assert_eq!(seen.header("mcp-protocol-version"), None);
        assert_ne!(seen.what(), "DELETE");
    }
}

#[tokio::test]
async fn nothing_overtakes_the_handshake() {
    let fake = Fake::start(|seen: Seen| {
        Box::pin(async move {
            if seen.what() == "initialize" || seen.what() == "notifications/initialized" {
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
            None
        })
    })
    .await;
    let mut client = Client::open(&fake.backend());
    client.request(0, "initialize").await;
    client.notify("notifications/initialized", json!({})).await;
    client.request(1, "tools/list").await;
    assert_eq!(client.message().await["id"], 0);
    assert_eq!(client.message().await["id"], 1);
    let posts: Vec<Seen> = fake.seen().into_iter().filter(|seen| seen.what() != "GET").collect();
    let order: Vec<&str> = posts.iter().map(Seen::what).collect();
    assert_eq!(order, ["initialize", "notifications/initialized", "tools/list"]);
    assert!(posts[2].at - posts[1].at >= Duration::from_millis(150), "it waited for the 202");
}

#[tokio::test]
async fn a_request_that_is_not_answered_holds_up_no_other() {
    let fake = Fake::start(|seen: Seen| {
        Box::pin(async move {
            if seen.what() == "tools/call" {
                std::future::pending::<()>().await;
            }
            None
        })
    })
    .await;
    let mut client = fake.session().await;
    for id in 1..=3 {
        client.request(id, "tools/call").await;
    }
    let started = Instant::now();
    for id in 10..30 {
        client.request(id, "ping").await;
        assert_eq!(client.message().await["id"], id);
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    client.close().await;
}

#[tokio::test]
async fn a_cancellation_does_not_overtake_its_request_and_frees_its_place() {
    let fake = Fake::start(|seen: Seen| {
        Box::pin(async move {
            if seen.what() == "tools/call" {
                std::future::pending::<()>().await;
            }
            None
        })
    })
    .await;
    let mut client = fake.session().await;
    for id in 1..=u64::from(2 * MAX_IN_FLIGHT) {
        client.request(id, "tools/call").await;
        client.notify("notifications/cancelled", json!({"requestId": id})).await;
    }
    fake.nth("notifications/cancelled", 2 * MAX_IN_FLIGHT as usize - 1).await;
    let place = |what: &str, id: u64| {
        let seen = fake.seen();
        seen.iter()
            .position(|seen| {
                seen.what() == what && (seen.body["id"] == id || seen.body["params"]["requestId"] == id)
            })
            .unwrap()
    };
    for id in 1..=u64::from(2 * MAX_IN_FLIGHT) {
        assert!(place("tools/call", id) < place("notifications/cancelled", id), "{id}: {:?}", fake.whats());
    }
    // The places are taken still; those that nobody waits for give way, the others do not.
    for id in 100..100 + u64::from(2 * MAX_IN_FLIGHT) {
        client.request(id, "tools/call").await;
    }
    client.request(200, "ping").await;
    let (id, reason, _) = client.failure().await;
    assert_eq!((id.as_str(), reason), ("200", failure::TOO_MANY_IN_FLIGHT));
    client.notify("notifications/cancelled", json!({"requestId": 100})).await;
    client.request(201, "ping").await;
    assert_eq!(client.message().await["id"], 201, "the cancelled one has given way");
}

#[tokio::test]
async fn answers_to_the_servers_own_requests_are_posted() {
    let fake = Fake::start(on("", |_| status(500, ""))).await;
    let client = fake.session().await;
    client.send(r#"{"jsonrpc":"2.0","id":"s1","result":{"roots":[]}}"#).await;
    assert_eq!(fake.nth("response", 0).await.body["id"], "s1");
}
