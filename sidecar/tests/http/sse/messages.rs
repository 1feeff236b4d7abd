//! What passes both ways while a session stands.

use std::time::{Duration, Instant};

use axum::response::Response;
use mcp_mqtt_sidecar::backend::{FromBackend, failure};
use serde_json::{Value, json};

use super::{HELLO, Sse};
use crate::fake::{MAX_IN_FLIGHT, MAX_MESSAGE, Seen, json_status, result, status};

#[tokio::test]
async fn answers_pass_byte_for_byte_between_keep_alives_and_other_events() {
    const ANSWER: &str = r#"{ "result" : {"a":1.0,"b":"\u00e9"}, "id":1, "jsonrpc":"2.0"}"#;
    let server = Sse::start(HELLO, |seen, stream| {
        (seen.what() == "tools/list").then(|| {
            stream.say(": ping - 2026-07-28\r\n\r\n");
            stream.say("event: ping\ndata: {}\n\n");
            stream.say("data:\n\n");
            stream.say(&format!("event: message\r\ndata: {}", &ANSWER[..20]));
            stream.say(&format!("{}\r\n\r\n: more\n\n", &ANSWER[20..]));
            status(202, "")
        })
    })
    .await;
    let mut client = server.session().await;
    client.request(1, "tools/list").await;
    assert_eq!(client.raw().await, ANSWER);
}

#[tokio::test]
async fn both_ask_and_tell_and_answer() {
    let server = Sse::usual().await;
    let mut client = server.session().await;
    server.stream.tell(&json!({"jsonrpc": "2.0", "id": "s1", "method": "roots/list"}));
    server.stream.tell(&json!({"jsonrpc": "2.0", "method": "notifications/message"}));
    assert_eq!(client.message().await["id"], "s1");
    assert_eq!(client.message().await["method"], "notifications/message");
    client.send(r#"{"jsonrpc":"2.0","id":"s1","result":{"roots":[]}}"#).await;
    assert_eq!(server.fake.nth("response", 0).await.body["id"], "s1");
    client.notify("notifications/roots/list_changed", json!({})).await;
    server.fake.nth("notifications/roots/list_changed", 0).await;
}

#[tokio::test]
async fn the_requests_of_a_server_and_of_its_client_may_have_the_same_id() {
    let server = Sse::start(HELLO, |seen, stream| {
        (seen.what() == "tools/call").then(|| {
            stream.tell(&json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}));
            stream.tell(&result(1));
            status(202, "")
        })
    })
    .await;
    let mut client = server.session().await;
    client.request(1, "tools/call").await;
    assert_eq!(client.message().await["method"], "ping");
    assert_eq!(client.message().await["result"], json!({}));
}

#[tokio::test]
async fn messages_arrive_in_the_order_in_which_they_were_sent() {
    // The later it comes the sooner it would be through.
    let server = Sse::slow(|seen| {
        let n = seen.body["params"]["n"].as_u64().unwrap_or(20);
        Box::pin(tokio::time::sleep(Duration::from_millis(20_u64.saturating_sub(n))))
    })
    .await;
    let client = server.session().await;
    for n in 0..20 {
        client.notify("n", json!({"n": n})).await;
    }
    server.fake.nth("n", 19).await;
    let seen: Vec<Seen> = server.fake.seen().into_iter().filter(|seen| seen.what() == "n").collect();
    let order: Vec<u64> = seen.iter().map(|seen| seen.body["params"]["n"].as_u64().unwrap()).collect();
    assert_eq!(order, (0..20).collect::<Vec<_>>());
    // Each after the reply to the one before.
    assert!(seen.windows(2).take(5).all(|pair| pair[1].at - pair[0].at >= Duration::from_millis(10)));
}

#[tokio::test]
async fn any_success_is_taken_for_an_acceptance() {
    let replies: [fn() -> Response; 4] =
        [|| status(200, "ok"), || status(202, "Accepted"), || status(204, ""), || json_status(201, "{}")];
    for reply in replies {
        let server = Sse::start(HELLO, move |seen, stream| {
            super::usual(seen, stream);
            Some(reply())
        })
        .await;
        let mut client = server.session().await;
        client.request(1, "ping").await;
        assert_eq!(client.message().await["id"], 1);
    }
}

#[tokio::test]
async fn a_request_that_is_refused_is_answered_and_the_session_goes_on() {
    type Reply = fn() -> Response;
    const ERROR: &str = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32602,"message":"no","data":[1]}}"#;
    let cases: [(Reply, &str); 4] = [
        (|| status(500, "<h1>oops</h1>"), "HTTP 500 Internal Server Error: <h1>oops</h1>"),
        (|| status(502, ""), "HTTP 502 Bad Gateway"),
        (|| status(400, "Invalid message"), "HTTP 400 Bad Request: Invalid message"),
        (|| json_status(400, ERROR), ""),
    ];
    for (reply, told) in cases {
        let server = Sse::start(HELLO, move |seen, _| (seen.what() == "tools/call").then(reply)).await;
        let mut client = server.session().await;
        client.request(1, "tools/call").await;
        if told.is_empty() {
            let answer = client.message().await;
            assert_eq!((&answer["id"], &answer["error"]["data"]), (&json!(1), &json!([1])), "its own error");
        } else {
            let (id, reason, detail) = client.failure().await;
            assert_eq!((id.as_str(), reason), ("1", failure::HTTP_STATUS));
            assert!(detail.contains(told), "{detail}");
        }
        client.request(2, "ping").await;
        assert_eq!(client.message().await["id"], 2);
    }
}

#[tokio::test]
async fn a_notification_that_is_refused_is_the_servers_loss() {
    let server = Sse::start(HELLO, |seen, _| (seen.what() == "n").then(|| status(500, ""))).await;
    let mut client = server.session().await;
    client.notify("n", json!({})).await;
    client.request(1, "ping").await;
    assert_eq!(client.message().await["id"], 1);
}

#[tokio::test]
async fn an_answer_may_come_before_its_request_is_accepted() {
    let server = Sse::slow(|seen| {
        let is_slow = seen.what() == "tools/call" && seen.body["id"].as_u64().is_some_and(|id| id % 2 == 0);
        Box::pin(async move {
            if is_slow {
                std::future::pending::<()>().await;
            }
        })
    })
    .await;
    let mut client = server.session().await;
    let started = Instant::now();
    for id in 1..=u64::from(4 * MAX_IN_FLIGHT) {
        client.request(id, "tools/call").await;
        assert_eq!(client.message().await["id"], id);
    }
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn what_is_never_accepted_holds_up_no_other() {
    let server = Sse::slow(|seen| {
        let is_deaf = seen.what() == "n";
        Box::pin(async move {
            if is_deaf {
                std::future::pending::<()>().await;
            }
        })
    })
    .await;
    let mut client = server.session().await;
    client.notify("n", json!({})).await;
    client.request(1, "ping").await;
    assert_eq!(client.message().await["id"], 1);
    client.close().await;
}

#[tokio::test]
async fn what_is_never_answered_is_bounded_and_its_cancellation_gives_the_place_back() {
    let server = Sse::start(HELLO, |seen, _| (seen.what() == "tools/call").then(|| status(202, ""))).await;
    let mut client = server.session().await;
    let all = u64::from(2 * MAX_IN_FLIGHT);
    for id in 1..=all {
        client.request(id, "tools/call").await;
    }
    client.request(100, "ping").await;
    let (id, reason, _) = client.failure().await;
    assert_eq!((id.as_str(), reason), ("100", failure::TOO_MANY_IN_FLIGHT));
    client.notify("notifications/cancelled", json!({"requestId": 1})).await;
    let place = |seen: &[Seen], what: &str| seen.iter().rposition(|seen| seen.what() == what);
    server.fake.nth("notifications/cancelled", 0).await;
    let seen = server.fake.seen();
    assert!(place(&seen, "tools/call") < place(&seen, "notifications/cancelled"));
    let deadline = Instant::now() + crate::fake::PATIENCE;
    loop {
        client.request(101, "ping").await;
        match client.event().await {
            FromBackend::Message(_) => break,
            FromBackend::RequestFailed { .. } => assert!(Instant::now() < deadline, "no place came back"),
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn an_answer_over_the_limit_fails_its_request() {
    let server = Sse::start(HELLO, |seen, stream| {
        (seen.what() == "tools/call").then(|| {
            let large: Value =
                json!({"jsonrpc": "2.0", "result": "x".repeat(MAX_MESSAGE as usize), "id": seen.body["id"]});
            stream.tell(&large);
            status(202, "")
        })
    })
    .await;
    let mut client = server.session().await;
    // More often than requests may be in flight: each gives its place back.
    for id in 1..=u64::from(3 * MAX_IN_FLIGHT) {
        client.request(id, "tools/call").await;
        assert!(matches!(client.event().await, FromBackend::Malformed { .. }));
        let (failed, reason, detail) = client.failure().await;
        assert_eq!((failed, reason), (id.to_string(), failure::ANSWER_TOO_LARGE));
        assert!(detail.contains("maxMessageBytes"), "{detail}");
    }
    client.request(100, "ping").await;
    assert_eq!(client.message().await["id"], 100);
}

#[tokio::test]
async fn what_is_no_message_is_reported_and_the_session_goes_on() {
    let server = Sse::usual().await;
    let mut client = server.session().await;
    server.stream.say("data: Server listening\n\n");
    assert!(matches!(client.event().await, FromBackend::Malformed { .. }));
    server.stream.say("data: {\"jsonrpc\":\"1.0\",\"id\":5,\"result\":{}}\n\n");
    assert!(matches!(client.event().await, FromBackend::Malformed { .. }));
    assert_eq!(client.failure().await.0, "5");
    client.request(1, "ping").await;
    assert_eq!(client.message().await["id"], 1);
}
