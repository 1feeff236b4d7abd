//! All backends against the real `@modelcontextprotocol/server-everything`: everything that passes between a client
//! and a server, and what happens when the server dies.
#![allow(clippy::unwrap_used, reason = "how a test fails")]

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use mcp_mqtt_sidecar::backend::{
    Backend, BackendEnd, BackendEvents, BackendSession, FromBackend, Lost, Report, SendQuota, SessionId,
};
use mcp_mqtt_tests::{
    cluster::eventually,
    gateway::{children, until},
    servers::{self, Server},
};
use mcp_mqtt_transport::jsonrpc::Message;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

fn quota() -> SendQuota {
    SendQuota::for_messages_of(1 << 20)
}

/// A client of one session that answers what the server asks of it.
struct Client {
    session: BackendSession,
    events: mpsc::Receiver<Report>,
    next_id: u64,
    /// Notifications by method, and how often the server asked for what.
    heard: HashMap<String, Vec<Value>>,
}

impl Client {
    async fn open(backend: &Backend) -> Self {
        let (events, receiver) = BackendEvents::channel(256, 1 << 20);
        let session = backend.open(SessionId(7), &quota(), events);
        let mut client = Self { session, events: receiver, next_id: 0, heard: HashMap::new() };
        let capabilities = json!({"sampling": {}, "elicitation": {}, "roots": {"listChanged": true}});
        let info = json!({"name": "test", "version": "0"});
        let result = client
            .call(
                "initialize",
                json!({"protocolVersion": "2025-11-25", "capabilities": capabilities, "clientInfo": info}),
            )
            .await;
        assert_eq!(result["protocolVersion"], "2025-11-25");
        client.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        client
    }

    async fn send(&self, message: &Value) {
        eventually(PATIENCE, async || self.session.say(self::message(message)).ok()).await.unwrap();
    }

    async fn request(&mut self, method: &str, params: Value) -> u64 {
        self.next_id += 1;
        self.send(&json!({"jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params})).await;
        self.next_id
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        let id = self.request(method, params).await;
        self.answer(id).await
    }

    async fn tool(&mut self, name: &str, arguments: Value) -> String {
        let result = self.call("tools/call", json!({"name": name, "arguments": arguments})).await;
        result["content"].to_string()
    }

    /// The result of this request; answers the server's requests meanwhile.
    async fn answer(&mut self, id: u64) -> Value {
        loop {
            let message = self.message().await;
            if message["id"] == id && message["method"].is_null() {
                assert!(message["error"].is_null(), "{message}");
                return message["result"].clone();
            }
        }
    }

    async fn message(&mut self) -> Value {
        let message: Value = match self.event().await {
            FromBackend::Message(message) => serde_json::from_slice(message.raw()).unwrap(),
            other => panic!("{other:?}"),
        };
        let Some(method) = message["method"].as_str() else { return message };
        self.heard.entry(method.to_owned()).or_default().push(message["params"].clone());
        let result = match method {
            "roots/list" => json!({"roots": [{"uri": "file:///work", "name": "work"}]}),
            "sampling/createMessage" => {
                json!({"role": "assistant", "model": "test", "content": {"type": "text", "text": "sampled-42"}})
            }
            "elicitation/create" => json!({"action": "decline"}),
            _ => json!({}),
        };
        if !message["id"].is_null() {
            self.send(&json!({"jsonrpc": "2.0", "id": message["id"], "result": result})).await;
        }
        message
    }

    async fn event(&mut self) -> FromBackend {
        timeout(PATIENCE, self.events.recv()).await.expect("an event").expect("not closed").event
    }

    async fn end(&mut self) -> BackendEnd {
        loop {
            if let FromBackend::Ended(end) = self.event().await {
                return end;
            }
        }
    }

    async fn close(mut self) {
        self.session = quota().session().0;
        assert_eq!(self.end().await, BackendEnd::Closed);
    }

    async fn until_heard(&mut self, method: &str) {
        while !self.heard.contains_key(method) {
            self.message().await;
        }
    }
}

fn message(message: &Value) -> Message {
    Message::parse(Bytes::from(message.to_string()), usize::MAX).unwrap()
}

async fn the_server_says_who_it_is(server: Server) {
    let started = Instant::now();
    let info = server.backend().unwrap().probe().await.unwrap();
    eprintln!("probe: {:?}", started.elapsed());
    assert!(info.name.contains("everything"), "{info:?}");
    assert_eq!(info.protocol_version, "2025-11-25");
}

async fn all_kinds_of_messages_pass(server: Server) {
    let mut client = Client::open(&server.backend().unwrap()).await;
    let tools = client.call("tools/list", json!({})).await.to_string();
    assert!(tools.contains("trigger-sampling-request"), "{tools}");
    assert!(client.tool("echo", json!({"message": "grüße"})).await.contains("grüße"));
    assert!(client.tool("get-sum", json!({"a": 20, "b": 22})).await.contains("42"));

    // The server asks its client while a request is in flight.
    assert!(
        client
            .tool("trigger-sampling-request", json!({"prompt": "p", "maxTokens": 5}))
            .await
            .contains("sampled-42")
    );
    client.tool("trigger-elicitation-request", json!({})).await;
    assert!(client.tool("get-roots-list", json!({})).await.contains("file:///work"));
    for method in ["sampling/createMessage", "elicitation/create", "roots/list"] {
        assert!(client.heard.contains_key(method), "{method}: {:?}", client.heard.keys());
    }

    // Progress comes before its answer and in order.
    let params = json!({
        "name": "trigger-long-running-operation",
        "arguments": {"duration": 1, "steps": 4},
        "_meta": {"progressToken": "token"},
    });
    client.call("tools/call", params).await;
    let steps: Vec<u64> =
        client.heard["notifications/progress"].iter().map(|p| p["progress"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 4]);

    // What belongs to no request: over HTTP it comes on the server's own stream.
    client.call("logging/setLevel", json!({"level": "debug"})).await;
    client.tool("toggle-simulated-logging", json!({})).await;
    client.heard.clear();
    client.until_heard("notifications/message").await;
    client.close().await;
}

async fn two_sessions_hear_nothing_of_each_other(server: Server) {
    let backend = server.backend().unwrap();
    let mut one = Client::open(&backend).await;
    let mut other = Client::open(&backend).await;
    // The same ids in both, at the same time; what one is asked the other is not.
    for n in 0..20 {
        let (first, second) = (format!("one-{n}"), format!("other-{n}"));
        let mine = one.request("tools/call", json!({"name": "echo", "arguments": {"message": first}})).await;
        let yours =
            other.request("tools/call", json!({"name": "echo", "arguments": {"message": second}})).await;
        assert_eq!(mine, yours);
        assert!(other.answer(yours).await.to_string().contains(&second));
        assert!(one.answer(mine).await.to_string().contains(&first));
    }
    let params = json!({
        "name": "trigger-long-running-operation",
        "arguments": {"duration": 1, "steps": 2},
        "_meta": {"progressToken": "mine"},
    });
    one.call("tools/call", params).await;
    one.tool("trigger-sampling-request", json!({"prompt": "p", "maxTokens": 5})).await;
    one.close().await;
    assert!(other.tool("echo", json!({"message": "still here"})).await.contains("still here"));
    for method in ["notifications/progress", "sampling/createMessage"] {
        assert!(!other.heard.contains_key(method), "{method}");
    }
    other.close().await;
}

async fn many_calls_at_once_are_all_answered(server: Server) {
    let mut client = Client::open(&server.backend().unwrap()).await;
    for round in 0..5_u64 {
        let mut open = HashMap::new();
        for n in 0..60_u64 {
            let text = format!("{round}-{n}");
            let id =
                client.request("tools/call", json!({"name": "echo", "arguments": {"message": text}})).await;
            open.insert(id, text);
        }
        while !open.is_empty() {
            let message = client.message().await;
            if let Some(text) = message["id"].as_u64().and_then(|id| open.remove(&id)) {
                assert!(message["result"].to_string().contains(&text), "{message}");
            }
        }
    }
    client.close().await;
}

async fn a_session_goes_on_after_a_cancelled_call(server: Server) {
    let mut client = Client::open(&server.backend().unwrap()).await;
    let arguments = json!({"duration": 30, "steps": 300});
    let params = json!({"name": "trigger-long-running-operation", "arguments": arguments, "_meta": {"progressToken": 1}});
    let id = client.request("tools/call", params).await;
    client.until_heard("notifications/progress").await;
    let cancelled = json!({"requestId": id, "reason": "enough"});
    client.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancelled})).await;
    assert!(client.tool("echo", json!({"message": "alive"})).await.contains("alive"));
    client.close().await;
}

async fn a_server_that_dies_ends_its_sessions(mut server: Server) {
    let backend = server.backend().unwrap();
    let lost = tokio::spawn({
        let backend = backend.clone();
        async move { backend.lost().await }
    });
    let mut client = Client::open(&backend).await;
    client
        .request(
            "tools/call",
            json!({"name": "trigger-long-running-operation", "arguments": {"duration": 30, "steps": 3}}),
        )
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!lost.is_finished());
    let killed = Instant::now();
    server.kill().unwrap();
    let lost = timeout(PATIENCE, lost).await.unwrap().unwrap();
    eprintln!("noticed after {:?}: {lost:?}", killed.elapsed());
    assert!(matches!(lost, Lost::Gone(_)), "{lost:?}");
    assert!(killed.elapsed() < Duration::from_secs(4), "{:?}", killed.elapsed());
    assert!(matches!(client.end().await, BackendEnd::BackendLost(_)));
    assert!(backend.probe().await.is_err());
}

macro_rules! over_all_transports {
    ($($test:ident),* $(,)?) => {
        mod stdio {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::servers::everything_stdio(&[]).await.unwrap()).await;
            })*
        }
        mod http {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::servers::everything_http().await.unwrap()).await;
            })*
        }
        mod sse {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::servers::everything_sse().await.unwrap()).await;
            })*
        }
    };
}

over_all_transports!(
    the_server_says_who_it_is,
    all_kinds_of_messages_pass,
    two_sessions_hear_nothing_of_each_other,
    many_calls_at_once_are_all_answered,
    a_session_goes_on_after_a_cancelled_call,
    a_server_that_dies_ends_its_sessions,
);

#[tokio::test]
async fn an_http_session_is_deleted_at_its_end() {
    let server = servers::everything_http().await.unwrap();
    Client::open(&server.backend().unwrap()).await.close().await;
    let log = server.log();
    assert!(log.contains("Received session termination request"), "{log}");
}

#[tokio::test]
async fn an_http_session_that_the_server_no_longer_knows_is_lost() {
    let server = servers::everything_http().await.unwrap();
    let mut client = Client::open(&server.backend().unwrap()).await;
    client.tool("echo", json!({"message": "before"})).await;
    server.delete_session(&server.session_ids()[0]).await.unwrap();
    let _ = client.session.say(message(&json!({"jsonrpc": "2.0", "id": 99, "method": "ping"})));
    let end = client.end().await; // by the ping, or by its own stream, whose end was the first to tell
    assert!(matches!(end, BackendEnd::SessionLost(_)), "{end:?}");
}

#[tokio::test]
async fn a_server_that_was_started_anew_takes_new_sessions() {
    let mut server = servers::everything_http().await.unwrap();
    let backend = server.backend().unwrap();
    let mut client = Client::open(&backend).await;
    server.kill().unwrap();
    assert!(matches!(client.end().await, BackendEnd::BackendLost(_)), "told by its own stream");
    let _again = servers::everything_http_at(&server.port().unwrap()).await.unwrap();
    Client::open(&backend).await.close().await;
}

#[tokio::test]
async fn an_sse_session_ends_with_its_stream() {
    let server = servers::everything_sse().await.unwrap();
    Client::open(&server.backend().unwrap()).await.close().await;
    let deadline = Instant::now() + PATIENCE;
    while !server.log().contains("Client Disconnected") {
        assert!(Instant::now() < deadline, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_sse_server_that_was_started_anew_takes_new_sessions() {
    let mut server = servers::everything_sse().await.unwrap();
    let backend = server.backend().unwrap();
    let mut client = Client::open(&backend).await;
    server.kill().unwrap();
    assert!(matches!(client.end().await, BackendEnd::BackendLost(_)), "told by its stream");
    let _again = servers::everything_sse_at(&server.port().unwrap()).await.unwrap();
    Client::open(&backend).await.close().await;
}

/// By how much sooner, `cargo xtask bench gateway --only opening` says.
#[tokio::test]
async fn a_prewarmed_server_is_the_one_that_answers() {
    let server = servers::everything_stdio(&["--prewarm=2"]).await.unwrap();
    let processes = || children(server.pid());
    until("two are there before anybody comes", || processes().len() == 2).await.unwrap();
    let before = processes();
    server.backend().unwrap().probe().await.unwrap();
    until("one of them has gone with its session, and another takes its place", || {
        let now = processes();
        now.len() == 2 && before.iter().filter(|pid| now.contains(pid)).count() == 1
    })
    .await
    .unwrap();
}
