//! Streamable HTTP, 2025-03-26 to 2026-07-28.
//!
//! - [`session`]: one session: what is sent in which order, what is in flight
//! - [`exchange`]: one message posted and its answer followed; [`listen`]: the server's own stream
//! - [`metadata`]: what 2026-07-28 wants in a request's headers
//! - [`wire`]: one HTTP request and what kind of reply it got
//! - [`sse_parser`]: server-sent events

use std::{io, path::Path, sync::Arc, time::Duration};

use http::Uri;
use tokio::{net::TcpStream, time::timeout};
use url::Url;

use self::{
    exchange::Shared,
    metadata::Metadata,
    session::Driver,
    wire::{Endpoint, Wire},
};
use super::{
    BackendConfigError, BackendEvents, BackendLimits, FromBackend, FromBridge, SessionId, era::Era,
    modern::MODERN_REVISION,
};
use crate::https;

mod exchange;
mod listen;
mod metadata;
mod session;
mod sse_parser;
mod wire;

/// How often to look whether the server still listens. A connection within the pod costs some 50 µs.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long that may take: a server that does not accept in time is slow, not gone.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// A server that listens on one endpoint.
#[derive(Debug, Clone)]
pub struct HttpBackend {
    endpoint: Arc<Endpoint>,
    /// Host and port to connect to.
    address: (String, u16),
    limits: BackendLimits,
    metadata: Arc<Metadata>,
    pub(super) era: Era,
}

impl HttpBackend {
    /// The backend at this endpoint; `ca`: a PEM file of the certificates to trust, in place of the public roots.
    ///
    /// # Errors
    /// The URL is not `http` or `https` with a host, or the certificates cannot be used.
    pub fn new(url: &Url, ca: Option<&Path>, limits: BackendLimits) -> Result<Self, BackendConfigError> {
        let bad = |why| BackendConfigError::BadUrl { why };
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad("the scheme has to be http or https"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("credentials in the URL are not supported"));
        }
        let host = match url.host().ok_or_else(|| bad("it has no host"))? {
            url::Host::Ipv6(address) => address.to_string(),
            other => other.to_string(),
        };
        let mut without_fragment = url.clone();
        without_fragment.set_fragment(None);
        let uri: Uri = without_fragment.as_str().parse().map_err(|_| bad("it is no usable URL"))?;
        let address = (host, url.port_or_known_default().ok_or_else(|| bad("it has no port"))?);
        let client = https::client(ca).map_err(BackendConfigError::BadCertificates)?;
        let endpoint = Arc::new(Endpoint::new(uri, client));
        Ok(Self { endpoint, address, limits, metadata: Arc::default(), era: Era::default() })
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
        let session =
            Arc::new(Shared { id, wire, metadata, events: events.clone(), max, era: self.era.clone() });
        let driver = Driver::new(session, self.limits.max_in_flight);
        tokio::spawn(async move {
            let end = driver.serve(from_bridge).await;
            let _ = events.send((id, FromBackend::Ended(end))).await; // the bridge is gone: nobody to tell
        });
    }

    /// Resolves when nobody listens any more. Looks now and then, and at once when a request had trouble.
    pub(super) async fn lost(&self) -> String {
        loop {
            let (host, port) = &self.address;
            if let Ok(Err(error)) = timeout(LOOK_TIMEOUT, TcpStream::connect((host.as_str(), *port))).await {
                return match error.kind() {
                    io::ErrorKind::ConnectionRefused => wire::refused(&self.endpoint.uri),
                    _ => format!("{} cannot be reached: {error}", self.endpoint.uri),
                };
            }
            let _ = timeout(LOOK_EVERY, self.endpoint.trouble.notified()).await; // or it is time to look
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_url_of_http_without_credentials_is_taken() {
        let limits = BackendLimits { max_message_bytes: 1, max_in_flight: 1 };
        let take = |url: &str| HttpBackend::new(&Url::parse(url).unwrap(), None, limits);
        assert_eq!(
            take("http://127.0.0.1:3001/mcp?a=b#c").unwrap().endpoint.uri.to_string(),
            "http://127.0.0.1:3001/mcp?a=b"
        );
        assert_eq!(take("http://[::1]/mcp").unwrap().address, ("::1".to_owned(), 80));
        assert_eq!(take("https://example.com/mcp").unwrap().address, ("example.com".to_owned(), 443));
        for bad in ["ftp://127.0.0.1/mcp", "file:///mcp", "http://me:secret@127.0.0.1/"] {
            assert!(take(bad).is_err(), "{bad}");
        }
    }
}
