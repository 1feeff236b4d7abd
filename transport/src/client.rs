//! An MCP client over MQTT: connect, discover, open sessions, call.

mod error;
mod options;
mod registry;
mod session;

use std::{sync::Arc, time::Duration};

use serde_json::value::RawValue;

pub use self::{
    error::{DiscoverError, OpenError, RequestError, SessionEnd},
    options::ClientOptions,
    registry::{Instance, Watch},
    session::{Session, SessionHandler, Unhandled},
};
use crate::{
    mqtt::{CloseReason, ConnectError},
    topic::{ClientId, ServerName},
};

/// One MQTT connection of an MCP client, for any number of sessions with different servers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {}

impl Client {
    /// Connects as an MCP client: its user properties, and `notifications/disconnected` as its will.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(options: ClientOptions) -> Result<Self, ConnectError> {
        let _ = options;
        todo!()
    }

    /// The MQTT client id.
    pub fn client_id(&self) -> &ClientId {
        todo!()
    }

    /// Starts to watch the presences of the servers that `name_filter` matches (`tools/echo`, `tools/+`, `#`).
    /// The returned [`Watch`] has what is known so far and tells of every change.
    ///
    /// # Errors
    /// When the broker does not grant the subscription, or the connection is over.
    pub async fn watch(&self, name_filter: &str) -> Result<Watch, DiscoverError> {
        let _ = name_filter;
        todo!()
    }

    /// The instances that are online: waits until presences stop coming for a moment, or until `deadline`.
    ///
    /// # Errors
    /// As [`watch`](Self::watch).
    pub async fn discover(
        &self,
        name_filter: &str,
        deadline: Duration,
    ) -> Result<Vec<Instance>, DiscoverError> {
        let _ = (name_filter, deadline);
        todo!()
    }

    /// The first instance of that server to be seen.
    ///
    /// # Errors
    /// As [`watch`](Self::watch), and [`DiscoverError::NotFound`] after `deadline`.
    pub async fn find(
        &self,
        server_name: &ServerName,
        deadline: Duration,
    ) -> Result<Instance, DiscoverError> {
        let _ = (server_name, deadline);
        todo!()
    }

    /// Opens a session: subscribes, sends `initialize` with these client capabilities (a JSON object such as
    /// `{"roots":{}}`), then `notifications/initialized`. A session with the same instance is replaced.
    ///
    /// # Errors
    /// [`OpenError`], within `deadline`.
    pub async fn open_session(
        &self,
        instance: &Instance,
        capabilities: &RawValue,
        handler: Arc<dyn SessionHandler>,
        deadline: Duration,
    ) -> Result<Session, OpenError> {
        let _ = (instance, capabilities, handler, deadline);
        todo!()
    }

    /// Ends all sessions with `notifications/disconnected`, then disconnects.
    ///
    /// # Errors
    /// When it could not be done by the deadline.
    pub async fn close(&self, deadline: Duration) -> Result<(), crate::mqtt::PublishError> {
        let _ = deadline;
        todo!()
    }

    /// Waits until the connection is over, and says why.
    pub async fn closed(&self) -> CloseReason {
        todo!()
    }
}
