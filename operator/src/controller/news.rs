//! Events: what people see in `kubectl describe`. Only turns of conditions and writes are news; a sentence that
//! changes is not. They are written one after the other, beside the reconciles: what is told of one service keeps no
//! other from being made.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{sync::mpsc, time::timeout};

use super::{
    apply::Change,
    scope::{Guarded, Scope},
};
use crate::{
    crd::{McpService, McpServiceStatus},
    metrics::Metrics,
    reasons,
};

/// Events that wait to be written; a reconcile that finds no room waits for it. One has a kilobyte.
const CAPACITY: usize = 256;
/// A recorder remembers what it wrote in the last minutes, so that what repeats is counted and not written anew. After
/// so many another one takes its place: all that a thousand services tell at once would be megabytes.
const REMEMBERED: usize = 64;
/// For the API server to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Where Events go.
pub struct News(mpsc::Sender<(Event, ObjectReference)>);

impl News {
    /// And what writes them, until there is no [`News`] and nothing to write any more.
    pub fn new(
        client: Client,
        reporter: Reporter,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, mut queue) = mpsc::channel::<(Event, ObjectReference)>(CAPACITY);
        let write = async move {
            loop {
                let recorder = Recorder::new(client.clone(), reporter.clone());
                for _ in 0..REMEMBERED {
                    let Some((event, about)) = queue.recv().await else { return };
                    // Nothing hangs on it.
                    match timeout(ANSWER, recorder.publish(&event, &about)).await {
                        Ok(Ok(())) => metrics.wrote("Event", "create"),
                        Ok(Err(error)) => {
                            tracing::warn!(reason = event.reason, "an Event cannot be written: {error}");
                        }
                        Err(_) => {
                            tracing::warn!(
                                reason = event.reason,
                                "an Event cannot be written: no answer within {ANSWER:?}"
                            );
                        }
                    }
                }
            }
        };
        (Self(sender), write)
    }
}

/// The API server refuses longer notes.
const MAX_NOTE: usize = 1000;

/// One Event for all writes of a reconcile that are alike: an Event is a write, too.
pub(super) async fn tell_changes(scope: &Scope, service: &Guarded, changes: &[Change]) {
    for alike in changes.chunk_by(|one, next| one.what == next.what) {
        let what = alike[0].what;
        let names: Vec<String> =
            alike.iter().map(|change| format!("{} {}", change.kind, change.name)).collect();
        // What it is about tells one Event from another: without it they would be counted as one.
        let about = |change: &Change| ObjectReference {
            kind: Some(change.kind.to_owned()),
            name: Some(change.name.clone()),
            namespace: service.meta().namespace.clone(),
            ..ObjectReference::default()
        };
        let secondary = if let [only] = alike { Some(about(only)) } else { None };
        let note = format!("{what} {}", names.join(", "));
        let event = Event { secondary, ..event(EventType::Normal, what, "Reconcile", note) };
        tell(scope, service, event).await;
    }
}

/// An Event for each condition that turned, or that fails for another reason than before.
pub(super) async fn tell_conditions(
    scope: &Scope,
    service: &Guarded,
    last: Option<&McpServiceStatus>,
    now: &McpServiceStatus,
) {
    for turn in turns(last, now) {
        tell(scope, service, event(turn.kind, &turn.reason, turn.condition, turn.note)).await;
    }
}

/// What is news though the condition holds as before.
fn worth_telling(reason: &str) -> bool {
    matches!(reason, reasons::DRAINING_SESSIONS | reasons::ASLEEP)
}

struct Turn<'a> {
    kind: EventType,
    reason: String,
    condition: &'a str,
    note: String,
}

fn turns<'a>(last: Option<&McpServiceStatus>, now: &'a McpServiceStatus) -> Vec<Turn<'a>> {
    let mut turns = Vec::new();
    for condition in &now.conditions {
        let before =
            last.and_then(|last| last.conditions.iter().find(|before| before.type_ == condition.type_));
        let same = before.is_some_and(|before| {
            before.status == condition.status
                && (before.reason == condition.reason
                    || condition.status == "True" && !worth_telling(&condition.reason))
        });
        // That it is on its way, or waits for another condition, is no news.
        let passing = condition.reason == reasons::NOT_ACCEPTED || reasons::passes(&condition.reason);
        // What was applied has told as much.
        let first = before.is_none() && condition.reason == reasons::ACCEPTED;
        // One cause is one Event, though it keeps the instance both from being ready and from being registered.
        let told = turns.iter().any(|turn: &Turn<'_>| turn.reason == condition.reason);
        if same || passing || first || told {
            continue;
        }
        let good = condition.status == "True" || condition.reason == reasons::SCALED_TO_ZERO;
        turns.push(Turn {
            kind: if good { EventType::Normal } else { EventType::Warning },
            reason: condition.reason.clone(),
            condition: &condition.type_,
            note: condition.message.clone(),
        });
    }
    turns
}

fn event(type_: EventType, reason: &str, action: &str, mut note: String) -> Event {
    note.truncate(note.floor_char_boundary(MAX_NOTE));
    Event { type_, reason: reason.to_owned(), note: Some(note), action: action.to_owned(), secondary: None }
}

async fn tell(scope: &Scope, service: &Guarded, event: Event) {
    // It is closed when the controller ends.
    let _ = scope.news.0.send((event, reference(service))).await;
}

fn reference(service: &Guarded) -> ObjectReference {
    let mut reference = service.object_ref(&());
    reference.kind = Some(McpService::kind(&()).into_owned());
    reference.api_version = Some(McpService::api_version(&()).into_owned());
    reference
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(conditions: &[(&str, &str, &str)]) -> McpServiceStatus {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(type_, status, reason)| {
                json!({"type": type_, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect();
        serde_json::from_value(json!({"conditions": conditions})).unwrap()
    }

    fn reasons_of(last: Option<&McpServiceStatus>, now: &McpServiceStatus) -> Vec<String> {
        turns(last, now).into_iter().map(|turn| turn.reason).collect()
    }

    #[test]
    fn only_what_turned_or_fails_otherwise_is_news() {
        let ready = status(&[("Ready", "True", "Ready")]);
        let rolling = status(&[("Ready", "True", "RollingOut")]);
        let unreachable = status(&[("Ready", "False", "BrokerUnreachable")]);
        let refused = status(&[("Ready", "False", "BrokerRefusedCredentials")]);
        assert_eq!(reasons_of(None, &ready), ["Ready"]);
        let accepted = status(&[("Accepted", "True", "Accepted")]);
        let rejected = status(&[("Accepted", "False", "DeploymentRejected")]);
        assert_eq!(reasons_of(None, &accepted), Vec::<String>::new());
        assert_eq!(reasons_of(Some(&rejected), &accepted), ["Accepted"]);
        assert_eq!(reasons_of(Some(&ready), &rolling), Vec::<String>::new());
        let draining = status(&[("Ready", "True", "DrainingSessions")]);
        assert_eq!(reasons_of(Some(&ready), &draining), ["DrainingSessions"]);
        assert_eq!(reasons_of(Some(&draining), &draining), Vec::<String>::new());
        assert_eq!(reasons_of(Some(&ready), &unreachable), ["BrokerUnreachable"]);
        assert_eq!(reasons_of(Some(&unreachable), &refused), ["BrokerRefusedCredentials"]);
        assert_eq!(reasons_of(Some(&refused), &refused), Vec::<String>::new());
        assert_eq!(reasons_of(None, &status(&[("Ready", "False", "Progressing")])), Vec::<String>::new());
    }
}
