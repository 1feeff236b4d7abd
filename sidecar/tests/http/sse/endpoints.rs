//! The stream's first event, and what else a stream may begin with.

use std::time::Duration;

use axum::response::Response;
use http::StatusCode;
use mcp_mqtt_sidecar::backend::{BackendEnd, FromBackend};
use serde_json::json;

use super::{HELLO, Sse, backend};
use crate::fake::{Client, Fake, Then, event, events, json, on, status};

async fn refusal(client: &mut Client) -> String {
    match client.end().await {
        BackendEnd::OpenFailed(why) | BackendEnd::OpenRefused(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn messages_go_where_the_endpoint_event_says() {
    for (hello, path) in [
        ("event: endpoint\ndata: /message?sessionId=1\n\n", "/message?sessionId=1"),
        ("event: endpoint\r\ndata: message?a=b\r\n\r\n", "/message?a=b"),
        (": welcome\n\ndata: ?sessionId=2\nevent: endpoint\n\n", "/mcp?sessionId=2"),
        ("event: ping\ndata: 1\n\nid: 7\nevent: endpoint\ndata:/m#here\n\n", "/m"),
    ] {
        let server = Sse::start(hello, |_, _| None).await;
        let mut client = server.session().await;
        client.request(1, "tools/list").await;
        assert_eq!(client.message().await["id"], 1);
        client.close().await;
        let seen = server.fake.seen();
        assert_eq!((seen[0].what(), seen[0].header("accept")), ("GET", Some("text/event-stream")));
        assert_eq!(seen[0].header("last-event-id"), None);
        assert_eq!(server.fake.whats()[1..], ["initialize", "notifications/initialized", "tools/list"]);
        for post in &seen[1..] {
            assert_eq!(post.path, path);
            assert_eq!(post.header("content-type"), Some("application/json"));
            assert_eq!(post.header("mcp-session-id"), None);
        }
    }
}

#[tokio::test]
async fn an_absolute_endpoint_of_the_same_server_is_taken() {
    let fake = Fake::start(|seen| {
        let host = seen.header("host").unwrap();
        let hello = format!("event: endpoint\ndata: http://{host}/there\n\n");
        let reply = if seen.what() == "GET" { events(&[&hello], Then::Stay) } else { status(202, "") };
        Box::pin(async move { Some(reply) })
    })
    .await;
    let client = Client::open(&backend(&fake));
    client.request(0, "initialize").await;
    assert_eq!(fake.nth("initialize", 0).await.path, "/there");
}

#[tokio::test]
async fn an_endpoint_elsewhere_is_refused_and_nothing_is_sent_there() {
    let other = Fake::start(on("", |_| status(500, ""))).await;
    let elsewhere = format!("event: endpoint\ndata: {}\n\n", other.url);
    for (hello, why) in [
        (elsewhere.as_str(), "it is of http://127.0.0.1:"),
        ("event: endpoint\ndata: //example.org/m?key=SECRET\n\n", "it is of http://example.org"),
        ("event: endpoint\ndata: https://127.0.0.1/m\n\n", "it is of https://127.0.0.1"),
        ("event: endpoint\ndata: http://[\n\n", "it is no URL"),
        ("event: endpoint\ndata:\n\n", "it is empty"),
    ] {
        let reply = hello.to_owned();
        let fake = Fake::start(on("GET", move |_| events(&[&reply], Then::Stay))).await;
        let mut client = Client::open(&backend(&fake));
        client.request(0, "initialize").await;
        let told = refusal(&mut client).await;
        assert!(told.contains(why) && told.contains("wants its messages at"), "{told}");
        assert!(!told.contains("SECRET"), "{told}");
        assert_eq!(fake.whats(), ["GET"]);
    }
    assert!(other.seen().is_empty(), "{:?}", other.whats());
}

#[tokio::test]
async fn messages_wait_for_a_late_endpoint() {
    let server = Sse::start(": not yet\n\n", |_, _| None).await;
    let mut client = Client::open(&server.backend());
    client.request(0, "initialize").await;
    server.fake.nth("GET", 0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.fake.whats(), ["GET"]);
    server.stream.say("event: endp");
    server.stream.say("oint\ndata: /message\n");
    server.stream.say("\n");
    assert_eq!(client.message().await["id"], 0);
}

#[tokio::test]
async fn a_stream_without_an_endpoint_is_explained() {
    let silent = Sse::start(": hello\n\n", |_, _| None).await;
    let mut client = Client::open(&silent.backend());
    client.request(0, "initialize").await;
    let told = refusal(&mut client).await; // takes ten seconds
    assert!(told.contains("no `endpoint` event") && told.contains("transport.sse.path"), "{told}");

    for (then, why) in [(Then::Close, "ended its stream"), (Then::Break, "the stream broke")] {
        let fake = Fake::start(on("GET", move |_| events(&[": hello\n\n"], then))).await;
        let told = refusal(&mut Client::open(&backend(&fake))).await;
        assert!(told.contains(why) && told.contains("before its `endpoint`"), "{told}");
    }
}

#[tokio::test]
async fn what_is_no_event_stream_is_explained() {
    type Reply = fn() -> Response;
    let replies: [(Reply, &str); 6] = [
        (|| status(404, "Cannot GET /sse"), "Cannot GET /sse"),
        (|| status(405, ""), "405"),
        (|| status(502, "<h1>Bad Gateway</h1>"), "Bad Gateway"),
        (|| json("{}"), "no stream"),
        (|| status(200, "<html>"), "content type"),
        (|| status(204, ""), "no stream"),
    ];
    for (reply, why) in replies {
        let fake = Fake::start(on("GET", move |_| reply())).await;
        let mut client = Client::open(&backend(&fake));
        client.request(0, "initialize").await;
        let told = refusal(&mut client).await;
        assert!(told.contains(why) && told.contains("transport.sse.path"), "{told}");
        let probed = backend(&fake).probe().await.unwrap_err().to_string();
        assert!(probed.contains(why), "{probed}");
        assert_eq!(fake.whats(), ["GET", "GET"], "nothing is posted");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_no_mcp_endpoint_is_explained() {
    for code in [404, 405, 500] {
        let server = Sse::start(HELLO, move |_, _| Some(status(code, "Cannot POST /message"))).await;
        let mut client = Client::open(&server.backend());
        client.request(0, "initialize").await;
        let told = refusal(&mut client).await;
        assert!(told.contains("/message answered HTTP") && told.contains("Cannot POST"), "{told}");
    }
}

#[tokio::test]
async fn a_second_endpoint_changes_nothing() {
    let server = Sse::usual().await;
    let mut client = server.session().await;
    server.stream.say(HELLO);
    server.stream.say("event: endpoint\ndata: /other\n\n");
    match client.event().await {
        FromBackend::Malformed { detail } => assert!(detail.contains("`/other`"), "{detail}"),
        other => panic!("{other:?}"),
    }
    client.request(1, "ping").await;
    assert_eq!(client.message().await["id"], 1);
    assert!(server.fake.seen().iter().all(|seen| seen.path != "/other"));
}

#[tokio::test]
async fn a_message_before_the_endpoint_is_none() {
    let fake = Fake::start(on("GET", |_| {
        let early = event(&json!({"jsonrpc": "2.0", "method": "notifications/message"}));
        events(&[&early, HELLO], Then::Stay)
    }))
    .await;
    let mut client = Client::open(&backend(&fake));
    client.request(0, "initialize").await;
    assert!(matches!(client.event().await, FromBackend::Malformed { .. }));
    fake.nth("initialize", 0).await;
}

#[tokio::test]
async fn a_redirect_of_the_stream_is_not_followed() {
    let fake = Fake::start(on("GET", |_| {
        let mut reply = Response::new(axum::body::Body::empty());
        *reply.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        reply.headers_mut().insert("location", "http://example.org/".parse().unwrap());
        reply
    }))
    .await;
    let told = refusal(&mut Client::open(&backend(&fake))).await;
    assert!(told.contains("307"), "{told}");
}
