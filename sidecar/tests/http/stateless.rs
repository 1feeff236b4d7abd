//! A server of 2026-07-28: no sessions, each request an exchange of its own.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::stream;
use mcp_mqtt_sidecar::backend::{Backend, BackendEnd, FromBackend, failure};
use serde_json::{Value, json};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use crate::fake::{
    Client, Fake, PATIENCE, SESSION, Seen, Then, event, events, json, json_status, result, status,
};

/// Replies to one kind of request; as a server of the revision to all others.
fn modern(
    what: &'static str,
    reply: impl Fn(&Seen) -> Response + Send + Sync + 'static,
) -> impl Fn(Seen) -> crate::fake::Script + Send + Sync {
    move |seen| {
        let reply = if seen.what() == what { reply(&seen) } else { usual(&seen) };
        Box::pin(async move { Some(reply) })
    }
}

fn usual(seen: &Seen) -> Response {
    let id = &seen.body["id"];
    let mut reply = match seen.what() {
        "GET" | "DELETE" => status(405, ""),
        "initialize" => refusal(400, id, -32022),
        "server/discover" => json(&discovered(id).to_string()),
        "subscriptions/listen" => events(&[&acknowledged(id)], Then::Stay),
        _ => json(&json!({"jsonrpc": "2.0", "id": id, "result": {"resultType": "complete"}}).to_string()),
    };
    if seen.what() != "initialize" {
        reply.headers_mut().insert("mcp-session-id", SESSION.parse().unwrap()); // means nothing here
    }
    reply
}

fn refusal(code: u16, id: &Value, error: i64) -> Response {
    json_status(
        code,
        &json!({"jsonrpc": "2.0", "id": id, "error": {"code": error, "message": "no"}}).to_string(),
    )
}

fn discovered(id: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "result": {
        "resultType": "complete", "supportedVersions": ["2026-07-28"], "ttlMs": 0, "cacheScope": "public",
        "capabilities": {"tools": {"listChanged": true}},
        "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "fake", "version": "2"}},
    }})
}

fn acknowledged(id: &Value) -> String {
    event(&json!({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": {
        "notifications": {"toolsListChanged": true}, "_meta": {"io.modelcontextprotocol/subscriptionId": id},
    }}))
}

/// A backend that knows what it speaks to.
async fn probed(fake: &Fake) -> Backend {
    let backend = fake.backend();
    assert_eq!(backend.probe().await.unwrap().protocol_version, "2026-07-28");
    backend
}

async fn session(fake: &Fake) -> Client {
    let mut client = Client::open(&probed(fake).await);
    client.initialize().await;
    client
}

#[tokio::test]
async fn each_request_names_itself_and_there_is_no_session() {
    let fake = Fake::start(modern("", usual)).await;
    let mut client = session(&fake).await;
    client
        .send(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"wé","arguments":{"a":1}}}"#)
        .await;
    assert_eq!(client.message().await, json!({"jsonrpc": "2.0", "id": 1, "result": {}}));
    client.notify("notifications/roots/list_changed", json!({})).await;
    client.request(2, "tools/list").await;
    client.message().await;
    fake.nth("subscriptions/listen", 0).await;
    client.close().await;
    let of_the_revision = fake.seen().into_iter().filter(|seen| seen.what() != "initialize");
    for seen in of_the_revision.clone() {
        let what = seen.what();
        assert_eq!(seen.header("mcp-protocol-version"), Some("2026-07-28"), "{what}");
        assert_eq!(seen.header("mcp-method"), Some(what));
        let name = (what == "tools/call").then_some("=?base64?d8Op?=");
        assert_eq!(seen.header("mcp-name"), name, "{what}");
        assert_eq!(seen.header("mcp-session-id"), None, "{what}");
        assert_eq!(seen.header("accept"), Some("application/json, text/event-stream"));
        let meta = &seen.body["params"]["_meta"];
        assert_eq!(meta["io.modelcontextprotocol/protocolVersion"], "2026-07-28", "{what}");
    }
    let mut whats: Vec<String> = of_the_revision.map(|seen| seen.what().to_owned()).collect();
    whats.sort();
    let expected = ["server/discover", "server/discover", "subscriptions/listen", "tools/call", "tools/list"];
    assert_eq!(whats, expected, "and nothing else: no GET, no DELETE, no notification");
}

/// Told when the stream that holds it is dropped: its reader has gone.
struct Gone(Arc<Notify>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn a_cancelled_call_ends_with_its_connection_and_so_does_what_a_session_leaves() {
    let gone = Arc::new(Notify::new());
    let watched = gone.clone();
    let fake = Fake::start(modern("tools/call", move |_| {
        let gone = Gone(watched.clone());
        let never = stream::once(async move {
            let _gone = gone;
            std::future::pending::<io::Result<Bytes>>().await
        });
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(Body::from_stream(never))
            .unwrap()
    }))
    .await;
    let mut client = session(&fake).await;
    client.request(1, "tools/call").await;
    fake.nth("tools/call", 0).await;
    client.notify("notifications/cancelled", json!({"requestId": 1})).await;
    timeout(PATIENCE, gone.notified()).await.expect("the stream is closed");
    client.request(2, "tools/list").await;
    assert_eq!(client.message().await["id"], 2);
    assert!(!fake.whats().iter().any(|what| what == "notifications/cancelled"), "{:?}", fake.whats());

    client.request(3, "tools/call").await;
    fake.nth("tools/call", 1).await;
    client.close().await;
    timeout(PATIENCE, gone.notified()).await.expect("the stream is closed");
}

#[tokio::test]
async fn a_stream_that_breaks_is_not_resumed() {
    let broken = |_: &Seen| events(&["id: 7\nretry: 1\ndata:\n\n"], Then::Break);
    let fake = Fake::start(modern("tools/call", broken)).await;
    let mut client = session(&fake).await;
    client.request(1, "tools/call").await;
    let (id, reason, _) = client.failure().await;
    assert_eq!((&*id, reason), ("1", failure::CONNECTION_BROKEN));
    assert!(!fake.whats().iter().any(|what| what == "GET"), "{:?}", fake.whats());
}

#[tokio::test]
async fn a_subscription_that_ends_is_begun_again() {
    let fake = Fake::start(modern("subscriptions/listen", |seen| {
        let id = &seen.body["id"];
        let first = id.as_str().is_some_and(|id| id.ends_with("/1"));
        events(&[&acknowledged(id)], if first { Then::Close } else { Then::Stay })
    }))
    .await;
    let mut client = session(&fake).await;
    let again = fake.nth("subscriptions/listen", 1).await;
    assert_eq!(again.body["params"]["notifications"], json!({"toolsListChanged": true}));
    let told = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"});
    assert_eq!(client.message().await, told, "it may have changed meanwhile");
    client.close().await;
}

#[tokio::test]
async fn an_error_status_brings_the_servers_own_error() {
    let fake = Fake::start(modern("no/such", |seen| refusal(404, &seen.body["id"], -32601))).await;
    let mut client = session(&fake).await;
    client.request(1, "no/such").await;
    let told = client.message().await;
    assert_eq!((&told["id"], &told["error"]["code"]), (&json!(1), &json!(-32601)), "no lost session");
    client.request(2, "tools/list").await;
    assert_eq!(client.message().await["id"], 2);
}

#[tokio::test]
async fn a_server_of_the_revision_is_known_however_it_refuses_initialize() {
    for (code, id, error) in [
        (400, json!(1), -32022),
        (400, Value::Null, -32020),
        (404, json!(1), -32601),
        (200, json!(1), -32602),
    ] {
        let fake = Fake::start(modern("initialize", move |_| refusal(code, &id, error))).await;
        session(&fake).await.close().await;
    }
    // One that speaks neither tells its own refusal.
    let fake = Fake::start(|seen: Seen| {
        let refused =
            refusal(400, &seen.body["id"], if seen.what() == "initialize" { -32000 } else { -32601 });
        Box::pin(async move { Some(refused) })
    })
    .await;
    let told = fake.backend().probe().await.unwrap_err().to_string();
    assert!(told.contains("(-32000)"), "{told}");
}

#[tokio::test]
async fn a_server_that_is_too_busy_for_new_sessions_loses_none_that_it_has() {
    let busy = Arc::new(AtomicBool::new(false));
    let is_busy = busy.clone();
    let fake = Fake::start(move |seen: Seen| {
        let too_busy =
            is_busy.load(Ordering::Relaxed) && matches!(seen.what(), "initialize" | "server/discover");
        let reply = if too_busy { status(429, "too many requests") } else { usual(&seen) };
        Box::pin(async move { Some(reply) })
    })
    .await;
    let backend = probed(&fake).await;
    let mut client = Client::open(&backend);
    client.initialize().await;
    let lost = tokio::spawn({
        let backend = backend.clone();
        async move { backend.lost().await }
    });
    busy.store(true, Ordering::Relaxed);
    let mut refused = Client::open(&backend);
    refused.request(0, "initialize").await;
    let (_, reason, detail) = refused.failure().await;
    assert_eq!(reason, failure::HTTP_STATUS, "{detail}");
    fake.nth("initialize", 1).await; // the server is asked anew
    sleep(Duration::from_millis(300)).await;
    assert!(!lost.is_finished(), "{:?}", lost.await);
    client.request(1, "tools/call").await;
    assert_eq!(client.message().await["id"], 1);
    busy.store(false, Ordering::Relaxed);
    Client::open(&backend).initialize().await;
    assert!(!lost.is_finished());
}

#[tokio::test]
async fn a_server_that_is_gone_ends_the_session() {
    let fake = Fake::start(modern("", usual)).await;
    let mut client = session(&fake).await;
    fake.nth("subscriptions/listen", 0).await;
    fake.stop().await;
    client.request(1, "tools/list").await;
    loop {
        match client.event().await {
            FromBackend::Ended(end) => break assert!(matches!(end, BackendEnd::BackendLost(_)), "{end:?}"),
            FromBackend::RequestFailed { .. } | FromBackend::Message(_) => {}
            FromBackend::Malformed { detail } => panic!("{detail}"),
        }
    }
}

#[tokio::test]
async fn the_headers_of_a_call_are_learnt_from_all_pages_of_the_list() {
    let fake = Fake::start(|seen: Seen| {
        let id = seen.body["id"].clone();
        let schema = json!({"type": "object", "properties": {"r": {"type": "string", "x-mcp-header": "R"}}});
        let reply = match (seen.what(), seen.header("mcp-param-r"), seen.body["params"]["cursor"].as_str()) {
            ("tools/call", None, _) => refusal(400, &id, -32020),
            ("tools/call", Some(_), _) => json(&result(id).to_string()),
            ("tools/list", _, None) => {
                let page = json!({"resultType": "complete", "tools": [], "nextCursor": "2"});
                json(&json!({"jsonrpc": "2.0", "id": id, "result": page}).to_string())
            }
            ("tools/list", _, Some(_)) => {
                let page = json!({"resultType": "complete", "tools": [{"name": "t", "inputSchema": schema}]});
                events(&[&event(&json!({"jsonrpc": "2.0", "id": id, "result": page}))], Then::Close)
            }
            _ => usual(&seen),
        };
        Box::pin(async move { Some(reply) })
    })
    .await;
    let mut client = session(&fake).await;
    for id in [1, 2] {
        let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "t", "arguments": {"r": "x"}}});
        client.send(&call.to_string()).await;
        assert_eq!(client.message().await, result(id));
    }
    let calls: Vec<_> = fake.seen().into_iter().filter(|seen| seen.what() == "tools/call").collect();
    let headers: Vec<_> = calls.iter().map(|seen| seen.header("mcp-param-r")).collect();
    assert_eq!(headers, [None, Some("x"), Some("x")], "the second call knows");
    // A refusal for another reason is the answer.
    client.send(r#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"other"}}"#).await;
    let (id, reason, _) = client.failure().await;
    assert_eq!((&*id, reason), ("3", "backend-revision-refused"));
}
