//! Census: how many services are ready, and for what reason the others are not.

use std::{collections::HashMap, sync::Arc};

use kube::runtime::reflector::Store;

use crate::{controller::scope::Guarded, metrics::Metrics, reasons};

/// What a service counts as that has no condition yet.
const UNKNOWN: (&str, &str) = ("Unknown", "");

/// Counts services by the status and the reason of their condition `Ready`.
#[derive(Debug, Default)]
pub struct Census {
    /// Those that were seen once stay, with 0: a series that just ends would look as it did last.
    counts: HashMap<(String, String), usize>,
}

impl Census {
    /// Counts those of a store anew.
    pub fn take(&mut self, services: &Store<Guarded>, watched: &str, metrics: &Metrics) {
        self.count(&services.state());
        for ((ready, reason), number) in &self.counts {
            metrics.counted(watched, ready, reason, *number);
        }
    }

    fn count(&mut self, services: &[Arc<Guarded>]) {
        self.counts.values_mut().for_each(|number| *number = 0);
        for service in services {
            let (ready, reason) = condition(service).unwrap_or(UNKNOWN);
            *self.counts.entry((ready.to_owned(), reason.to_owned())).or_default() += 1;
        }
    }
}

fn condition(service: &Guarded) -> Option<(&str, &str)> {
    let status = service.0.as_ref().ok()?.status.as_ref()?;
    let ready = status.conditions.iter().find(|condition| condition.type_ == reasons::READY)?;
    Some((&ready.status, &ready.reason))
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
        let mut census = Census::default();
        let fresh = Arc::new(DeserializeGuard(Ok(fixtures::service(fixtures::STDIO))));
        census.count(&[service("True", "Ready"), service("False", "Unschedulable"), fresh]);
        assert_eq!(census.counts.values().copied().collect::<Vec<_>>(), [1, 1, 1]);
        census.count(&[service("True", "Ready"), service("True", "Ready")]);
        for ((ready, reason), number) in &census.counts {
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
}
