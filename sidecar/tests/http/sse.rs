//! HTTP+SSE, 2024-11-05.

mod endpoints;
mod ends;
mod messages;

use std::{
    io,
    sync::{Arc, Mutex},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::{future::BoxFuture, stream};
use mcp_mqtt_sidecar::{backend::Backend, config::BackendConfig};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::fake::{Client, Fake, Seen, event, initialize_result, result, status};

/// What a stream begins with.
const HELLO: &str = "event: endpoint\ndata: /message?sessionId=1\n\n";

/// A server of 2024 that does what a test says.
struct Sse {
    fake: Fake,
    stream: Stream,
}

/// What goes out on the latest stream.
#[derive(Clone, Default)]
struct Stream(Arc<Mutex<Option<mpsc::UnboundedSender<io::Result<Bytes>>>>>);

impl Stream {
    /// Opens a new one.
    fn reply(&self, hello: &str) -> Response {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.0.lock().unwrap() = Some(sender);
        self.say(hello);
        let pieces = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(Body::from_stream(pieces))
            .unwrap()
    }

    fn send(&self, piece: io::Result<Bytes>) {
        if let Some(sender) = &*self.0.lock().unwrap() {
            let _ = sender.send(piece); // the client is gone
        }
    }

    fn say(&self, text: &str) {
        self.send(Ok(Bytes::from(text.to_owned())));
    }

    fn tell(&self, message: &Value) {
        self.say(&event(message));
    }

    fn end(&self) {
        *self.0.lock().unwrap() = None;
    }

    fn cut(&self) {
        self.send(Err(io::Error::other("broken on purpose")));
    }

    /// Whether the client has closed it.
    fn is_closed(&self) -> bool {
        self.0.lock().unwrap().as_ref().is_some_and(mpsc::UnboundedSender::is_closed)
    }
}

impl Sse {
    /// A server whose streams begin like this. `reply` is asked for each message; where it has no reply the usual one
    /// is given, and a request answered.
    async fn start(
        hello: &'static str,
        reply: impl Fn(&Seen, &Stream) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let stream = Stream::default();
        let latest = stream.clone();
        let fake = Fake::start(move |seen: Seen| {
            let reply = match seen.what() {
                "GET" => latest.reply(hello),
                _ => reply(&seen, &latest).unwrap_or_else(|| usual(&seen, &latest)),
            };
            Box::pin(async move { Some(reply) })
        })
        .await;
        Self { fake, stream }
    }

    /// A server that does all as servers do, and then waits before it accepts.
    async fn slow(wait: impl Fn(&Seen) -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        let stream = Stream::default();
        let latest = stream.clone();
        let fake = Fake::start(move |seen: Seen| {
            let (reply, wait) = match seen.what() {
                "GET" => (latest.reply(HELLO), None),
                _ => (usual(&seen, &latest), Some(wait(&seen))),
            };
            Box::pin(async move {
                if let Some(wait) = wait {
                    wait.await;
                }
                Some(reply)
            })
        })
        .await;
        Self { fake, stream }
    }

    /// A server that does all as servers do.
    async fn usual() -> Self {
        Self::start(HELLO, |_, _| None).await
    }

    fn backend(&self) -> Backend {
        backend(&self.fake)
    }

    /// A session that has shaken hands.
    async fn session(&self) -> Client {
        let mut client = Client::open(&self.backend());
        client.initialize().await;
        self.fake.nth("notifications/initialized", 0).await;
        client
    }
}

fn backend(fake: &Fake) -> Backend {
    crate::fake::backend_of(&BackendConfig::sse(fake.url.parse().unwrap()))
}

fn usual(seen: &Seen, stream: &Stream) -> Response {
    let id = &seen.body["id"];
    match seen.what() {
        "initialize" => stream.tell(&initialize_result(id, "2024-11-05")),
        "response" => {}
        _ if id.is_null() => {}
        _ => stream.tell(&result(id.clone())),
    }
    status(202, "Accepted")
}
