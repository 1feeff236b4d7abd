//! The registration at the broker: connect with the will, subscribe the control topic, test that the broker will
//! have us, and only then be found. One attempt after the other, until one stands.
//!
//! - [`selftest`]: finds what the broker forbids, and names it
//! - `standby`: whether the service as a whole sleeps, and this instance is the one to stand in for it
//! - [`worker`]: a connection that registers nothing and carries sessions
//! - `access`, `attempts`: what all connections have in common

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mcp_mqtt_transport::{
    mqtt::{CloseReason, Connection, Event, Publication, Publisher, Qos, Received},
    presence::Online,
    topic::{self, ServerId, ServerName},
    user_property::{self, Component},
};
use tokio::sync::watch;

use self::{access::Access, attempts::Attempts, worker::Worker};
use crate::{
    config::{GatewayConfig, Identity},
    metrics::Metrics,
    readiness::Board,
    status::reason,
};

mod access;
mod attempts;
pub mod selftest;
mod standby;
pub mod worker;

/// For the DISCONNECT of a connection that is not to be used.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection on which everything is ready for the presence.
#[derive(Debug)]
pub struct Registration {
    /// The connection; the control topic is subscribed.
    pub connection: Connection,
    /// The server name in use.
    pub server_name: ServerName,
    /// Whether it is under the service's own id, whose presence stands already: whoever holds that holds each
    /// `initialize`, too, until our presence takes its place.
    pub stands_in: bool,
    /// What came meanwhile.
    pub early: Vec<Received>,
    /// What the self-test wants a person to know.
    pub remark: Option<String>,
    /// When it was opened.
    pub since: Instant,
}

/// Makes [`Registration`]s.
#[derive(Debug)]
pub struct Registrar {
    config: Arc<GatewayConfig>,
    access: Access,
    identity: Identity,
    /// Of the connection that was opened last: our own, or the service's.
    server_id: ServerId,
    /// As in the will of the next connection: the broker may have replaced the configured one.
    server_name: ServerName,
    board: Board,
    metrics: Metrics,
    attempts: Attempts,
    control_echo: bool,
    /// Whether an attempt is on its way to a connection in the service's name, or has one.
    stands_in: watch::Sender<bool>,
}

/// An attempt that failed: a [`reason`], and a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One of [`reason`].
    pub reason: &'static str,
    /// The cause and the next step.
    pub message: String,
}

impl Registration {
    /// Nothing is to come of it: what stands in the registry stays as it is.
    pub async fn withdraw(self) {
        end(self.connection).await;
    }
}

impl Registrar {
    /// Has not tried yet.
    pub fn new(config: Arc<GatewayConfig>, identity: Identity, board: Board, metrics: Metrics) -> Self {
        Self {
            server_name: identity.server_name.clone(),
            server_id: identity.server_id.clone(),
            access: Access::new(config.clone()),
            config,
            identity,
            board,
            metrics,
            attempts: Attempts::new(),
            control_echo: true,
            stands_in: watch::Sender::new(false),
        }
    }

    /// The MQTT client id in use.
    pub fn server_id(&self) -> &ServerId {
        &self.server_id
    }

    /// Whether [`Registrar::establish`] must not be dropped just now: the end of a connection in the service's name
    /// would clear the presence that stands there, by its will.
    pub fn stands_in(&self) -> watch::Receiver<bool> {
        self.stands_in.subscribe()
    }

    /// Tries until a registration can be made; the board tells why it cannot. Dropping this ends the attempt, and nothing
    /// of it can be seen at the broker, unless it [stands in](Registrar::stands_in).
    pub async fn establish(&mut self) -> Registration {
        loop {
            self.attempts.next().await;
            let attempt = self.attempt().await;
            self.stands_in.send_replace(false);
            match attempt {
                Ok(registration) => {
                    if self.attempts.connected() {
                        self.metrics.reconnects.inc();
                    }
                    return registration;
                }
                Err(failure) => {
                    self.metrics.connect_failed(failure.reason);
                    self.board.unregistered(failure.reason, &failure.message);
                }
            }
        }
    }

    /// The connection was lost: tells the board why, and how long to wait before the next.
    pub fn lost(&mut self, why: &CloseReason, since: Instant) {
        if *why == CloseReason::Wanted {
            return self.board.unregistered(reason::CONNECTING, "registering anew");
        }
        let (reason, message) = self.attempts.lost(self.server_id.as_str(), why, since);
        self.board.unregistered(reason, &message);
    }

    /// The registration has ended in order: the next one is a first one, without a wait before it.
    pub fn ended(&mut self) {
        self.attempts = Attempts::new();
    }

    /// The workers beside the connection that was established last: the broker may have another server name on the
    /// next one. None has a connection yet.
    pub fn workers(&self) -> Vec<Worker> {
        let worker = |number| {
            let (server_id, server_name) = (self.server_id.clone(), self.server_name.clone());
            Worker::new(number, self.access.clone(), server_id, server_name, self.config.qos())
        };
        (1..=self.config.broker.workers.into()).map(worker).collect()
    }

    /// The retained presence.
    pub fn online(&self) -> Publication {
        let name = self.server_name.as_str();
        let payload = Online::new(name, &self.config.description, self.identity.rbac.as_ref()).to_payload();
        self.presence(payload)
    }

    /// The empty presence: offline. Also the will.
    pub fn offline(&self) -> Publication {
        self.presence(Bytes::new())
    }

    fn presence(&self, payload: Bytes) -> Publication {
        let mut user_properties = user_property::of_publish(Component::Server, self.server_id.as_str());
        if let Some(mark) = &self.config.owner_mark {
            user_properties.push((user_property::OWNER.to_owned(), mark.clone()));
        }
        Publication {
            topic: topic::server_presence(&self.server_id, &self.server_name),
            payload,
            qos: Qos::AtLeastOnce,
            retain: true,
            user_properties,
        }
    }

    async fn attempt(&mut self) -> Result<Registration, Failure> {
        self.use_id(self.identity.server_id.clone());
        let mut connection = self.connect_with_will().await?;
        if let Some(name) = self.renamed(&connection)? {
            // The will that the broker holds has the old name.
            tracing::info!(old = %self.server_name, new = %name, "the broker has another server name for us");
            self.server_name = name;
            self.board.set_server_name(self.server_name.as_str());
            end(connection).await;
            connection = self.connect_with_will().await?;
            if let Some(name) = self.renamed(&connection)? {
                return Err(Failure {
                    reason: reason::BROKER_SETTINGS_INVALID,
                    message: format!(
                        "the broker's MCP-SERVER-NAME changes from one connection to the next ({}, then {name}): mend \
                         it at the broker",
                        self.server_name
                    ),
                });
            }
        }
        let mut stands_in = false;
        if let Some(standby) = self.identity.standby_id.clone()
            && standby::is_left_to_us(&mut connection, (&standby, &self.server_id), &self.server_name).await?
        {
            tracing::info!(server_id = %standby, "the service sleeps: taking its place in the registry over");
            end(connection).await;
            self.stands_in.send_replace(true);
            self.use_id(standby);
            connection = self.connect_with_will().await?;
            stands_in = true;
        }
        if let Err(failure) = self.check_size(&connection) {
            end(connection).await; // the will would clear what stands there
            return Err(failure);
        }
        let since = Instant::now();
        // Standing in, nothing is tested that anybody could see: the presence there stays, and what is said is heard.
        let own = selftest::OfRegistration {
            offline: (!stands_in).then(|| self.offline()),
            control_echo: !stands_in && self.control_echo,
        };
        let self_test = selftest::SelfTest {
            client_id: self.server_id.as_str(),
            server_id: &self.server_id,
            server_name: &self.server_name,
            qos: self.config.qos(),
            registration: Some(own),
        };
        match self_test.run(&mut connection).await {
            Ok(selftest::Report { early, remark }) => {
                let server_name = self.server_name.clone();
                Ok(Registration { connection, server_name, stands_in, early, remark, since })
            }
            Err(selftest::Failed { failure, by_control_echo }) => {
                // A right that a server need not have; without that part of the test the next attempt may stand.
                self.control_echo &= !by_control_echo;
                if stands_in {
                    end(connection).await;
                }
                Err(failure)
            }
        }
    }

    /// Whether the broker's Maximum Packet Size leaves room for the presence.
    fn check_size(&self, connection: &Connection) -> Result<(), Failure> {
        let size = Publisher::packet_size(&self.online());
        match connection.accepted.maximum_packet_size {
            Some(limit) if size > limit as usize => Err(Failure {
                reason: reason::BROKER_SETTINGS_INVALID,
                message: format!(
                    "the presence is a packet of {size} bytes, and the broker takes at most {limit}: shorten the \
                     description or the RBAC roles, or raise the broker's maximum packet size"
                ),
            }),
            _ => Ok(()),
        }
    }

    async fn connect_with_will(&self) -> Result<Connection, Failure> {
        self.access.connect(self.server_id.as_str(), Some(self.offline())).await
    }

    fn use_id(&mut self, server_id: ServerId) {
        self.board.set_server_id(server_id.as_str());
        self.server_id = server_id;
    }

    /// The server name that the broker wants, when it is not the one in use.
    fn renamed(&self, connection: &Connection) -> Result<Option<ServerName>, Failure> {
        let wanted = match connection.accepted.server_name() {
            None => self.identity.server_name.clone(),
            Some(name) => ServerName::new(name).map_err(|error| Failure {
                reason: reason::BROKER_SETTINGS_INVALID,
                message: format!("the broker's MCP-SERVER-NAME {name:?} {error}: mend it at the broker"),
            })?,
        };
        Ok((wanted != self.server_name).then_some(wanted))
    }
}

/// DISCONNECT, so that the will is not published.
async fn end(mut connection: Connection) {
    let publisher = connection.publisher.clone();
    let read = async { while let Some(Event::Received(_)) = connection.events.recv().await {} };
    let (ended, ()) = tokio::join!(publisher.disconnect(END_TIMEOUT), read);
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection that was not to be used did not end in order");
    }
}
