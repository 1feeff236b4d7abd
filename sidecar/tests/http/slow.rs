//! Servers that take their time: replies that come byte by byte or not at all, streams that never end.

use std::time::{Duration, Instant};

use axum::{body::Body, response::Response};
use futures::{StreamExt, stream};
use mcp_mqtt_sidecar::backend::{BackendEnd, failure};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::fake::{Client, Fake, MAX_IN_FLIGHT, Seen, backend, event, on, result};

/// A body that goes out in these pieces, one each so often, and then for ever the last.
fn dripping(kind: &str, pieces: Vec<String>, every: Duration, for_ever: Option<&'static str>) -> Response {
    let rest = stream::iter(for_ever).cycle().map(str::to_owned);
    let pieces = stream::iter(pieces).chain(rest).then(move |piece| async move {
        tokio::time::sleep(every).await;
        Ok::<_, std::convert::Infallible>(piece)
    });
    Response::builder().header("content-type", kind).body(Body::from_stream(pieces)).unwrap()
}

fn bytes(text: &str) -> Vec<String> {
    text.chars().map(String::from).collect()
}

#[tokio::test]
async fn an_answer_that_comes_byte_by_byte_holds_up_no_other() {
    for kind in ["application/json", "text/event-stream"] {
        let fake = Fake::start(on("tools/call", move |seen: &Seen| {
            let answer = result(seen.body["id"].clone());
            let text = if kind == "application/json" { answer.to_string() } else { event(&answer) };
            dripping(kind, bytes(&text), Duration::from_millis(30), None)
        }))
        .await;
        let mut client = fake.session().await;
        client.request(1, "tools/call").await;
        for id in 10..20 {
            client.request(id, "ping").await;
            assert_eq!(client.message().await["id"], id, "{kind}");
        }
        assert_eq!(client.message().await["id"], 1, "{kind}");
    }
}

#[tokio::test]
async fn a_large_answer_that_comes_in_pieces_is_whole() {
    for kind in ["application/json", "text/event-stream"] {
        let text = "0123456789".repeat(5000);
        let fake = Fake::start(on("tools/call", move |seen: &Seen| {
            let answer = json!({"jsonrpc": "2.0", "id": seen.body["id"], "result": {"text": text}});
            let text = if kind == "application/json" { answer.to_string() } else { event(&answer) };
            let pieces =
                text.as_bytes().chunks(10_007).map(|piece| String::from_utf8_lossy(piece).into_owned());
            dripping(kind, pieces.collect(), Duration::from_millis(20), None)
        }))
        .await;
        let mut client = fake.session().await;
        for id in 1..=3 {
            client.request(id, "tools/call").await;
            let answer = client.message().await;
            assert_eq!(answer["result"]["text"], "0123456789".repeat(5000), "{kind}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_goes_on_after_its_answer_gives_its_place_back() {
    let fake = Fake::start(on("tools/call", |seen: &Seen| {
        let answer = event(&result(seen.body["id"].clone()));
        dripping("text/event-stream", vec![answer], Duration::from_millis(50), Some(": still here\n\n"))
    }))
    .await;
    let mut client = fake.session().await;
    let all = u64::from(2 * MAX_IN_FLIGHT);
    for id in 1..=all {
        client.request(id, "tools/call").await;
        assert_eq!(client.message().await["id"], id);
    }
    tokio::time::sleep(Duration::from_secs(3)).await; // they may go on for one
    for id in all + 1..=2 * all {
        client.request(id, "tools/call").await;
        assert_eq!(client.message().await["id"], id);
    }
}

#[tokio::test]
async fn a_stream_that_never_answers_ends_with_its_cancellation() {
    let fake = Fake::start(on("tools/call", |_: &Seen| {
        let every = Duration::from_millis(50);
        dripping("text/event-stream", vec![], every, Some("id: 1\ndata:\n\n: and so on\n\n"))
    }))
    .await;
    let mut client = fake.session().await;
    let all = u64::from(2 * MAX_IN_FLIGHT);
    for id in 1..=all {
        client.request(id, "tools/call").await;
        client.notify("notifications/cancelled", json!({"requestId": id})).await;
    }
    // Nobody waits for any of them: they give their places to what is new.
    client.request(100, "ping").await;
    assert_eq!(client.message().await["id"], 100);
    client.close().await;
}

/// A server that takes what is sent and replies byte by byte, so that no reply is ever whole.
async fn slow_loris() -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let drip = |mut connection: TcpStream| async move {
        let mut request = vec![0; 65536];
        let _ = connection.read(&mut request).await;
        let reply = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-pad: ".bytes();
        for byte in reply.chain(std::iter::repeat(b'x')) {
            if connection.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let server = tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            tokio::spawn(drip(connection));
        }
    });
    (url, server)
}

#[tokio::test]
async fn a_head_that_never_ends_keeps_no_session() {
    let (url, _server) = slow_loris().await;
    let sse = mcp_mqtt_sidecar::config::BackendConfig::sse(url.parse().unwrap());
    for backend in [backend(&url), crate::fake::backend_of(&sse)] {
        let client = Client::open(&backend);
        client.request(0, "initialize").await;
        client.request(1, "ping").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let started = Instant::now();
        client.close().await;
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
}

#[tokio::test]
async fn an_event_stream_that_never_begins_is_given_up() {
    let (url, _server) = slow_loris().await;
    let sse = mcp_mqtt_sidecar::config::BackendConfig::sse(url.parse().unwrap());
    match Client::open(&crate::fake::backend_of(&sse)).end().await {
        BackendEnd::OpenFailed(why) => assert!(why.contains("no `endpoint` event"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_error_whose_text_never_ends_is_an_error_all_the_same() {
    let fake = Fake::start(on("tools/call", |_: &Seen| {
        let mut reply = dripping("text/html", vec![], Duration::from_millis(50), Some("<p>sorry"));
        *reply.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        reply
    }))
    .await;
    let mut client = fake.session().await;
    client.request(1, "tools/call").await;
    let (id, reason, detail) = client.failure().await;
    assert_eq!((id.as_str(), reason), ("1", failure::HTTP_STATUS));
    assert!(detail.contains("500"), "{detail}");
}
