//! What the pods and their gateways say, and whether the broker shows the same.

use std::time::{Duration, Instant};

use mcp_mqtt_transport::topic::ServerId;

use super::{Action, Idle, Keeper, Place, Service};
use crate::{controller::scope::ServiceRef, registry::instances};

/// An instance that calls itself registered, and does not show, is told to register again after this long.
const MISSING: Duration = Duration::from_secs(2);
/// And again after this long.
const MISSING_AGAIN: Duration = Duration::from_secs(10);

impl Keeper {
    /// What the pods and their gateways say.
    pub(super) fn look_at_instances(&mut self, now: Instant) {
        for (reference, service) in &mut self.services {
            if let Some(watched) = self.setting.watched.of(reference) {
                service.found =
                    instances::find(watched, reference, &service.wanted.standby, &self.setting.cluster);
                service.take_found(now);
            }
        }
        let services: Vec<ServiceRef> = self.services.keys().cloned().collect();
        for reference in services {
            self.look_for_missing(&reference, now);
        }
    }

    /// Instances that call themselves registered, and that the broker does not show.
    fn look_for_missing(&mut self, reference: &ServiceRef, now: Instant) {
        let Some(service) = self.services.get_mut(reference) else { return };
        let Some(broker) = self.brokers.get(&service.wanted.broker.key) else { return };
        if !broker.presences.settled() {
            return service.missing.clear();
        }
        let registered = service.found.registered.iter().map(|(_, id)| id);
        let missing: Vec<ServerId> =
            registered.filter(|id| !broker.presences.has(id.as_str())).cloned().collect();
        service.missing.retain(|id, _| missing.contains(id));
        for id in missing {
            let since = *service.missing.entry(id.clone()).or_insert(now);
            let due = now.duration_since(since) >= MISSING;
            let (reference, nudged) = (reference.clone(), service.nudged);
            if due && nudged.is_none_or(|last| now.duration_since(last) >= MISSING_AGAIN) {
                service.nudged = Some(now);
                return self.act(&reference, Action::Nudge(id));
            }
        }
    }
}

impl Service {
    /// A session that was seen a moment ago, on an instance that has gone since, counts too.
    fn take_found(&mut self, now: Instant) {
        let idle = match self.found.idle {
            Idle::Busy => {
                self.busy = Some(now);
                Idle::Busy
            }
            Idle::For(idle) => {
                let seen = self.busy.map_or(Duration::MAX, |busy| now.duration_since(busy));
                Idle::For(idle.min(seen))
            }
            Idle::Unknown => Idle::Unknown,
        };
        let facts = &mut self.sleeper.facts;
        facts.idle = idle;
        facts.instances.clone_from(&self.found.instances);
        facts.elsewhere.clone_from(&self.found.elsewhere);
        facts.problem.clone_from(&self.found.problem);
    }

    /// Pods that the broker has not shown for some time.
    pub(super) fn missing(&self) -> Vec<String> {
        let missing = |id: &ServerId| self.missing.get(id).is_some_and(|since| since.elapsed() >= MISSING);
        self.found.registered.iter().filter(|(_, id)| missing(id)).map(|(pod, _)| pod.clone()).collect()
    }

    pub(super) fn is_taken(&self) -> bool {
        self.sleeper.facts.place == Place::Taken
    }
}
