//! MCP over HTTP, in its two kinds: Streamable HTTP (2025-03-26 to 2026-07-28) and HTTP+SSE (2024-11-05).
//!
//! - [`session`]: one session: what is sent in which order, what is in flight
//! - [`exchange`]: Streamable HTTP: one message posted and its answer followed; [`listen`]: the server's own stream
//! - [`metadata`]: what 2026-07-28 wants in a request's headers
//! - [`sse`]: HTTP+SSE: one stream that brings everything
//! - [`wire`]: one HTTP request and what kind of reply it got; [`endpoint`]: where to, and whether somebody listens
//! - [`sse_parser`]: server-sent events

use std::{path::Path, sync::Arc};

use url::Url;

pub use self::sse::SseBackend;
use self::{endpoint::Endpoint, exchange::Shared, metadata::Metadata, session::Driver, wire::Wire};
use super::{
    BackendConfigError, BackendEvents, BackendLimits, FromBackend, FromBridge, Lost, SessionId,
    findings::Findings, modern::MODERN_REVISION,
};

mod endpoint;
mod exchange;
mod listen;
mod metadata;
mod session;
mod sse;
pub(super) mod sse_parser;
mod wire;

/// A server that speaks Streamable HTTP at one endpoint.
#[derive(Debug, Clone)]
pub struct HttpBackend {
    endpoint: Arc<Endpoint>,
    limits: BackendLimits,
    metadata: Arc<Metadata>,
    pub(super) findings: Findings,
}

impl HttpBackend {
    /// The backend at this endpoint; `ca`: a PEM file of the certificates to trust, in place of the public roots.
    ///
    /// # Errors
    /// The URL is not `http` or `https` with a host, or the certificates cannot be used.
    pub fn new(url: &Url, ca: Option<&Path>, limits: BackendLimits) -> Result<Self, BackendConfigError> {
        let endpoint = Arc::new(Endpoint::new(url, ca, "--http-url", "transport.streamableHttp")?);
        Ok(Self { endpoint, limits, metadata: Arc::default(), findings: Findings::default() })
    }

    pub(super) fn open(
        &self,
        is_modern: bool,
        id: SessionId,
        events: BackendEvents,
        from_bridge: FromBridge,
    ) {
        let wire = Wire::new(self.endpoint.clone());
        let metadata = is_modern.then(|| {
            wire.agree_on(MODERN_REVISION);
            self.metadata.clone()
        });
        let max = self.limits.max_message_bytes;
        let session = Arc::new(Shared {
            id,
            wire,
            metadata,
            events: events.clone(),
            max,
            findings: self.findings.clone(),
        });
        let driver = Driver::new(session, self.limits.max_in_flight);
        tokio::spawn(async move {
            let end = driver.serve(from_bridge).await;
            events.report(id, FromBackend::Ended(end), None).await;
        });
    }

    /// Resolves when nobody listens any more.
    pub(super) async fn lost(&self) -> Lost {
        self.endpoint.lost().await
    }

    /// Has it looked at now.
    pub(super) fn look(&self) {
        self.endpoint.look();
    }
}
