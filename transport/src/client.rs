//! An MCP client over MQTT: connect, discover, open sessions, call.
//!
//! One task per connection routes what arrives; sessions and watches are handles on shared state. So a session
//! costs no task, and thousands of clients fit into one process.

mod error;
mod options;
mod registry;
mod requests;
mod router;
mod session;

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::{
    task::AbortHandle,
    time::{Instant, timeout},
};

pub use self::{
    error::{DiscoverError, OpenError, RequestError, SessionEnd},
    options::{ClientOptions, DEFAULT_PROTOCOL_VERSION},
    registry::{Instance, Watch},
    session::{HandlerFuture, Session, SessionHandler, Unhandled},
};
use self::{router::Router, session::Core};
use crate::{
    jsonrpc::Message,
    mqtt::{
        CloseReason, ConnectError, ConnectOptions, Connection, Filter, Publication, PublishError, Publisher,
    },
    topic::{self, ClientId, ServerName},
    user_property::{self, Component, UserProperties},
};

/// How long presences have to stop coming before [`Client::discover`] takes them for complete: brokers send the
/// retained ones right after the SUBACK, but nothing marks the last.
const SETTLED: Duration = Duration::from_millis(200);

/// What the packet of a message has besides the message: topic and user properties.
const PACKET_OVERHEAD: u32 = 64 << 10;

/// One MQTT connection of an MCP client, for any number of sessions with different servers. Cheap to clone; the
/// connection is cut when the last clone and the last session are dropped ([`close`](Self::close) is the orderly
/// way).
#[derive(Debug, Clone)]
pub struct Client {
    link: Arc<Link>,
}

/// What the clones and the sessions of a client share.
#[derive(Debug)]
struct Link {
    options: ClientOptions,
    publisher: Publisher,
    router: Arc<Router>,
    /// The routing task, which owns the events: ending it cuts the connection.
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    /// Connects as an MCP client: its user properties, and `notifications/disconnected` as its will.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(options: ClientOptions) -> Result<Self, ConnectError> {
        let client_id = options.client_id.as_str();
        let will = Publication {
            topic: topic::client_presence(&options.client_id),
            payload: Message::disconnected().into_raw(),
            qos: options.qos,
            retain: false,
            user_properties: user_property::of_publish(Component::Client, client_id),
        };
        let connection = Connection::open(&ConnectOptions {
            username: options.username.clone(),
            password: options.password.clone(),
            tls: options.tls.clone(),
            keep_alive: options.keep_alive,
            connect_timeout: options.connect_timeout,
            user_properties: user_property::of_connect(Component::Client, "{}"),
            will: Some(will),
            max_packet_size: options.max_message_bytes.saturating_add(PACKET_OVERHEAD),
            ..ConnectOptions::new(options.url.clone(), client_id)
        })
        .await?;
        let limit = usize::try_from(options.max_message_bytes).unwrap_or(usize::MAX);
        let router = Arc::new(Router::new(limit));
        let task = tokio::spawn(router.clone().run(connection.events)).abort_handle();
        Ok(Self { link: Arc::new(Link { options, publisher: connection.publisher, router, task }) })
    }

    /// The MQTT client id.
    pub fn client_id(&self) -> &ClientId {
        &self.link.options.client_id
    }

    /// Starts to watch the presences of the servers that `name_filter` matches (`tools/echo`, `tools/+`, `#`).
    /// The returned [`Watch`] has what is known so far and tells of every change.
    ///
    /// # Errors
    /// When the broker does not grant the subscription, or the connection is over.
    pub async fn watch(&self, name_filter: &str) -> Result<Watch, DiscoverError> {
        // First the interest, so that no presence that comes with the SUBACK is passed over.
        let watch = Watch::new(self.link.clone(), name_filter);
        let filter = topic::server_presence_filter(name_filter);
        let filter = Filter::new(filter, self.link.options.qos);
        self.link.subscribe(vec![filter], self.link.options.connect_timeout).await?;
        Ok(watch)
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
        let end = Instant::now() + deadline;
        let mut watch = self.watch(name_filter).await?;
        while Instant::now() < end && timeout(SETTLED, watch.changed()).await.unwrap_or(false) {}
        Ok(watch.instances())
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
        let mut watch = self.watch(server_name.as_str()).await?;
        let found = timeout(deadline, watch.until(|instances| !instances.is_empty())).await;
        found
            .ok()
            .flatten()
            .and_then(|instances| instances.into_iter().next())
            .ok_or_else(|| DiscoverError::NotFound { server_name: server_name.to_string(), within: deadline })
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
        let end = Instant::now() + deadline;
        let left = || end.saturating_duration_since(Instant::now());
        let opening = session::Opening::new(&self.link, instance, handler);
        self.link.subscribe(opening.filters(), left()).await?;
        let initialize = Initialize {
            protocol_version: &self.link.options.protocol_version,
            capabilities,
            client_info: ClientInfo { name: &self.link.options.name, version: &self.link.options.version },
        };
        opening.initialize(&initialize, left()).await
    }

    /// Ends all sessions with `notifications/disconnected`, then disconnects.
    ///
    /// # Errors
    /// When it could not be done by the deadline.
    pub async fn close(&self, deadline: Duration) -> Result<(), PublishError> {
        for session in self.link.router.sessions() {
            self.link.end(&session, SessionEnd::Closed);
        }
        self.link.publisher.disconnect(deadline).await
    }

    /// Waits until the connection is over, and says why.
    pub async fn closed(&self) -> CloseReason {
        self.link.publisher.closed().await
    }

    /// The MQTT connection itself: for tests that send what no client would.
    pub fn publisher(&self) -> &Publisher {
        &self.link.publisher
    }
}

/// `params` of `initialize`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Initialize<'a> {
    protocol_version: &'a str,
    capabilities: &'a RawValue,
    client_info: ClientInfo<'a>,
}

#[derive(Serialize)]
struct ClientInfo<'a> {
    name: &'a str,
    version: &'a str,
}

impl Link {
    /// The two properties of every publish.
    fn properties(&self) -> UserProperties {
        user_property::of_publish(Component::Client, self.options.client_id.as_str())
    }

    /// Subscribes and wants all of it granted.
    async fn subscribe(&self, filters: Vec<Filter>, within: Duration) -> Result<(), DiscoverError> {
        let first = filters.first().map(|filter| filter.filter.clone()).unwrap_or_default();
        let reasons = self
            .publisher
            .subscribe(filters.clone(), within)
            .await
            .map_err(|error| DiscoverError::Subscribe { filter: first, error })?;
        match filters.into_iter().zip(reasons).find(|(_, reason)| reason.is_error()) {
            Some((filter, reason)) => Err(DiscoverError::Refused { filter: filter.filter, reason }),
            None => Ok(()),
        }
    }

    /// Ends a session from our side: tells the server, and gives the subscriptions back.
    fn end(&self, session: &Arc<Core>, reason: SessionEnd) {
        if session.end(reason) {
            session.tell_disconnected();
            self.router.release(session);
        }
    }
}
