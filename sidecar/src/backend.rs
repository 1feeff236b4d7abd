//! The backend: the pod's own MCP server, over stdio or HTTP, in two kinds. One MQTT client session is one backend
//! session.
//!
//! A session is opened by [`Backend::open`], spoken to with [`BackendSession::say`], heard through the
//! [`BackendEvents`] of its connection, and ended by dropping the [`BackendSession`].
//!
//! - [`stdio`]: a process per session, started by the shim; the gateway holds its pipes
//! - [`http`]: Streamable HTTP, 2025-03-26 to 2026-07-28, and HTTP+SSE, 2024-11-05
//! - [`modern`]: servers that speak only 2026-07-28, over stdio or Streamable HTTP: what of a session lives in the
//!   gateway then
//! - [`send_quota`]: what may wait on its way to the server; [`reports`]: on its way from there
//! - [`probe`]: asks the server who it is, as a client would, and so finds which era it speaks

use std::{ffi::OsString, fmt, io, time::Duration};

use mcp_mqtt_transport::jsonrpc::{Message, RequestId};
use tokio::time::sleep;

use crate::{
    config::{BackendConfig, BackendOptions, Limits},
    process,
    shim::processes::{Processes, Reap},
    status::ServerInfo,
};

mod findings;
pub mod http;
mod id_scanner;
mod incoming;
mod lines;
pub mod modern;
pub mod probe;
mod reports;
mod send_quota;
pub mod stdio;

use self::{
    findings::Findings,
    stdio::own::{Running, Spawner},
};
pub use self::{
    findings::Suspicion,
    http::{HttpBackend, SseBackend},
    probe::ProbeError,
    reports::{BackendEvents, Report},
    send_quota::{BackendSession, FromBridge, SendQuota},
    stdio::StdioBackend,
};

/// The parsers of what servers say, for the fuzz targets; no part of the interface.
#[doc(hidden)]
pub mod parsers {
    pub use super::{
        http::sse_parser::{Event, SseParser},
        id_scanner::IdScanner,
        lines::{Line, Lines},
    };
}

/// The newest revision of MCP that the gateway speaks to its backend.
pub const NEWEST_REVISION: &str = "2025-11-25";

/// Names one session of this gateway for as long as the process lives; never used twice, so that a late event
/// of an ended session finds nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Events of a transport's session that may wait for the translation of its era: what it takes in one go.
const TO_TRANSLATE: usize = 16;
/// Pause between two probes of a server of which something is suspected.
const DOUBT_PAUSE: Duration = Duration::from_secs(5);

/// What of [`Limits`] concerns a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendLimits {
    /// Largest message of the server that is taken, in bytes.
    pub max_message_bytes: usize,
    /// Requests in flight per session.
    pub max_in_flight: usize,
}

/// How the pod's MCP server is reached. Cheap to clone. Nothing outside this module tells the variants apart.
#[derive(Debug, Clone)]
pub enum Backend {
    /// One process per session, its pipes handed over by the shim, or started here.
    Stdio(StdioBackend),
    /// Streamable HTTP.
    StreamableHttp(HttpBackend),
    /// HTTP+SSE.
    Sse(SseBackend),
}

/// The configured backend cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BackendConfigError {
    /// No transport was given, or more than one.
    #[error("exactly one of --stdio-socket, --http-url, --sse-url and a command after `--` is needed")]
    NotExactlyOne,
    /// The certificates to trust.
    #[error("--http-ca-file: {0}")]
    BadCertificates(String),
    /// The URL is not one of a server.
    #[error("{flag}: {why}")]
    BadUrl {
        /// The argument that has it.
        flag: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// What a backend session reports. [`FromBackend::Ended`] comes exactly once, and last.
#[derive(Debug)]
pub enum FromBackend {
    /// A message of the server to its client: a response, a request or a notification.
    Message(Message),
    /// This request of the client will get no answer from the server. May name a request that is no longer in
    /// flight (answered, cancelled or timed out meanwhile): then it means nothing.
    RequestFailed {
        /// The request's id.
        id: RequestId,
        /// Why: a stable word for `error.data.reason`, one of [`failure`].
        reason: &'static str,
        /// Why, for a person.
        detail: String,
    },
    /// The server sent something that is no JSON-RPC message (or one too large); it was dropped.
    Malformed {
        /// What was wrong.
        detail: String,
    },
    /// The session is over. What is still in flight gets no answer; the bridge answers it.
    Ended(BackendEnd),
}

/// The stable words of [`FromBackend::RequestFailed`].
pub mod failure {
    /// The server's answer is larger than `max_message_bytes`.
    pub const ANSWER_TOO_LARGE: &str = "answer-too-large";
    /// HTTP: the server answered an error status without a JSON-RPC error.
    pub const HTTP_STATUS: &str = "http-status";
    /// HTTP: the body was not what the revision allows, or held no answer to the request.
    pub const BAD_ANSWER: &str = "bad-answer";
    /// HTTP: the connection or stream broke before the answer and could not be resumed.
    pub const CONNECTION_BROKEN: &str = "connection-broken";
    /// HTTP: the session has too many requests that the server does not answer.
    pub const TOO_MANY_IN_FLIGHT: &str = "backend-too-many-in-flight";
}

/// Why a backend session is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendEnd {
    /// We ended it.
    Closed,
    /// It could not be opened.
    OpenFailed(String),
    /// Likewise, by an answer of the server: it is there.
    OpenRefused(String),
    /// Likewise, since nobody listens: the server has not started yet, or restarts.
    NobodyListens(String),
    /// The process exited or its pipe closed.
    Exited(String),
    /// The server no longer knows the session (HTTP 404), or ended the stream that it was (HTTP+SSE).
    SessionLost(String),
    /// The whole backend is gone (its container restarts).
    BackendLost(String),
}

/// Why the backend as a whole cannot be used as before; a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// It takes no new session. Those that it has may go on.
    Failing(String),
    /// Nobody is there, or somebody else: what answers next was started since.
    Gone(String),
    /// It may be there, and cannot be spoken to.
    Silent(String),
}

impl Lost {
    /// The server is one of the other era, in which its sessions came to nothing.
    pub fn to_another(server: &ServerInfo) -> Self {
        let version = &server.protocol_version;
        Self::Gone(format!("the server speaks MCP {version} now: it was started anew"))
    }

    /// The sentence.
    pub fn into_why(self) -> String {
        match self {
            Self::Failing(why) | Self::Gone(why) | Self::Silent(why) => why,
        }
    }
}

impl Backend {
    /// The backend that the configuration names.
    ///
    /// # Errors
    /// Not exactly one transport, a URL that is neither `http` nor `https`, or certificates that cannot be used.
    pub fn from_config(
        config: &BackendConfig,
        options: &BackendOptions,
        limits: &Limits,
    ) -> Result<Self, BackendConfigError> {
        let max_sessions = limits.max_sessions as usize;
        let limits = BackendLimits::from(limits);
        let ca = options.http_ca_file.as_deref();
        match (&config.stdio_socket, &config.http_url, &config.sse_url, &config.command[..]) {
            (Some(socket), None, None, []) => Ok(Self::Stdio(StdioBackend::new(socket.clone(), limits))),
            (None, Some(url), None, []) => Ok(Self::StreamableHttp(HttpBackend::new(url, ca, limits)?)),
            (None, None, Some(url), []) => Ok(Self::Sse(SseBackend::new(url, ca, limits)?)),
            (None, None, None, [_, ..]) => {
                let idle = usize::from(options.prewarm);
                let spawner = Spawner::new(
                    own_processes(&config.command, max_sessions + idle),
                    idle,
                    options.stop_grace,
                );
                Ok(Self::Stdio(StdioBackend::of_own(spawner, limits)))
            }
            _ => Err(BackendConfigError::NotExactlyOne),
        }
    }

    /// Begins to look after processes, where they are started here; to be stopped when all sessions are over. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// The system refuses to make this process the reaper of its descendants.
    pub fn start(&self) -> io::Result<Option<Running>> {
        match self {
            Self::Stdio(backend) => backend.start(),
            Self::StreamableHttp(_) | Self::Sse(_) => Ok(None),
        }
    }

    /// Opens a session and returns at once; what is sent meanwhile waits. A failure arrives as
    /// [`BackendEnd::OpenFailed`], [`BackendEnd::OpenRefused`] or [`BackendEnd::NobodyListens`]. Must be called within a tokio runtime.
    pub fn open(&self, session: SessionId, quota: &SendQuota, events: BackendEvents) -> BackendSession {
        self.open_in(self.findings().is_modern(), session, quota, events)
    }

    /// The same, in this era whatever the probe found.
    fn open_in(
        &self,
        is_modern: bool,
        session: SessionId,
        quota: &SendQuota,
        events: BackendEvents,
    ) -> BackendSession {
        let (backend_session, from_bridge) = quota.session();
        if !is_modern {
            self.open_transport(false, session, events, from_bridge);
            return backend_session;
        }
        let (translated, to_transport) = quota.session();
        let (to_translate, from_transport) = events.before(TO_TRANSLATE);
        self.open_transport(true, session, to_translate, to_transport);
        let translation = modern::serve(
            session,
            events,
            from_bridge,
            (translated, from_transport),
            self.findings().clone(),
        );
        tokio::spawn(translation);
        backend_session
    }

    fn open_transport(
        &self,
        is_modern: bool,
        session: SessionId,
        events: BackendEvents,
        from_bridge: FromBridge,
    ) {
        match self {
            // A process speaks the era of the first message that it gets.
            Self::Stdio(backend) => backend.open(session, events, from_bridge),
            Self::StreamableHttp(backend) => backend.open(is_modern, session, events, from_bridge),
            Self::Sse(backend) => backend.open(session, events, from_bridge),
        }
    }

    fn findings(&self) -> &Findings {
        match self {
            Self::Stdio(backend) => &backend.findings,
            Self::StreamableHttp(backend) => &backend.findings,
            Self::Sse(backend) => &backend.findings,
        }
    }

    /// Whether there are servers of both eras on this transport.
    fn has_eras(&self) -> bool {
        !matches!(self, Self::Sse(_))
    }

    /// Asks the server who it is: opens a session of its own, sends `initialize`, ends it; and once more in the newer
    /// era, when the server refuses `initialize`. Bounded in time. Later sessions are of the era that was found.
    ///
    /// # Errors
    /// The server cannot be reached or answers neither; the message is for a person.
    pub async fn probe(&self) -> Result<ServerInfo, ProbeError> {
        probe::probe(self).await
    }

    /// Resolves when the backend as a whole is gone, with the reason for a person: its container restarts, its
    /// port refuses. Resolves at once when it is gone already. Cancel-safe; one caller at a time.
    ///
    /// Also when it came back so soon that nobody saw it go, as a server of the other era; and when it takes no new session
    /// any more.
    pub async fn lost(&self) -> Lost {
        tokio::select! {
            lost = self.gone() => lost,
            lost = self.found_lost() => lost,
        }
    }

    /// Resolves when a probe that a suspicion has led to finds another server than before, or none, or one that takes no
    /// new session.
    async fn found_lost(&self) -> Lost {
        loop {
            let suspicion = self.findings().suspected().await;
            tracing::info!("{suspicion}: asking the MCP server who it is");
            let was_modern = self.is_modern();
            match self.probe().await {
                Ok(server) if self.is_modern() != was_modern => return Lost::to_another(&server),
                Ok(_) => {}
                Err(error) => match self.verdict(&error) {
                    // That it has no room for the probe's session says little, unless others found none either.
                    Lost::Failing(why) if suspicion != Suspicion::NoSession => {
                        tracing::debug!("the MCP server answers: {why}");
                    }
                    // Nothing says that the sessions which it has are not answered.
                    Lost::Silent(why) if suspicion == Suspicion::NoSession => return Lost::Failing(why),
                    lost => return lost,
                },
            }
            sleep(DOUBT_PAUSE).await;
        }
    }

    /// What a failed probe says of a backend that has been up.
    pub fn verdict(&self, error: &ProbeError) -> Lost {
        let why = error.to_string();
        match (self, error) {
            (_, ProbeError::Ended(BackendEnd::NobodyListens(why))) => Lost::Gone(why.clone()),
            // Each session is a process: what becomes of one says nothing of the others.
            (Self::Stdio(_), _) => Lost::Failing(why),
            (_, error) if error.is_answer() => Lost::Failing(why),
            _ => Lost::Silent(why),
        }
    }

    /// Something speaks against what the last probe found: [`Backend::lost`] is to ask anew.
    pub fn suspect(&self, suspicion: Suspicion) {
        self.findings().suspect(suspicion);
    }

    /// Whether requests in a row were not answered since the last probe that went well.
    pub fn is_silent(&self) -> bool {
        self.findings().is_suspected(Suspicion::Silence)
    }

    /// Whether sessions begin without `initialize` (2026-07-28), as the last probe found.
    pub fn is_modern(&self) -> bool {
        self.findings().is_modern()
    }

    /// As [`Backend::lost`], by a look at the transport alone. Cancel-safe; one caller at a time.
    pub async fn gone(&self) -> Lost {
        match self {
            Self::Stdio(backend) => backend.lost().await,
            Self::StreamableHttp(backend) => backend.lost().await,
            Self::Sse(backend) => backend.lost().await,
        }
    }

    /// Has [`Backend::gone`] look at once, where it looks from time to time.
    pub fn look(&self) {
        match self {
            Self::Stdio(_) => {} // the end of the shim's connection tells
            Self::StreamableHttp(backend) => backend.look(),
            Self::Sse(backend) => backend.look(),
        }
    }
}

/// Processes of this command, each of which ends with this one.
fn own_processes(command: &[String], wanted: usize) -> Processes {
    // This very program, also when its file was replaced meanwhile.
    let parent = format!("--parent={}", std::process::id());
    let mut launcher = ["/proc/self/exe", "shim", "exec", &parent].map(OsString::from).to_vec();
    // As many files as this one may open, before it raises that for itself.
    launcher.extend(process::open_files().map(|files| format!("--open-files={files}").into()));
    launcher.push("--".into());
    let command = command.iter().map(Into::into).collect();
    // One that is being ended counts, and a new session need not wait for that; one more is for the probe.
    Processes::launched_by(launcher, command, 2 * wanted + 1, Reap::Everything)
}

impl From<&Limits> for BackendLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            max_message_bytes: usize::try_from(limits.max_message_bytes).unwrap_or(usize::MAX),
            max_in_flight: usize::try_from(limits.max_in_flight).unwrap_or(usize::MAX),
        }
    }
}

impl fmt::Display for BackendEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by the gateway"),
            Self::OpenFailed(why) | Self::OpenRefused(why) | Self::NobodyListens(why) => {
                write!(f, "could not be opened: {why}")
            }
            Self::Exited(why) => write!(f, "the server's process ended: {why}"),
            Self::SessionLost(why) => write!(f, "the server lost the session: {why}"),
            Self::BackendLost(why) => write!(f, "the server is gone: {why}"),
        }
    }
}
