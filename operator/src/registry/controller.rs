//! The registry's controller: the one task that knows all services and all brokers. It waits for nobody: an answer of a
//! broker or the API server is a future of its own, and what a broker does not take yet waits in its own queue.

mod actions;
mod broker;
mod first_look;
mod liveness;
mod messages;
mod missing_presences;
mod scaling;
mod stale_presences;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::Secret;
use kube::{Client, runtime::reflector::Store};
use mcp_mqtt_transport::{
    mqtt::{Ack, FilterReply, PublishError, ReasonCode},
    topic::ServerId,
};
use tokio::sync::mpsc;

use self::broker::{Broker, Journalled, Unclaimed};
use super::{
    RegistryFeed,
    instances::Found,
    link::{HAPPENINGS, Happening},
    pending,
    pending::{PendingInitialize, WakeError},
    scale_to_zero::{Action, Idle, Obstacle, ScaleToZero, ServicePresence},
    wanted::{self, Seen, Wanted},
};
use crate::{
    controller::scope::ServiceRef, metrics::Metrics, salt::Salt, serving::Pulse, settings::DefaultBroker,
    watched::Parts,
};

/// How often what only time tells is looked at.
const TICK: Duration = Duration::from_millis(250);
/// Every so many ticks the pods are looked at.
const LOOK_EVERY: u32 = 2;

/// What the controller needs.
pub struct Setting {
    /// The API server.
    pub client: Client,
    /// Name of the cluster: first part of each server id that is ours.
    pub cluster: String,
    /// The owner mark on presences that are ours.
    pub mark: String,
    /// MQTT client id at the default broker; elsewhere something is added.
    pub client_id: String,
    /// For the hashes of what Secrets hold.
    pub salt: Salt,
    /// The default broker.
    pub default_broker: Option<DefaultBroker>,
    /// Its Secret.
    pub default_secret: Option<Store<Secret>>,
    /// What the watches know.
    pub watched: Parts,
    /// What the reconciles say.
    pub registry: RegistryFeed,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Beats for as long as the controller is at work.
    pub pulse: Pulse,
}

/// Keeps the registry for as long as it is polled.
pub async fn run(setting: Setting) {
    Box::pin(RegistryController::new(setting).run()).await;
}

/// A service, as it is kept.
struct Service {
    wanted: Arc<Wanted>,
    machine: ScaleToZero,
    found: Found,
    /// When somebody had a session last, as far as we saw.
    busy: Option<Instant>,
    missing: missing_presences::Missing,
    probes: liveness::Probes,
    /// Whether a request to scale is under way, and what to ask for after it.
    scaling: bool,
    scale_next: Option<scaling::Step>,
}

/// Something that was waited for.
enum Done {
    /// A broker's answer to the subscription of all presences, of the journal and of what instances answer.
    Watching(String, u64, Result<Vec<ReasonCode>, PublishError>),
    /// A broker's answer to the subscription of a service's control topic.
    Subscribed(ServiceRef, u64, Result<ReasonCode, PublishError>),
    /// Whether a request to scale to so many was written, or somebody else has scaled the service meanwhile.
    Scaled(ServiceRef, i32, Result<bool, Obstacle>),
    /// Whether all gateways have said just now for how long nobody has had a session.
    Asked(ServiceRef, bool),
    /// The time has come to say that a message that was for a service is refused.
    Reject(actions::Rejection),
    /// Whether the broker has taken the question, on this connection, if an instance lives.
    AskedByBroker(ServiceRef, u64, ServerId, Result<(), PublishError>),
    /// Whether what a presence stands for exists, by the API server's word.
    Confirmed(stale_presences::StalePresence, Result<bool, String>),
}

struct RegistryController {
    setting: Setting,
    // Boxed: a map has room for twice what it holds.
    services: HashMap<ServiceRef, Box<Service>>,
    /// By their own server ids.
    by_standby: HashMap<String, ServiceRef>,
    brokers: HashMap<String, Broker>,
    happenings: mpsc::Sender<(String, Happening)>,
    done: FuturesUnordered<BoxFuture<'static, Done>>,
    stale_checks: stale_presences::StaleChecks,
    first_look: first_look::FirstLook,
}

impl RegistryController {
    fn new(setting: Setting) -> Self {
        Self {
            setting,
            services: HashMap::new(),
            by_standby: HashMap::new(),
            brokers: HashMap::new(),
            happenings: mpsc::channel(1).0,
            done: FuturesUnordered::new(),
            stale_checks: stale_presences::StaleChecks::default(),
            first_look: first_look::FirstLook::Due,
        }
    }

    async fn run(mut self) {
        let (sender, mut happenings) = mpsc::channel(HAPPENINGS);
        self.happenings = sender;
        let registry = self.setting.registry.clone();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count = 0_u32;
        loop {
            tokio::select! {
                Some((key, happening)) = happenings.recv() => self.happened(&key, happening),
                news = registry.news() => {
                    for (service, wanted) in news {
                        match wanted {
                            Some(wanted) => self.told(&service, wanted),
                            None => self.gone(&service),
                        }
                    }
                    self.close_unused();
                    self.choose_references();
                }
                Some(done) = self.done.next(), if !self.done.is_empty() => self.take_done(done),
                _ = ticks.tick() => {
                    self.setting.pulse.beat();
                    count = count.wrapping_add(1);
                    self.tick(count.is_multiple_of(LOOK_EVERY));
                }
            }
        }
    }

    /// A service is like this now.
    fn told(&mut self, reference: &ServiceRef, wanted: Arc<Wanted>) {
        let moves = self.services.get(reference).is_some_and(|service| {
            let known = &service.wanted;
            known.broker.key != wanted.broker.key || known.server_name != wanted.server_name
        });
        if moves {
            // Until the other connection listens, nobody would hear an `initialize`: the presence goes meanwhile.
            self.leave(reference, &WakeError::Moved);
        }
        let key = wanted.broker.key.clone();
        let broker = self
            .brokers
            .entry(key.clone())
            .or_insert_with(|| Broker::open(&self.setting, &wanted.broker, self.happenings.clone()));
        let unclaimed = broker.claim(wanted.standby.as_str());
        self.by_standby.insert(wanted.standby.as_str().to_owned(), reference.clone());
        let service = self.services.entry(reference.clone()).or_insert_with(|| {
            Box::new(Service {
                wanted: wanted.clone(),
                machine: ScaleToZero::new(),
                found: Found::default(),
                busy: None,
                missing: missing_presences::Missing::default(),
                probes: liveness::Probes::default(),
                scaling: false,
                scale_next: None,
            })
        });
        service.machine.observed.sleep = wanted.sleep;
        service.machine.observed.replicas = wanted.replicas;
        service.machine.observed.refused = wanted.refused.is_some();
        service.machine.observed.unaccepted = !wanted.accepted;
        service.wanted = wanted;
        service.take_problem();
        self.look_at_place(reference);
        for unclaimed in unclaimed {
            self.take_unclaimed(reference, unclaimed, &mut None);
        }
        self.step(reference);
    }

    fn gone(&mut self, reference: &ServiceRef) {
        self.leave(reference, &WakeError::Gone);
    }

    /// The service is not at this place, or not by this connection, any more: clients that wait hear this.
    fn leave(&mut self, reference: &ServiceRef, refusal: &WakeError) {
        self.with(reference, |machine, _, out| machine.end(refusal, out));
        if let Some(service) = self.services.remove(reference) {
            self.by_standby.remove(service.wanted.standby.as_str());
        }
    }

    /// Brokers that nobody uses any more.
    fn close_unused(&mut self) {
        let now = Instant::now();
        let used: HashSet<&str> =
            self.services.values().map(|service| service.wanted.broker.key.as_str()).collect();
        self.brokers.retain(|key, broker| {
            broker.stays(used.contains(key.as_str()) || self.first_look.keeps(key), now)
        });
    }

    /// Whether a service uses the broker, or it is looked at first.
    fn is_used(&self, key: &str) -> bool {
        self.first_look.keeps(key) || self.services.values().any(|service| service.wanted.broker.key == key)
    }

    /// A connection that services share goes by the reference of one that uses it now. One that is refused may have
    /// lost its Secret.
    fn choose_references(&self) {
        let mut best: HashMap<&str, ((bool, bool), &wanted::Broker)> = HashMap::new();
        for service in self.services.values() {
            let Wanted { broker: reference, refused, .. } = &*service.wanted;
            let Some(broker) = self.brokers.get(&reference.key) else { continue };
            let rank = (refused.is_none(), broker.goes_by(reference));
            let known = best.entry(&reference.key).or_insert((rank, reference));
            if rank > known.0 {
                *known = (rank, reference);
            }
        }
        for (key, ((_, goes_by), reference)) in best {
            if let Some(broker) = self.brokers.get(key).filter(|_| !goes_by) {
                broker.go_by(reference);
            }
        }
    }

    fn happened(&mut self, key: &str, happening: Happening) {
        let Some(broker) = self.brokers.get_mut(key) else { return };
        match happening {
            Happening::Up(publisher, resumed) => {
                tracing::info!(broker = %broker.url(), client_id = broker.client_id(), "connected");
                let (answer, connection) = (broker.up(publisher, resumed), broker.connection());
                self.await_watching(key, connection, answer);
                self.unlink(key);
            }
            Happening::Down(why) => {
                broker.down(why);
                self.unlink(key);
            }
            Happening::Refused(topic, reason) => self.publish_refused(key, &topic, reason),
            Happening::Received(mut received) => {
                let mut ack = received.ack.take();
                self.received(key, received, &mut ack);
                if let Some(ack) = ack
                    && let Some(broker) = self.brokers.get_mut(key)
                {
                    broker.acknowledge(ack);
                }
            }
        }
    }

    fn await_watching(&mut self, key: &str, connection: u64, answer: Option<FilterReply>) {
        if let Some(answer) = answer {
            let key = key.to_owned();
            self.done.push(Box::pin(async move { Done::Watching(key, connection, answer.await) }));
        }
    }

    fn unlink(&mut self, key: &str) {
        for reference in self.services_of(key) {
            if let Some(service) = self.services.get_mut(&reference) {
                service.probes.forget();
            }
            self.with(&reference, |machine, _, _| machine.unlinked());
            self.show(&reference);
        }
    }

    fn services_of(&self, key: &str) -> Vec<ServiceRef> {
        let all = self.services.iter().filter(|(_, service)| service.wanted.broker.key == key);
        all.map(|(reference, _)| reference.clone()).collect()
    }

    fn tick(&mut self, look: bool) {
        let now = Instant::now();
        let mut settled = Vec::new();
        let mut asked = Vec::new();
        let setting = &self.setting;
        for (key, broker) in &mut self.brokers {
            broker.flush();
            if let Some(answer) = broker.watch_again(now) {
                asked.push((key.clone(), broker.connection(), answer));
            }
            broker.forget_unclaimed(now, |server_id| setting.is_unlisted(server_id));
            if broker.settle(now) {
                settled.push(key.clone());
            }
        }
        for (key, connection, answer) in asked {
            self.await_watching(&key, connection, Some(answer));
        }
        for key in settled {
            for reference in self.services_of(&key) {
                self.look_at_place(&reference);
            }
        }
        if look {
            self.look_at_instances(now);
            self.check_stale_presences(now);
            self.look_at_default_broker(now);
        }
        let all: Vec<ServiceRef> = self.services.keys().cloned().collect();
        for reference in all {
            self.step(&reference);
        }
        self.close_unused();
        self.setting.metrics.keeps(
            self.services.values().filter(|service| service.machine.sleeps()).count(),
            self.held().messages,
            self.brokers.values().filter(|broker| broker.presences.settled()).count(),
        );
    }

    /// Whose presence the broker has there.
    fn look_at_place(&mut self, reference: &ServiceRef) {
        let Some(service) = self.services.get_mut(reference) else { return };
        let Some(broker) = self.brokers.get(&service.wanted.broker.key) else { return };
        service.machine.resumed = broker.resumed();
        let observed = &mut service.machine.observed;
        observed.link = broker.presences.settled();
        if observed.link {
            let Wanted { standby, server_name, .. } = &*service.wanted;
            observed.place = broker.presences.place(standby.as_str(), server_name.as_str());
            observed.named = broker.presences.successor(standby.as_str(), server_name.as_str()).cloned();
            let says = service.wanted.parked_for(observed.named.as_ref());
            observed.outdated = broker.presences.is_outdated(standby.as_str(), server_name.as_str(), &says);
        }
    }

    fn step(&mut self, reference: &ServiceRef) {
        self.with(reference, ScaleToZero::step);
        self.show(reference);
    }

    /// Lets a service's state machine go on, and does what it asks for.
    fn with(
        &mut self,
        reference: &ServiceRef,
        what: impl FnOnce(&mut ScaleToZero, Instant, &mut Vec<Action>),
    ) {
        self.with_ack(reference, &mut None, what);
    }

    /// The same for a message that a broker waits to have acknowledged: an error that answers it may take the `ack`.
    fn with_ack(
        &mut self,
        reference: &ServiceRef,
        ack: &mut Option<Ack>,
        what: impl FnOnce(&mut ScaleToZero, Instant, &mut Vec<Action>),
    ) {
        let Some(service) = self.services.get_mut(reference) else { return };
        let mut actions = Vec::new();
        what(&mut service.machine, Instant::now(), &mut actions);
        for action in actions {
            self.act(reference, action, ack);
        }
    }

    /// Tells the reconciles what the broker says, when that is news.
    fn show(&self, reference: &ServiceRef) {
        let Some(service) = self.services.get(reference) else { return };
        let Some(broker) = self.brokers.get(&service.wanted.broker.key) else { return };
        let seen = Seen {
            unreachable: broker.unreachable(),
            missing: service.missing(),
            present: missing_presences::present(
                &service.found,
                &broker.presences,
                Some(&service.wanted.standby).filter(|_| !service.is_taken()),
            ),
            sleeps: service.machine.sleeps(),
            unscaled: service.machine.unscaled().map(str::to_owned),
            forbidden: service.machine.forbidden().map(str::to_owned),
            parked: service.machine.forbidden().is_some()
                && service.machine.observed.place == ServicePresence::Parked,
        };
        let before = self.setting.registry.seen(reference);
        // Nothing is known yet.
        let silent = before.is_none()
            && seen.unreachable.is_none()
            && seen.forbidden.is_none()
            && (!broker.presences.settled()
                || service.machine.is_about_to_sleep()
                // Some brokers acknowledge what they drop: that is told once the first words are over.
                || service.machine.awaits_place() && self.setting.registry.is_pending(reference));
        if silent || before.as_ref() == Some(&seen) {
            return;
        }
        let watched = self.setting.watched.of(reference);
        // No room: the next tick tries again.
        if watched.is_none_or(|watched| watched.changed.try_send(reference.clone()).is_ok()) {
            self.setting.registry.publish(reference, seen);
        }
    }

    fn take_done(&mut self, done: Done) {
        match done {
            Done::Watching(key, connection, answer) => {
                if let Some(broker) = self.brokers.get_mut(&key) {
                    broker.watching(connection, answer);
                }
            }
            Done::Subscribed(reference, connection, answer) => {
                self.control_subscribed(&reference, connection, answer);
            }
            Done::Scaled(reference, replicas, result) => self.scaled(&reference, replicas, result),
            Done::Asked(reference, answered) => {
                self.look_at_instances(Instant::now());
                self.with(&reference, |machine, now, out| {
                    // What one said before it was asked is no answer: somebody may have come since.
                    let idle = if answered { machine.observed.idle } else { Idle::Unknown };
                    machine.asked(idle, now, out);
                });
            }
            Done::Reject(rejection) => self.reject(rejection),
            Done::AskedByBroker(reference, connection, id, taken) => {
                self.asked_by_broker(&reference, connection, &id, &taken);
            }
            Done::Confirmed(suspect, exists) => self.confirmed(suspect, exists),
        }
    }
}

#[cfg(test)]
mod tests;
