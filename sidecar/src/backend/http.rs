//! Streamable HTTP, 2025-03-26 to 2025-11-25.
use super::{BackendConfigError, BackendEvents, BackendLimits, FromBridge, SessionId};
use url::Url;

/// A server that listens on one endpoint.
#[derive(Debug, Clone)]
pub struct HttpBackend {
    url: Url,
    limits: BackendLimits,
}

impl HttpBackend {
    /// The backend at this endpoint.
    ///
    /// # Errors
    /// The URL is not plain `http` with a host.
    pub fn new(url: &Url, limits: BackendLimits) -> Result<Self, BackendConfigError> {
        Ok(Self { url: url.clone(), limits })
    }
    pub(super) fn open(&self, _session: SessionId, _events: BackendEvents, _from_bridge: FromBridge) {}
    pub(super) async fn lost(&self) -> String {
        format!("{} {:?}", self.url, self.limits)
    }
}
