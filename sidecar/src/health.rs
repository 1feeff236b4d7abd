//! The watch over the backend: asks until it answers, waits until it is gone, and begins again.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{backend::Backend, backoff::Backoff, readiness::Board};

/// First and longest wait between probes. A server container starts in parallel with the gateway, and the pod is not
/// ready before the first answer.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A server that never was there gets so long before its absence is called a fault.
const START: Duration = Duration::from_secs(10);

/// How the backend does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does not answer; why.
    Down(String),
    /// It answered `initialize`; how often it has come up. Another number means that it was down meanwhile.
    Up(u64),
}

/// Watches for as long as somebody listens.
pub async fn watch(backend: Backend, board: Board, health: watch::Sender<Health>) {
    let mut generation = 0;
    while !health.is_closed() {
        probe_until_up(&backend, &board, generation == 0).await;
        generation += 1;
        health.send_replace(Health::Up(generation));
        let why = backend.lost().await;
        board.backend_down(&why);
        health.send_replace(Health::Down(why));
    }
}

async fn probe_until_up(backend: &Backend, board: &Board, first: bool) {
    let begun = Instant::now();
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        match backend.probe().await {
            Ok(server) => return board.backend_up(&server),
            Err(error) if first && begun.elapsed() < START => board.backend_starting(&error.to_string()),
            Err(error) => board.backend_down(&error.to_string()),
        }
        sleep(backoff.wait()).await;
    }
}
