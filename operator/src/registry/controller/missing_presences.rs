//! What the pods and their gateways say, and whether the broker shows the same.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use mcp_mqtt_transport::topic::ServerId;

use super::{Action, Idle, RegistryController, Service, ServicePresence, Wanted};
use crate::{
    controller::scope::ServiceRef,
    registry::{
        instances::{self, Found},
        presences::Presences,
        scale_to_zero::Obstacle,
    },
};

/// An instance that calls itself registered, and does not show, is told to register again after this long.
const MISSING: Duration = Duration::from_secs(2);
/// And again after this long.
const MISSING_AGAIN: Duration = Duration::from_secs(10);

impl RegistryController {
    /// What the pods and their gateways say.
    pub(super) fn look_at_instances(&mut self, now: Instant) {
        for (reference, service) in &mut self.services {
            if let Some(watched) = self.setting.watched.of(reference) {
                let Wanted { standby, sleep, .. } = &*service.wanted;
                let cluster = &self.setting.cluster;
                service.found = instances::find(watched, reference, standby, sleep.is_some(), cluster);
                service.take_found(now);
            }
        }
        let services: Vec<ServiceRef> = self.services.keys().cloned().collect();
        for reference in services {
            self.look_for_missing(&reference, now);
            self.look_for_silent(&reference, now);
        }
    }

    /// Instances that call themselves registered, and that the broker does not show.
    fn look_for_missing(&mut self, reference: &ServiceRef, now: Instant) {
        let Some(service) = self.services.get_mut(reference) else { return };
        let Some(broker) = self.brokers.get(&service.wanted.broker.key) else { return };
        let registered = service.found.registered.iter().map(|(_, id)| id);
        let missing = registered.filter(|id| !broker.presences.has(id.as_str())).cloned().collect();
        let missing = if broker.presences.settled() { missing } else { Vec::new() };
        for id in service.missing.due(&missing, now) {
            self.act(reference, Action::Nudge(id), &mut None);
        }
    }
}

/// Instances that call themselves registered and that the broker does not show: since when, and when each was told so.
#[derive(Debug, Default)]
pub(super) struct Missing(HashMap<ServerId, (Instant, Option<Instant>)>);

impl Missing {
    /// These are missing now. Those that are to be told so.
    fn due(&mut self, missing: &[ServerId], now: Instant) -> Vec<ServerId> {
        self.0.retain(|id, _| missing.contains(id));
        let mut due = Vec::new();
        for id in missing {
            let (since, told) = self.0.entry(id.clone()).or_insert((now, None));
            if now.duration_since(*since) >= MISSING
                && told.is_none_or(|told| now.duration_since(told) >= MISSING_AGAIN)
            {
                *told = Some(now);
                due.push(id.clone());
            }
        }
        due
    }

    /// Whether it has been so for some time.
    fn has(&self, id: &ServerId) -> bool {
        self.0.get(id).is_some_and(|(since, _)| since.elapsed() >= MISSING)
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
        let observed = &mut self.machine.observed;
        observed.idle = idle;
        observed.instances.clone_from(&self.found.instances);
        observed.elsewhere.clone_from(&self.found.elsewhere);
        self.take_problem();
    }

    /// What keeps instances from starting: a refusal of the service where there are none, as those that are there from
    /// before go on.
    pub(super) fn take_problem(&mut self) {
        let refused = self.wanted.refused.as_ref().filter(|_| !self.found.any);
        let refused = refused.map(|why| Obstacle { why: why.clone(), hopeless: true });
        self.machine.observed.problem = refused.or_else(|| self.found.problem.clone());
    }

    /// Pods that the broker has not shown for some time.
    pub(super) fn missing(&self) -> Vec<String> {
        let missing = self.found.registered.iter().filter(|(_, id)| self.missing.has(id));
        missing.map(|(pod, _)| pod.clone()).collect()
    }

    pub(super) fn is_taken(&self) -> bool {
        self.machine.observed.place == ServicePresence::Taken
    }
}

/// Pods that the broker shows, though their gateways do not say that they are registered. Under the id `ours` no
/// instance's presence stands.
pub(super) fn present(found: &Found, presences: &Presences, ours: Option<&ServerId>) -> Vec<String> {
    if !presences.settled() {
        return Vec::new();
    }
    let shown = |id: &ServerId| Some(id) != ours && presences.has(id.as_str());
    let mut present: Vec<String> =
        found.unregistered.iter().filter(|(_, id)| shown(id)).map(|(pod, _)| pod.clone()).collect();
    present.dedup();
    present
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::registry::presences::SETTLE;

    #[test]
    fn what_the_broker_shows_is_told_once_it_has_told_all() {
        let unregistered =
            ["a", "b"].map(|pod| (pod.to_owned(), ServerId::new(&format!("north.meteo.{pod}")).unwrap()));
        let found = Found { unregistered: unregistered.into(), ..Found::default() };
        let (mut presences, now) = (Presences::new("north".to_owned(), "k".to_owned()), Instant::now());
        presences.unlinked();
        presences.subscribed(now);
        presences.received("north.meteo.b", "meteo/weather", false, &Bytes::from_static(b"{}"), &[], now);
        assert!(present(&found, &presences, None).is_empty());
        assert!(presences.settle(now + SETTLE));
        assert_eq!(present(&found, &presences, None), ["b"]);
        assert!(
            present(&found, &presences, Some(&found.unregistered[1].1)).is_empty(),
            "it is the operator's"
        );
        presences.unlinked();
        assert!(present(&found, &presences, None).is_empty(), "nobody can tell");
    }

    #[test]
    fn each_instance_that_is_missing_is_told_so_and_told_again_later() {
        let ids = |names: &[&str]| -> Vec<ServerId> {
            names.iter().map(|name| ServerId::new(name).unwrap()).collect()
        };
        let (mut missing, start) = (Missing::default(), Instant::now());
        assert!(missing.due(&ids(&["a", "b"]), start).is_empty(), "their presences may be on their way");
        let later = start + MISSING;
        assert_eq!(missing.due(&ids(&["a", "b", "c"]), later), ids(&["a", "b"]));
        assert!(missing.due(&ids(&["a", "b", "c"]), later + MISSING / 2).is_empty());
        assert_eq!(missing.due(&ids(&["b", "c"]), later + MISSING), ids(&["c"]));
        assert_eq!(missing.due(&ids(&["a", "b", "c"]), later + MISSING_AGAIN), ids(&["b"]));
    }
}
