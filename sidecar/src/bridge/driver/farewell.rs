//! The end of a drain, in the order that no client hangs on: errors, goodbyes, subscriptions, presence, DISCONNECT.

use std::time::Duration;

use mcp_mqtt_transport::mqtt::Event;
use tokio::time::{Instant, sleep_until};

use super::{Drain, Driver, End, Outgoing, now, room};

/// For the errors and goodbyes to go out.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// For the broker to acknowledge the empty presence.
const PRESENCE_TIMEOUT: Duration = Duration::from_secs(3);
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
        self.bridge.board.set_draining();
        let (sessions, in_flight) = (self.core.sessions.len(), self.core.sessions.in_flight());
        tracing::info!(sessions, in_flight, "draining, at most {patience:?}");
        self.drain = Some(Drain { deadline, given_up: Vec::new() });
        self.core.sessions.drain(now(), &mut self.actions);
        self.perform();
    }

    /// All sessions are over: items 13 to 15.
    pub(super) async fn leave(mut self) -> End {
        self.bridge.last_id = self.core.sessions.last_id();
        // Whoever was refused a moment ago still gets the answer.
        self.core.sessions.end_all(&super::EndReason::Drained, now(), &mut self.actions);
        self.perform();
        let given_up =
            self.drain.as_mut().map(|drain| std::mem::take(&mut drain.given_up)).unwrap_or_default();
        for clients in given_up.chunks(UNSUBSCRIBE_AT_ONCE) {
            self.send(Outgoing::Unsubscribe { clients: clients.to_vec() });
        }
        self.flush_until(Instant::now() + FLUSH_TIMEOUT).await;
        let publisher = self.publisher.clone();
        let offline = self.registrar.offline();
        if let Some(Err(error)) = self.reading(publisher.publish_confirmed(offline, PRESENCE_TIMEOUT)).await {
            // The DISCONNECT below would keep the will from clearing it: a lost connection does not.
            tracing::warn!(%error, "the broker did not take the empty presence; leaving it to the will");
            return End::Drained;
        }
        if let Some(Err(error)) = self.reading(publisher.disconnect(DISCONNECT_TIMEOUT)).await {
            tracing::warn!(%error, "the connection to the broker did not end in order");
        }
        End::Drained
    }

    async fn flush_until(&mut self, deadline: Instant) {
        while !self.outbox.is_empty() {
            let (publisher, retry_at) = (self.publisher.clone(), self.retry_at);
            tokio::select! {
                done = self.reading(room(&publisher, retry_at)) => match done {
                    Some(()) => self.flush(),
                    None => return,
                },
                () = sleep_until(deadline) => {
                    return tracing::warn!("the broker does not take the last messages to clients");
                }
            }
        }
    }

    /// Waits for something and reads on meanwhile: what clients still ask is refused. Nothing when the connection
    /// has ended.
    async fn reading<T>(&mut self, what: impl Future<Output = T>) -> Option<T> {
        let mut what = std::pin::pin!(what);
        loop {
            tokio::select! {
                done = &mut what => return Some(done),
                event = self.events.recv() => match event {
                    Some(Event::Received(received)) => self.take_received(received),
                    Some(Event::Refused(refused)) => self.take_refused(refused),
                    Some(Event::Closed(_)) | None => return None,
                },
            }
        }
    }
}
