//! What can go wrong, one enum per step; each message is for a person.

use std::time::Duration;

use super::ReasonCode;

/// Why a connection was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// An option cannot be used as it is; connecting again without a change is of no use.
    #[error("cannot connect to the broker: {0}")]
    Options(String),
    /// DNS, TCP or the websocket upgrade failed.
    #[error("cannot reach the broker at {address}: {detail}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// The system's words.
        detail: String,
    },
    /// A TLS file cannot be read or used, or the handshake failed.
    #[error("TLS with the broker at {address} failed: {detail}")]
    Tls {
        /// Host and port.
        address: String,
        /// What failed; a file is named.
        detail: String,
    },
    /// CONNACK: bad user name, password or client id, or not authorized.
    #[error("the broker at {address} refused the credentials: {reason}")]
    RefusedCredentials {
        /// Host and port.
        address: String,
        /// Its reason.
        reason: ReasonCode,
    },
    /// CONNACK with another refusal.
    #[error("the broker at {address} refused the connection: {reason}")]
    Refused {
        /// Host and port.
        address: String,
        /// Its reason.
        reason: ReasonCode,
    },
    /// The other side does not speak MQTT 5, or broke off before CONNACK.
    #[error("the broker at {address} does not answer as an MQTT 5 broker: {detail}")]
    Protocol {
        /// Host and port.
        address: String,
        /// What came instead.
        detail: String,
    },
    /// No CONNACK within the deadline.
    #[error("the broker at {address} did not accept the connection within {timeout:?}")]
    Timeout {
        /// Host and port.
        address: String,
        /// The deadline.
        timeout: Duration,
    },
}

/// Why a publish, subscribe, unsubscribe or disconnect was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The queue is full: wait for [`Publisher::ready`](super::Publisher::ready) or give up.
    #[error("the queue to the broker is full")]
    Full,
    /// The packet is larger than the broker takes; sending it would cost the connection.
    #[error("the packet has {size} bytes; the broker takes at most {limit}")]
    TooLarge {
        /// The broker's Maximum Packet Size.
        limit: usize,
        /// Bytes of the whole packet.
        size: usize,
    },
    /// MQTT cannot carry it: an empty or wildcard topic, a string over 65,535 bytes.
    #[error("MQTT cannot carry it: {0}")]
    Invalid(&'static str),
    /// The connection is closed, or closed before the broker answered.
    #[error("the connection to the broker is closed")]
    Closed,
    /// The broker refused it.
    #[error("the broker refused it: {0}")]
    Refused(ReasonCode),
    /// The broker did not answer in time.
    #[error("the broker did not answer within {0:?}")]
    Timeout(Duration),
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// [`Publisher::disconnect`](super::Publisher::disconnect) was asked for and done.
    #[error("disconnected as asked")]
    Wanted,
    /// A disconnect was asked for, but could not be done by its deadline: what was queued may be lost, and the
    /// broker publishes the will.
    #[error("the disconnect was not done by its deadline")]
    DisconnectTimedOut,
    /// [`Events`](super::Events) was dropped without a disconnect: the connection was cut, the will is published.
    #[error("given up without a disconnect")]
    Abandoned,
    /// DISCONNECT 0x8E: another client connected with this client id.
    #[error("another client connected with the same client id")]
    SessionTakenOver,
    /// DISCONNECT with another reason.
    #[error("the broker disconnected: {reason}{}", .text.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Disconnected {
        /// Its reason code.
        reason: ReasonCode,
        /// Its reason string.
        text: Option<String>,
    },
    /// The broker closed the connection without a DISCONNECT. Mosquitto does so on a takeover, too.
    #[error("the broker closed the connection without saying why")]
    ClosedByBroker,
    /// The broker is silent, or the link takes no bytes.
    #[error("the broker does not answer any more (no progress within {0:?})")]
    KeepAlive(Duration),
    /// The broker answers pings, but leaves a packet unacknowledged: sooner or later nothing could be sent.
    #[error("the broker has left a packet without acknowledgement for {0:?}, though it answers pings")]
    Unacknowledged(Duration),
    /// The link broke.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The broker broke a rule of MQTT.
    #[error("the broker broke the protocol: {0}")]
    Protocol(String),
    /// What arrived was not taken from [`Events`](super::Events) for ten minutes, in which nothing more was read.
    #[error("what the broker sent was not taken for too long")]
    Overwhelmed,
}
