//! What goes out, on which connection, and what becomes of it.

use std::future::ready;

use mcp_mqtt_transport::mqtt::{Publication, PublishError, Publisher};
use tokio::time::timeout;

use super::{Answer, Driver, LinkId, PRESENCE_TIMEOUT, Registrar, now};
use crate::bridge::{
    core::Core,
    outbox::{Outgoing, Sent, Unsent},
};

impl Driver<'_> {
    /// Sends on this connection, or on one that stands in for it.
    pub(super) fn send(&mut self, via: LinkId, outgoing: Outgoing) {
        let Some(link) = self.links.standing_in_for(via).and_then(|id| self.links.get_mut(id)) else {
            return; // all connections are over, and all sessions with them
        };
        if matches!(outgoing, Outgoing::Unsubscribe { .. }) {
            self.unsubscribing += 1;
        }
        let transmit =
            |to: &Publisher, outgoing: &Outgoing| transmit(to, &self.core, self.registrar, outgoing);
        let sent = link.send(outgoing, transmit);
        self.sent(sent);
    }

    pub(super) fn flush(&mut self, id: LinkId) {
        while let Some(link) = self.links.get_mut(id) {
            let transmit =
                |to: &Publisher, outgoing: &Outgoing| transmit(to, &self.core, self.registrar, outgoing);
            match link.retry(transmit) {
                Some(sent) => self.sent(sent),
                None => break,
            }
        }
        self.perform(); // what a failure has led to
    }

    fn sent(&mut self, sent: Result<Sent, Unsent>) {
        match sent {
            Ok(Sent::Bytes(bytes)) => {
                self.bridge.metrics.sent_bytes.inc_by(bytes as u64);
            }
            Ok(Sent::Subscribing(session, reply)) => {
                self.answers.push(Box::pin(async move { Answer::Subscribed(session, reply.await) }));
            }
            Ok(Sent::Unsubscribing(reply)) => self.answers.push(Box::pin(async move {
                let _ = reply.await; // answered, or the connection is over
                Answer::Unsubscribed
            })),
            Ok(Sent::Announcing(online, reply)) => self.answers.push(Box::pin(async move {
                let answer = timeout(PRESENCE_TIMEOUT, reply).await;
                Answer::Announced(online, answer.unwrap_or(Err(PublishError::Timeout(PRESENCE_TIMEOUT))))
            })),
            Ok(Sent::Waits) => {}
            Err(Unsent::Overflow { outgoing, first }) => {
                if first {
                    tracing::warn!("messages are dropped until the broker has taken what waits");
                }
                self.unsent(&outgoing, "outbox-full", PublishError::Full);
            }
            Err(Unsent::Refused(outgoing, error)) => {
                tracing::warn!("not sent: {error}");
                self.unsent(&outgoing, "packet-refused", error);
            }
        }
    }

    fn not_unsubscribing(&mut self, outgoing: &Outgoing) {
        if matches!(outgoing, Outgoing::Unsubscribe { .. }) {
            self.unsubscribed();
        }
    }

    fn unsent(&mut self, outgoing: &Outgoing, reason: &'static str, error: PublishError) {
        self.dropped(reason);
        match outgoing {
            Outgoing::Subscribe { session, .. } => {
                self.core.sessions.subscribed(*session, Err(error.to_string()), now(), &mut self.actions);
            }
            Outgoing::ToClient { client, payload, owed: true } => {
                let note = self.core.note(client);
                self.core.undelivered(note, payload.clone(), &error.to_string(), now(), &mut self.actions);
            }
            // As if the broker had refused it: what stands in the registry is not what we say.
            Outgoing::Presence { online } => {
                self.answers.push(Box::pin(ready(Answer::Announced(*online, Err(error)))));
            }
            Outgoing::ToClient { owed: false, .. }
            | Outgoing::ToAll { .. }
            | Outgoing::Unsubscribe { .. } => {}
        }
        self.not_unsubscribing(outgoing);
    }

    pub(super) fn dropped(&self, reason: &'static str) {
        self.bridge.metrics.dropped(reason);
        tracing::debug!(reason, "dropped a message");
    }
}

/// The one place where things go out.
fn transmit(
    publisher: &Publisher,
    core: &Core,
    registrar: &Registrar,
    outgoing: &Outgoing,
) -> Result<Sent, PublishError> {
    let publish = |publication: Publication, note| {
        let bytes = publication.payload.len();
        publisher.try_publish_noted(publication, note).map(|()| Sent::Bytes(bytes))
    };
    match outgoing {
        Outgoing::ToClient { client, payload, .. } => {
            publish(core.to_client(client, payload.clone()), core.note(client))
        }
        Outgoing::ToAll { payload } => publish(core.to_all(payload.clone()), 0),
        Outgoing::Subscribe { session, client } => {
            Ok(Sent::Subscribing(*session, publisher.subscribe_start(core.filters(client).into())?))
        }
        Outgoing::Unsubscribe { clients } => {
            let filters = clients.iter().flat_map(|client| core.filters(client)).map(|filter| filter.filter);
            Ok(Sent::Unsubscribing(publisher.unsubscribe(filters.collect())?))
        }
        Outgoing::Presence { online } => {
            let presence = if *online { registrar.online() } else { registrar.offline() };
            Ok(Sent::Announcing(*online, publisher.publish_start(presence)?))
        }
    }
}
