//! Who is the server? A session of its own that does what every client does first.
use crate::status::ServerInfo;
use super::Backend;

/// The probe failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The session ended before the answer.
    #[error("{0}")]
    Ended(super::BackendEnd),
}

pub(super) async fn probe(_backend: &Backend) -> Result<ServerInfo, ProbeError> {
    std::future::pending().await
}
