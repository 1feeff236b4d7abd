//! The workers: connected beside the registration, taken into use as they stand, brought back when they are lost.

use std::time::Duration;

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use mcp_mqtt_transport::{
    jsonrpc::{Kind, Message},
    mqtt::CloseReason,
    topic::{ClientId, Topic},
};
use tokio::time::Instant;

use super::{Driver, LinkId, Outgoing, now};
use crate::{
    bridge::link::Link,
    registrar::{
        Failure,
        worker::{Connected, Worker},
    },
};

/// The presence waits so long for the workers' first attempts: a session that begins before them would stay on the
/// registering connection.
const FIRST_TRY: Duration = Duration::from_secs(3);

/// See the module.
pub(super) struct Workers {
    /// Attempts that run.
    connecting: FuturesUnordered<BoxFuture<'static, Tried>>,
    /// Those with a connection, by [`LinkId`].
    standing: Vec<Option<Worker>>,
    /// Those whose first attempt runs.
    untried: usize,
    /// Until then the presence waits for those.
    first_try_by: Instant,
}

/// What came of an attempt.
pub(super) struct Tried {
    link: LinkId,
    worker: Worker,
    first: bool,
    result: Result<Connected, Failure>,
}

impl Workers {
    /// Begins to connect them all.
    pub(super) fn new(workers: Vec<Worker>) -> Self {
        let mut this = Self {
            connecting: FuturesUnordered::new(),
            standing: std::iter::repeat_with(|| None).take(workers.len() + 1).collect(),
            untried: workers.len(),
            first_try_by: Instant::now() + FIRST_TRY,
        };
        for (number, worker) in workers.into_iter().enumerate() {
            this.connect(LinkId(number + 1), worker, true);
        }
        this
    }

    fn connect(&mut self, link: LinkId, mut worker: Worker, first: bool) {
        self.connecting.push(Box::pin(async move {
            let result = worker.attempt().await;
            Tried { link, worker, first, result }
        }));
    }

    /// The next attempt that ends; waits for ever when none runs. Cancel-safe.
    pub(super) async fn next(&mut self) -> Tried {
        match self.connecting.next().await {
            Some(tried) => tried,
            None => std::future::pending().await,
        }
    }

    /// How long the presence has to wait, if it has to.
    pub(super) fn presence_waits(&self) -> Option<Instant> {
        (self.untried > 0).then_some(self.first_try_by)
    }

    /// The presence waits no longer.
    pub(super) fn waited_enough(&mut self) {
        self.untried = 0;
    }
}

impl Driver<'_> {
    /// An attempt has ended: the worker is taken into use, or tries again.
    pub(super) fn take_tried(&mut self, tried: Tried) {
        let Tried { link, worker, first, result } = tried;
        match result {
            Ok(Connected { connection, early, again }) => {
                if again {
                    self.bridge.metrics.worker_reconnects.inc();
                }
                self.bridge.board.worker_up(worker.client_id());
                self.core.link_up(link, connection.accepted.maximum_packet_size);
                let max_message_bytes = self.bridge.rules.max_message_bytes;
                self.links.insert(link, Link::new(connection, now(), self.outbox_limit, max_message_bytes));
                self.workers.standing[link.0] = Some(worker);
                self.count_links();
                for received in early {
                    self.take_received(link, received);
                }
            }
            Err(failure) => {
                self.bridge.metrics.connect_failed(failure.reason);
                self.bridge.board.worker_down(worker.client_id(), failure.reason, &failure.message);
                self.workers.connect(link, worker, false);
            }
        }
        if first && self.workers.untried > 0 {
            self.workers.untried -= 1;
            if self.workers.untried == 0 {
                self.take_health();
            }
        }
    }

    /// A worker's connection is over: its sessions end, and their clients are told so on another one.
    pub(super) fn worker_lost(&mut self, link: LinkId, why: &CloseReason) {
        let Some(lost) = self.links.remove(link) else { return };
        if let Some(mut worker) = self.workers.standing[link.0].take() {
            let (reason, message) = worker.lost(why, lost.since);
            self.bridge.board.worker_down(worker.client_id(), reason, &message);
            self.workers.connect(link, worker, false);
        }
        self.hand_on(link, lost);
        self.core.sessions.link_lost(link, now(), &mut self.actions);
        self.perform();
        self.count_links();
    }

    /// Answers that a lost connection may not have delivered, and whatever it had not yet been given, go out on another
    /// one, before the errors. Who gets an answer twice has no use for the second; who gets none waits for ever, as not
    /// every client understands a goodbye. A request of the server is not repeated: it might be done twice.
    /// Nor is anything given to a client that has another session by now, with ids of its own.
    pub(super) fn hand_on(&mut self, link: LinkId, lost: Link) {
        for publication in lost.publisher.take_undelivered() {
            let Ok(Topic::Rpc { client_id, .. }) = Topic::parse(&publication.topic) else { continue };
            let Ok(client) = ClientId::new(client_id) else { continue };
            if self.core.sessions.is_elsewhere(client.as_str(), link) {
                continue;
            }
            let payload = publication.payload;
            let message = Message::parse(payload.clone(), usize::MAX);
            if message.is_ok_and(|message| matches!(message.kind(), Kind::Response { .. })) {
                self.send(link, Outgoing::ToClient { client, payload, owed: true });
            }
        }
        for outgoing in lost.into_waiting() {
            match outgoing {
                Outgoing::ToClient { ref client, .. } => {
                    if !self.core.sessions.is_elsewhere(client.as_str(), link) {
                        self.send(link, outgoing);
                    }
                }
                Outgoing::Unsubscribe { .. } => self.unsubscribed(),
                // The end of its session answers it, and the other two go by the registering connection.
                Outgoing::Subscribe { .. } | Outgoing::ToAll { .. } | Outgoing::Presence { .. } => {}
            }
        }
    }

    pub(super) fn count_links(&self) {
        let registering = usize::from(self.links.get(LinkId::REGISTERING).is_some());
        let metrics = &self.bridge.metrics;
        metrics.set_connections(registering, self.links.iter().count() - registering);
        for worker in 1..self.workers.standing.len() {
            metrics.set_worker_sessions(worker, self.core.sessions.on_link(LinkId(worker)));
        }
    }
}
