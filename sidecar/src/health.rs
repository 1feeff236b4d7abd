//! The watch over the backend: asks until it answers, waits until it is gone, and begins again.

use std::time::Duration;

use mcp_mqtt_transport::backoff::Backoff;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use crate::{
    backend::{Backend, BackendEnd, Lost, ProbeError},
    readiness::Board,
};

/// First and longest wait between probes, where the server fails.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Where nobody listens, a look costs a refused connection, and what is waited for is the server's start, while a client
/// may be waiting for it: next after this part of the time that it took so far, but no sooner than this.
const PART: u32 = 50;
const SHORTEST_WAIT: Duration = Duration::from_millis(20);

/// A server that never was there gets so long before its absence is called a fault.
const START: Duration = Duration::from_secs(10);

/// How the backend does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether it answered `initialize`, or why it does not.
    pub state: State,
    /// When nobody was there last: a server that answers now was started after that.
    pub absence: Option<Instant>,
}

/// Whether the backend answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It does not; why.
    Down(String),
    /// It answered `initialize`.
    Up,
}

impl Health {
    /// Nobody has asked yet.
    pub fn unknown() -> Self {
        Self { state: State::Down("not asked yet".to_owned()), absence: None }
    }
}

/// Watches for as long as somebody listens.
pub async fn watch(backend: Backend, board: Board, health: watch::Sender<Health>) {
    let mut first = true;
    while !health.is_closed() {
        probe_until_up(&backend, &board, &health, first).await;
        first = false;
        health.send_modify(|health| health.state = State::Up);
        let lost = backend.lost().await;
        if matches!(lost, Lost::Gone(_)) {
            note_absence(&health);
        }
        let why = lost.into_why();
        board.backend_down(&why);
        health.send_modify(|health| health.state = State::Down(why));
    }
}

/// Nobody is there. Wakes no one: what counts is whoever answers after that.
fn note_absence(health: &watch::Sender<Health>) {
    health.send_if_modified(|health| {
        health.absence = Some(Instant::now());
        false
    });
}

async fn probe_until_up(backend: &Backend, board: &Board, health: &watch::Sender<Health>, first: bool) {
    let begun = Instant::now();
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        let error = match backend.probe().await {
            Ok(server) => return board.backend_up(&server),
            Err(error) => error,
        };
        if first && begun.elapsed() < START {
            board.backend_starting(&error.to_string());
        } else {
            board.backend_down(&error.to_string());
        }
        if matches!(error, ProbeError::Ended(BackendEnd::NobodyListens(_))) {
            note_absence(health);
            sleep(wait_for_start(begun.elapsed())).await;
            continue;
        }
        // A server may also be started anew between two probes.
        let next = Instant::now() + backoff.wait();
        if let Ok(Lost::Gone(_)) = timeout_at(next, backend.gone()).await {
            note_absence(health);
        }
        sleep_until(next).await;
    }
}

/// How long to wait, after having waited so long, for somebody to listen.
fn wait_for_start(waited: Duration) -> Duration {
    (waited / PART).clamp(SHORTEST_WAIT, LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BackendConfig, BackendOptions, Limits};

    /// What a probe of it comes to.
    async fn probed(backend: BackendConfig) -> ProbeError {
        let backend = Backend::from_config(&backend, &BackendOptions::default(), &Limits::default()).unwrap();
        backend.probe().await.unwrap_err()
    }

    #[tokio::test]
    async fn a_server_that_has_not_started_is_told_from_one_that_fails() {
        let directory = tempfile::tempdir().unwrap();
        // Bound and not listening; listening, and not by MCP.
        let reserved = tokio::net::TcpSocket::new_v4().unwrap();
        reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let failing = listener.local_addr().unwrap();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let url = |address: std::net::SocketAddr| Some(format!("http://{address}/mcp").parse().unwrap());
        let starts = url(reserved.local_addr().unwrap());
        let (socket, none) = (Some(directory.path().join("shim.sock")), BackendConfig::default);
        for (backend, is_start) in [
            (BackendConfig { stdio_socket: socket, ..none() }, true),
            (BackendConfig { http_url: starts.clone(), ..none() }, true),
            (BackendConfig { sse_url: starts, ..none() }, true),
            (BackendConfig { http_url: url(failing), ..none() }, false),
            (BackendConfig { sse_url: url(failing), ..none() }, false),
        ] {
            let error = probed(backend.clone()).await;
            let nobody_listens = matches!(error, ProbeError::Ended(BackendEnd::NobodyListens(_)));
            assert_eq!(nobody_listens, is_start, "{backend:?}: {error}");
        }
    }

    #[test]
    fn who_starts_is_found_soon_and_who_does_not_is_not_asked_for_ever_so_often() {
        let seconds = Duration::from_secs;
        assert_eq!(wait_for_start(Duration::ZERO), SHORTEST_WAIT);
        assert_eq!(wait_for_start(seconds(2)), Duration::from_millis(40));
        assert_eq!(wait_for_start(seconds(60)), Duration::from_millis(1200));
        assert_eq!(wait_for_start(seconds(3600)), LONGEST_WAIT);
    }
}
