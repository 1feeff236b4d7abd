//! How many services are ready, and for what reason the others are not; and which ones are in trouble.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::reflector::{Lookup, Store};

use crate::{
    controller::scope::Guarded,
    metrics::{Metrics, Trouble},
    reasons,
};

/// What a service counts as that has no condition yet.
const UNKNOWN: (&str, &str) = ("Unknown", "");

/// Counts services by the status and the reason of their condition `Ready`.
#[derive(Debug, Default)]
pub struct ServiceCounts {
    /// Those that were seen once stay, with 0: a series that just ends would look as it did last.
    counts: HashMap<(String, String), usize>,
    /// Namespace, name, and what is the matter.
    troubles: HashSet<(String, String, Trouble)>,
}

impl ServiceCounts {
    /// Counts those of a store anew.
    pub fn take(&mut self, services: &Store<Guarded>, watched: &str, metrics: &Metrics) {
        let services = services.state();
        self.tell_troubles(&services, metrics);
        self.count(&services);
        for ((ready, reason), number) in &self.counts {
            metrics.counted(watched, ready, reason, *number);
        }
    }

    fn count(&mut self, services: &[Arc<Guarded>]) {
        self.counts.values_mut().for_each(|number| *number = 0);
        for service in services {
            let ready = ready(service).map(|ready| (ready.status.as_str(), ready.reason.as_str()));
            let (ready, reason) = ready.unwrap_or(UNKNOWN);
            *self.counts.entry((ready.to_owned(), reason.to_owned())).or_default() += 1;
        }
    }

    /// Only what changes is touched: a sample that is away for a moment would begin an alert's time anew.
    fn tell_troubles(&mut self, services: &[Arc<Guarded>], metrics: &Metrics) {
        let troubled = |service: &Arc<Guarded>| {
            let namespace = service.namespace()?.into_owned();
            Some((namespace, service.name()?.into_owned(), trouble(service)?))
        };
        let now: HashSet<_> = services.iter().filter_map(troubled).collect();
        for (namespace, service, trouble) in self.troubles.difference(&now) {
            metrics.troubled(namespace, service, *trouble, false);
        }
        for (namespace, service, trouble) in now.difference(&self.troubles) {
            metrics.troubled(namespace, service, *trouble, true);
        }
        self.troubles = now;
    }
}

/// None of a service that was never accepted: nobody has lost it.
fn trouble(service: &Guarded) -> Option<Trouble> {
    let ready = ready(service).filter(|ready| ready.reason != reasons::NOT_ACCEPTED)?;
    if ready.reason == reasons::ROLLING_OUT {
        return Some(Trouble::RollingOut);
    }
    let registered = condition(service, reasons::REGISTERED);
    let service = service.0.as_ref().ok()?;
    if service.spec.replicas > 0 {
        let lost = service.status.as_ref()?.registered == 0;
        return lost.then_some(Trouble::Unregistered);
    }
    // Whatever the reason is: it would be there for clients.
    let may_sleep =
        service.spec.autoscaling.as_ref().is_some_and(|autoscaling| autoscaling.min_replicas == 0);
    (may_sleep && registered?.status == "False").then_some(Trouble::CannotWake)
}

fn ready(service: &Guarded) -> Option<&Condition> {
    condition(service, reasons::READY)
}

fn condition<'a>(service: &'a Guarded, type_: &str) -> Option<&'a Condition> {
    let status = service.0.as_ref().ok()?.status.as_ref()?;
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

#[cfg(test)]
mod tests {
    use kube::core::DeserializeGuard;
    use serde_json::json;

    use super::*;
    use crate::controller::fixtures;

    fn service(ready: &str, reason: &str) -> Arc<Guarded> {
        let mut service = fixtures::service(fixtures::STDIO);
        service.status = serde_json::from_value(json!({"conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2027-01-15T08:00:00Z"},
            {"type": "Ready", "status": ready, "reason": reason, "message": "", "lastTransitionTime": "2027-01-15T08:00:00Z"},
        ]}))
        .unwrap();
        Arc::new(DeserializeGuard(Ok(service)))
    }

    #[test]
    fn services_are_counted_by_why_they_are_ready_or_not_and_what_is_over_is_none() {
        let metrics = Metrics::new();
        let mut counts = ServiceCounts::default();
        let fresh = Arc::new(DeserializeGuard(Ok(fixtures::service(fixtures::STDIO))));
        counts.count(&[service("True", "Ready"), service("False", "Unschedulable"), fresh]);
        assert_eq!(counts.counts.values().copied().collect::<Vec<_>>(), [1, 1, 1]);
        counts.count(&[service("True", "Ready"), service("True", "Ready")]);
        for ((ready, reason), number) in &counts.counts {
            metrics.counted("*", ready, reason, *number);
        }
        let text = metrics.encode();
        for line in [
            r#"mcp_mqtt_operator_services{watched="*",ready="True",reason="Ready"} 2"#,
            r#"mcp_mqtt_operator_services{watched="*",ready="False",reason="Unschedulable"} 0"#,
            r#"mcp_mqtt_operator_services{watched="*",ready="Unknown",reason=""} 0"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_service_in_trouble_is_named_as_long_as_it_is() {
        let metrics = Metrics::new();
        let mut counts = ServiceCounts::default();
        let named = |trouble: &str| {
            let line = format!(
                r#"mcp_mqtt_operator_service_trouble{{mcp_namespace="meteo",mcp_service="weather",trouble="{trouble}"}} 1"#
            );
            metrics.encode().contains(&line)
        };
        let registered = |mut service: Arc<Guarded>| {
            let known = Arc::get_mut(&mut service).unwrap().0.as_mut().unwrap();
            known.status.as_mut().unwrap().registered = 1;
            service
        };
        counts.tell_troubles(&[service("False", "Unschedulable")], &metrics);
        assert!(named("Unregistered") && !named("RollingOut"));
        counts.tell_troubles(&[registered(service("True", "RollingOut"))], &metrics);
        assert!(!named("Unregistered") && named("RollingOut"));
        for well in [service("False", "NotAccepted"), registered(service("True", "Ready"))] {
            counts.tell_troubles(&[well], &metrics);
            assert!(!metrics.encode().contains("service_trouble{"));
        }
        counts.tell_troubles(&[service("False", "Unschedulable")], &metrics);
        counts.tell_troubles(&[], &metrics);
        assert!(!metrics.encode().contains("service_trouble{"), "it was deleted");
    }

    #[test]
    fn a_service_at_zero_is_in_trouble_where_it_is_to_be_woken_and_cannot_be() {
        let at_zero = |registered: (&str, &str), ready: &str, fewest: Option<i32>| {
            let mut service = service("False", ready);
            let known = Arc::get_mut(&mut service).unwrap().0.as_mut().unwrap();
            known.spec.replicas = 0;
            known.spec.autoscaling = fewest.map(|fewest| {
                serde_json::from_value(json!({"minReplicas": fewest, "maxReplicas": 3})).unwrap()
            });
            let (status, reason) = registered;
            let condition = json!({"type": "Registered", "status": status, "reason": reason, "message": "", "lastTransitionTime": "2027-01-15T08:00:00Z"});
            known.status.as_mut().unwrap().conditions.push(serde_json::from_value(condition).unwrap());
            trouble(&service)
        };
        for reason in ["RegistryUnreachable", "BrokerNotAuthorized", "ScaledToZero"] {
            assert_eq!(at_zero(("False", reason), "ScaledToZero", Some(0)), Some(Trouble::CannotWake));
        }
        assert_eq!(at_zero(("True", "Asleep"), "Asleep", Some(0)), None);
        assert_eq!(at_zero(("False", "ScaledToZero"), "ScaledToZero", Some(1)), None, "somebody wants it so");
        assert_eq!(at_zero(("False", "ScaledToZero"), "ScaledToZero", None), None);
        assert_eq!(at_zero(("False", "NotAccepted"), "NotAccepted", Some(0)), None, "it never was there");
    }
}
