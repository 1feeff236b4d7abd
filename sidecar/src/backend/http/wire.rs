//! One HTTP request and what kind of reply it got.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use mcp_mqtt_transport::redact;
use serde::Deserialize;
use tokio::{sync::oneshot, time::timeout};

use super::endpoint::Endpoint;
use crate::backend::{
    BackendEvents, incoming,
    reports::{Room, more},
};
pub(super) use crate::https::innermost;

/// How much of the body of an error, or of an acceptance, is read, in bytes, and for how long.
const MAX_LITTLE: usize = 64 * 1024;
const LITTLE_TIMEOUT: Duration = Duration::from_secs(5);
/// The error code that servers made with the TypeScript SDK use for a session they do not know.
const NO_SESSION: i64 = -32000;
/// And with the Python SDK.
const NO_SESSION_PYTHON: i64 = -32600;

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The first revision that wants its name in a header.
const FIRST_WITH_VERSION_HEADER: &str = "2025-06-18";

/// One session's requests.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) endpoint: Arc<Endpoint>,
    /// HTTP+SSE: where the server takes messages.
    posts_to: OnceLock<Uri>,
    session_id: OnceLock<HeaderValue>,
    version: OnceLock<HeaderValue>,
}

/// A reply that is none of the failures.
#[derive(Debug)]
pub(super) enum Reply {
    /// 202 (or another success without content).
    Accepted,
    /// One JSON body.
    Json(Incoming),
    /// A stream of events.
    Stream(Incoming),
}

/// A request that got no usable reply. The texts are for a person.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody listens there.
    Refused(String),
    /// The connection broke before the reply began.
    Broken(String),
    /// The server does not know the session.
    SessionLost(String),
    /// An error status, or a content type of no use.
    Rejected {
        /// Its status.
        status: StatusCode,
        /// The body, as far as it was read.
        body: Bytes,
        /// Status and the beginning of the body.
        told: String,
    },
}

impl Failure {
    /// Whether the same may work later. 409: the server still holds the old stream.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Broken(_) => true,
            Self::Rejected { status, .. } => {
                status.is_server_error()
                    || matches!(*status, StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS)
            }
            Self::Refused(_) | Self::SessionLost(_) => false,
        }
    }
}

impl Wire {
    pub(super) fn new(endpoint: Arc<Endpoint>) -> Self {
        Self { endpoint, posts_to: OnceLock::new(), session_id: OnceLock::new(), version: OnceLock::new() }
    }

    /// Where messages are posted.
    pub(super) fn uri(&self) -> &Uri {
        self.posts_to.get().unwrap_or(&self.endpoint.uri)
    }

    /// The same, as it is told to clients and in the log.
    pub(super) fn shown_uri(&self) -> String {
        redact::url(&self.uri().to_string())
    }

    /// HTTP+SSE: the server takes messages there. From then on it knows the session, any success is all that it says to
    /// a message, and the first place stays.
    pub(super) fn post_to(&self, uri: Uri) {
        let _ = self.posts_to.set(uri);
    }

    /// Another session's requests at the same endpoint, in the same revision.
    pub(super) fn beside(&self) -> Self {
        Self {
            endpoint: self.endpoint.clone(),
            posts_to: self.posts_to.clone(),
            session_id: OnceLock::new(),
            version: self.version.clone(),
        }
    }

    /// The revision that `initialize` agreed on, or that is known from the start; goes with every later request, if it is one that wants that.
    pub(super) fn agree_on(&self, version: &str) {
        if version >= FIRST_WITH_VERSION_HEADER
            && let Ok(version) = HeaderValue::from_str(version)
        {
            let _ = self.version.set(version); // it is agreed on once
        }
    }

    /// Posts one message. `metadata`: headers beside the usual ones; `written` is told when it is on its way;
    /// `opening`: this is `initialize`, whose reply names the session.
    pub(super) async fn post(
        &self,
        message: Bytes,
        metadata: HeaderMap,
        written: Option<oneshot::Sender<()>>,
        opening: bool,
    ) -> Result<Reply, Failure> {
        let mut request = self.request(Method::POST, RequestBody { data: Some(message), written });
        *request.uri_mut() = self.uri().clone();
        let headers = request.headers_mut();
        headers.extend(metadata);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        let response = self.endpoint.send(request).await?;
        // Copied: as it came, it would keep all that was read with it, for as long as the session lives.
        if opening
            && let Some(id) = response.headers().get(SESSION_ID)
            && let Ok(id) = HeaderValue::from_bytes(id.as_bytes())
        {
            let _ = self.session_id.set(id); // only one `initialize` is sent
        }
        self.judge(response).await
    }

    /// Opens a stream of what the server has to say, or goes on with one.
    pub(super) async fn get(&self, last_event_id: Option<&str>) -> Result<Reply, Failure> {
        let mut request = self.request(Method::GET, RequestBody::default());
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(id) = last_event_id.and_then(|id| HeaderValue::from_str(id).ok()) {
            headers.insert(LAST_EVENT_ID, id);
        }
        let response = self.endpoint.send(request).await?;
        self.judge(response).await
    }

    /// Ends the session, if the server gave it an id. A server may refuse that (405).
    pub(super) async fn delete(&self) -> Result<(), Failure> {
        if self.session_id.get().is_none() {
            return Ok(());
        }
        let request = self.request(Method::DELETE, RequestBody::default());
        self.endpoint.send(request).await.map(drop)
    }

    fn request(&self, method: Method, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = self.endpoint.uri.clone();
        for (name, value) in [(SESSION_ID, &self.session_id), (PROTOCOL_VERSION, &self.version)] {
            if let Some(value) = value.get() {
                request.headers_mut().insert(name, value.clone());
            }
        }
        request
    }

    async fn judge(&self, response: Response<Incoming>) -> Result<Reply, Failure> {
        let status = response.status();
        let is_accepted = matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT);
        if is_accepted || (self.posts_to.get().is_some() && status.is_success()) {
            read_little(response.into_body()).await; // "Accepted": once read, the connection can be used again
            return Ok(Reply::Accepted);
        }
        if status.is_success() {
            match content_type(response.headers()) {
                "application/json" => return Ok(Reply::Json(response.into_body())),
                "text/event-stream" => return Ok(Reply::Stream(response.into_body())),
                _ if response.body().is_end_stream() => return Ok(Reply::Accepted),
                _ => {}
            }
        }
        let kind = content_type(response.headers()).to_owned();
        let body = read_little(response.into_body()).await;
        let told = match (status.is_success(), self.excerpt(&body)) {
            (true, said) => format!("HTTP {status} with content type \"{kind}\": {said}"),
            (false, said) if said.is_empty() => format!("HTTP {status}"),
            (false, said) => format!("HTTP {status}: {said}"),
        };
        if self.has_session() && is_session_lost(status, &body) {
            return Err(Failure::SessionLost(told));
        }
        Err(Failure::Rejected { status, body, told })
    }

    /// The beginning of a body for a person. Some servers repeat in it the URL that they do not know.
    fn excerpt(&self, body: &[u8]) -> String {
        let mut said = String::from_utf8_lossy(body);
        for query in [&self.endpoint.uri, self.uri()].into_iter().filter_map(Uri::query) {
            said = said.replace(&format!("?{query}"), "").into();
        }
        incoming::excerpt(said.as_bytes())
    }

    /// Whether the server said how it calls the session.
    fn has_session(&self) -> bool {
        self.session_id.get().is_some() || self.posts_to.get().is_some()
    }
}

/// A body that is not what was asked for; nothing when it is too long, breaks or takes too long: the status has to do.
async fn read_little(body: Incoming) -> Bytes {
    let body = Limited::new(body, MAX_LITTLE).collect();
    match timeout(LITTLE_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) | Err(_) => Bytes::new(),
    }
}

/// Reads a JSON body of at most `max` bytes, and makes room for it among `events`. `Err(None)`: it is larger.
pub(super) async fn read_json(
    mut body: Incoming,
    max: usize,
    events: &BackendEvents,
    room: &mut Option<Room>,
) -> Result<Bytes, Option<String>> {
    let length = body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
    let mut first = Bytes::new();
    let mut all = Vec::new(); // a body that comes at once is not copied
    while let Some(frame) = more(room, body.frame()).await {
        let Ok(chunk) = frame.map_err(|error| Some(innermost(&error)))?.into_data() else { continue };
        let read = first.len().max(all.len()) + chunk.len();
        if read > max {
            return Err(None);
        }
        if first.is_empty() {
            first = chunk;
        } else {
            if all.is_empty() {
                all.reserve_exact(length.unwrap_or(read).clamp(read, max));
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&chunk);
        }
        events.make_room(room, read).await;
    }
    // What is kept is what was counted.
    Ok(if all.is_empty() { first } else { all.into_boxed_slice().into() })
}

fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// 404 by the specification; 400 with a JSON-RPC error about the session by the SDKs.
fn is_session_lost(status: StatusCode, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Answer {
        error: Detail,
    }
    #[derive(Deserialize)]
    struct Detail {
        code: i64,
        message: String,
    }
    match status {
        StatusCode::NOT_FOUND => true,
        StatusCode::BAD_REQUEST => serde_json::from_slice::<Answer>(body).is_ok_and(|Answer { error }| {
            let message = error.message.to_ascii_lowercase();
            matches!(error.code, NO_SESSION | NO_SESSION_PYTHON)
                && (message.contains("session") || message.contains("not initialized"))
        }),
        _ => false,
    }
}

/// A request's body: one message or nothing.
#[derive(Debug, Default)]
pub(super) struct RequestBody {
    data: Option<Bytes>,
    written: Option<oneshot::Sender<()>>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    /// The connection takes the body and writes it in the same go, so what is sent after `written` goes later.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(written) = self.written.take() {
            let _ = written.send(()); // nobody waits any more
        }
        Poll::Ready(self.data.take().map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, |data| data.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_session_is_told_from_other_errors() {
        let bad = StatusCode::BAD_REQUEST;
        let body = |code: i64, message: &str| {
            serde_json::json!({"jsonrpc": "2.0", "id": null, "error": {"code": code, "message": message}})
                .to_string()
        };
        for (status, body, lost) in [
            (StatusCode::NOT_FOUND, String::new(), true),
            (bad, body(-32000, "Bad Request: No valid session ID provided"), true),
            (bad, body(-32000, "Bad Request: Server not initialized"), true),
            (bad, body(-32600, "Bad Request: No valid session ID provided"), true),
            (bad, body(-32602, "no such session parameter"), false),
            (bad, body(-32000, "Bad Request: Unsupported protocol version"), false),
            (bad, "session".to_owned(), false),
            (StatusCode::INTERNAL_SERVER_ERROR, body(-32000, "session"), false),
        ] {
            assert_eq!(is_session_lost(status, body.as_bytes()), lost, "{status} {body}");
        }
    }

    #[test]
    fn a_content_type_is_its_first_part() {
        let mut headers = HeaderMap::new();
        assert_eq!(content_type(&headers), "");
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream ; charset=utf-8"));
        assert_eq!(content_type(&headers), "text/event-stream");
    }

    #[test]
    fn only_revisions_that_want_it_get_the_version_header() {
        for (version, sent) in [("2025-03-26", false), ("2025-06-18", true), ("2025-11-25", true)] {
            let url = "http://127.0.0.1:1/mcp".parse().unwrap();
            let endpoint = Endpoint::new(&url, None, "--http-url", "transport.streamableHttp").unwrap();
            let wire = Wire::new(Arc::new(endpoint));
            wire.agree_on(version);
            assert_eq!(wire.version.get().is_some(), sent, "{version}");
        }
    }
}
