//! The one board on which every part of the gateway writes how it does, and from which the admin endpoints read.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::{
    metrics::Metrics,
    pulse::Pulse,
    status::{GatewayStatus, Part, ServerInfo, WorkerStatus, reason},
};

/// The board; cheap to clone, every clone is the same board.
#[derive(Debug, Clone)]
pub struct Board {
    status: Arc<Mutex<GatewayStatus>>,
    /// When there was a session last; at first, when there could have been one.
    busy: Arc<Mutex<Instant>>,
    pulse: Pulse,
    metrics: Metrics,
}

impl Board {
    /// Nothing is ready yet. Sessions and requests in flight are read from the metrics.
    pub fn new(server_id: &str, server_name: &str, metrics: Metrics) -> Self {
        let status = GatewayStatus {
            server_id: server_id.to_owned(),
            server_name: server_name.to_owned(),
            backend: part(
                false,
                reason::BACKEND_STARTING,
                "the MCP server has not answered `initialize` yet",
            ),
            broker: part(false, reason::CONNECTING, "no connection to the broker yet"),
            draining: false,
            sessions: 0,
            in_flight: 0,
            idle_seconds: None,
            refused_sessions: 0,
            server: None,
            workers: Vec::new(),
        };
        let pulse = Pulse::default();
        pulse.beat();
        Self {
            status: Arc::new(Mutex::new(status)),
            busy: Arc::new(Mutex::new(Instant::now())),
            pulse,
            metrics,
        }
    }

    /// The MCP server answered `initialize`.
    pub fn backend_up(&self, server: &ServerInfo) {
        let message = format!("{} {} speaks MCP {}", server.name, server.version, server.protocol_version);
        tracing::info!(server = server.name, version = server.version, "the MCP server answers");
        self.metrics.backend_up.set(1);
        let mut status = self.lock();
        status.backend = part(true, reason::BACKEND_READY, &message);
        status.server = Some(server.clone());
    }

    /// The MCP server has not answered yet; why, in a sentence.
    pub fn backend_starting(&self, message: &str) {
        let new = part(false, reason::BACKEND_STARTING, message);
        let old = std::mem::replace(&mut self.lock().backend, new.clone());
        if old != new {
            tracing::debug!("{message}");
        }
    }

    /// The MCP server does not answer; why, in a sentence.
    pub fn backend_down(&self, message: &str) {
        self.metrics.backend_up.set(0);
        let new = part(false, reason::BACKEND_NOT_ANSWERING, message);
        let old = std::mem::replace(&mut self.lock().backend, new.clone());
        if old != new {
            tracing::warn!(reason = new.reason, "{message}");
        }
    }

    /// The presence stands in the broker.
    pub fn registered(&self, server_name: &str, remark: Option<&str>) {
        let mut message = format!("registered as {server_name}");
        if let Some(remark) = remark {
            message = format!("{message}; {remark}");
        }
        tracing::info!("{message}");
        self.metrics.registered.set(1);
        self.lock().broker = part(true, reason::REGISTERED, &message);
    }

    /// The presence does not stand in the broker: one of [`reason`], and why in a sentence.
    pub fn unregistered(&self, reason: &str, message: &str) {
        self.metrics.registered.set(0);
        let new = part(false, reason, message);
        let old = std::mem::replace(&mut self.lock().broker, new.clone());
        if old == new {
            return; // a person need not read the same at every attempt
        }
        match reason {
            reason::WAITING_FOR_BACKEND | reason::CONNECTING | reason::DRAINED | reason::RELIEVED => {
                tracing::info!(reason, "{message}");
            }
            _ => tracing::warn!(reason, "{message}"),
        }
    }

    /// The workers that there are to be, by client id; none has a connection.
    pub fn set_workers(&self, client_ids: Vec<String>) {
        let part = part(false, reason::CONNECTING, "no connection to the broker yet");
        self.lock().workers =
            client_ids.into_iter().map(|client_id| WorkerStatus { client_id, part: part.clone() }).collect();
    }

    /// The workers' connections have ended with the registering one.
    pub fn workers_gone(&self) {
        for worker in &mut self.lock().workers {
            worker.part = part(false, reason::CONNECTING, "waits for the registering connection");
        }
    }

    /// A worker's connection stands.
    pub fn worker_up(&self, client_id: &str) {
        tracing::info!(client_id, "worker connection stands");
        self.set_worker(client_id, &part(true, reason::CONNECTED, "carries sessions"));
    }

    /// A worker has no connection: one of [`reason`], and why in a sentence.
    pub fn worker_down(&self, client_id: &str, reason: &str, message: &str) {
        if self.set_worker(client_id, &part(false, reason, message)) {
            tracing::warn!(client_id, reason, "worker connection: {message}");
        }
    }

    /// Whether that is news.
    fn set_worker(&self, client_id: &str, part: &Part) -> bool {
        let mut status = self.lock();
        let worker = status.workers.iter_mut().find(|worker| worker.client_id == client_id);
        worker.is_some_and(|worker| std::mem::replace(&mut worker.part, part.clone()) != *part)
    }

    /// The server name in use; the broker may have replaced the configured one.
    pub fn set_server_name(&self, server_name: &str) {
        server_name.clone_into(&mut self.lock().server_name);
    }

    /// The server id in use: an instance may stand in for its service as a whole.
    pub fn set_server_id(&self, server_id: &str) {
        server_id.clone_into(&mut self.lock().server_id);
    }

    /// There is a session, or was one until now.
    pub fn busy(&self) {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// The bridge's: it beats from the start, as the bridge is to begin at once.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// A drain has begun, or what was drained is to serve again.
    pub fn set_draining(&self, draining: bool) {
        self.lock().draining = draining;
    }

    /// Everything, as of now.
    pub fn status(&self) -> GatewayStatus {
        let mut status = self.lock().clone();
        if status.broker.ok
            && let Some(trouble) = trouble(&status.workers)
        {
            status.broker.message = format!("{}; but {trouble}", status.broker.message);
        }
        status.sessions = u32::try_from(self.metrics.sessions.get()).unwrap_or_default();
        let idle = self.busy.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        status.idle_seconds = (status.sessions == 0).then_some(idle.as_secs());
        status.in_flight = u32::try_from(self.metrics.in_flight.get()).unwrap_or_default();
        status.refused_sessions = self.metrics.refused_sessions.count();
        status
    }

    /// What readiness waits for, a line each; nothing when ready.
    pub fn pending(&self) -> Vec<String> {
        let status = self.lock();
        let parts = [("backend", &status.backend), ("broker", &status.broker)];
        let parts = parts.into_iter().filter(|(_, part)| !part.ok);
        let mut pending: Vec<String> =
            parts.map(|(name, part)| format!("{name}: {}: {}", part.reason, part.message)).collect();
        if status.draining {
            pending.push("draining".to_owned());
        }
        pending
    }

    /// What is not as it should be though the instance is ready.
    pub fn trouble(&self) -> Option<String> {
        trouble(&self.lock().workers)
    }

    fn lock(&self) -> MutexGuard<'_, GatewayStatus> {
        // Every critical section is a few assignments: what a panic left behind is whole.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sentence about the workers without a connection.
fn trouble(workers: &[WorkerStatus]) -> Option<String> {
    let mut down = workers.iter().filter(|worker| !worker.part.ok);
    let first = down.next()?;
    Some(format!(
        "{} of {} worker connections do not stand, and the remaining connections carry the sessions: {}: {}: {}",
        down.count() + 1,
        workers.len(),
        first.client_id,
        first.part.reason,
        first.part.message
    ))
}

fn part(ok: bool, reason: &str, message: &str) -> Part {
    Part { ok, reason: reason.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> ServerInfo {
        ServerInfo {
            name: "echo".to_owned(),
            version: "1".to_owned(),
            protocol_version: "2025-11-25".to_owned(),
        }
    }

    #[test]
    fn ready_is_backend_and_broker_and_not_draining() {
        let metrics = Metrics::new();
        let board = Board::new("id", "a/b", metrics.clone());
        assert_eq!(board.pending().len(), 2);
        board.backend_up(&info());
        assert!(!board.status().ready());
        assert!(board.pending()[0].starts_with("broker: Connecting: "), "{:?}", board.pending());
        board.registered("a/b", None);
        assert!(board.status().ready() && board.pending().is_empty());
        assert_eq!((metrics.backend_up.get(), metrics.registered.get()), (1, 1));
        board.backend_down("gone");
        board.unregistered(reason::WAITING_FOR_BACKEND, "it waits");
        assert_eq!((metrics.backend_up.get(), metrics.registered.get()), (0, 0));
        board.backend_up(&info());
        board.registered("a/b", None);
        metrics.sessions.set(3);
        assert_eq!(board.status().sessions, 3);
        board.set_draining(true);
        assert!(!board.status().ready());
        assert_eq!(board.pending(), ["draining"]);
        board.set_draining(false);
        assert!(board.status().ready());
    }

    #[test]
    fn a_worker_without_a_connection_is_named_and_takes_nothing_from_readiness() {
        let board = Board::new("id", "a/b", Metrics::new());
        board.set_workers(vec!["id_w1".to_owned(), "id_w2".to_owned()]);
        board.backend_up(&info());
        board.registered("a/b", None);
        board.worker_up("id_w1");
        board.worker_down("id_w2", reason::BROKER_NOT_AUTHORIZED, "the ACL forbids it");
        let status = board.status();
        assert!(status.ready() && board.pending().is_empty());
        for said in [status.broker.message, board.trouble().unwrap()] {
            assert!(
                said.contains("1 of 2 worker") && said.contains("id_w2: BrokerNotAuthorized: the ACL"),
                "{said}"
            );
        }
        board.worker_up("id_w2");
        assert_eq!((board.trouble(), board.status().broker.message.as_str()), (None, "registered as a/b"));
    }

    #[test]
    fn each_part_says_why_it_is_not_ready() {
        let board = Board::new("id", "a/b", Metrics::new());
        board.backend_down("the container restarts");
        board.unregistered(reason::BROKER_UNREACHABLE, "no route");
        assert_eq!(
            board.pending(),
            ["backend: BackendNotAnswering: the container restarts", "broker: BrokerUnreachable: no route"]
        );
    }
}
