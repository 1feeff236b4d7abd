//! A server over HTTP that does next to nothing, so that it is the gateway that is measured. What it does depends on the
//! path: Streamable HTTP in several manners, and HTTP+SSE of 2024-11-05.

use std::{
    collections::HashMap,
    convert::Infallible,
    io::Write,
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{Method, StatusCode, header},
    response::Response,
    routing::{any, get, post},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc};

/// Its manners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Answers are JSON, and it has nothing to say of itself: GET is 405.
    Json,
    /// Each answer is a stream of one event.
    Sse,
    /// Answers are JSON, and each session has a stream that stands.
    Standing,
}

impl Manner {
    const ALL: [Self; 3] = [Self::Json, Self::Sse, Self::Standing];

    /// Where it is at home.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Json => "/json",
            Self::Sse => "/sse",
            Self::Standing => "/standing",
        }
    }
}

/// Where sessions of 2024-11-05 open their stream, and where their messages go.
pub(crate) const HTTP_AND_SSE: &str = "/2024-11-05";
const MESSAGES: &str = "/messages/{session}";
/// Answers of a session that may wait for its stream.
const UNSENT: usize = 1024;

/// The streams of 2024-11-05, by session.
type Streams = Arc<Mutex<HashMap<String, mpsc::Sender<String>>>>;

/// Serves on a free port, and says its URL on stdout.
pub(crate) async fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen")?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "http://{}", listener.local_addr()?)?;
    stdout.flush()?;
    let mut router = Router::new().route("/", get(|| async { "" }));
    for manner in Manner::ALL {
        router = router.route(manner.path(), any(answer).with_state(manner));
    }
    let streams = Streams::default();
    router = router.route(HTTP_AND_SSE, get(open).with_state(streams.clone()));
    router = router.route(MESSAGES, post(take).with_state(streams));
    Ok(axum::serve(listener, router).await?)
}

async fn answer(State(manner): State<Manner>, method: Method, body: Bytes) -> Response {
    if method == Method::GET {
        return match manner {
            Manner::Standing => reply(StatusCode::OK, "text/event-stream", Body::from_stream(silence())),
            Manner::Json | Manner::Sse => reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", Body::empty()),
        };
    }
    let Ok(message) = serde_json::from_slice::<Value>(&body) else {
        return reply(StatusCode::OK, "text/plain", Body::empty()); // DELETE
    };
    let opens = message["method"] == "initialize";
    let Some(result) = result_of(message) else {
        return reply(StatusCode::ACCEPTED, "text/plain", Body::empty());
    };
    let mut reply = match manner {
        Manner::Sse => {
            let event = Ok::<_, Infallible>(format!("event: message\ndata: {result}\n\n"));
            // As a stream, since a server does not know how much will come.
            reply(StatusCode::OK, "text/event-stream", Body::from_stream(stream::iter([event])))
        }
        Manner::Json | Manner::Standing => {
            reply(StatusCode::OK, "application/json", result.to_string().into())
        }
    };
    if opens && let Ok(id) = format!("{:032x}", fastrand::u128(..)).parse() {
        reply.headers_mut().insert("mcp-session-id", id);
    }
    reply
}

fn reply(status: StatusCode, kind: &'static str, body: Body) -> Response {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    reply
}

/// A stream that begins, and says nothing.
fn silence() -> impl futures::Stream<Item = Result<&'static str, Infallible>> {
    stream::iter([Ok(": here\n\n")]).chain(stream::pending())
}

/// The answer to a request; none to anything else.
fn result_of(mut message: Value) -> Option<Value> {
    let id = message["id"].take();
    if id.is_null() {
        return None;
    }
    let mut params = message["params"].take();
    let opens = message["method"] == "initialize";
    let result = if opens {
        json!({
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "bench", "version": "1.0.0"},
        })
    } else {
        let text = params["arguments"]["message"].take();
        json!({"content": [{"type": "text", "text": text}]})
    };
    Some(json!({"jsonrpc": "2.0", "id": id, "result": result}))
}

/// A session of 2024-11-05 begins with its stream, which says where its messages go, and ends with it.
async fn open(State(streams): State<Streams>) -> Response {
    let session = format!("{:032x}", fastrand::u128(..));
    let (sender, answers) = mpsc::channel(UNSENT);
    let begin = format!("event: endpoint\ndata: {}\n\n", MESSAGES.replace("{session}", &session));
    streams.lock().expect("nobody panics under it").insert(session, sender);
    let answers = stream::unfold(answers, async |mut answers| Some((answers.recv().await?, answers)));
    let events = stream::iter([begin]).chain(answers).map(Ok::<_, Infallible>);
    reply(StatusCode::OK, "text/event-stream", Body::from_stream(events))
}

async fn take(State(streams): State<Streams>, Path(session): Path<String>, body: Bytes) -> Response {
    let sender = streams.lock().expect("nobody panics under it").get(&session).cloned();
    let (Some(sender), Ok(message)) = (sender, serde_json::from_slice::<Value>(&body)) else {
        return reply(StatusCode::NOT_FOUND, "text/plain", Body::empty());
    };
    if let Some(result) = result_of(message)
        && sender.send(format!("event: message\ndata: {result}\n\n")).await.is_err()
    {
        streams.lock().expect("nobody panics under it").remove(&session);
    }
    reply(StatusCode::ACCEPTED, "text/plain", Body::empty())
}
