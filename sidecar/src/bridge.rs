//! Between the broker and the backends: one task that owns all sessions.
//!
//! - [`placement`]: which connection carries which session
//! - [`session`]: one session as a state machine without IO; [`in_flight`]: its requests in flight
//! - [`sessions`]: the table of all; [`broadcast`]: what all clients are told
//! - [`core`]: from topics to sessions, still without IO
//! - [`action`], [`refusal`]: what the state machines want done, and the errors they answer
//! - [`request`]: a request's method, asker and outcome
//! - [`link`]: a connection and its queues
//! - [`presence`]: when this instance is in the registry, and who else holds its place; without IO
//! - [`silence`]: whether the server still answers anybody
//! - [`driver`]: moves the bytes, for the life of one registration
//!
//! [`Bridge::run`] takes one [`Registration`](crate::registrar::Registration) after the other from the registrar.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval, sleep, timeout},
};

use self::{
    driver::{Driver, End},
    session::Rules,
};
use crate::{
    backend::{Backend, SendQuota},
    config::GatewayConfig,
    drain::{Drains, Progress},
    health::{Health, State},
    metrics::Metrics,
    pulse::BEAT,
    readiness::Board,
    registrar::{Registrar, Registration},
    status::reason,
    traces::Tracer,
};

pub mod action;
pub mod broadcast;
pub mod core;
mod driver;
pub mod in_flight;
mod link;
mod outbox;
pub mod placement;
pub mod presence;
pub mod refusal;
pub mod request;
pub mod session;
pub mod sessions;
mod silence;
#[cfg(test)]
mod tests;

/// After a drain, how often to look whether the server is there: the kubelet takes longer to restart a container.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long an attempt that must not be dropped may take to come to its end.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(15);

/// The bridge, from one registration to the next.
#[derive(Debug)]
pub struct Bridge {
    config: Arc<GatewayConfig>,
    rules: Rules,
    backend: Backend,
    quota: SendQuota,
    health: watch::Receiver<Health>,
    drains: Drains,
    board: Board,
    metrics: Metrics,
    tracer: Option<Tracer>,
    /// Whether our own presence is watched: not where a broker ends the connection on it.
    watches_place: bool,
    /// When the board is to hear again that we are at work.
    heart: Interval,
    /// Session ids are never used twice.
    last_id: u64,
}

impl Bridge {
    /// Not running yet. Must be called within a tokio runtime.
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
        let mut heart = interval(BEAT);
        heart.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            quota: SendQuota::for_messages_of(rules.max_message_bytes),
            config,
            rules,
            backend,
            health,
            drains,
            board,
            metrics,
            tracer,
            watches_place: true,
            heart,
            last_id: 0,
        }
    }

    /// Serves until the last drain has ended. After another one the server's container may be restarted, and is then
    /// registered again.
    pub async fn run(mut self, mut registrar: Registrar) {
        loop {
            self.serve_until_drained(&mut registrar).await;
            self.set_drained();
            self.drains.progress.send_replace(Progress::Drained);
            if !self.server_starts_anew().await {
                return self.board.pulse().end();
            }
            tracing::info!("the MCP server was started anew after a drain");
            self.board.set_draining(false);
            self.board.unregistered(reason::CONNECTING, "the MCP server was started anew: registering again");
            self.drains.progress.send_replace(Progress::Serving);
            registrar.ended();
        }
    }

    /// Serves registration after registration until a drain has ended.
    async fn serve_until_drained(&mut self, registrar: &mut Registrar) {
        loop {
            let Some(registration) = self.establish(registrar).await else { return };
            let since = registration.since;
            let end = Driver::new(self, registrar, registration).run().await;
            match end {
                End::Drained => return,
                End::Lost(why) => registrar.lost(&why, since),
            }
        }
    }

    /// The next registration; none: a drain came before.
    async fn establish(&mut self, registrar: &mut Registrar) -> Option<Registration> {
        let mut stands_in = registrar.stands_in();
        let mut establish = pin!(registrar.establish());
        loop {
            tokio::select! {
                registration = &mut establish => return Some(registration),
                // Without a connection there is no session and no presence: nothing is left to drain.
                Some(_) = self.drains.next() => break,
                _ = self.heart.tick() => self.board.pulse().beat(),
            }
        }
        let over = async move { drop(stands_in.wait_for(|stands_in| !stands_in).await) };
        let withdraw = async {
            tokio::select! {
                biased;
                registration = &mut establish => registration.withdraw().await,
                () = over => {}
            }
        };
        if timeout(WITHDRAW_TIMEOUT, withdraw).await.is_err() {
            tracing::warn!(
                "the service's presence may be cleared: a connection in its name did not end in order"
            );
        }
        None
    }

    fn set_drained(&self) {
        self.board.set_draining(true);
        self.board.unregistered(reason::DRAINED, "drained: the presence is cleared");
    }

    /// Waits, after a drain, until the server was started anew and answers. False: the process is to end.
    async fn server_starts_anew(&mut self) -> bool {
        while !self.drains.is_last() {
            let Health { state, absence } = self.health.borrow_and_update().clone();
            if self.drains.are_older_than(absence) {
                if state == State::Up {
                    return true;
                }
                // What is waited for now is the server, and what keeps it is told as at any start.
                self.board.set_draining(false);
                let message = "drained: the presence is published again once the MCP server was started anew";
                self.board.unregistered(reason::WAITING_FOR_BACKEND, message);
            }
            tokio::select! {
                biased;
                asked = self.drains.next() => match asked {
                    Some(_) => self.set_drained(),
                    None => return false,
                },
                Ok(()) = self.health.changed() => {}
                _ = self.heart.tick() => self.board.pulse().beat(),
                () = sleep(LOOK_EVERY) => self.backend.look(),
            }
        }
        false
    }
}
