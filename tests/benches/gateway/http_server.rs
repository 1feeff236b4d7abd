//! A Streamable HTTP server that does next to nothing, so that it is the gateway that is measured. What it does depends
//! on the path.

use std::{convert::Infallible, io::Write};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{Method, StatusCode, header},
    response::Response,
    routing::{any, get},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;

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
    Ok(axum::serve(listener, router).await?)
}

async fn answer(State(manner): State<Manner>, method: Method, body: Bytes) -> Response {
    if method == Method::GET {
        return match manner {
            Manner::Standing => reply(StatusCode::OK, "text/event-stream", Body::from_stream(silence())),
            Manner::Json | Manner::Sse => reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", Body::empty()),
        };
    }
    let Ok(mut message) = serde_json::from_slice::<Value>(&body) else {
        return reply(StatusCode::OK, "text/plain", Body::empty()); // DELETE
    };
    let id = message["id"].take();
    if id.is_null() {
        return reply(StatusCode::ACCEPTED, "text/plain", Body::empty());
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
    let result = json!({"jsonrpc": "2.0", "id": id, "result": result});
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
