//! What keeps an instance from being ready, in the words of whoever knows best: the scheduler, the kubelet, the
//! gateway.

use mcp_mqtt_sidecar::status::{GatewayStatus, Part, reason};

use super::build::GATEWAY;
use crate::{
    live::{
        Deployment,
        pod::{ContainerStatus, Pod, Terminated},
    },
    observe::{Observation, is_ready, leaves},
    reasons,
};

/// Restarts after which a container that runs again still counts as failing, until it is ready.
const RESTARTS_WORTH_TELLING: i32 = 1;

/// A reason and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// For the condition.
    pub reason: String,
    /// For a person.
    pub message: String,
}

impl Problem {
    fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }

    /// For a client that waits for an instance.
    pub fn quoted(&self) -> String {
        format!("{}: {}", self.reason, self.message.trim_end_matches('.'))
    }
}

/// Why there are fewer pods than wanted.
pub fn of_deployment(deployment: &Deployment) -> Option<Problem> {
    let words = deployment.state.failure.as_ref()?;
    Some(Problem::new(reasons::PODS_NOT_CREATED, format!("Kubernetes refuses the pods: {words}")))
}

/// Why the instance does not count as ready; none: it does.
pub fn of_pod(pod: &Pod, seen: Option<&Observation>) -> Option<Problem> {
    if leaves(pod) {
        return Some(Problem::new(reasons::DRAINING, "it is shutting down"));
    }
    if is_ready(pod) {
        return None;
    }
    let problem = unschedulable(pod).or_else(|| of_containers(pod)).or_else(|| of_gateway(seen));
    Some(problem.unwrap_or_else(|| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        Problem::new(reasons::PROGRESSING, format!("starting (pod {phase})"))
    }))
}

/// Why the instance does not stand in the registry; none: it does.
pub fn of_registration(pod: &Pod, seen: Option<&Observation>) -> Option<Problem> {
    match seen.map(|seen| &seen.status) {
        Some(Ok(status)) if status.broker.ok => None,
        Some(Ok(status)) => Some(of_status(status).unwrap_or_else(|| part(&status.broker))),
        // What keeps the pod from running keeps it from registering.
        Some(Err(_)) | None => of_pod(pod, seen)
            .or_else(|| of_gateway(seen))
            .or_else(|| Some(Problem::new(reasons::PROGRESSING, "its gateway has not been asked yet"))),
    }
}

fn unschedulable(pod: &Pod) -> Option<Problem> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions
        .iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    let words = scheduled.message.clone().unwrap_or_default();
    Some(Problem::new(reasons::UNSCHEDULABLE, format!("no node takes it: {words}")))
}

fn of_containers(pod: &Pod) -> Option<Problem> {
    let status = pod.status.as_ref()?;
    let mut containers =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    containers.find_map(of_container)
}

fn of_container(container: &ContainerStatus) -> Option<Problem> {
    let state = container.state.as_ref()?;
    let name = &container.name;
    if let Some(words) = last_words(container) {
        return Some(Problem::new(reasons::CONTAINER_FAILED, format!("container {name}: {words}")));
    }
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        // These two are the way of every start.
        if matches!(reason, "" | "PodInitializing" | "ContainerCreating") {
            return None;
        }
        let words = match last_end(container) {
            Some(end) => end,
            None => waiting.message.clone().unwrap_or_default(),
        };
        let (reason, words) = same_while_retried(reason, &words);
        return Some(Problem::new(reason, format!("container {name}: {words}")));
    }
    if let Some(ended) = &state.terminated
        && (ended.exit_code != 0 || name == GATEWAY)
    {
        return Some(Problem::new(
            reasons::CONTAINER_FAILED,
            format!("container {name} {}", ending(name, ended)),
        ));
    }
    // The gateway knows better why it restarted a server; what it says of itself comes first.
    (name != GATEWAY && container.restart_count >= RESTARTS_WORTH_TELLING)
        .then(|| last_end(container))
        .flatten()
        .map(|end| {
            Problem::new(reasons::CONTAINER_FAILED, format!("container {name} was restarted: it {end}"))
        })
}

/// The kubelet takes turns between "it failed" and "I wait before the next try", which is one and the same for a
/// person, and one status to write.
fn same_while_retried<'a>(reason: &'a str, words: &'a str) -> (&'a str, &'a str) {
    const FAILED: &str = "ErrImagePull";
    const WAITS: &str = "ImagePullBackOff";
    if !matches!(reason, FAILED | WAITS) {
        return (reason, words);
    }
    (WAITS, words.split_once("ErrImagePull: ").map_or(words, |(_, cause)| cause))
}

/// What a gateway that does not run said of its end: why the binary could not be installed. The kubelet takes turns
/// between "its hook failed", "it ended" and "I wait before the next try", and only the first has the cause.
fn last_words(container: &ContainerStatus) -> Option<&str> {
    let state =
        container.state.as_ref().filter(|state| container.name == GATEWAY && state.running.is_none())?;
    let before = || container.last_state.as_ref()?.terminated.as_ref();
    let ended = state.terminated.as_ref().or_else(before)?;
    ended.message.as_deref().map(str::trim_end).filter(|words| !words.is_empty())
}

/// How the container ended the last time. The kubelet's own words ("back-off 20s restarting …") say less and change
/// with each try.
fn last_end(container: &ContainerStatus) -> Option<String> {
    let ended = container.last_state.as_ref()?.terminated.as_ref()?;
    Some(ending(&container.name, ended))
}

fn ending(name: &str, ended: &Terminated) -> String {
    let code = ended.exit_code;
    if code == 0 && name == GATEWAY {
        return "was stopped by the kubelet; see the pod's events (`kubectl describe pod`)".to_owned();
    }
    let reason = ended.reason.as_deref().filter(|reason| *reason != "Error");
    let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!("ended with exit code {code}{reason}; see `kubectl logs --previous`")
}

fn of_gateway(seen: Option<&Observation>) -> Option<Problem> {
    match &seen?.status {
        Ok(status) => of_status(status),
        Err(words) => Some(Problem::new(
            reasons::GATEWAY_NOT_ANSWERING,
            format!("its gateway does not answer the operator: {words}"),
        )),
    }
}

fn of_status(status: &GatewayStatus) -> Option<Problem> {
    if status.draining {
        return Some(Problem::new(reasons::DRAINING, "it is draining"));
    }
    // A gateway whose backend is not ready does not register: the backend is the cause.
    let waits = status.broker.reason == reason::WAITING_FOR_BACKEND;
    if !status.backend.ok && (waits || status.broker.ok) {
        return Some(part(&status.backend));
    }
    if !status.broker.ok {
        return Some(part(&status.broker));
    }
    (!status.backend.ok).then(|| part(&status.backend))
}

fn part(part: &Part) -> Problem {
    Problem::new(&part.reason, part.message.clone())
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        live::{DeploymentState, Meta},
        observe::Observations,
    };

    pub(crate) fn pod(name: &str, status: &Value) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "meteo", "uid": name}, "status": status}),
        )
        .unwrap()
    }

    pub(crate) fn gateway(backend: (&str, bool), broker: (&str, bool)) -> GatewayStatus {
        let part = |(reason, ok): (&str, bool)| Part {
            ok,
            reason: reason.to_owned(),
            message: format!("the words on {reason}"),
        };
        GatewayStatus {
            server_id: "id".to_owned(),
            server_name: "meteo/weather".to_owned(),
            backend: part(backend),
            broker: part(broker),
            draining: false,
            sessions: 0,
            in_flight: 0,
            idle_seconds: None,
            refused_sessions: 0,
            server: None,
            workers: Vec::new(),
        }
    }

    fn seen(status: Result<GatewayStatus, String>) -> Observation {
        let observations = Observations::default();
        observations.set("x", status);
        observations.get("x").unwrap()
    }

    fn container(name: &str, state: &Value, last: &Value, restarts: i32) -> Value {
        json!({"name": name, "ready": false, "restartCount": restarts, "image": "", "imageID": "", "state": state, "lastState": last})
    }

    fn problem(status: &Value, seen: Option<&Observation>) -> (String, String) {
        let problem = of_pod(&pod("weather-1", status), seen).unwrap();
        (problem.reason, problem.message)
    }

    #[test]
    fn a_ready_pod_has_no_problem() {
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        assert_eq!(of_pod(&pod("weather-1", &ready), None), None);
    }

    #[test]
    fn the_scheduler_is_quoted() {
        let status = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"},
        ]});
        assert_eq!(
            problem(&status, None),
            ("Unschedulable".to_owned(), "no node takes it: 0/1 nodes are available".to_owned())
        );
    }

    #[test]
    fn the_kubelet_is_quoted_with_its_own_reason() {
        let waiting = json!({"waiting": {"reason": "ErrImageNeverPull", "message": "Container image \"x\" is not present"}});
        let status =
            json!({"phase": "Pending", "containerStatuses": [container("server", &waiting, &json!({}), 0)]});
        let expected = "container server: Container image \"x\" is not present";
        assert_eq!(problem(&status, None), ("ErrImageNeverPull".to_owned(), expected.to_owned()));
    }

    #[test]
    fn an_image_that_cannot_be_pulled_is_one_problem_whether_it_is_being_tried_or_waited_for() {
        let of = |reason: &str, message: &str| {
            let waiting = json!({"waiting": {"reason": reason, "message": message}});
            problem(&json!({"containerStatuses": [container("server", &waiting, &json!({}), 0)]}), None)
        };
        let tried = of("ErrImagePull", "no such host");
        assert_eq!(tried, of("ImagePullBackOff", "Back-off pulling image \"x\": ErrImagePull: no such host"));
        assert_eq!(tried, ("ImagePullBackOff".to_owned(), "container server: no such host".to_owned()));
    }

    #[test]
    fn a_crash_loop_tells_how_the_container_ended_and_not_how_long_the_kubelet_waits() {
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s restarting failed container"}});
        let last = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        let status =
            json!({"phase": "Running", "containerStatuses": [container("server", &waiting, &last, 3)]});
        let expected =
            "container server: ended with exit code 137 (OOMKilled); see `kubectl logs --previous`";
        assert_eq!(problem(&status, None), ("CrashLoopBackOff".to_owned(), expected.to_owned()));
    }

    #[test]
    fn a_gateway_whose_hook_failed_tells_the_cause_whatever_the_kubelet_does_meanwhile() {
        let of = |name: &str, state: &Value, end: &Value| {
            problem(&json!({"initContainerStatuses": [container(name, state, end, 1)]}), None)
        };
        let end =
            |words: &str| json!({"terminated": {"exitCode": 0, "reason": "Completed", "message": words}});
        let waits = |reason: &str| json!({"waiting": {"reason": reason, "message": "the kubelet's words"}});
        let expected =
            ("ContainerFailed".to_owned(), "container gateway: cannot install: no space".to_owned());
        for state in
            [waits("PostStartHookError"), waits("CrashLoopBackOff"), end("cannot install: no space\n")]
        {
            assert_eq!(of(GATEWAY, &state, &end("cannot install: no space")), expected, "{state}");
        }
        assert_eq!(of(GATEWAY, &end("cannot install: no space"), &Value::Null), expected);
        // Without words of its own: who stopped it has them. Those of other containers may hold what is not for all.
        for (name, told) in [(GATEWAY, "was stopped by the kubelet"), ("migrate", "ended with exit code 0")] {
            let end = end(if name == GATEWAY { "" } else { "a password" });
            let (reason, message) = of(name, &waits("CrashLoopBackOff"), &end);
            assert_eq!(reason, "CrashLoopBackOff");
            assert!(message.starts_with(&format!("container {name}: {told}")), "{message}");
        }
        let (reason, message) = of(GATEWAY, &end(""), &Value::Null);
        assert_eq!(reason, "ContainerFailed");
        assert!(message.starts_with("container gateway was stopped by the kubelet"), "{message}");
        let running = json!({"running": {}});
        assert_eq!(
            of(GATEWAY, &running, &end("cannot install: no space")).0,
            "Progressing",
            "it had another try"
        );
    }

    #[test]
    fn the_way_of_every_start_is_no_problem_of_its_own() {
        let waiting = json!({"waiting": {"reason": "PodInitializing"}});
        let status =
            json!({"phase": "Pending", "containerStatuses": [container("server", &waiting, &json!({}), 0)]});
        assert_eq!(problem(&status, None), ("Progressing".to_owned(), "starting (pod Pending)".to_owned()));
    }

    #[test]
    fn the_gateway_is_quoted_and_the_backend_comes_before_the_registration_that_waits_for_it() {
        let running = json!({"phase": "Running"});
        let refused =
            seen(Ok(gateway((reason::BACKEND_READY, true), (reason::BROKER_REFUSED_CREDENTIALS, false))));
        assert_eq!(
            problem(&running, Some(&refused)),
            ("BrokerRefusedCredentials".to_owned(), "the words on BrokerRefusedCredentials".to_owned())
        );
        let waiting =
            seen(Ok(gateway((reason::BACKEND_NOT_ANSWERING, false), (reason::WAITING_FOR_BACKEND, false))));
        assert_eq!(problem(&running, Some(&waiting)).0, "BackendNotAnswering");
        let both = seen(Ok(gateway((reason::BACKEND_STARTING, false), (reason::BROKER_UNREACHABLE, false))));
        assert_eq!(problem(&running, Some(&both)).0, "BrokerUnreachable");
        let silent = seen(Err("connection refused".to_owned()));
        assert_eq!(problem(&running, Some(&silent)).0, "GatewayNotAnswering");
    }

    #[test]
    fn what_is_registered_is_told_apart_from_what_is_ready() {
        let pod = pod("weather-1", &json!({"phase": "Running"}));
        let registered = seen(Ok(gateway((reason::BACKEND_READY, true), (reason::REGISTERED, true))));
        assert_eq!(of_registration(&pod, Some(&registered)), None);
        let lost = seen(Ok(gateway((reason::BACKEND_READY, true), (reason::BROKER_CONNECTION_LOST, false))));
        assert_eq!(of_registration(&pod, Some(&lost)).unwrap().reason, "BrokerConnectionLost");
        assert_eq!(of_registration(&pod, None).unwrap().reason, "Progressing");
    }

    #[test]
    fn pods_that_the_api_server_refuses_are_explained_by_the_deployment() {
        let failure = Some("exceeded quota: small".into());
        let deployment =
            Deployment::new(Meta::default(), DeploymentState { failure, ..DeploymentState::default() });
        let problem = of_deployment(&deployment).unwrap();
        assert_eq!(
            (problem.reason.as_str(), problem.message.as_str()),
            ("PodsNotCreated", "Kubernetes refuses the pods: exceeded quota: small")
        );
    }
}
