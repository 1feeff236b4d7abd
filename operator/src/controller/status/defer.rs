//! When a status is not written yet: another one would follow it within moments, and both would be writes.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use mcp_mqtt_sidecar::status::reason;

use super::{Outcome, Seen, tells_of_draining};
use crate::{
    controller::problems::Problem,
    crd::McpServiceStatus,
    live::pod::Pod,
    observe::{Observation, is_asked, is_ready},
    reasons,
};

/// How long the status waits for what comes of a Deployment that was applied: its controllers take milliseconds, and
/// most of a minute where a thousand came at once.
const HOLD: Duration = Duration::from_mins(1);
/// A gateway that was not asked yet is asked within the second, unless hundreds are silent; a broker is connected to, or
/// found to be out of reach, within seconds.
const UNASKED: Duration = Duration::from_secs(5);

/// Whether it is too early for a status (pure), and for how long: one word later it would be another one, and both
/// would be written. `applied` is how long ago the Deployment was. While other services wait to be taken up, nothing is
/// told of what came of it: `relook` is when to look whether they still do.
pub fn defer_status(
    outcome: &Outcome,
    seen: &Seen<'_>,
    last: Option<&McpServiceStatus>,
    applied: Option<Duration>,
    relook: Option<Duration>,
) -> Option<Duration> {
    let from_registry = |last: &McpServiceStatus| last.conditions.iter().any(is_from_registry);
    let silent = seen.awaits_registry && last.is_some_and(from_registry);
    if let Outcome::Refused(problem) = outcome {
        // A refusal is told at once; but one that the predecessor has told is no news, and the rest of what it wrote
        // stands until the broker has spoken.
        return (silent && is_told(problem, seen, last)).then_some(UNASKED);
    }
    // Of a paused service nothing is to come.
    let applied = applied.filter(|_| matches!(outcome, Outcome::Accepted(_)));
    if let Some(rest) = applied.and_then(|applied| HOLD.checked_sub(applied)) {
        let rest = rest.max(Duration::from_millis(1));
        if !seen.is_under_way() {
            return Some(rest);
        }
        if let Some(relook) = relook {
            return Some(rest.min(relook));
        }
    }
    // An operator that has just started knows of no registration yet; what its predecessor wrote still holds.
    let told = last.is_some_and(|last| {
        let accepted = last.conditions.iter().find(|condition| condition.type_ == reasons::ACCEPTED);
        last.observed_generation == seen.metadata.generation
            && accepted.is_some_and(|accepted| accepted.status == "True")
    });
    let unasked =
        |(pod, seen): (&Pod, Option<&Observation>)| seen.is_none() && is_ready(pod) && is_asked(pod);
    (told && (silent || seen.staying().any(unasked))).then_some(UNASKED)
}

/// Whether the status says of this generation that it is refused for this.
fn is_told(problem: &Problem, seen: &Seen<'_>, last: Option<&McpServiceStatus>) -> bool {
    last.is_some_and(|last| {
        last.observed_generation == seen.metadata.generation
            && last.conditions.iter().any(|condition| {
                condition.type_ == reasons::ACCEPTED
                    && condition.status == "False"
                    && condition.reason == problem.reason
                    && condition.message == problem.message
            })
    })
}

/// Whether only the broker can have told it.
fn is_from_registry(condition: &Condition) -> bool {
    let reasons = [
        reasons::ASLEEP,
        reasons::PRESENCE_MISSING,
        reasons::REGISTRY_UNREACHABLE,
        reason::BROKER_NOT_AUTHORIZED,
    ];
    reasons.contains(&condition.reason.as_str())
}

/// Whether nothing but the stages of a start differs (pure): they pass by themselves, and what does not is told as a
/// problem. Each would be a write.
pub fn is_mere_progress(last: &McpServiceStatus, now: &McpServiceStatus) -> bool {
    let stage = |before: &Condition, now: &Condition| {
        before.type_ == now.type_
            && before.status == now.status
            && before.observed_generation == now.observed_generation
            && reasons::passes(&before.reason)
            && reasons::passes(&now.reason)
            // That somebody waits for its sessions is told whatever else goes on.
            && tells_of_draining(before) == tells_of_draining(now)
    };
    let mut conditions = last.conditions.iter().zip(&now.conditions);
    last.conditions.len() == now.conditions.len()
        && conditions.all(|(before, now)| before == now || stage(before, now))
        && *last == McpServiceStatus { conditions: last.conditions.clone(), ..now.clone() }
}

/// How long the stages of a start are kept back. An instance whose image is on the node is ready within this time, and
/// one status tells of the whole start. Who applies a service reads at once in the Event `Applied` that it was taken up,
/// and after this time at the latest in the status; a problem is never kept back.
pub(super) const START: Duration = Duration::from_secs(5);

/// Whether the status tells of a start that goes on, after nothing or an earlier stage of the same start (pure).
pub fn is_start(last: Option<&McpServiceStatus>, now: &McpServiceStatus) -> bool {
    let starts = |status: &McpServiceStatus| {
        status.conditions.iter().all(|condition| {
            if condition.type_ == reasons::READY {
                condition.status == "False" && reasons::passes(&condition.reason)
            } else {
                condition.status == "True" || reasons::passes(&condition.reason)
            }
        })
    };
    starts(now) && last.is_none_or(|last| last.observed_generation == now.observed_generation && starts(last))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        controller::{
            problems::tests::{gateway, pod},
            status::{
                build_status,
                tests::{
                    applied, live, metadata, noon, observed, ready_pod, refused_by_broker, registered, seen,
                    shown, starting_pod, status, told, with_registry,
                },
            },
        },
        registry,
    };

    #[test]
    fn the_stages_of_a_start_are_not_told_one_by_one() {
        let starting = |reason: &str| {
            let gateway = gateway((reason, false), (reason::WAITING_FOR_BACKEND, false));
            vec![(starting_pod("a"), Some(observed(Ok(gateway))))]
        };
        let first = status(1, vec![(starting_pod("a"), None)]);
        let later = status(1, starting(reason::BACKEND_STARTING));
        assert_ne!(told(&first, "Ready"), told(&later, "Ready"));
        assert!(is_mere_progress(&first, &later) && is_mere_progress(&later, &later));
        // A problem, an end of one, and anything that is counted.
        let fails = status(1, starting(reason::BACKEND_NOT_ANSWERING));
        let runs = status(1, vec![(ready_pod("a"), Some(registered(0)))]);
        let busy = status(1, vec![(ready_pod("a"), Some(registered(1)))]);
        for (before, now) in
            [(&later, &fails), (&fails, &later), (&later, &runs), (&runs, &later), (&runs, &busy)]
        {
            assert!(!is_mere_progress(before, now), "{before:?} {now:?}");
        }
        // Somebody who goes down begins to wait, and is done.
        let mut leaving = (*ready_pod("b")).clone();
        leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2027-01-15T08:00:00Z")).unwrap();
        let of = |sessions| (Arc::new(leaving.clone()), Some(registered(sessions)));
        let drains = McpServiceStatus { sessions: 0, ..status(1, vec![(starting_pod("a"), None), of(3)]) };
        let done = status(1, vec![(starting_pod("a"), None), of(0)]);
        assert!(!is_mere_progress(&done, &drains) && !is_mere_progress(&drains, &done));
        let of_older = |mut status: McpServiceStatus| {
            status.conditions[1].observed_generation = Some(6);
            status
        };
        assert!(!is_mere_progress(&of_older(first), &later));
    }

    #[test]
    fn the_stages_of_a_start_are_kept_back_and_problems_are_not() {
        let at = |reason: &str, broker: (&str, bool)| {
            vec![(starting_pod("a"), Some(observed(Ok(gateway((reason, true), broker)))))]
        };
        let begun = status(1, vec![(starting_pod("a"), None)]);
        let registered_only = status(1, at(reason::BACKEND_READY, (reason::REGISTERED, true)));
        assert!(is_start(None, &begun) && is_start(Some(&begun), &registered_only));
        let ready = status(1, vec![(ready_pod("a"), Some(registered(0)))]);
        let fails = status(1, vec![(starting_pod("a"), Some(refused_by_broker()))]);
        for (last, now) in [
            (None, &ready),
            (None, &fails),
            (Some(&begun), &ready),
            (Some(&begun), &fails),
            (Some(&fails), &begun),
            (Some(&ready), &begun),
            (None, &status(0, Vec::new())),
        ] {
            assert!(!is_start(last, now), "{last:?} {now:?}");
        }
        let older = McpServiceStatus { observed_generation: Some(6), ..begun.clone() };
        assert!(!is_start(Some(&older), &begun), "another generation has to be told");
        let metadata = metadata();
        let problem = Problem { reason: reasons::INVALID_SPEC.to_owned(), message: "why".to_owned() };
        let refused = build_status(&Outcome::Refused(problem), &seen(&metadata, 1, Vec::new()), None, noon());
        assert!(!is_start(None, &refused));
    }

    /// How long the status waits, of a Deployment with this status that was applied this long ago.
    fn held(
        deployment: &Value,
        pods: Vec<(Arc<Pod>, Option<Observation>)>,
        applied_ago: Option<u64>,
    ) -> Option<Duration> {
        let metadata = metadata();
        let mut seen = seen(&metadata, 1, pods);
        let value = json!({"metadata": {"generation": 2}, "status": deployment});
        seen.deployment = Some(Arc::new(live(value)));
        defer_status(
            &Outcome::Accepted(Box::new(applied())),
            &seen,
            None,
            applied_ago.map(Duration::from_millis),
            None,
        )
    }

    #[test]
    fn a_status_waits_for_what_comes_of_the_deployment_but_not_for_long() {
        let made = json!({"observedGeneration": 2, "updatedReplicas": 1, "replicas": 1});
        let pods = || vec![(starting_pod("a"), None)];
        assert_eq!(held(&made, pods(), Some(500)), None, "there is nothing to wait for");
        for behind in [
            json!({}),
            json!({"observedGeneration": 1, "updatedReplicas": 1, "replicas": 1}),
            json!({"observedGeneration": 2}),
            json!({"observedGeneration": 2, "replicas": 1}),
        ] {
            assert_eq!(held(&behind, pods(), Some(500)), Some(Duration::from_millis(59_500)), "{behind}");
            assert_eq!(held(&behind, pods(), Some(60_500)), None, "it takes too long");
            assert_eq!(held(&behind, pods(), None), None, "nothing was applied");
        }
        assert_eq!(
            held(&made, Vec::new(), Some(500)),
            Some(Duration::from_millis(59_500)),
            "no pod was seen"
        );
        let refused =
            json!({"observedGeneration": 2, "conditions": [{"type": "ReplicaFailure", "status": "True"}]});
        assert_eq!(held(&refused, Vec::new(), Some(500)), None, "there will be no pod");
        let metadata = metadata();
        let problem = Problem { reason: "NameTaken".to_owned(), message: String::new() };
        let refused = defer_status(
            &Outcome::Refused(problem),
            &seen(&metadata, 1, Vec::new()),
            None,
            Some(Duration::ZERO),
            Some(RELOOK),
        );
        assert_eq!(refused, None, "a refusal is told at once");
        let unmade = seen(&metadata, 1, Vec::new());
        let paused = defer_status(&Outcome::Paused, &unmade, None, Some(Duration::ZERO), Some(RELOOK));
        assert_eq!(paused, None, "so is a pause");
    }

    const RELOOK: Duration = Duration::from_millis(700);

    #[test]
    fn a_status_waits_for_services_that_are_not_taken_up_but_not_for_long() {
        let metadata = metadata();
        let mut seen = seen(&metadata, 1, vec![(starting_pod("a"), None)]);
        let made = json!({"observedGeneration": 2, "updatedReplicas": 1, "replicas": 1});
        seen.deployment = Some(Arc::new(live(json!({"metadata": {"generation": 2}, "status": made}))));
        let held = |applied_ago: Option<u64>, relook| {
            let applied_ago = applied_ago.map(Duration::from_millis);
            defer_status(&Outcome::Accepted(Box::new(applied())), &seen, None, applied_ago, relook)
        };
        assert_eq!(held(Some(500), Some(RELOOK)), Some(RELOOK));
        assert_eq!(held(Some(59_900), Some(RELOOK)), Some(Duration::from_millis(100)));
        assert_eq!(held(Some(60_500), Some(RELOOK)), None, "it takes too long");
        assert_eq!(held(None, Some(RELOOK)), None, "nothing was applied");
        assert_eq!(held(Some(500), None), None, "there is nothing to wait for");
    }

    #[test]
    fn an_operator_that_has_just_started_asks_before_it_takes_back_what_its_predecessor_wrote() {
        let gateway = json!([{"name": "gateway", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}}]);
        let status_of_pod = json!({
            "phase": "Running", "podIP": "10.0.0.1", "initContainerStatuses": gateway,
            "conditions": [{"type": "Ready", "status": "True"}],
        });
        let running = Arc::new(pod("a", &status_of_pod));
        let last = status(1, vec![(running.clone(), Some(registered(0)))]);
        let metadata = metadata();
        let hold = |pods, last| {
            defer_status(&Outcome::Accepted(Box::new(applied())), &seen(&metadata, 1, pods), last, None, None)
        };
        assert_eq!(hold(vec![(running.clone(), None)], Some(&last)), Some(UNASKED));
        assert_eq!(hold(vec![(running.clone(), Some(registered(0)))], Some(&last)), None);
        assert_eq!(hold(vec![(running.clone(), None)], None), None, "there is nothing to take back");
        assert_eq!(hold(vec![(starting_pod("a"), None)], Some(&last)), None, "it is not asked");
        let older = McpServiceStatus { observed_generation: Some(6), ..last.clone() };
        assert_eq!(hold(vec![(running, None)], Some(&older)), None, "another generation has to be told");
    }

    #[test]
    fn what_a_predecessor_learned_from_the_broker_stands_until_the_broker_has_spoken_again() {
        let asleep = with_registry(0, Vec::new(), registry::wanted::Seen { sleeps: true, ..shown() });
        let metadata = metadata();
        let hold = |awaits_registry, last| {
            let seen = Seen { awaits_registry, ..seen(&metadata, 0, Vec::new()) };
            defer_status(&Outcome::Accepted(Box::new(applied())), &seen, Some(last), None, None)
        };
        assert_eq!(hold(true, &asleep), Some(UNASKED));
        assert_eq!(hold(false, &asleep), None, "it has spoken, or it will not");
        assert_eq!(hold(true, &status(0, Vec::new())), None, "nothing of that came from the broker");
    }

    #[test]
    fn what_a_predecessor_learned_of_a_refused_service_stands_as_long_as_the_refusal_is_the_same() {
        let metadata = metadata();
        let refused = |message: &str| {
            let problem = Problem { reason: reasons::INVALID_SPEC.to_owned(), message: message.to_owned() };
            Outcome::Refused(problem)
        };
        let last = |registry| {
            let seen = Seen { registry: Some(registry), ..seen(&metadata, 0, Vec::new()) };
            build_status(&refused("why"), &seen, None, noon())
        };
        let asleep = last(registry::wanted::Seen { sleeps: true, ..shown() });
        let hold = |outcome, awaits_registry, last: Option<&McpServiceStatus>| {
            let seen = Seen { awaits_registry, ..seen(&metadata, 0, Vec::new()) };
            defer_status(&outcome, &seen, last, None, None)
        };
        assert_eq!(hold(refused("why"), true, Some(&asleep)), Some(UNASKED));
        assert_eq!(hold(refused("why"), false, Some(&asleep)), None, "it has spoken, or it will not");
        assert_eq!(hold(refused("another"), true, Some(&asleep)), None, "a new problem is told at once");
        assert_eq!(hold(refused("why"), true, Some(&last(shown()))), None, "nothing came from the broker");
        assert_eq!(hold(refused("why"), true, None), None);
        let older = McpServiceStatus { observed_generation: Some(6), ..asleep };
        assert_eq!(hold(refused("why"), true, Some(&older)), None, "another generation has to be told");
    }
}
