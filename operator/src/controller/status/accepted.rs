//! The condition `Accepted`: whether the service can be as it asks to be, and who else has a say in it.

use super::{Judgment, Outcome, holds};
use crate::{
    controller::build::{Applied, Resources},
    names::PAUSED,
    reasons,
};

/// Whether the service stands at the API server. `serves_sessions`: whether an autoscaler can ask for its sessions.
pub(super) fn accepted(outcome: &Outcome, serves_sessions: bool) -> Judgment {
    match outcome {
        Outcome::Accepted(resources) => {
            let usable = "the spec and what it refers to are usable";
            let unserved = if serves_sessions { None } else { unserved(resources) };
            let told = [Some(usable.to_owned()), owner_of_replicas(resources), unserved];
            holds(reasons::ACCEPTED, told.into_iter().flatten().collect::<Vec<_>>().join("; "))
        }
        Outcome::Paused => holds(
            reasons::PAUSED,
            format!("the annotation {PAUSED} is true: the operator leaves the service's objects as they are"),
        ),
        Outcome::Refused(problem) => (false, problem.clone()),
    }
}

/// Who writes `spec.replicas`, for the person who wonders what became of their own value; none: people do.
fn owner_of_replicas(resources: &Resources<Applied>) -> Option<String> {
    let (owner, fewest, most, but) = match (&resources.autoscaler, &resources.scaled_object) {
        (Some(autoscaler), _) => {
            let spec = autoscaler.spec.as_ref()?;
            let owner = format!("HorizontalPodAutoscaler {}", autoscaler.metadata.name.as_deref()?);
            // At none Kubernetes' autoscaler leaves it alone.
            (
                owner,
                spec.min_replicas.unwrap_or(1),
                spec.max_replicas,
                ", except 0, which suspends autoscaling",
            )
        }
        (None, Some(object)) => {
            let owner = format!("ScaledObject {}", object.metadata.name.as_deref()?);
            (owner, object.spec.min_replica_count, object.spec.max_replica_count, "")
        }
        (None, None) => return None,
    };
    Some(format!(
        "spec.replicas is managed by {owner}, from {fewest} to {most}: manual changes are overwritten{but}"
    ))
}

/// That an autoscaler asks in vain for what the operator measures, and the way out; none: it asks for nothing of that.
/// CPU and memory work all the same, so it is no refusal.
fn unserved(resources: &Resources<Applied>) -> Option<String> {
    let metrics = resources.autoscaler.as_ref()?.spec.as_ref()?.metrics.as_ref()?;
    let mut of_service = metrics.iter().filter_map(|metric| metric.object.as_ref());
    let metric = &of_service.next()?.metric.name;
    Some(format!(
        "the autoscaler has no {metric} to go by, as this operator does not serve custom.metrics.k8s.io (its chart \
         leaves that out with watchNamespaces, and where another adapter serves it): set the chart's value \
         autoscaling.sessionMetrics.enabled to true, or beside another adapter autoscaling.metrics to keda, or scale \
         by spec.autoscaling.resources alone"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        controller::{
            fetch::Fetched,
            fixtures::{STDIO, built, settings},
            status::{
                Seen, build_status,
                tests::{applied, metadata, noon, seen, told},
            },
        },
        settings::Settings,
    };

    #[test]
    fn an_autoscaler_that_asks_in_vain_for_sessions_is_told_of_with_the_way_out() {
        let metadata = metadata();
        let of = |spec: &str, settings: &Settings| {
            let Resources { autoscaler, scaled_object, .. } = built(spec, settings, &Fetched::default());
            let outcome = Outcome::Accepted(Box::new(Resources { autoscaler, scaled_object, ..applied() }));
            let serves_sessions = settings.serves_sessions;
            let seen = Seen { serves_sessions, ..seen(&metadata, 1, Vec::new()) };
            told(&build_status(&outcome, &seen, None, noon()), "Accepted")
        };
        let [plain, cpu] =
            ["", ", resources: [{name: cpu, target: {type: Utilization, averageUtilization: 60}}]"]
                .map(|more| format!("{STDIO}\nautoscaling: {{maxReplicas: 5{more}}}"));
        let in_flight = cpu.replace("resources", "inFlight: {targetPerReplica: 4}, resources");
        let unserved = Settings { serves_sessions: false, ..settings() };
        for (spec, metric) in [(&plain, "mcp_sessions"), (&in_flight, "mcp_requests_in_flight")] {
            let (status, reason, message) = of(spec, &unserved);
            assert_eq!((status.as_str(), reason.as_str()), ("True", "Accepted"));
            let said = format!(
                "; the autoscaler has no {metric} to go by, as this operator does not serve custom.metrics.k8s.io"
            );
            assert!(
                message.contains(&said) && message.contains("autoscaling.sessionMetrics.enabled"),
                "{message}"
            );
            assert!(!of(spec, &settings()).2.contains("custom.metrics"), "they are served");
        }
        let keda = Settings { keda_scaler: Some("scaler.ours.svc:9091".to_owned()), ..unserved.clone() };
        for (spec, settings) in [(&cpu, &unserved), (&plain, &keda)] {
            let (_, _, message) = of(spec, settings);
            assert!(message.contains("managed by") && !message.contains("custom.metrics"), "{message}");
        }
        assert_eq!(of(STDIO, &unserved).2, "the spec and what it refers to are usable");
    }
}
