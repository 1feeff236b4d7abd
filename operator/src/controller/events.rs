//! Events: what people see in `kubectl describe`. Only transitions of conditions, the begin of a drain and writes are
//! news; a sentence that changes is not. They are written one after the other, beside the reconciles: what is told of one
//! service keeps no other from being made. What comes faster than the API server takes it is left out after a moment.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{
    sync::mpsc::{
        self,
        error::{SendTimeoutError, TrySendError},
    },
    time::timeout,
};

use super::{
    apply::Change,
    scope::{Guarded, Scope},
    status::tells_of_draining,
};
use crate::{
    crd::{McpService, McpServiceStatus},
    metrics::Metrics,
    reasons,
};

/// Events of writes that wait to be written: as many as a burst of new services tells of. One has less than a kilobyte.
const CHANGES: usize = 2048;
/// Events of conditions' transitions. A reconcile, which has nothing else to do then, waits for room; but not for long, and
/// not where others have waited in vain.
const TRANSITIONS: usize = 256;
const ROOM: Duration = Duration::from_secs(3);
/// A recorder remembers what it wrote in the last minutes, so that what repeats is counted and not written anew. After
/// so many another one takes its place: all that a thousand services tell at once would be megabytes.
const REMEMBERED: usize = 64;
/// For the API server to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// An Event, and whom it is about.
type Told = (Event, ObjectReference);

/// Where Events go.
pub struct EventWriter {
    changes: mpsc::Sender<Told>,
    transitions: mpsc::Sender<Told>,
    metrics: Arc<Metrics>,
    /// Something was left out, and the queues have not been half empty since.
    overrun: Arc<AtomicBool>,
}

impl EventWriter {
    /// And what writes them, until there is no [`EventWriter`] and nothing to write any more.
    pub fn new(
        client: Client,
        reporter: Reporter,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (changes, mut new_changes) = mpsc::channel::<Told>(CHANGES);
        let (transitions, mut new_transitions) = mpsc::channel::<Told>(TRANSITIONS);
        let overrun = Arc::new(AtomicBool::new(false));
        let writer = Self { changes, transitions, metrics: metrics.clone(), overrun: overrun.clone() };
        let write = async move {
            loop {
                let recorder = Recorder::new(client.clone(), reporter.clone());
                for _ in 0..REMEMBERED {
                    let next = tokio::select! {
                        biased; // a transition comes of a change
                        Some(change) = new_changes.recv() => change,
                        Some(transition) = new_transitions.recv() => transition,
                        else => return,
                    };
                    if new_transitions.len() <= TRANSITIONS / 2 && new_changes.len() <= CHANGES / 2 {
                        overrun.store(false, Ordering::Relaxed);
                    }
                    write(&recorder, &next, &metrics).await;
                }
            }
        };
        (writer, write)
    }

    /// Tells of a write. Waits for nothing: an Event is worth less than what the reconcile has yet to do.
    fn tell_change(&self, event: Event, about: ObjectReference) {
        // It is closed when the controller ends.
        if let Err(TrySendError::Full(told)) = self.changes.try_send((event, about)) {
            self.leave_out(&told);
        }
    }

    /// Tells of a condition.
    async fn tell_transition(&self, event: Event, about: ObjectReference) {
        let Err(TrySendError::Full(told)) = self.transitions.try_send((event, about)) else { return };
        if self.overrun.load(Ordering::Relaxed) {
            self.leave_out(&told);
        } else if let Err(SendTimeoutError::Timeout(told)) = self.transitions.send_timeout(told, ROOM).await {
            self.leave_out(&told);
        }
    }

    fn leave_out(&self, (event, about): &Told) {
        self.metrics.left_out_event();
        if !self.overrun.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                namespace = about.namespace,
                service = about.name,
                reason = event.reason,
                "the API server takes Events slower than they come: this one and others are left out"
            );
        }
    }
}

/// Nothing hangs on it.
async fn write(recorder: &Recorder, (event, about): &Told, metrics: &Metrics) {
    match timeout(ANSWER, recorder.publish(event, about)).await {
        Ok(Ok(())) => metrics.wrote("Event", "create"),
        Ok(Err(error)) => tracing::warn!(reason = event.reason, "an Event cannot be written: {error}"),
        Err(_) => {
            tracing::warn!(reason = event.reason, "an Event cannot be written: no answer within {ANSWER:?}");
        }
    }
}

/// The API server refuses longer notes.
const MAX_NOTE: usize = 1000;

/// One Event for all writes of a reconcile that are alike: an Event is a write, too.
pub(super) fn tell_changes(scope: &Scope, service: &Guarded, changes: &[Change]) {
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
        scope.events.tell_change(event, reference(service));
    }
}

/// An Event for each condition that turned, or that fails for another reason than before; and for a drain that begins to
/// wait for its sessions.
pub(super) async fn tell_conditions(
    scope: &Scope,
    service: &Guarded,
    last: Option<&McpServiceStatus>,
    now: &McpServiceStatus,
) {
    for transition in transitions(last, now) {
        let event = event(transition.kind, &transition.reason, transition.condition, transition.note);
        scope.events.tell_transition(event, reference(service)).await;
    }
}

/// What is news though the condition holds as before. That somebody drains is told when it begins.
fn worth_telling(reason: &str) -> bool {
    matches!(reason, reasons::ASLEEP | reasons::PAUSED)
}

struct Transition<'a> {
    kind: EventType,
    reason: String,
    condition: &'a str,
    note: String,
}

fn transitions<'a>(last: Option<&McpServiceStatus>, now: &'a McpServiceStatus) -> Vec<Transition<'a>> {
    let mut transitions = Vec::new();
    for condition in &now.conditions {
        let before =
            last.and_then(|last| last.conditions.iter().find(|before| before.type_ == condition.type_));
        let same = before.is_some_and(|before| {
            before.status == condition.status
                && (before.reason == condition.reason
                    || condition.status == "True" && !worth_telling(&condition.reason))
        });
        // Whatever the reason is: an instance that goes down begins to wait for its sessions.
        let drains = tells_of_draining(condition) && !before.is_some_and(tells_of_draining);
        // That it is on its way, or waits for another condition, is no news.
        let passing = condition.reason == reasons::NOT_ACCEPTED || reasons::passes(&condition.reason);
        // What was applied has told as much.
        let first = before.is_none() && condition.reason == reasons::ACCEPTED;
        // One cause is one Event, though it keeps the instance both from being ready and from being registered.
        let told =
            transitions.iter().any(|transition: &Transition<'_>| transition.reason == condition.reason);
        // That an instance is registered is part of its being ready.
        let implied = condition.reason == reasons::REGISTERED
            && transitions.iter().any(|transition: &Transition<'_>| transition.reason == reasons::READY);
        let told = told || implied;
        if !(same || passing || first || told) {
            let good = condition.status == "True" || condition.reason == reasons::SCALED_TO_ZERO;
            transitions.push(transition(condition, &condition.reason, good));
        }
        if drains && transitions.iter().all(|transition| transition.reason != reasons::DRAINING_SESSIONS) {
            transitions.push(transition(condition, reasons::DRAINING_SESSIONS, true));
        }
    }
    transitions
}

fn transition<'a>(condition: &'a Condition, reason: &str, good: bool) -> Transition<'a> {
    Transition {
        kind: if good { EventType::Normal } else { EventType::Warning },
        reason: reason.to_owned(),
        condition: &condition.type_,
        note: condition.message.clone(),
    }
}

fn event(type_: EventType, reason: &str, action: &str, mut note: String) -> Event {
    note.truncate(note.floor_char_boundary(MAX_NOTE));
    Event { type_, reason: reason.to_owned(), note: Some(note), action: action.to_owned(), secondary: None }
}

fn reference(service: &Guarded) -> ObjectReference {
    let mut reference = service.object_ref(&());
    reference.kind = Some(McpService::kind(&()).into_owned());
    reference.api_version = Some(McpService::api_version(&()).into_owned());
    reference
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending};

    use kube::client::Body;
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;

    /// An API server that never answers, and what is told meanwhile.
    fn stuck() -> (EventWriter, Arc<Metrics>, impl Future<Output = ()> + Send + 'static) {
        let silent = tower::service_fn(|_: http::Request<Body>| {
            pending::<std::result::Result<http::Response<Body>, Infallible>>()
        });
        let metrics = Arc::new(Metrics::new());
        let (writer, write) =
            EventWriter::new(Client::new(silent, "meteo"), Reporter::from("operator"), metrics.clone());
        (writer, metrics, write)
    }

    fn left_out(metrics: &Metrics) -> usize {
        let text = metrics.encode();
        let line = text.lines().find(|line| line.starts_with("mcp_mqtt_operator_events_left_out_total "));
        line.unwrap().split_once(' ').unwrap().1.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn no_event_keeps_a_reconcile_waiting_for_long() {
        let (writer, metrics, _unwritten) = stuck();
        let begin = Instant::now();
        for _ in 0..TRANSITIONS {
            writer.tell_transition(event(EventType::Normal, "Ready", "Ready", String::new()), about()).await;
        }
        assert_eq!((begin.elapsed(), left_out(&metrics)), (Duration::ZERO, 0));
        for left in [1, 2, 3] {
            writer.tell_transition(event(EventType::Normal, "Ready", "Ready", String::new()), about()).await;
            assert_eq!((begin.elapsed(), left_out(&metrics)), (ROOM, left), "the first waits, and no other");
        }
        for _ in 0..CHANGES {
            writer.tell_change(event(EventType::Normal, "Applied", "Reconcile", String::new()), about());
        }
        assert_eq!(left_out(&metrics), 3, "they have room of their own");
        writer.tell_change(event(EventType::Normal, "Applied", "Reconcile", String::new()), about());
        assert_eq!((begin.elapsed(), left_out(&metrics)), (ROOM, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_told_is_written_before_the_end_though_nobody_answers() {
        let (writer, _, write) = stuck();
        writer.tell_change(event(EventType::Normal, "Applied", "Reconcile", String::new()), about());
        writer.tell_transition(event(EventType::Normal, "Ready", "Ready", String::new()), about()).await;
        drop(writer);
        let begin = Instant::now();
        write.await;
        assert_eq!(begin.elapsed(), ANSWER * 2);
    }

    fn about() -> ObjectReference {
        ObjectReference { name: Some("weather".to_owned()), ..ObjectReference::default() }
    }

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
        transitions(last, now).into_iter().map(|transition| transition.reason).collect()
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
        let paused = status(&[("Accepted", "True", "Paused")]);
        assert_eq!(reasons_of(Some(&accepted), &paused), ["Paused"]);
        assert_eq!(reasons_of(Some(&paused), &paused), Vec::<String>::new());
        assert_eq!(reasons_of(Some(&ready), &unreachable), ["BrokerUnreachable"]);
        assert_eq!(reasons_of(Some(&unreachable), &refused), ["BrokerRefusedCredentials"]);
        assert_eq!(reasons_of(Some(&refused), &refused), Vec::<String>::new());
        assert_eq!(reasons_of(None, &status(&[("Ready", "False", "Progressing")])), Vec::<String>::new());
    }

    #[test]
    fn an_instance_that_begins_to_wait_for_its_sessions_is_told_of_once_whatever_the_reason() {
        let with = |status_and_reason: (&str, &str), message: &str| {
            let (holds, reason) = status_and_reason;
            let mut status = status(&[("Ready", holds, reason)]);
            status.conditions[0].message = message.to_owned();
            status
        };
        let [calm, drains] = ["m", "m; b is draining and has 3 sessions left"];
        let several = "m; b and 1 more are draining and have 2 sessions left";
        let [zero, asleep] = [("False", "ScaledToZero"), ("True", "Asleep")];
        let [starts, runs] = [("False", "Progressing"), ("True", "Ready")];
        let [rolls, waits] = [("True", "RollingOut"), ("True", "DrainingSessions")];
        let running = with(runs, calm);
        for (last, now, told) in [
            (&running, with(zero, drains), &["ScaledToZero", "DrainingSessions"][..]),
            (&running, with(asleep, several), &["Asleep", "DrainingSessions"]),
            (&running, with(starts, drains), &["DrainingSessions"]),
            (&running, with(rolls, drains), &["DrainingSessions"]),
            (&running, with(waits, drains), &["DrainingSessions"]),
            (&with(zero, calm), with(zero, drains), &["DrainingSessions"]),
            // It goes on, or is over.
            (&with(zero, drains), with(zero, several), &[]),
            (&with(rolls, drains), with(waits, drains), &[]),
            (&with(waits, drains), with(zero, drains), &["ScaledToZero"]),
            (&with(waits, drains), running.clone(), &[]),
        ] {
            assert_eq!(reasons_of(Some(last), &now), told, "{now:?}");
        }
        let begun = with(starts, drains);
        let kinds = transitions(Some(&running), &begun);
        assert!(matches!(kinds[0].kind, EventType::Normal), "it is no fault");
    }

    #[test]
    fn a_start_is_one_event() {
        let [starts, waits, runs] = [("False", "Progressing"), ("True", "Registered"), ("True", "Ready")];
        let of = |ready: (&str, &str), registered: (&str, &str)| {
            status(&[("Ready", ready.0, ready.1), ("Registered", registered.0, registered.1)])
        };
        let (starting, running) = (of(starts, starts), of(runs, waits));
        assert_eq!(reasons_of(Some(&starting), &running), ["Ready"]);
        assert_eq!(reasons_of(None, &running), ["Ready"]);
        // Where it is told before.
        assert_eq!(reasons_of(Some(&starting), &of(starts, waits)), ["Registered"]);
        assert_eq!(reasons_of(Some(&of(starts, waits)), &running), ["Ready"]);
        let lost = of(runs, ("False", "PresenceMissing"));
        assert_eq!(reasons_of(Some(&lost), &running), ["Registered"]);
    }
}
