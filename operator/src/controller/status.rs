//! Status: what the service has come to, told from what was applied, the pods and their gateways; written only when
//! it says something new.

use std::{fmt::Write as _, sync::Arc};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::api::ObjectMeta;
use mcp_mqtt_sidecar::status::{GatewayStatus, reason};

mod accepted;
mod defer;
mod memory;
#[cfg(test)]
mod tests;

use self::accepted::accepted;
pub use self::{
    defer::{defer_status, is_mere_progress, is_start},
    memory::{StatusMemory, patch_status},
};
use super::{
    build::{Applied, Resources},
    problems::{self, Problem},
};
use crate::{
    crd::{McpServiceStatus, status::ServerStatus},
    live::{Deployment, pod::Pod},
    names::{POD_TEMPLATE_HASH, SERVICE_LABEL, child},
    observe::{Observation, Observations, is_ready, leaves},
    reasons, registry,
};

/// Different problems that a message tells before it says "and so many more".
const NAMED_PROBLEMS: usize = 3;

/// What is said where the operator has no connection to the broker of a service.
const UNASKABLE: &str = "cannot ask the broker";

/// Instances that the status names.
const NAMED_INSTANCES: usize = 10;

/// How far the service came.
#[derive(Debug)]
pub enum Outcome {
    /// All of it stands at the API server. Nothing but applied resources makes this.
    Accepted(Box<Resources<Applied>>),
    /// It could stand there, and what stood before is left as it is: the service is paused.
    Paused,
    /// It does not, and this is why; what stood before still runs.
    Refused(Problem),
}

/// What can be seen of the service.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The Deployment as the watch knows it.
    pub deployment: Option<Arc<Deployment>>,
    /// Its pods, each with what its gateway said last.
    pub pods: Vec<(Arc<Pod>, Option<Observation>)>,
    /// Who the service is.
    pub metadata: &'a ObjectMeta,
    /// The name by which clients are to find it.
    pub server_name: Option<String>,
    /// How many instances are wanted.
    pub replicas: i32,
    /// What the broker says; none: it has not been asked yet.
    pub registry: Option<registry::wanted::Seen>,
    /// Whether it is about to say something, as this operator has just started.
    pub awaits_registry: bool,
    /// Whether Kubernetes' autoscaler can ask this operator for the service's sessions.
    pub serves_sessions: bool,
}

impl Seen<'_> {
    /// Pods and their gateways' words: the newest revision's first, as theirs are the problems that a person looks
    /// for, and then in the order of their names.
    pub fn pods(
        pods: impl IntoIterator<Item = Arc<Pod>>,
        observations: &Observations,
    ) -> Vec<(Arc<Pod>, Option<Observation>)> {
        let mut pods: Vec<_> = pods
            .into_iter()
            .map(|pod| {
                let seen = pod.metadata.uid.as_deref().and_then(|uid| observations.get(uid));
                (pod, seen)
            })
            .collect();
        let youngest =
            pods.iter().max_by_key(|(pod, _)| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        let newest = youngest.and_then(|(pod, _)| revision(pod)).map(str::to_owned);
        pods.sort_by_cached_key(|(pod, _)| (revision(pod) != newest.as_deref(), pod.metadata.name.clone()));
        pods
    }

    /// Whether the Deployment's controllers have made of its newest state what they make: pods, ready or not; or say
    /// that they cannot.
    fn is_under_way(&self) -> bool {
        if self.deployment.as_deref().and_then(problems::of_deployment).is_some() {
            return true;
        }
        let wanted = usize::try_from(self.replicas).unwrap_or_default();
        self.deployment.as_deref().is_some_and(|deployment| {
            let state = &deployment.state;
            // A rollout is under way with its first pod; a new Deployment makes all of them at once.
            state.observed_generation == deployment.meta.generation
                && state.updated >= self.replicas.min(1)
                && state.replicas >= self.replicas
        }) && self.staying().count() >= wanted
    }

    fn gateways(&self) -> impl Iterator<Item = &GatewayStatus> {
        self.pods.iter().filter_map(|(_, seen)| seen.as_ref()?.status.as_ref().ok())
    }

    /// Whether the broker's registry has not shown for some time what the gateway says.
    fn is_missing(&self, pod: &Pod) -> bool {
        let name = pod.metadata.name.as_ref();
        let missing = self.registry.as_ref().map(|registry| registry.missing.as_slice()).unwrap_or_default();
        name.is_some_and(|name| missing.contains(name))
    }

    /// Whether the broker's registry shows what the gateway does not say.
    fn is_present(&self, pod: &Pod) -> bool {
        let name = pod.metadata.name.as_ref();
        let present = self.registry.as_ref().map(|registry| registry.present.as_slice()).unwrap_or_default();
        name.is_some_and(|name| present.contains(name))
    }

    /// Whether the pod stands in the broker's registry. The broker knows; where it has not been asked, the gateway's
    /// word stands.
    fn is_registered(&self, pod: &Pod, seen: Option<&Observation>) -> bool {
        let status = seen.and_then(|seen| seen.status.as_ref().ok());
        status.is_some_and(|status| status.broker.ok) && !self.is_missing(pod) || self.is_present(pod)
    }

    /// The pods that stand in the registry, by name.
    fn registered(&self) -> Vec<String> {
        let registered = self.pods.iter().filter(|(pod, seen)| self.is_registered(pod, seen.as_ref()));
        let mut names: Vec<String> = registered.filter_map(|(pod, _)| pod.metadata.name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// Whether it sleeps, and can be woken.
    fn sleeps(&self) -> bool {
        self.registry.as_ref().is_some_and(|registry| registry.sleeps && registry.unscaled.is_none())
    }

    /// Pods that are not on their way out.
    fn staying(&self) -> impl Iterator<Item = (&Pod, Option<&Observation>)> {
        self.pods.iter().filter(|(pod, _)| !leaves(pod)).map(|(pod, seen)| (&**pod, seen.as_ref()))
    }
}

/// Names the pod template that the pod was made from.
fn revision(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(POD_TEMPLATE_HASH).map(String::as_str)
}

/// The status (pure). Conditions keep the time at which they last turned.
pub fn build_status(
    outcome: &Outcome,
    seen: &Seen<'_>,
    last: Option<&McpServiceStatus>,
    now: Timestamp,
) -> McpServiceStatus {
    let ready = count(seen.staying().filter(|(pod, _)| is_ready(pod)).count());
    let mut instances = seen.registered();
    let registered = count(instances.len());
    instances.truncate(NAMED_INSTANCES);
    let name = seen.metadata.name.clone().unwrap_or_default();
    let adopted =
        seen.gateways().find(|gateway| gateway.broker.ok).map(|gateway| gateway.server_name.clone());
    let generation = seen.metadata.generation;
    let mut status = McpServiceStatus {
        observed_generation: generation,
        server_name: adopted.or_else(|| seen.server_name.clone()),
        ready: Some(format!("{ready}/{}", seen.replicas)),
        replicas: seen.deployment.as_ref().map_or(0, |deployment| deployment.state.replicas),
        ready_replicas: ready,
        registered,
        instances,
        sessions: seen
            .gateways()
            .map(|gateway| i32::try_from(gateway.sessions).unwrap_or(i32::MAX))
            .fold(0, i32::saturating_add),
        selector: Some(format!("{SERVICE_LABEL}={}", child(&name))),
        server: server(seen).or_else(|| last.and_then(|last| last.server.clone())),
        conditions: Vec::new(),
    };
    let judged = [
        (reasons::ACCEPTED, accepted(outcome, seen.serves_sessions)),
        (reasons::READY, ready_condition(outcome, seen, ready)),
        (reasons::REGISTERED, registered_condition(outcome, seen)),
    ];
    status.conditions = judged
        .into_iter()
        .map(|(type_, (holds, problem))| condition(type_, holds, problem, generation, last, now))
        .collect();
    status
}

fn server(seen: &Seen<'_>) -> Option<ServerStatus> {
    // The youngest pod runs the newest image.
    let youngest = seen.pods.iter().filter_map(|(pod, seen)| {
        let server = seen.as_ref()?.status.as_ref().ok()?.server.as_ref()?;
        Some((pod.metadata.creation_timestamp.as_ref().map(|time| time.0), server))
    });
    youngest.max_by_key(|(created, _)| *created).map(|(_, server)| ServerStatus {
        name: server.name.clone(),
        version: server.version.clone(),
        protocol_version: server.protocol_version.clone(),
    })
}

/// Whether a condition holds, and why.
type Judgment = (bool, Problem);

fn holds(reason: &str, message: impl Into<String>) -> Judgment {
    (true, Problem { reason: reason.to_owned(), message: message.into() })
}

fn fails(reason: &str, message: impl Into<String>) -> Judgment {
    (false, Problem { reason: reason.to_owned(), message: message.into() })
}

/// Whether enough instances are ready, and which ones still let their sessions finish, whatever else is to be told.
fn ready_condition(outcome: &Outcome, seen: &Seen<'_>, ready: i32) -> Judgment {
    let (holds, mut why) = readiness(outcome, seen, ready);
    if let Some(waits) = draining(seen) {
        let _ = write!(why.message, "; {waits}");
        if why.reason == reasons::READY {
            reasons::DRAINING_SESSIONS.clone_into(&mut why.reason);
        }
    }
    (holds, why)
}

fn readiness(outcome: &Outcome, seen: &Seen<'_>, ready: i32) -> Judgment {
    if let Some(judgment) = nothing_runs(outcome, seen) {
        return judgment;
    }
    let mut problems = instances(seen, problems::of_pod);
    let wanted = seen.replicas;
    let count = format!("{ready} of {wanted} instances ready");
    if ready >= wanted {
        return match worst(&problems) {
            None => holds(reasons::READY, count),
            Some(_) => {
                holds(reasons::ROLLING_OUT, format!("{count}; the rollout waits for {}", told(&problems)))
            }
        };
    }
    if let Some(problem) = seen.deployment.as_deref().and_then(problems::of_deployment) {
        problems.insert(0, InstanceProblem { instances: Vec::new(), problem });
    }
    match worst(&problems) {
        None => fails(reasons::PROGRESSING, format!("{count}; waiting for the pods")),
        Some(worst) => fails(&worst.problem.reason, format!("{count}; {}", told(&problems))),
    }
}

/// How [`draining`] puts it, of one instance and of several.
const DRAINS: [&str; 2] = [" is draining and has ", " are draining and have "];

/// Whether the condition says that somebody goes down and waits for its sessions, whatever else is to be told.
pub fn tells_of_draining(condition: &Condition) -> bool {
    let last = condition.message.rsplit("; ").next().unwrap_or_default();
    condition.reason == reasons::DRAINING_SESSIONS || DRAINS.iter().any(|words| last.contains(words))
}

/// Who goes down and waits for its sessions; none: nobody does.
fn draining(seen: &Seen<'_>) -> Option<String> {
    let leaving = seen.pods.iter().filter(|(pod, _)| leaves(pod));
    let waiting: Vec<(&str, u32)> = leaving
        .filter_map(|(pod, seen)| {
            let status = seen.as_ref()?.status.as_ref().ok()?;
            (status.sessions > 0).then_some((pod.metadata.name.as_deref()?, status.sessions))
        })
        .collect();
    let sessions: u32 = waiting.iter().map(|(_, sessions)| sessions).sum();
    let sessions = format!("{sessions} session{}", if sessions == 1 { "" } else { "s" });
    let [of_one, of_several] = DRAINS;
    match waiting.as_slice() {
        [] => None,
        [(one, _)] => Some(format!("{one}{of_one}{sessions} left")),
        [(first, _), rest @ ..] => {
            Some(format!("{first} and {} more{of_several}{sessions} left", rest.len()))
        }
    }
}

fn registered_condition(outcome: &Outcome, seen: &Seen<'_>) -> Judgment {
    let unreachable = seen.registry.as_ref().and_then(|registry| registry.unreachable.as_ref());
    let forbidden = seen.registry.as_ref().and_then(|registry| registry.forbidden.as_ref());
    if let Some((holds, mut why)) = nothing_runs(outcome, seen) {
        if why.reason == reasons::SCALED_TO_ZERO && unreachable.is_some() {
            reasons::REGISTRY_UNREACHABLE.clone_into(&mut why.reason);
        } else if why.reason == reasons::SCALED_TO_ZERO && forbidden.is_some() {
            reason::BROKER_NOT_AUTHORIZED.clone_into(&mut why.reason);
        }
        return (holds, why);
    }
    let problems = instances(seen, |pod, observation| of_registration(seen, pod, observation));
    let staying = seen.staying();
    let registered = count(staying.filter(|(pod, observed)| seen.is_registered(pod, *observed)).count());
    let wanted = seen.replicas;
    let mut text = format!("{registered} of {wanted} instances in the broker's registry");
    let unreachable = unreachable.filter(|_| registered > 0);
    if let Some(why) = unreachable {
        let _ = write!(text, ", as the gateways report: the operator {UNASKABLE} ({why})");
    }
    if let Some(why) = forbidden {
        let _ = write!(text, "; it could not be put to sleep: {why}");
    }
    if registered >= wanted {
        let checked = unreachable.is_none();
        return holds(if checked { reasons::REGISTERED } else { reasons::REGISTRY_UNREACHABLE }, text);
    }
    match worst(&problems) {
        None => fails(reasons::PROGRESSING, format!("{text}; waiting for the pods")),
        Some(worst) => fails(&worst.problem.reason, format!("{text}; {}", told(&problems))),
    }
}

/// Why the pod does not stand in the broker's registry; none: it does.
fn of_registration(seen: &Seen<'_>, pod: &Pod, observation: Option<&Observation>) -> Option<Problem> {
    if seen.is_registered(pod, observation) {
        return None;
    }
    problems::of_registration(pod, observation).or_else(|| {
        let message = "the broker's registry does not show it although its gateway registered; it was told to register again";
        Some(Problem { reason: reasons::PRESENCE_MISSING.to_owned(), message: message.to_owned() })
    })
}

/// With no instance there is nothing to judge.
fn nothing_runs(outcome: &Outcome, seen: &Seen<'_>) -> Option<Judgment> {
    if matches!(outcome, Outcome::Refused(_) | Outcome::Paused) && seen.deployment.is_none() {
        return Some(fails(reasons::NOT_ACCEPTED, "nothing runs; see the condition Accepted"));
    }
    if seen.replicas != 0 {
        return None;
    }
    if seen.sleeps() {
        return Some(holds(
            reasons::ASLEEP,
            "no client has a session; clients find the service, and the first initialize wakes it",
        ));
    }
    if let Some(why) = seen.registry.as_ref().and_then(|registry| registry.unscaled.as_ref()) {
        let message = format!("spec.replicas is 0, and the last attempt to wake the service failed: {why}");
        return Some(fails(reasons::SCALED_TO_ZERO, message));
    }
    let registry = seen.registry.as_ref();
    let unreachable = registry.and_then(|registry| registry.unreachable.as_ref());
    let forbidden = registry.and_then(|registry| registry.forbidden.as_ref());
    let why = unreachable
        .map(|why| format!(", and the operator {UNASKABLE} ({why})"))
        .or_else(|| forbidden.map(|why| format!(", and none can wake the service: {why}")));
    let message = match forbidden.filter(|_| unreachable.is_none()) {
        Some(why) if registry.is_some_and(|registry| registry.parked) => {
            format!("spec.replicas is 0; clients find the service, but none can wake it: {why}")
        }
        _ => format!("spec.replicas is 0; clients find no instance{}", why.unwrap_or_default()),
    };
    Some(fails(reasons::SCALED_TO_ZERO, message))
}

/// A problem, and who has it; with nobody it is the service's as a whole.
struct InstanceProblem {
    instances: Vec<String>,
    problem: Problem,
}

/// Problems of the staying instances, each told once: a broker that is down is down for all of them.
fn instances(
    seen: &Seen<'_>,
    judge: impl Fn(&Pod, Option<&Observation>) -> Option<Problem>,
) -> Vec<InstanceProblem> {
    let mut problems: Vec<InstanceProblem> = Vec::new();
    for (pod, observation) in seen.staying() {
        let Some(problem) = judge(pod, observation) else { continue };
        let name = pod.metadata.name.clone().unwrap_or_default();
        match problems.iter_mut().find(|known| known.problem == problem) {
            Some(known) => known.instances.push(name),
            None => problems.push(InstanceProblem { instances: vec![name], problem }),
        }
    }
    problems
}

/// The one whose reason the condition takes: a cause before what merely takes its time.
fn worst(problems: &[InstanceProblem]) -> Option<&InstanceProblem> {
    problems.iter().find(|known| !reasons::passes(&known.problem.reason)).or_else(|| problems.first())
}

/// The worst first, and the first few of them in full.
fn told(problems: &[InstanceProblem]) -> String {
    let worst = worst(problems);
    let rest = problems.iter().filter(|known| worst.is_none_or(|worst| !std::ptr::eq(*known, worst)));
    let sentences: Vec<String> = worst.into_iter().chain(rest).take(NAMED_PROBLEMS).map(sentence).collect();
    let more = problems.len().saturating_sub(NAMED_PROBLEMS);
    let text = sentences.join("; ");
    if more == 0 { text } else { format!("{text}; and {more} more") }
}

fn sentence(known: &InstanceProblem) -> String {
    let words = known.problem.message.trim_end_matches('.');
    match known.instances.as_slice() {
        [] => words.to_owned(),
        [one] => format!("{one}: {words}"),
        [first, rest @ ..] => format!("{first} and {} more: {words}", rest.len()),
    }
}

fn condition(
    type_: &str,
    holds: bool,
    why: Problem,
    generation: Option<i64>,
    last: Option<&McpServiceStatus>,
    now: Timestamp,
) -> Condition {
    let status = if holds { "True" } else { "False" };
    let last = last.and_then(|last| last.conditions.iter().find(|condition| condition.type_ == type_));
    let unturned = last.filter(|last| last.status == status).map(|last| last.last_transition_time.clone());
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: why.reason,
        message: why.message,
        observed_generation: generation,
        // The API server keeps seconds: a finer time would never compare equal.
        last_transition_time: unturned
            .unwrap_or_else(|| Time(Timestamp::from_second(now.as_second()).unwrap_or(now))),
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
