//! The way to the broker, for the registering connection and the workers alike. Credentials and TLS files are read
//! anew at each connect.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use mcp_mqtt_transport::{
    mqtt::{ConnectError, ConnectOptions, Connection, Publication, TlsFiles},
    user_property::{self, Component},
};

use super::Failure;
use crate::{config::GatewayConfig, status::reason};

/// From TCP connect to CONNACK.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Packets are taken up to so many times the message limit (and a header), so that what is too large can be answered.
/// What is larger still, the broker drops by MQTT's own rule.
const PACKET_FACTOR: u32 = 4;
const HEADER_BYTES: u32 = 64 * 1024;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Access {
    config: Arc<GatewayConfig>,
}

impl Access {
    pub(super) fn new(config: Arc<GatewayConfig>) -> Self {
        Self { config }
    }

    /// Connects with this client id; the broker has what we need.
    pub(super) async fn connect(
        &self,
        client_id: &str,
        will: Option<Publication>,
    ) -> Result<Connection, Failure> {
        let options = self.options(client_id, will)?;
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

    fn options(&self, client_id: &str, will: Option<Publication>) -> Result<ConnectOptions, Failure> {
        let broker = &self.config.broker;
        let read = |path: &Option<PathBuf>| {
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
            will,
            max_packet_size: self.config.limits.max_message_bytes.saturating_mul(PACKET_FACTOR)
                + HEADER_BYTES,
            ..ConnectOptions::new(broker.broker_url.clone(), client_id)
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
