//! Who is the server? Asked in a session of its own, the way every client begins; and when it refuses that, in the era
//! that has no `initialize`.

use std::time::Duration;

use mcp_mqtt_transport::jsonrpc::{Kind, Message, RequestId};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{
    Backend, BackendEnd, BackendEvents, FromBackend, NEWEST_REVISION, Report, SendQuota, SessionId,
    modern::MODERN_REVISION,
};
use crate::status::ServerInfo;

/// How long a server may take from its start to its `initialize` result: an interpreter on a busy node, with
/// packages to load.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the session may take to end; its result is known by then.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Events of the probe's one session that may wait: it is answered within a few.
const EVENTS: usize = 16;
/// The probe's session has a channel of its own, so its id meets no other.
const SESSION: SessionId = SessionId(u64::MAX);
/// The one request's id.
const ID: u64 = 1;
/// The server did not say who it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The session ended before the answer.
    #[error("the MCP server cannot be spoken to: {0}")]
    Ended(BackendEnd),
    /// No answer in time.
    #[error(
        "the MCP server did not answer `initialize` within {} s. Is it an MCP server on this transport? Its log: \
         `kubectl logs -c server`.{}", ANSWER_TIMEOUT.as_secs(), noise(.0.as_ref())
    )]
    NoAnswer(Option<String>),
    /// An error for an answer.
    #[error("the MCP server refused `initialize`: {0}")]
    Refused(String),
    /// The request could not be brought to the server or its answer not back.
    #[error("`initialize` did not get through to the MCP server: {0}")]
    Failed(String),
    /// A result that is none.
    #[error("the MCP server answered `initialize` with a result that is not one of MCP: {0}")]
    Unusable(String),
}

impl ProbeError {
    /// Whether the server answered, if by an error: one that has no room for the probe's session serves the others.
    pub(super) fn is_answer(&self) -> bool {
        match self {
            Self::Ended(BackendEnd::OpenRefused(_))
            | Self::Refused(_)
            | Self::Failed(_)
            | Self::Unusable(_) => true,
            Self::Ended(_) | Self::NoAnswer(_) => false,
        }
    }
}

fn noise(said: Option<&String>) -> String {
    said.map(|said| format!(" It did say something else: {said}.")).unwrap_or_default()
}

/// A server that answers `initialize` is spoken to with it, whatever else it speaks.
pub(super) async fn probe(backend: &Backend) -> Result<ServerInfo, ProbeError> {
    let (answer, is_modern) = match ask(backend, false).await {
        // Whatever its error: the code for this is the server's choice (2026-07-28, Compatibility Matrix).
        Err(ProbeError::Refused(refused)) if backend.has_eras() => match ask(backend, true).await {
            Ok(server) => (Ok(server), true),
            Err(error) => {
                tracing::debug!("nor does the server answer `server/discover`: {error}");
                (Err(ProbeError::Refused(refused)), false)
            }
        },
        other => (other, false),
    };
    if answer.is_ok() {
        backend.findings().found(is_modern);
    }
    answer.map(|server| {
        let protocol_version = if is_modern { MODERN_REVISION.to_owned() } else { server.protocol_version };
        ServerInfo { protocol_version, ..server }
    })
}

/// In a session of this era. The translation makes the answer one to `initialize` in either.
async fn ask(backend: &Backend, is_modern: bool) -> Result<ServerInfo, ProbeError> {
    let (events, mut from_backend) = BackendEvents::channel(EVENTS, 0);
    let session = backend.open_in(is_modern, SESSION, &SendQuota::for_messages_of(0), events);
    let asked = session.say(initialize());
    debug_assert!(asked.is_ok(), "a new session has room for one message");
    let answer = wait_for_answer(&mut from_backend).await;
    drop(session);
    // Ended properly: a server should not be left with a session that nobody uses.
    let end = async move {
        let deadline = Instant::now() + END_TIMEOUT;
        while let Ok(Some(report)) = timeout_at(deadline, from_backend.recv()).await {
            if matches!(report.event, FromBackend::Ended(_)) {
                break;
            }
        }
    };
    match answer {
        // The pod's readiness waits for this answer, and need not wait for an interpreter's exit.
        Ok(_) => drop(tokio::spawn(end)),
        // Whoever asks again does not meet the last attempt.
        Err(_) => end.await,
    }
    answer
}

fn initialize() -> Message {
    let params = json!({
        "protocolVersion": NEWEST_REVISION,
        "capabilities": {},
        "clientInfo": {"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")},
    });
    Message::request(RequestId::number(ID), "initialize", Some(&params)).expect("plain JSON")
}

async fn wait_for_answer(from_backend: &mut mpsc::Receiver<Report>) -> Result<ServerInfo, ProbeError> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let mut last_noise = None;
    loop {
        let Ok(report) = timeout_at(deadline, from_backend.recv()).await else {
            return Err(ProbeError::NoAnswer(last_noise));
        };
        match report.map(|report| report.event) {
            Some(FromBackend::Message(message)) if matches!(message.kind(), Kind::Response { .. }) => {
                return read_answer(&message);
            }
            Some(FromBackend::Message(_)) => {} // `server-everything` tells of its tools before it answers
            Some(FromBackend::Malformed { detail }) => last_noise = Some(detail),
            Some(FromBackend::RequestFailed { detail, .. }) => return Err(ProbeError::Failed(detail)),
            Some(FromBackend::Ended(end)) => return Err(ProbeError::Ended(end)),
            None => return Err(ProbeError::Ended(BackendEnd::Closed)),
        }
    }
}

fn read_answer(message: &Message) -> Result<ServerInfo, ProbeError> {
    if let Some(error) = message.error() {
        return Err(ProbeError::Refused(error.to_string()));
    }
    let result = message.initialize_result().map_err(|error| ProbeError::Unusable(error.to_string()))?;
    Ok(ServerInfo {
        name: result.server_info.name,
        version: result.server_info.version,
        protocol_version: result.protocol_version,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn answer(raw: &'static str) -> Result<ServerInfo, ProbeError> {
        read_answer(&Message::parse(Bytes::from_static(raw.as_bytes()), 1000).unwrap())
    }

    #[test]
    fn the_server_is_who_it_says_it_is() {
        let info = answer(
            r#"{"result":{"protocolVersion":"2025-06-18","capabilities":{},"serverInfo":{"name":"n","version":"1"}},"jsonrpc":"2.0","id":1}"#,
        );
        let expected =
            ServerInfo { name: "n".into(), version: "1".into(), protocol_version: "2025-06-18".into() };
        assert_eq!(info, Ok(expected));
    }

    #[test]
    fn a_refusal_is_told_in_the_servers_own_words() {
        let refused =
            answer(r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"message":"Unsupported version"}}"#);
        let told = refused.unwrap_err().to_string();
        assert!(told.contains("Unsupported version"), "{told}");
        assert!(matches!(answer(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#), Err(ProbeError::Unusable(_))));
    }
}
