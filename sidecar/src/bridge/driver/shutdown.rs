//! The end of a drain, in the order that no client hangs on: errors, goodbyes, subscriptions, presence, DISCONNECT;
//! and the end of a registration that was lost.

use std::time::Duration;

use futures::{StreamExt, future::join_all};
use mcp_mqtt_transport::{
    mqtt::{CloseReason, PublishError, Publisher},
    topic::ClientId,
};
use tokio::time::{Instant, sleep_until};

use super::{Drain, Driver, End, EndReason, Link, LinkId, NO_DEADLINE, Outgoing, now};
use crate::bridge::sessions::REFUSAL_DELAY;

/// For the errors and goodbyes to go out.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// For the broker to acknowledge the empty presence.
const CLEARED_TIMEOUT: Duration = Duration::from_secs(3);
/// For the last words of all: of the workers after a lost registration, which is not to wait long for its next attempt,
/// and to whoever asked for a session when there were none any more.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);
/// For DISCONNECT.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Clients whose subscriptions are given up in one packet: some brokers bound the filters in one.
const UNSUBSCRIBE_AT_ONCE: usize = 8;

impl Driver<'_> {
    /// Refuses new sessions and ends the old ones as their requests are answered. Asking again can only shorten it.
    pub(super) fn begin_drain(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        if let Some(drain) = &mut self.drain {
            drain.deadline = drain.deadline.min(deadline);
            return;
        }
        self.bridge.board.set_draining(true);
        let (sessions, in_flight) = (self.core.sessions.len(), self.core.sessions.in_flight());
        tracing::info!(sessions, in_flight, "draining, at most {patience:?}");
        self.drain = Some(Drain { deadline, given_up: Vec::new() });
        self.presence.drain();
        self.core.sessions.drain(now(), &mut self.actions);
        self.perform();
    }

    /// The end of a drain whose sessions are all over: the clearing of the presence comes last.
    pub(super) async fn leave(mut self) -> End {
        // Whoever was refused a moment ago still gets the answer.
        self.core.sessions.end_all(&EndReason::Drained, now(), &mut self.actions);
        self.perform();
        let given_up =
            self.drain.as_mut().map(|drain| std::mem::take(&mut drain.given_up)).unwrap_or_default();
        for link in (0..=self.core.workers()).map(LinkId) {
            let of_link = given_up.iter().filter(|(via, _)| *via == link).map(|(_, client)| client.clone());
            let of_link: Vec<ClientId> = of_link.collect();
            for clients in of_link.chunks(UNSUBSCRIBE_AT_ONCE) {
                self.send(link, Outgoing::Unsubscribe { clients: clients.to_vec() });
            }
        }
        self.part().await;
        self.end(End::Drained)
    }

    /// Gives the connections up, in order, once all sessions are over. As long as the presence stands, clients ask for
    /// new ones: those are refused.
    pub(super) async fn part(&mut self) {
        // All that was said on any connection is at the broker before the presence goes.
        self.settle(Instant::now() + FLUSH_TIMEOUT).await;
        self.clear_presence().await;
        self.answer_late().await;
        disconnect_in_order(self.publishers()).await;
    }

    /// Whoever asked for a session a moment ago has its answer before DISCONNECT.
    async fn answer_late(&mut self) {
        // What came before the broker's acknowledgement may be heard after it: they come by two ways.
        if self.take_waiting(LinkId::REGISTERING).is_some() {
            self.remove(LinkId::REGISTERING);
        }
        if self.core.sessions.next_deadline().is_some() {
            self.reading(sleep_until(Instant::now() + REFUSAL_DELAY)).await;
            // What came in this moment does not prolong it.
            self.core.sessions.answer_delayed(&mut self.actions);
            self.perform();
            self.settle(Instant::now() + LAST_WORDS_TIMEOUT).await;
        }
    }

    /// The empty presence, where the presence is ours.
    async fn clear_presence(&mut self) {
        let offline = self.registrar.offline();
        if !self.presence.is_foreign()
            && let Some(publisher) = self.links.get(LinkId::REGISTERING).map(|link| link.publisher.clone())
            && let Some(Err(error)) =
                self.reading(publisher.publish_confirmed(offline, CLEARED_TIMEOUT)).await
        {
            // A DISCONNECT would keep the will from clearing it: a lost connection does not.
            tracing::warn!(%error, "the broker did not take the empty presence; leaving it to the will");
            self.remove(LinkId::REGISTERING);
        }
    }

    /// The registering connection is over. Where workers stand, their clients are told; for them the will's empty
    /// presence says the same, but not every client takes it as an answer to what it waits for.
    pub(super) async fn lost(mut self, why: CloseReason) -> End {
        self.unwatch_place();
        self.remove(LinkId::REGISTERING);
        let heard = self.links.iter().next().is_some();
        let reason = if heard { EndReason::ConnectionLost } else { EndReason::BrokerLost };
        self.core.sessions.end_all(&reason, now(), &mut self.actions);
        self.perform();
        if heard {
            self.settle(Instant::now() + LAST_WORDS_TIMEOUT).await;
            // Those that fail have most likely gone the same way.
            for error in disconnect(self.publishers(), LAST_WORDS_TIMEOUT).await {
                tracing::debug!(%error, "a worker's connection did not end in order");
            }
        }
        if self.drain.is_some() { self.end(End::Drained) } else { self.end(End::Lost(why)) }
    }

    /// Takes a connection away; what waits for it goes out on another one, if there is one.
    fn remove(&mut self, id: LinkId) {
        if let Some(lost) = self.links.remove(id) {
            self.hand_on(id, lost);
        }
    }

    fn publishers(&self) -> Vec<Publisher> {
        self.links.iter().map(|link| link.publisher.clone()).collect()
    }

    pub(super) fn end(&mut self, end: End) -> End {
        while let Some(link) = self.links.standing_in_for(LinkId::REGISTERING) {
            self.links.remove(link);
        }
        self.bridge.board.workers_gone();
        self.publish_counts();
        self.count_links();
        self.bridge.last_id = self.core.sessions.last_id();
        end
    }

    /// Goes on until nothing waits for any connection and the broker has taken away what was unsubscribed: by then
    /// it has all that was said before.
    async fn settle(&mut self, deadline: Instant) {
        while self.unsubscribing > 0 || self.links.iter().any(Link::is_busy) {
            tokio::select! {
                stands = self.take_next() => if !stands { return },
                () = sleep_until(deadline) => {
                    return tracing::warn!("the broker does not take the last messages to clients");
                }
            }
        }
    }

    /// Waits for something and reads on meanwhile: what clients still ask is refused. Nothing when the registering
    /// connection has ended.
    async fn reading<T>(&mut self, what: impl Future<Output = T>) -> Option<T> {
        let mut what = std::pin::pin!(what);
        loop {
            tokio::select! {
                biased;
                done = &mut what => return Some(done),
                stands = self.take_next() => if !stands { return None },
            }
        }
    }

    /// The next thing that happens near the end, when there are no sessions and nothing is published any more: something
    /// on a connection, an answer of the broker, a refusal that is due. False: the registering connection has ended.
    /// Cancel-safe.
    async fn take_next(&mut self) -> bool {
        let refusal = self.core.sessions.next_deadline().map(Instant::from_std);
        tokio::select! {
            (link, event) = self.links.next() => {
                if self.take_link_events(link, event).is_some() {
                    self.remove(LinkId::REGISTERING);
                    return false;
                }
            }
            Some(answer) = self.answers.next(), if !self.answers.is_empty() => {
                self.take_answer(answer); // what it says of the connection comes too late
            }
            () = sleep_until(refusal.unwrap_or_else(|| Instant::now() + NO_DEADLINE)) => {
                self.core.sessions.expire(now(), &mut self.actions);
                self.perform();
            }
        }
        true
    }
}

/// DISCONNECT on all connections, and a word on each that did not end so.
async fn disconnect_in_order(publishers: Vec<Publisher>) {
    for error in disconnect(publishers, DISCONNECT_TIMEOUT).await {
        tracing::warn!(%error, "a connection to the broker did not end in order");
    }
}

/// DISCONNECT on all connections at once. From here on nothing can be answered.
async fn disconnect(publishers: Vec<Publisher>, patience: Duration) -> Vec<PublishError> {
    let all = publishers.iter().map(|publisher| publisher.disconnect(patience));
    join_all(all).await.into_iter().filter_map(Result::err).collect()
}
