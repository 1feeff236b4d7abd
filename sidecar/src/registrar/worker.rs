//! A worker: a connection beside the registering one, that carries sessions and nothing else. It has no will and
//! registers nothing; when it is lost, only its own sessions end.

use std::time::Instant;

use mcp_mqtt_transport::{
    mqtt::{CloseReason, Connection, Qos, Received},
    topic::{ServerId, ServerName},
};

use super::{Failure, access::Access, attempts::Attempts, selftest};

/// Between the server id and the number in a worker's client id. No Kubernetes name contains it, so no other pod's
/// server id can be a worker's.
const SUFFIX: &str = "_w";

/// A worker that has no connection now.
#[derive(Debug)]
pub struct Worker {
    access: Access,
    server_id: ServerId,
    server_name: ServerName,
    qos: Qos,
    client_id: String,
    attempts: Attempts,
}

/// A connection on which a worker may do all that it has to.
#[derive(Debug)]
pub struct Connected {
    /// The connection.
    pub connection: Connection,
    /// What came meanwhile.
    pub early: Vec<Received>,
    /// Whether this worker had a connection before.
    pub again: bool,
}

impl Worker {
    /// The worker of this number, from 1 on.
    pub(super) fn new(
        number: usize,
        access: Access,
        server_id: ServerId,
        server_name: ServerName,
        qos: Qos,
    ) -> Self {
        let client_id = format!("{server_id}{SUFFIX}{number}");
        Self { access, server_id, server_name, qos, client_id, attempts: Attempts::new() }
    }

    /// Its MQTT client id.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// Waits until another attempt is due, and makes it. Dropping this ends the attempt.
    ///
    /// # Errors
    /// Why there is no connection, or what the broker forbids on it.
    pub async fn attempt(&mut self) -> Result<Connected, Failure> {
        self.attempts.next().await;
        let mut connection = self.access.connect(&self.client_id, None).await?;
        let self_test = selftest::SelfTest {
            client_id: &self.client_id,
            server_id: &self.server_id,
            server_name: &self.server_name,
            qos: self.qos,
            registration: None,
        };
        let report = self_test.run(&mut connection).await.map_err(|failed| failed.failure)?;
        Ok(Connected { connection, early: report.early, again: self.attempts.connected() })
    }

    /// Its connection, which stood since then, is lost: a [`reason`](crate::status::reason), and a sentence.
    pub fn lost(&mut self, why: &CloseReason, since: Instant) -> (&'static str, String) {
        self.attempts.lost(&self.client_id, why, since)
    }
}
