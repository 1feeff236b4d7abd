//! Servers that speak only 2026-07-28, behind clients that begin with `initialize`.
//!
//! That revision has no sessions: every request says who asks, and what a server asks of its client is a result of the
//! client's own request. The session that a client of an older revision expects lives here, so that nothing outside
//! [`backend`](super) knows of eras.
//!
//! - [`translator`]: the session as a state machine without IO; [`rounds`]: a call that asks its client for input;
//!   [`subscriptions`]: what the client wants to hear of; [`client`]: what it said at the beginning
//! - [`envelope`]: what every request carries; [`result`]: what of a result older clients know
//! - [`driver`]: between the bridge and a session of the transport
//! - [`members`]: JSON taken apart without reading it

use mcp_mqtt_transport::jsonrpc::{Message, RequestId};

use super::FromBackend;

mod client;
mod driver;
mod envelope;
pub(super) mod members;
pub(super) mod result;
mod rounds;
mod subscriptions;
mod translator;

pub(super) use self::driver::serve;

/// The revision.
pub(super) const MODERN_REVISION: &str = "2026-07-28";

/// The stable words of errors that come from here.
pub mod reason {
    /// The method has no counterpart in 2026-07-28, or the server does not have it.
    pub const NO_COUNTERPART: &str = "no-counterpart-in-revision";
    /// The server wants to ask the client something that the client did not say it can answer.
    pub const CLIENT_LACKS_CAPABILITY: &str = "client-lacks-capability";
    /// The client answered what the server wanted to know with an error, or not at all.
    pub const INPUT_REFUSED: &str = "client-input-refused";
    /// The server asks again and again.
    pub const TOO_MANY_ROUNDS: &str = "too-many-input-rounds";
    /// The server does not tell of changes of this resource.
    pub const SUBSCRIPTION_NOT_HONORED: &str = "subscription-not-honored";
    /// A session's subscriptions are bounded.
    pub const TOO_MANY_SUBSCRIPTIONS: &str = "too-many-subscriptions";
    /// A URI that is subscribed to is bounded.
    pub const URI_TOO_LONG: &str = "uri-too-long";
    /// The server refused the revision that it was found to speak, or the form of a request.
    pub const REVISION_REFUSED: &str = "backend-revision-refused";
}

/// What the translator wants done.
#[derive(Debug)]
enum Action {
    /// To the client, or the bridge.
    ToClient(FromBackend),
    /// To the server. `notifications/cancelled` may mean that a stream is closed.
    ToServer(Message),
    /// The server speaks another revision than the probe found.
    RevisionChanged,
}

impl Action {
    fn to_client(message: Message) -> Self {
        Self::ToClient(FromBackend::Message(message))
    }
}

/// Ids of requests of the gateway's own, in either direction.
#[derive(Debug, Default)]
struct Ids(u64);

impl Ids {
    const PREFIX: &str = "\"mcp-mqtt-gateway/";

    fn next(&mut self) -> RequestId {
        self.0 += 1;
        RequestId::string(&format!("mcp-mqtt-gateway/{}", self.0))
    }

    /// Whether this could be one of them.
    fn are_like(id: &RequestId) -> bool {
        id.as_json().starts_with(Self::PREFIX)
    }
}
