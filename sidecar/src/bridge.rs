//! Between the broker and the backends: one task that owns all sessions.
//!
//! - [`placement`]: which connection carries which session
//! - [`session`]: one session as a state machine without IO; [`flights`]: its requests in flight
//! - [`sessions`]: the table of all; [`broadcast`]: what all clients are told
//! - [`core`]: from topics to sessions, still without IO
//! - [`action`], [`refusal`]: what the state machines want done, and the errors they answer
//! - [`link`]: a connection and its queues
//! - [`driver`]: moves the bytes, for the life of one registration
//!
//! [`Bridge::run`] takes one [`Registration`](crate::registrar::Registration) after the other from the registrar.

use std::sync::Arc;

use tokio::sync::watch;

use self::{
    driver::{Driver, End},
    session::Rules,
};
use crate::{
    backend::{Backend, Room},
    config::GatewayConfig,
    drain::{Drains, Progress},
    health::Health,
    metrics::Metrics,
    readiness::Board,
    registrar::Registrar,
    status::reason,
    traces::Tracer,
};

pub mod action;
pub mod broadcast;
pub mod core;
mod driver;
pub mod flights;
mod link;
mod outbox;
pub mod placement;
pub mod refusal;
pub mod session;
pub mod sessions;
#[cfg(test)]
mod shorthand;

/// The bridge, from one registration to the next.
#[derive(Debug)]
pub struct Bridge {
    config: Arc<GatewayConfig>,
    rules: Rules,
    backend: Backend,
    room: Room,
    health: watch::Receiver<Health>,
    drains: Drains,
    board: Board,
    metrics: Metrics,
    tracer: Option<Tracer>,
    /// Whether our own presence is watched: not where a broker ends the connection on it.
    watches_place: bool,
    /// Session ids are never used twice.
    last_id: u64,
}

impl Bridge {
    /// Not running yet.
    pub fn new(
        config: Arc<GatewayConfig>,
        backend: Backend,
        health: watch::Receiver<Health>,
        drains: Drains,
        board: Board,
        metrics: Metrics,
        tracer: Option<Tracer>,
    ) -> Self {
        let limit = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
        let rules = Rules {
            timeouts: config.timeouts.clone(),
            max_in_flight: limit(config.limits.max_in_flight),
            max_message_bytes: limit(config.limits.max_message_bytes),
            idle_timeout: config.limits.idle_timeout,
            sampler: tracer.as_ref().map(Tracer::sampler),
        };
        Self {
            room: Room::for_messages_of(rules.max_message_bytes),
            config,
            rules,
            backend,
            health,
            drains,
            board,
            metrics,
            tracer,
            watches_place: true,
            last_id: 0,
        }
    }

    /// Serves registration after registration until a drain has ended.
    pub async fn run(mut self, mut registrar: Registrar) {
        loop {
            let registration = tokio::select! {
                registration = registrar.establish() => registration,
                // Without a connection there is no session and no presence: nothing is left to drain.
                Some(_) = self.drains.requests.recv() => break,
            };
            let since = registration.since;
            let end = Driver::new(&mut self, &registrar, registration).run().await;
            match end {
                End::Drained => break,
                End::Lost(why) => registrar.lost(&why, since),
            }
        }
        self.board.set_draining();
        self.board.unregistered(reason::DRAINED, "drained: the presence is cleared");
        self.drains.progress.send_replace(Progress::Drained);
    }
}
