//! What brokers deliver: presences, requests for services that sleep, answers of instances, and clients that leave.

use std::time::Instant;

use bytes::Bytes;
use mcp_mqtt_transport::{
    jsonrpc::{Kind, Message},
    mqtt::{Ack, Received},
    topic::{ClientId, ServerId, ServerName, Topic},
    user_property,
};

use super::{
    Action, Broker, Journalled, PendingInitialize, RegistryController, Unclaimed, WakeError, pending,
    pending::Held,
};
use crate::{
    controller::scope::ServiceRef,
    registry::presences::{MAX_BYTES_IN_ALL, TooMuch},
};

impl RegistryController {
    /// The message is acknowledged after this, unless its `ack` is taken: then that is done later.
    pub(super) fn received(&mut self, key: &str, received: Received, ack: &mut Option<Ack>) {
        let now = Instant::now();
        let Some(broker) = self.brokers.get_mut(key) else { return };
        match broker.journalled(&received) {
            Journalled::Other => {}
            Journalled::Nothing => return,
            Journalled::Message(standby, message) => return self.heard(key, &standby, message, ack),
        }
        match Topic::parse(&received.topic) {
            Ok(Topic::ServerPresence { server_id, server_name }) => {
                let (payload, properties) = (&received.payload, &received.user_properties);
                let retained = received.retain;
                if broker.presences.received(server_id, server_name, retained, payload, properties, now) {
                    return self.overflowed(key, TooMuch::Alone);
                }
                if let Some(largest) = self.is_too_much_in_all() {
                    self.overflowed(&largest, TooMuch::InAll);
                }
                let settled = self.brokers.get(key).is_some_and(|broker| broker.presences.settled());
                if settled && let Some(reference) = self.by_standby.get(server_id).cloned() {
                    self.look_at_place(&reference);
                    self.step(&reference);
                }
            }
            Ok(Topic::Control { server_id, server_name }) if !received.retain => {
                let properties = &received.user_properties;
                let client = user_property::find(properties, user_property::MQTT_CLIENT_ID);
                let Some(client) = client.and_then(|client| ClientId::new(client).ok()) else { return };
                if user_property::find(properties, user_property::HELD_FOR).is_some() {
                    return; // passed on by an operator before us
                }
                let standby = server_id.to_owned();
                let server_name = ServerName::new(server_name).ok();
                let message = Unclaimed { client, payload: received.payload, since: now, server_name };
                self.heard(key, &standby, message, ack);
            }
            Ok(Topic::Rpc { client_id, server_id, .. }) if client_id == broker.client_id() => {
                broker.heard();
                for service in self.services.values_mut() {
                    service.probes.heard(server_id, now);
                }
            }
            Ok(Topic::ClientPresence { client_id }) if !received.retain => {
                let leaves = received.payload.is_empty()
                    || Message::parse(received.payload.clone(), pending::MAX_BYTES)
                        .is_ok_and(|message| message.method() == Some("notifications/disconnected"));
                if leaves {
                    self.client_left(key, client_id);
                }
            }
            _ => {}
        }
    }

    /// The broker whose registry has most, if all of them have more than may be known. Never the operator's own, which
    /// most services share: by itself it has room enough.
    fn is_too_much_in_all(&self) -> Option<String> {
        let bytes = |broker: &Broker| broker.presences.bytes();
        if self.brokers.values().map(bytes).sum::<usize>() <= MAX_BYTES_IN_ALL {
            return None;
        }
        let others = self.brokers.iter().filter(|(_, broker)| !broker.is_default());
        others.max_by_key(|(_, broker)| bytes(broker)).map(|(key, _)| key.clone())
    }

    fn overflowed(&mut self, key: &str, much: TooMuch) {
        if let Some(broker) = self.brokers.get_mut(key) {
            broker.overflowed(much);
            self.unlink(key);
        }
    }

    /// A request for the service of this id.
    pub(super) fn heard(&mut self, key: &str, standby: &str, unclaimed: Unclaimed, ack: &mut Option<Ack>) {
        // A service that has gone to another broker is not asked for at this one.
        let here = |reference: &&ServiceRef| {
            self.services.get(reference).is_some_and(|service| service.wanted.broker.key == key)
        };
        if let Some(reference) = self.by_standby.get(standby).filter(here).cloned() {
            return self.take_unclaimed(&reference, unclaimed, ack);
        }
        // Not told of yet: the broker kept it while there was no operator. Where no service is looked after any more, none
        // is about to be, and what is kept would keep the connection, too.
        let room = self.is_used(key) && self.has_room(key, unclaimed.payload.len());
        if is_request(&unclaimed.payload)
            && ServerId::new(standby).is_ok() // no service has another
            && let Some(broker) = self.brokers.get_mut(key)
        {
            broker.keep_unclaimed(standby, unclaimed, room, Instant::now());
        }
    }

    pub(super) fn take_unclaimed(
        &mut self,
        reference: &ServiceRef,
        unclaimed: Unclaimed,
        ack: &mut Option<Ack>,
    ) {
        let Unclaimed { client, payload, since, .. } = unclaimed;
        let Ok(message) = Message::parse(payload.clone(), usize::MAX) else { return };
        let Kind::Request { id, method } = message.kind() else { return };
        let Some(service) = self.services.get(reference) else { return };
        let room = self.has_room(&service.wanted.broker.key, payload.len());
        let held = PendingInitialize { client, id: id.clone(), payload, since };
        let initialize = &**method == "initialize";
        self.with_ack(reference, ack, |machine, now, out| {
            if initialize {
                machine.initialize(held, room, now, out);
            } else {
                out.push(Action::Refuse(held, WakeError::NotInitialize));
            }
        });
        self.show(reference);
    }

    /// Messages held, over all services and for those that are not known yet.
    pub(super) fn held(&self) -> Held {
        self.brokers.values().map(Broker::unclaimed).chain(self.waiting(|_| true)).sum()
    }

    /// The same at one broker.
    fn held_at(&self, key: &str) -> Held {
        let unclaimed = self.brokers.get(key).map(Broker::unclaimed);
        unclaimed.into_iter().chain(self.waiting(|at| at == key)).sum()
    }

    fn waiting(&self, at: impl Fn(&str) -> bool) -> impl Iterator<Item = Held> {
        let services = self.services.values().filter(move |service| at(&service.wanted.broker.key));
        services.map(|service| service.machine.waiting().held())
    }

    fn has_room(&self, key: &str, bytes: usize) -> bool {
        self.held_at(key).has_room(self.held(), bytes)
    }

    fn client_left(&mut self, key: &str, client: &str) {
        let waiting: Vec<ServiceRef> = self
            .services
            .iter()
            .filter(|(_, service)| service.wanted.broker.key == key && !service.machine.waiting().is_empty())
            .map(|(reference, _)| reference.clone())
            .collect();
        for reference in waiting {
            self.with(&reference, |machine, _, out| machine.client_left(client, out));
        }
    }
}

fn is_request(payload: &Bytes) -> bool {
    let message = Message::parse(payload.clone(), usize::MAX);
    message.is_ok_and(|message| matches!(message.kind(), Kind::Request { .. }))
}
