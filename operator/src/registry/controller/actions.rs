//! What the state machines ask for, done.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mcp_mqtt_transport::{
    jsonrpc::Message,
    mqtt::{Ack, Filter, Publication, PublishError, Qos, ReasonCode},
    presence,
    topic::{self, ServerId, Topic},
    user_property::{self, Component},
};
use tokio::time::sleep;

use super::{
    Done, PendingInitialize, RegistryController, Wanted,
    broker::{Line, Right},
};
use crate::{
    controller::scope::ServiceRef,
    observe::ask_now,
    registry::{
        pending::{IN_ALL, WakeError},
        scale_to_zero::{Action, Need},
    },
};

/// An error is said this late: one real client asks a little before the broker has taken its subscription to the
/// answer.
const REFUSAL_DELAY: Duration = Duration::from_millis(20);
/// Messages of a broker that are acknowledged only when their error is said: fewer than it lets be in flight.
const REFUSALS_UNACKED: usize = 8;
/// Gateways asked at one time.
const CONCURRENCY: usize = 16;

/// A message for a service that is about to be answered with an error.
pub(super) struct Rejection {
    reference: ServiceRef,
    wanted: Arc<Wanted>,
    held: PendingInitialize,
    pub(super) refusal: WakeError,
    /// For the message, where it comes from the broker just now.
    ack: Option<Ack>,
}

impl RegistryController {
    pub(super) fn act(&mut self, reference: &ServiceRef, action: Action, ack: &mut Option<Ack>) {
        let Some(service) = self.services.get(reference) else { return };
        let wanted = Arc::clone(&service.wanted);
        match action {
            Action::Subscribe => self.subscribe_control(reference, &wanted),
            Action::Unsubscribe => {
                let control = topic::control(&wanted.standby, &wanted.server_name);
                let sent = self.publisher(&wanted).map(|publisher| publisher.unsubscribe(vec![control]));
                // Nothing depends on the broker's answer.
                if sent.is_some_and(|sent| sent.is_err())
                    && let Some(service) = self.services.get_mut(reference)
                {
                    service.machine.not_unsubscribed();
                }
            }
            Action::Park => {
                let presence = wanted.parked_for(service.machine.successor());
                self.place(&wanted, presence);
            }
            Action::Clear => self.place(&wanted, Bytes::new()),
            Action::Scale { from, to } => self.scale(reference, from, to),
            Action::Ask => self.ask(reference),
            Action::Nudge(instance) => self.nudge(&wanted, &instance),
            Action::Keep(held) => {
                tracing::debug!(service = %reference, client = %held.client, "initialize is held");
                if let Some(publisher) = self.publisher(&wanted) {
                    let filter = Filter::new(topic::client_presence(&held.client), Qos::AtLeastOnce);
                    let _ = publisher.subscribe_start(vec![filter]); // a client that leaves unheard is answered all the same
                }
                if let Some(broker) = self.brokers.get_mut(&wanted.broker.key) {
                    let line = Line {
                        payload: &held.payload,
                        since: held.since,
                        server_name: Some(&wanted.server_name),
                    };
                    broker.write_down(wanted.standby.as_str(), &held.client, Some(line));
                }
            }
            Action::Drop(held) => self.release(&wanted, &held),
            Action::Forward(held) => {
                tracing::debug!(service = %reference, client = %held.client, "initialize is passed on");
                self.setting.metrics.woke(true);
                self.forward(&wanted, &held);
                self.release(&wanted, &held);
            }
            Action::Refuse(held, refusal) => {
                self.setting.metrics.woke(false);
                let reference = reference.clone();
                self.refuse(Rejection { reference, wanted, held, refusal, ack: None }, ack);
            }
        }
    }

    fn publisher(&self, wanted: &Wanted) -> Option<&mcp_mqtt_transport::mqtt::Publisher> {
        self.brokers.get(&wanted.broker.key)?.publisher()
    }

    fn subscribe_control(&mut self, reference: &ServiceRef, wanted: &Wanted) {
        let Some(broker) = self.brokers.get(&wanted.broker.key) else { return };
        let control = topic::control(&wanted.standby, &wanted.server_name);
        let filter = Filter::no_local(control.clone(), Qos::AtLeastOnce);
        let reply = broker.publisher().and_then(|publisher| publisher.subscribe_start(vec![filter]).ok());
        let (reference, connection) = (reference.clone(), broker.connection());
        self.done.push(Box::pin(async move {
            let Some(reply) = reply else {
                sleep(REFUSAL_DELAY).await; // no room: a later step asks again
                return Done::Subscribed(reference, connection, Err(PublishError::Full));
            };
            let code = |codes: Vec<_>| codes.first().copied().unwrap_or(ReasonCode::UNSPECIFIED_ERROR);
            Done::Subscribed(reference, connection, reply.await.map(code))
        }));
    }

    /// The broker's answer, or none: then the connection takes nothing, or is over.
    pub(super) fn control_subscribed(
        &mut self,
        reference: &ServiceRef,
        connection: u64,
        answer: Result<ReasonCode, PublishError>,
    ) {
        let Some(service) = self.services.get_mut(reference) else { return };
        let Some(broker) = self.brokers.get_mut(&service.wanted.broker.key) else { return };
        if broker.connection() != connection {
            return;
        }
        match answer {
            Ok(code) if code.is_error() => {
                let control = topic::control(&service.wanted.standby, &service.wanted.server_name);
                let why = broker.refused(Right::ReadControl, &control, code);
                service.machine.forbid(Need::Control, why, Instant::now());
            }
            answer => {
                let granted = answer.is_ok();
                self.with(reference, |machine, now, out| machine.subscribed(granted, now, out));
            }
        }
        self.show(reference);
    }

    /// The broker refused what was published there.
    pub(super) fn publish_refused(&mut self, key: &str, topic: &str, reason: ReasonCode) {
        let Some(broker) = self.brokers.get_mut(key) else { return };
        let why = broker.refused(Right::to_write(topic), topic, reason);
        let Ok(Topic::ServerPresence { server_id, server_name }) = Topic::parse(topic) else { return };
        let Some(reference) = self.by_standby.get(server_id).cloned() else { return };
        let Some(service) = self.services.get_mut(&reference) else { return };
        if service.wanted.broker.key == key && service.wanted.server_name.as_str() == server_name {
            service.machine.forbid(Need::Place, why, Instant::now());
            self.show(&reference);
        }
    }

    fn place(&mut self, wanted: &Wanted, payload: Bytes) {
        if let Some(broker) = self.brokers.get_mut(&wanted.broker.key) {
            broker.say_presence(&wanted.standby, &wanted.server_name, &self.setting.mark, payload);
        }
    }

    fn nudge(&mut self, wanted: &Wanted, instance: &ServerId) {
        let Some(broker) = self.brokers.get_mut(&wanted.broker.key) else { return };
        tracing::info!(%instance, "asking the instance to register anew");
        let message = Message::notification::<()>(presence::REGISTER, None).expect("no parameters");
        let properties = user_property::of_publish(Component::Server, broker.client_id());
        broker.say(Publication {
            user_properties: properties,
            ..Publication::new(
                topic::control(instance, &wanted.server_name),
                message.into_raw(),
                Qos::AtLeastOnce,
            )
        });
    }

    /// To the instance that has the place, as it came, and for whom.
    fn forward(&mut self, wanted: &Wanted, held: &PendingInitialize) {
        let Some(broker) = self.brokers.get_mut(&wanted.broker.key) else { return };
        let mut user_properties = user_property::of_publish(Component::Client, broker.client_id());
        user_properties.push((user_property::HELD_FOR.to_owned(), held.client.as_str().to_owned()));
        broker.say(Publication {
            user_properties,
            ..Publication::new(
                topic::control(&wanted.standby, &wanted.server_name),
                held.payload.clone(),
                Qos::AtLeastOnce,
            )
        });
    }

    fn refuse(&mut self, mut rejection: Rejection, ack: &mut Option<Ack>) {
        let (service, client) = (&rejection.reference, &rejection.held.client);
        tracing::info!(%service, %client, reason = rejection.refusal.reason(), "initialize is refused");
        let broker = self.brokers.get_mut(&rejection.wanted.broker.key);
        if let Some(broker) = broker.filter(|_| self.done.len() < IN_ALL) {
            broker.refusals += 1;
            // So many messages of a broker may wait for their acknowledgement that others are not kept back by it.
            if broker.refusals <= REFUSALS_UNACKED {
                rejection.ack = ack.take();
            }
            self.done.push(Box::pin(async move {
                sleep(REFUSAL_DELAY).await;
                Done::Reject(rejection)
            }));
        } else {
            self.say_rejection(rejection);
        }
    }

    pub(super) fn reject(&mut self, rejection: Rejection) {
        if let Some(broker) = self.brokers.get_mut(&rejection.wanted.broker.key) {
            // A broker that was opened anew meanwhile has none.
            broker.refusals = broker.refusals.saturating_sub(1);
        }
        self.say_rejection(rejection);
    }

    fn say_rejection(&mut self, rejection: Rejection) {
        let Rejection { reference, wanted, held, refusal, ack } = rejection;
        let Some(broker) = self.brokers.get_mut(&wanted.broker.key) else { return };
        broker.say_refusal((&wanted.standby, &wanted.server_name), &held.client, &held.id, &refusal);
        if let Some(ack) = ack {
            broker.acknowledge(ack);
        }
        // The same client may have asked anew meanwhile, and be waiting.
        let service = self.services.get(&reference);
        if !service.is_some_and(|service| service.machine.waiting().holds(held.client.as_str())) {
            self.release(&wanted, &held);
        }
    }

    /// It is held no longer.
    fn release(&mut self, wanted: &Wanted, held: &PendingInitialize) {
        if let Some(publisher) = self.publisher(wanted) {
            let _ = publisher.unsubscribe(vec![topic::client_presence(&held.client)]);
        }
        if let Some(broker) = self.brokers.get_mut(&wanted.broker.key) {
            broker.write_down(wanted.standby.as_str(), &held.client, None);
        }
    }

    pub(super) fn ask(&mut self, reference: &ServiceRef) {
        let Some(watched) = self.setting.watched.of(reference) else { return };
        let pods = watched.stores.pods.of(reference);
        let (observations, reference) = (watched.observations.clone(), reference.clone());
        self.done.push(Box::pin(async move {
            let answered = ask_now(&pods, &observations, CONCURRENCY).await;
            Done::Asked(reference, answered)
        }));
    }
}
