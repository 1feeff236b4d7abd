//! The registration at the broker: connect with the will, subscribe the control topic, test that the broker will
//! have us, and only then be found. One attempt after the other, until one stands.
//!
//! - [`selftest`]: finds what the broker forbids, and names it

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mcp_mqtt_transport::{
    mqtt::{
        CloseReason, ConnectError, ConnectOptions, Connection, Event, Publication, Qos, Received, TlsFiles,
    },
    presence::Online,
    topic::{self, ServerId, ServerName},
    user_property::{self, Component},
};
use tokio::time::sleep;

use crate::{
    backoff::Backoff,
    config::{GatewayConfig, Identity},
    metrics::Metrics,
    readiness::Board,
    status::reason,
};

pub mod selftest;

/// From TCP connect to CONNACK.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For the DISCONNECT between learning a server name and connecting with it.
const RENAME_TIMEOUT: Duration = Duration::from_secs(5);
/// First and longest wait between attempts: the pod's start is quick, a broker's restart takes seconds.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Whoever took our client id over will be back: a little peace lets both be seen.
const TAKEN_OVER_WAIT: Duration = Duration::from_secs(2);
/// A connection that lasted so long was a good one.
const STABLE: Duration = Duration::from_secs(10);
/// So many connections that the broker closed without a word, one soon after the other, are a take-over loop.
const TAKE_OVER_LOOP: u32 = 3;
/// Packets are taken up to so many times the message limit (and a header), so that what is too large can be answered.
/// What is larger still, the broker drops by MQTT's own rule.
const PACKET_FACTOR: u32 = 4;
const HEADER_BYTES: u32 = 64 * 1024;

/// A connection on which everything is ready for the presence.
#[derive(Debug)]
pub struct Link {
    /// The connection; the control topic is subscribed.
    pub connection: Connection,
    /// The server name in use.
    pub server_name: ServerName,
    /// What came meanwhile.
    pub early: Vec<Received>,
    /// What the self-test wants a person to know.
    pub remark: Option<String>,
    /// When it was opened.
    pub since: Instant,
}

/// Makes [`Link`]s.
#[derive(Debug)]
pub struct Registrar {
    config: Arc<GatewayConfig>,
    identity: Identity,
    /// As in the will of the next connection: the broker may have replaced the configured one.
    server_name: ServerName,
    board: Board,
    metrics: Metrics,
    backoff: Backoff,
    attempts: u32,
    connected: bool,
    control_echo: bool,
    wordless_closes: u32,
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

impl Registrar {
    /// Has not tried yet.
    pub fn new(config: Arc<GatewayConfig>, identity: Identity, board: Board, metrics: Metrics) -> Self {
        Self {
            server_name: identity.server_name.clone(),
            config,
            identity,
            board,
            metrics,
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
            attempts: 0,
            connected: false,
            control_echo: true,
            wordless_closes: 0,
        }
    }

    /// Our MQTT client id.
    pub fn server_id(&self) -> &ServerId {
        &self.identity.server_id
    }

    /// Tries until a link stands; the board tells why it does not. Dropping this ends the attempt, and nothing of it
    /// can be seen at the broker.
    pub async fn establish(&mut self) -> Link {
        loop {
            if self.attempts > 0 {
                sleep(self.backoff.wait()).await;
            }
            self.attempts += 1;
            match self.attempt().await {
                Ok(link) => {
                    if std::mem::replace(&mut self.connected, true) {
                        self.metrics.reconnects.inc();
                    }
                    return link;
                }
                Err(failure) => {
                    self.metrics.connect_failed(failure.reason);
                    self.board.unregistered(failure.reason, &failure.message);
                }
            }
        }
    }

    /// A link was lost: tells the board why, and how long to wait before the next.
    pub fn lost(&mut self, why: &CloseReason, since: Instant) {
        let stable = since.elapsed() >= STABLE;
        if stable {
            self.backoff.reset();
        }
        self.wordless_closes =
            if stable || *why != CloseReason::ClosedByBroker { 0 } else { self.wordless_closes + 1 };
        let client_id = &self.identity.server_id;
        if *why == CloseReason::SessionTakenOver || self.wordless_closes >= TAKE_OVER_LOOP {
            self.backoff.at_least(TAKEN_OVER_WAIT);
            let message = format!(
                "{why}. The client id is {client_id}: is the same pod running in another cluster with the same cluster \
                 name, or is another MQTT client using this id?"
            );
            return self.board.unregistered(reason::BROKER_SESSION_TAKEN_OVER, &message);
        }
        self.board.unregistered(reason::BROKER_CONNECTION_LOST, &format!("{why}; connecting again"));
    }

    /// Item 7: the retained presence.
    pub fn online(&self) -> Publication {
        let name = self.server_name.as_str();
        let payload = Online::new(name, &self.config.description, self.identity.rbac.as_ref()).to_payload();
        self.presence(payload)
    }

    /// The empty presence: offline. Also the will (item 3).
    pub fn offline(&self) -> Publication {
        self.presence(Bytes::new())
    }

    fn presence(&self, payload: Bytes) -> Publication {
        Publication {
            topic: topic::server_presence(&self.identity.server_id, &self.server_name),
            payload,
            qos: Qos::AtLeastOnce,
            retain: true,
            user_properties: user_property::of_publish(Component::Server, self.identity.server_id.as_str()),
        }
    }

    async fn attempt(&mut self) -> Result<Link, Failure> {
        let mut connection = self.connect().await?;
        if let Some(name) = self.renamed(&connection)? {
            // Item 4: the will that the broker holds has the old name.
            tracing::info!(old = %self.server_name, new = %name, "the broker has another server name for us");
            self.server_name = name;
            self.board.set_server_name(self.server_name.as_str());
            end(connection).await;
            connection = self.connect().await?;
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
        let since = Instant::now();
        let trial = selftest::Trial {
            server_id: &self.identity.server_id,
            server_name: &self.server_name,
            qos: self.config.qos(),
            offline: self.offline(),
            control_echo: self.control_echo,
        };
        match trial.run(&mut connection).await {
            Ok(selftest::Passed { early, remark }) => {
                Ok(Link { connection, server_name: self.server_name.clone(), early, remark, since })
            }
            Err(selftest::Failed { failure, by_control_echo }) => {
                // A right that a server need not have; without that part of the test the next attempt may stand.
                self.control_echo &= !by_control_echo;
                Err(failure)
            }
        }
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let options = self.options()?;
        let connection = Connection::open(&options).await.map_err(|error| Failure::of_connect(&error))?;
        let accepted = &connection.accepted;
        let lacking = if !accepted.retain_available {
            Some("retained messages")
        } else if accepted.maximum_qos == 0 {
            Some("QoS 1")
        } else {
            None
        };
        match lacking {
            None => Ok(connection),
            Some(feature) => Err(Failure {
                reason: reason::BROKER_LACKS_FEATURE,
                message: format!(
                    "the broker does not offer {feature}, which a presence needs: allow it at the broker"
                ),
            }),
        }
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

    fn options(&self) -> Result<ConnectOptions, Failure> {
        let broker = &self.config.broker;
        let read = |path: &Option<std::path::PathBuf>| {
            let Some(path) = path else { return Ok(None) };
            let content = std::fs::read(path).map_err(|error| Failure {
                reason: reason::BROKER_SETTINGS_INVALID,
                message: format!("cannot read the credential file {}: {error}", path.display()),
            })?;
            Ok(Some(without_line_end(content)))
        };
        let username = read(&broker.broker_username_file)?.map(String::from_utf8).transpose();
        let username = username.map_err(|_| Failure {
            reason: reason::BROKER_SETTINGS_INVALID,
            message: "the user name in --broker-username-file is not UTF-8".to_owned(),
        })?;
        let meta = format!(
            r#"{{"implementation":{{"name":"{}","version":"{}"}}}}"#,
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION")
        );
        Ok(ConnectOptions {
            url: broker.broker_url.clone(),
            client_id: self.identity.server_id.to_string(),
            username,
            password: read(&broker.broker_password_file)?.map(Bytes::from),
            tls: TlsFiles {
                ca: broker.broker_ca_file.clone(),
                cert: broker.broker_cert_file.clone(),
                key: broker.broker_key_file.clone(),
            },
            keep_alive: broker.keep_alive,
            connect_timeout: CONNECT_TIMEOUT,
            user_properties: user_property::of_connect(Component::Server, &meta),
            will: Some(self.offline()),
            max_packet_size: self.config.limits.max_message_bytes.saturating_mul(PACKET_FACTOR)
                + HEADER_BYTES,
        })
    }
}

impl Failure {
    fn of_connect(error: &ConnectError) -> Self {
        let (reason, next) = match error {
            ConnectError::Options(_) => (reason::BROKER_SETTINGS_INVALID, ""),
            ConnectError::Unreachable { .. }
            | ConnectError::Protocol { .. }
            | ConnectError::Timeout { .. } => {
                (reason::BROKER_UNREACHABLE, ": check the URL, and that the network lets this pod reach it")
            }
            ConnectError::Tls { .. } => {
                (reason::BROKER_TLS_FAILED, ": check the CA and the client certificate")
            }
            ConnectError::RefusedCredentials { .. } => {
                (reason::BROKER_REFUSED_CREDENTIALS, ": check the Secret with the user name and password")
            }
            ConnectError::Refused { .. } => (reason::BROKER_REFUSED_CONNECTION, ""),
        };
        Self { reason, message: format!("{error}{next}") }
    }
}

/// A Secret made from a file often ends with a line break that is not part of it.
fn without_line_end(mut content: Vec<u8>) -> Vec<u8> {
    while content.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        content.pop();
    }
    content
}

/// DISCONNECT, so that the will is not published.
async fn end(mut connection: Connection) {
    let publisher = connection.publisher.clone();
    let read = async { while let Some(Event::Received(_)) = connection.events.recv().await {} };
    let (ended, ()) = tokio::join!(publisher.disconnect(RENAME_TIMEOUT), read);
    if let Err(error) = ended {
        tracing::debug!(%error, "the first connection did not end in order");
    }
}
