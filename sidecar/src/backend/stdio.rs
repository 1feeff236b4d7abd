//! stdio: one process per session, its pipes handed over by the shim.
use std::path::PathBuf;
use mcp_mqtt_transport::jsonrpc::Message;
use tokio::sync::mpsc;
use super::{BackendEvents, BackendLimits, SessionId};

/// A server that is started once per session by the shim.
#[derive(Debug, Clone)]
pub struct StdioBackend {
    socket: PathBuf,
    limits: BackendLimits,
}

impl StdioBackend {
    /// The backend behind this shim socket.
    pub fn new(socket: PathBuf, limits: BackendLimits) -> Self {
        Self { socket, limits }
    }
    pub(super) fn open(&self, _session: SessionId, _events: BackendEvents, _from_bridge: mpsc::Receiver<Message>) {}
    pub(super) async fn lost(&self) -> String {
        format!("{} {:?}", self.socket.display(), self.limits)
    }
}
