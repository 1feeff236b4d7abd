//! A gateway that owes the operator an answer is asked once more, by way of the broker. Where it is not heard of there
//! either, nobody stands behind its presence: its node is lost, say. The broker itself would clear it only when the
//! keep-alive is long over, and Kubernetes would count the pod among the living for minutes.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mcp_mqtt_transport::{
    jsonrpc::{Message, RequestId},
    mqtt::{Publication, PublishError, Qos},
    topic::{self, ServerId},
    user_property::{self, Component},
};

use super::{Done, RegistryController};
use crate::controller::scope::ServiceRef;

/// For an answer, from when the broker has the question.
const ANSWER: Duration = Duration::from_secs(2);
/// For the broker to take the question.
const TAKEN: Duration = Duration::from_secs(5);
/// One that has answered by way of the broker is not asked there again for so long.
const REST: Duration = Duration::from_secs(10);

/// Instances that owe an answer: how far the question by way of the broker has come.
#[derive(Debug, Default)]
pub(super) struct Probes(HashMap<ServerId, Probe>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    /// It is on its way to the broker.
    Asked,
    /// The broker has it since then.
    Open(Instant),
    /// Settled then, one way or the other.
    Settled(Instant),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Ask(ServerId),
    Clear(ServerId),
}

impl Probes {
    /// These stand in the registry, and owe an answer.
    fn look(&mut self, silent: &[ServerId], now: Instant) -> Vec<Step> {
        self.0.retain(|id, _| silent.contains(id));
        let mut steps = Vec::new();
        for id in silent {
            match self.0.get(id) {
                None => {
                    self.0.insert(id.clone(), Probe::Asked);
                    steps.push(Step::Ask(id.clone()));
                }
                Some(Probe::Open(since)) if now.duration_since(*since) >= ANSWER => {
                    self.0.insert(id.clone(), Probe::Settled(now));
                    steps.push(Step::Clear(id.clone()));
                }
                Some(Probe::Settled(then)) if now.duration_since(*then) >= REST => {
                    self.0.insert(id.clone(), Probe::Asked);
                    steps.push(Step::Ask(id.clone()));
                }
                Some(_) => {}
            }
        }
        steps
    }

    /// The broker has taken the question, or not: then nothing can be told of the instance.
    fn taken(&mut self, id: &ServerId, taken: bool, now: Instant) {
        if let Some(probe @ Probe::Asked) = self.0.get_mut(id) {
            *probe = if taken { Probe::Open(now) } else { Probe::Settled(now) };
        }
    }

    /// It lives.
    pub(super) fn heard(&mut self, id: &str, now: Instant) {
        if let Some((_, probe)) = self.0.iter_mut().find(|(known, _)| known.as_str() == id) {
            *probe = Probe::Settled(now);
        }
    }

    /// The connection over which they were asked is over.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

impl RegistryController {
    /// Instances that stand in the registry, and whose gateways owe an answer.
    pub(super) fn look_for_silent(&mut self, reference: &ServiceRef, now: Instant) {
        let Some(service) = self.services.get_mut(reference) else { return };
        if service.found.silent.is_empty() && service.probes.0.is_empty() {
            return; // of nearly all, nearly always
        }
        let key = service.wanted.broker.key.clone();
        let Some(broker) = self.brokers.get(&key) else { return };
        if !broker.presences.settled() || !broker.hears() {
            return;
        }
        let silent = service.found.silent.iter();
        let silent: Vec<ServerId> =
            silent.filter(|id| broker.presences.name_of_ours(id.as_str()).is_some()).cloned().collect();
        for step in service.probes.look(&silent, now) {
            match step {
                Step::Ask(id) => self.ask_by_broker(reference, &key, id),
                Step::Clear(id) => self.clear_silent(&key, &id),
            }
        }
    }

    fn ask_by_broker(&mut self, reference: &ServiceRef, broker: &str, id: ServerId) {
        let Some(broker) = self.brokers.get(broker) else { return };
        let Some(publisher) = broker.publisher().cloned() else { return };
        let Some(name) = broker.presences.name_of_ours(id.as_str()) else { return };
        tracing::debug!(service = %reference, instance = %id, "asking by way of the broker whether it lives");
        let ping = Message::request::<()>(RequestId::string("alive"), "ping", None).expect("no parameters");
        let publication = Publication {
            user_properties: user_property::of_publish(Component::Client, broker.client_id()),
            ..Publication::new(topic::control(&id, &name), ping.into_raw(), Qos::AtLeastOnce)
        };
        let (reference, connection) = (reference.clone(), broker.connection());
        self.done.push(Box::pin(async move {
            let taken = publisher.publish_confirmed(publication, TAKEN).await;
            Done::AskedByBroker(reference, connection, id, taken)
        }));
    }

    pub(super) fn asked_by_broker(
        &mut self,
        reference: &ServiceRef,
        connection: u64,
        id: &ServerId,
        taken: &Result<(), PublishError>,
    ) {
        let Some(service) = self.services.get_mut(reference) else { return };
        let broker = self.brokers.get(&service.wanted.broker.key);
        if broker.is_some_and(|broker| broker.connection() == connection) {
            if let Err(error) = taken {
                tracing::debug!(service = %reference, instance = %id, "it cannot be asked whether it lives: {error}");
            }
            service.probes.taken(id, taken.is_ok(), Instant::now());
        }
    }

    fn clear_silent(&mut self, broker: &str, id: &ServerId) {
        let Some(broker) = self.brokers.get_mut(broker) else { return };
        let Some(name) = broker.presences.name_of_ours(id.as_str()) else { return };
        tracing::warn!(
            server_id = %id,
            server_name = %name,
            broker = %broker.url(),
            "the instance answers neither the operator nor its broker; is its node lost? Its presence is cleared: \
             should it live after all, it registers again"
        );
        self.setting.metrics.cleared();
        broker.say_presence(id, &name, &self.setting.mark, Bytes::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Vec<ServerId> {
        names.iter().map(|name| ServerId::new(name).unwrap()).collect()
    }

    fn asks(steps: &[Step]) -> usize {
        steps.iter().filter(|step| matches!(step, Step::Ask(_))).count()
    }

    #[test]
    fn who_is_not_heard_of_by_either_way_is_cleared_once() {
        let (mut probes, silent) = (Probes::default(), ids(&["a", "b"]));
        let mut now = Instant::now();
        assert_eq!(asks(&probes.look(&silent, now)), 2);
        now += TAKEN; // the broker takes its time: of the instances, that says nothing
        assert_eq!(probes.look(&silent, now), []);
        probes.taken(&silent[0], true, now);
        probes.taken(&silent[1], true, now);
        probes.heard("b", now);
        assert_eq!(probes.look(&silent, now + ANSWER / 2), []);
        now += ANSWER;
        assert_eq!(probes.look(&silent, now), [Step::Clear(silent[0].clone())]);
        assert_eq!(probes.look(&silent, now), []);
        // It still shows, and is still silent.
        assert_eq!(asks(&probes.look(&silent, now + REST)), 2);
    }

    #[test]
    fn an_answer_that_overtakes_the_brokers_counts() {
        let (mut probes, silent, now) = (Probes::default(), ids(&["a"]), Instant::now());
        probes.look(&silent, now);
        probes.heard("a", now);
        probes.taken(&silent[0], true, now);
        assert_eq!(probes.look(&silent, now + ANSWER), []);
    }

    #[test]
    fn who_cannot_be_asked_is_not_judged() {
        let (mut probes, silent, now) = (Probes::default(), ids(&["a"]), Instant::now());
        probes.look(&silent, now);
        probes.taken(&silent[0], false, now);
        assert_eq!(probes.look(&silent, now + ANSWER), []);
        assert_eq!(asks(&probes.look(&silent, now + REST)), 1);
    }

    #[test]
    fn who_answers_the_operator_or_leaves_the_registry_is_forgotten() {
        let (mut probes, silent, now) = (Probes::default(), ids(&["a"]), Instant::now());
        probes.look(&silent, now);
        probes.taken(&silent[0], true, now);
        assert_eq!(probes.look(&[], now + ANSWER), []);
        assert_eq!(asks(&probes.look(&silent, now + ANSWER)), 1);
    }

    #[test]
    fn a_lost_node_leaves_the_registry_within_five_seconds() {
        // Its host is asked every second, the others on it at the tick after, each is asked by way of the broker at the
        // controller's next look, and judged at one.
        let second = Duration::from_secs(1);
        let look = super::super::TICK * super::super::LOOK_EVERY;
        assert!(second + second + look + ANSWER < Duration::from_secs(5));
    }
}
