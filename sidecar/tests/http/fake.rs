//! A server that does what a test says, and a session with it.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    response::Response,
};
use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream};
use http::{HeaderMap, Method, StatusCode};
use mcp_mqtt_sidecar::{
    backend::{Backend, FromBackend},
    config::{BackendConfig, BackendOptions, Limits},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

pub(crate) use crate::client::{Client, PATIENCE};

/// The largest message here.
pub(crate) const MAX_MESSAGE: u32 = 64 * 1024;
/// Requests in flight per session, as the bridge bounds them.
pub(crate) const MAX_IN_FLIGHT: u32 = 4;
/// What the fake calls every session.
pub(crate) const SESSION: &str = "session-1";

/// A request that the fake saw.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
    pub(crate) at: Instant,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// `GET`, `DELETE`, or what was posted: the method of a message, or `response`.
    pub(crate) fn what(&self) -> &str {
        if self.method == Method::POST {
            self.body["method"].as_str().unwrap_or("response")
        } else {
            self.method.as_str()
        }
    }
}

/// A reply, or nothing for the usual one.
pub(crate) type Script = BoxFuture<'static, Option<Response>>;

/// A running fake.
pub(crate) struct Fake {
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    server: JoinHandle<()>,
}

impl Fake {
    /// Starts it. `script` is asked for each request; where it has no reply the fake does what servers do.
    pub(crate) async fn start(script: impl Fn(Seen) -> Script + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (script, record) = (Arc::new(script), seen.clone());
        let router = Router::new().fallback(move |request: Request| {
            let (script, record) = (script.clone(), record.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = to_bytes(body, usize::MAX).await.unwrap();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let path = head.uri.to_string();
                let seen =
                    Seen { method: head.method, path, headers: head.headers, body, at: Instant::now() };
                record.lock().unwrap().push(seen.clone());
                let reply = script(seen.clone()).await.unwrap_or_else(|| usual(&seen));
                Ok::<_, Infallible>(reply)
            }
        });
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, seen, server }
    }

    /// What it has seen so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits for the nth request (from 0) that is a `what`.
    pub(crate) async fn nth(&self, what: &str, n: usize) -> Seen {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.seen().into_iter().filter(|seen| seen.what() == what).nth(n) {
                return found;
            }
            assert!(Instant::now() < deadline, "no {what} number {n}; seen: {:?}", self.whats());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn whats(&self) -> Vec<String> {
        self.seen().iter().map(|seen| seen.what().to_owned()).collect()
    }

    pub(crate) fn backend(&self) -> Backend {
        backend(&self.url)
    }

    /// A session that has shaken hands.
    pub(crate) async fn session(&self) -> Client {
        let mut client = Client::open(&self.backend());
        client.initialize().await;
        client
    }

    /// Stops listening and closes all connections.
    pub(crate) async fn stop(self) {
        self.server.abort();
        let _ = self.server.await;
    }
}

pub(crate) fn backend(url: &str) -> Backend {
    backend_of(&BackendConfig::http(url.parse().unwrap()))
}

pub(crate) fn backend_of(config: &BackendConfig) -> Backend {
    let limits = Limits {
        max_sessions: 10,
        max_message_bytes: MAX_MESSAGE,
        max_in_flight: MAX_IN_FLIGHT,
        ..Limits::default()
    };
    Backend::from_config(config, &BackendOptions::default(), &limits).unwrap()
}

fn usual(seen: &Seen) -> Response {
    match seen.what() {
        "initialize" => {
            let mut reply = json(&initialize_result(&seen.body["id"], "2025-11-25").to_string());
            reply.headers_mut().insert("mcp-session-id", SESSION.parse().unwrap());
            reply
        }
        "GET" => status(405, ""),
        "DELETE" => status(200, ""),
        _ if seen.body["id"].is_null() || seen.body["method"].is_null() => status(202, ""),
        _ => json(
            &json!({"jsonrpc": "2.0", "id": seen.body["id"], "result": {"echo": seen.body["params"]}})
                .to_string(),
        ),
    }
}

pub(crate) fn initialize_result(id: &Value, version: &str) -> Value {
    let server = json!({"name": "fake", "version": "1.2"});
    json!({"jsonrpc": "2.0", "id": id, "result": {"protocolVersion": version, "capabilities": {}, "serverInfo": server}})
}

pub(crate) fn status(code: u16, body: &str) -> Response {
    Response::builder().status(StatusCode::from_u16(code).unwrap()).body(Body::from(body.to_owned())).unwrap()
}

pub(crate) fn json(body: &str) -> Response {
    json_status(200, body)
}

pub(crate) fn json_status(code: u16, body: &str) -> Response {
    let mut reply = status(code, body);
    reply.headers_mut().insert("content-type", "application/json".parse().unwrap());
    reply
}

/// How a scripted stream goes on after its last piece.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Close,
    Break,
    Stay,
}

/// A stream of server-sent events.
pub(crate) fn events(pieces: &[&str], then: Then) -> Response {
    let pieces: Vec<io::Result<Bytes>> =
        pieces.iter().map(|piece| Ok(Bytes::from((*piece).to_owned()))).collect();
    let pieces = stream::iter(pieces);
    let body = match then {
        Then::Close => Body::from_stream(pieces),
        Then::Break => Body::from_stream(pieces.chain(stream::once(async {
            tokio::time::sleep(Duration::from_millis(20)).await; // let what was said arrive
            Err(io::Error::other("broken on purpose"))
        }))),
        Then::Stay => Body::from_stream(pieces.chain(stream::pending())),
    };
    Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
}

pub(crate) fn event(message: &Value) -> String {
    format!("event: message\ndata: {message}\n\n")
}

pub(crate) fn result(id: impl Into<Value>) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "result": {}})
}

impl Client {
    pub(crate) async fn initialize(&mut self) {
        self.request(0, "initialize").await;
        assert_eq!(self.message().await["id"], 0);
        self.notify("notifications/initialized", json!({})).await;
    }

    pub(crate) async fn request(&self, id: u64, method: &str) {
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method}).to_string()).await;
    }

    pub(crate) async fn notify(&self, method: &str, params: Value) {
        self.send(&json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string()).await;
    }

    pub(crate) async fn message(&mut self) -> Value {
        serde_json::from_str(&self.raw().await).unwrap()
    }

    /// The next event has to be the failure of a request: its id, reason and detail.
    pub(crate) async fn failure(&mut self) -> (String, &'static str, String) {
        match self.event().await {
            FromBackend::RequestFailed { id, reason, detail } => (id.to_string(), reason, detail),
            other => panic!("not a failed request: {other:?}"),
        }
    }
}

/// Replies to one kind of request; the usual for all others.
pub(crate) fn on(
    what: &'static str,
    reply: impl Fn(&Seen) -> Response + Send + Sync + 'static,
) -> impl Fn(Seen) -> Script + Send + Sync {
    move |seen| {
        let reply = (seen.what() == what).then(|| reply(&seen));
        Box::pin(async move { reply })
    }
}
