use k8s_openapi::{api::apps::v1, jiff::SignedDuration};
use mcp_mqtt_sidecar::status::{ServerInfo, reason};
use serde_json::{Value, json};

use super::*;
use crate::{
    controller::problems::tests::{gateway, pod},
    live::{
        Shapes,
        wire::{self, Wire},
    },
};

fn deployment(replicas: i32) -> Arc<Deployment> {
    Arc::new(live(json!({"metadata": {}, "status": {"replicas": replicas}})))
}

pub(super) fn live(deployment: Value) -> Deployment {
    let read: wire::Deployment = serde_json::from_value(deployment).unwrap();
    read.keep(&mut Shapes::default())
}

pub(super) fn observed(status: Result<GatewayStatus, String>) -> Observation {
    let observations = Observations::default();
    observations.set("x", status);
    observations.get("x").unwrap()
}

pub(super) fn ready_pod(name: &str) -> Arc<Pod> {
    Arc::new(pod(name, &json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})))
}

pub(super) fn starting_pod(name: &str) -> Arc<Pod> {
    Arc::new(pod(name, &json!({"phase": "Running"})))
}

pub(super) fn registered(sessions: u32) -> Observation {
    let server = ServerInfo {
        name: "sky".to_owned(),
        version: "4".to_owned(),
        protocol_version: "2025-06-18".to_owned(),
    };
    observed(Ok(GatewayStatus {
        sessions,
        server: Some(server),
        ..gateway((reason::BACKEND_READY, true), (reason::REGISTERED, true))
    }))
}

pub(super) fn refused_by_broker() -> Observation {
    observed(Ok(gateway((reason::BACKEND_READY, true), (reason::BROKER_REFUSED_CREDENTIALS, false))))
}

pub(super) fn metadata() -> ObjectMeta {
    serde_json::from_value(json!({"name": "weather", "namespace": "meteo", "generation": 7})).unwrap()
}

pub(super) fn seen(
    metadata: &ObjectMeta,
    replicas: i32,
    pods: Vec<(Arc<Pod>, Option<Observation>)>,
) -> Seen<'_> {
    Seen {
        deployment: Some(deployment(replicas)),
        pods,
        metadata,
        server_name: Some("meteo/weather".to_owned()),
        replicas,
        registry: None,
        awaits_registry: false,
        serves_sessions: true,
    }
}

pub(super) fn applied() -> Resources<Applied> {
    Resources {
        service_account: None,
        broker_secret: None,
        deployment: v1::Deployment::default(),
        disruption_budget: None,
        autoscaler: None,
        scaled_object: None,
        network_policy: None,
        state: std::marker::PhantomData,
    }
}

pub(super) fn noon() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

pub(super) fn status(replicas: i32, pods: Vec<(Arc<Pod>, Option<Observation>)>) -> McpServiceStatus {
    let metadata = metadata();
    build_status(&Outcome::Accepted(Box::new(applied())), &seen(&metadata, replicas, pods), None, noon())
}

pub(super) fn told(status: &McpServiceStatus, type_: &str) -> (String, String, String) {
    let condition = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    (condition.status.clone(), condition.reason.clone(), condition.message.clone())
}

fn words(status: &str, reason: &str, message: &str) -> (String, String, String) {
    (status.to_owned(), reason.to_owned(), message.to_owned())
}

#[test]
fn a_service_that_runs_has_this_status() {
    let status =
        status(2, vec![(ready_pod("a"), Some(registered(3))), (ready_pod("b"), Some(registered(4)))]);
    let condition = |type_: &str, reason: &str, message: &str| {
        json!({
            "type": type_, "status": "True", "reason": reason, "message": message,
            "observedGeneration": 7, "lastTransitionTime": "2027-01-15T08:00:00Z",
        })
    };
    let expected = json!({
        "observedGeneration": 7,
        "serverName": "meteo/weather",
        "ready": "2/2",
        "replicas": 2,
        "readyReplicas": 2,
        "registered": 2,
        "instances": ["a", "b"],
        "sessions": 7,
        "selector": "mcp-mqtt.io/service=weather",
        "server": {"name": "sky", "version": "4", "protocolVersion": "2025-06-18"},
        "conditions": [
            condition("Accepted", "Accepted", "the spec and what it refers to are usable"),
            condition("Ready", "Ready", "2 of 2 instances ready"),
            condition("Registered", "Registered", "2 of 2 instances in the broker's registry"),
        ],
    });
    assert_eq!(serde_json::to_value(&status).unwrap(), expected);
}

#[test]
fn who_owns_the_number_of_instances_is_told() {
    let autoscaler = json!({
        "metadata": {"name": "mistral"},
        "spec": {"minReplicas": 2, "maxReplicas": 9, "scaleTargetRef": {"kind": "McpService", "name": "weather"}},
    });
    let object = json!({
        "metadata": {"name": "sirocco"},
        "spec": {
            "scaleTargetRef": {"kind": "McpService", "name": "weather"},
            "minReplicaCount": 0, "maxReplicaCount": 5, "triggers": [],
        },
    });
    let of = |autoscaler: Value, scaled_object: Value| {
        let resources = Resources {
            autoscaler: serde_json::from_value(autoscaler).unwrap(),
            scaled_object: serde_json::from_value(scaled_object).unwrap(),
            ..applied()
        };
        let metadata = metadata();
        let seen = seen(&metadata, 1, Vec::new());
        told(&build_status(&Outcome::Accepted(Box::new(resources)), &seen, None, noon()), "Accepted").2
    };
    let usable = "the spec and what it refers to are usable";
    assert_eq!(of(Value::Null, Value::Null), usable);
    let owned = "spec.replicas is managed by HorizontalPodAutoscaler mistral, from 2 to 9: manual changes are \
        overwritten, except 0, which suspends autoscaling";
    assert_eq!(of(autoscaler, Value::Null), format!("{usable}; {owned}"));
    let owned =
        "spec.replicas is managed by ScaledObject sirocco, from 0 to 5: manual changes are overwritten";
    assert_eq!(of(Value::Null, object), format!("{usable}; {owned}"));
}

#[test]
fn one_cause_of_many_instances_is_told_once() {
    let pods = ["a", "b", "c"].map(|name| (starting_pod(name), Some(refused_by_broker())));
    let status = status(3, pods.into());
    let cause = "a and 2 more: the words on BrokerRefusedCredentials";
    assert_eq!(
        told(&status, "Ready"),
        words("False", "BrokerRefusedCredentials", &format!("0 of 3 instances ready; {cause}"))
    );
    assert_eq!(
        told(&status, "Registered"),
        words(
            "False",
            "BrokerRefusedCredentials",
            &format!("0 of 3 instances in the broker's registry; {cause}")
        )
    );
}

#[test]
fn a_cause_comes_before_what_merely_takes_its_time() {
    let status = status(2, vec![(starting_pod("a"), None), (starting_pod("b"), Some(refused_by_broker()))]);
    assert_eq!(
        told(&status, "Ready"),
        words(
            "False",
            "BrokerRefusedCredentials",
            "0 of 2 instances ready; b: the words on BrokerRefusedCredentials; a: starting (pod Running)"
        )
    );
}

#[test]
fn a_rollout_that_waits_leaves_the_service_ready_and_says_for_what() {
    let pods =
        vec![(ready_pod("old"), Some(registered(0))), (starting_pod("new"), Some(refused_by_broker()))];
    let status = status(1, pods);
    assert_eq!(
        told(&status, "Ready"),
        words(
            "True",
            "RollingOut",
            "1 of 1 instances ready; the rollout waits for new: the words on BrokerRefusedCredentials"
        )
    );
    assert_eq!(
        told(&status, "Registered"),
        words("True", "Registered", "1 of 1 instances in the broker's registry")
    );
}

#[test]
fn an_instance_that_goes_down_counts_no_more_but_its_sessions_do() {
    let mut leaving =
        pod("old", &json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}));
    leaving.metadata.deletion_timestamp = Some(Time(noon()));
    let status =
        status(1, vec![(Arc::new(leaving), Some(registered(2))), (ready_pod("new"), Some(registered(1)))]);
    assert_eq!((status.ready.as_deref(), status.sessions), (Some("1/1"), 3));
    assert_eq!(told(&status, "Ready").1, "DrainingSessions");
}

#[test]
fn without_replicas_nobody_is_found() {
    let status = status(0, Vec::new());
    assert_eq!(told(&status, "Ready").1, reasons::SCALED_TO_ZERO);
    assert_eq!(told(&status, "Registered").1, reasons::SCALED_TO_ZERO);
    assert_eq!(status.ready.as_deref(), Some("0/0"));
}

#[test]
fn a_refused_service_says_why_and_what_ran_before_runs_on() {
    let refused = Outcome::Refused(Problem {
        reason: reasons::INVALID_POD_TEMPLATE.to_owned(),
        message: "why".to_owned(),
    });
    let metadata = metadata();
    let running = seen(&metadata, 1, vec![(ready_pod("a"), Some(registered(0)))]);
    let status = build_status(&refused, &running, None, noon());
    assert_eq!(told(&status, "Accepted"), words("False", "InvalidPodTemplate", "why"));
    assert_eq!(told(&status, "Ready").0, "True");
    let nothing = Seen { deployment: None, ..seen(&metadata, 1, Vec::new()) };
    let status = build_status(&refused, &nothing, None, noon());
    assert_eq!(
        told(&status, "Ready"),
        words("False", "NotAccepted", "nothing runs; see the condition Accepted")
    );
}

#[test]
fn a_paused_service_says_so_and_what_runs_is_told_as_ever() {
    let metadata = metadata();
    let running = seen(&metadata, 1, vec![(ready_pod("a"), Some(registered(0)))]);
    let status = build_status(&Outcome::Paused, &running, None, noon());
    let message =
        "the annotation mcp-mqtt.io/paused is true: the operator leaves the service's objects as they are";
    assert_eq!(told(&status, "Accepted"), words("True", "Paused", message));
    assert_eq!(
        (told(&status, "Ready").1, told(&status, "Registered").1),
        ("Ready".into(), "Registered".into())
    );
    let nothing = Seen { deployment: None, ..seen(&metadata, 1, Vec::new()) };
    assert_eq!(told(&build_status(&Outcome::Paused, &nothing, None, noon()), "Ready").1, "NotAccepted");
}

#[test]
fn a_name_that_the_broker_gave_is_the_one_that_clients_find() {
    let adopted = observed(Ok(GatewayStatus {
        server_name: "given/name".to_owned(),
        ..gateway((reason::BACKEND_READY, true), (reason::REGISTERED, true))
    }));
    assert_eq!(status(1, vec![(ready_pod("a"), Some(adopted))]).server_name.as_deref(), Some("given/name"));
}

#[test]
fn a_condition_keeps_the_time_at_which_it_turned() {
    let metadata = metadata();
    let outcome = Outcome::Accepted(Box::new(applied()));
    let first = status(1, vec![(starting_pod("a"), None)]);
    let later = noon() + SignedDuration::from_secs(9);
    let still = seen(&metadata, 1, vec![(starting_pod("a"), Some(refused_by_broker()))]);
    let still = build_status(&outcome, &still, Some(&first), later);
    let now = seen(&metadata, 1, vec![(ready_pod("a"), Some(registered(0)))]);
    let now = build_status(&outcome, &now, Some(&still), later);
    let time = |status: &McpServiceStatus, type_: &str| {
        status.conditions.iter().find(|condition| condition.type_ == type_).unwrap().last_transition_time.0
    };
    assert_eq!(time(&still, "Ready"), noon());
    assert_eq!(time(&now, "Ready"), later);
    assert_eq!(time(&now, "Accepted"), noon());
}

#[test]
fn the_newest_revision_speaks_first() {
    let of = |name: &str, revision: &str, created: &str| {
        let mut pod = pod(name, &json!({"phase": "Running"}));
        pod.metadata.labels = Some([("pod-template-hash".to_owned(), revision.to_owned())].into());
        pod.metadata.creation_timestamp = serde_json::from_value(json!(created)).unwrap();
        Arc::new(pod)
    };
    let pods = [
        of("a", "old", "2027-01-15T08:00:00Z"),
        of("c", "new", "2027-01-15T08:00:02Z"),
        of("b", "new", "2027-01-15T08:00:01Z"),
    ];
    let names = |pods: Vec<(Arc<Pod>, Option<Observation>)>| {
        pods.iter().map(|(pod, _)| pod.metadata.name.clone().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(names(Seen::pods(pods, &Observations::default())), ["b", "c", "a"]);
}

#[test]
fn an_instance_that_waits_for_its_sessions_is_told() {
    let mut leaving = (*ready_pod("b")).clone();
    leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2027-01-15T08:00:00Z")).unwrap();
    let pods = |sessions| {
        vec![(ready_pod("a"), Some(registered(1))), (Arc::new(leaving.clone()), Some(registered(sessions)))]
    };
    let message = "1 of 1 instances ready; b is draining and has 3 sessions left";
    assert_eq!(told(&status(1, pods(3)), "Ready"), words("True", "DrainingSessions", message));
    let message = "1 of 1 instances ready; b is draining and has 1 session left";
    assert_eq!(told(&status(1, pods(1)), "Ready"), words("True", "DrainingSessions", message));
    assert_eq!(told(&status(1, pods(0)), "Ready"), words("True", "Ready", "1 of 1 instances ready"));
}

/// The status of a service of which the broker says this.
pub(super) fn with_registry(
    replicas: i32,
    pods: Vec<(Arc<Pod>, Option<Observation>)>,
    registry: registry::wanted::Seen,
) -> McpServiceStatus {
    let metadata = metadata();
    let seen = Seen { registry: Some(registry), ..seen(&metadata, replicas, pods) };
    build_status(
        &Outcome::Accepted(Box::new(applied())),
        &seen,
        None,
        Timestamp::from_second(1_800_000_000).unwrap(),
    )
}

pub(super) fn shown() -> registry::wanted::Seen {
    registry::wanted::Seen {
        unreachable: None,
        missing: Vec::new(),
        present: Vec::new(),
        sleeps: false,
        unscaled: None,
        forbidden: None,
        parked: false,
    }
}

#[test]
fn a_service_that_sleeps_is_ready_and_registered_and_one_that_cannot_be_woken_is_neither() {
    let asleep = with_registry(0, Vec::new(), registry::wanted::Seen { sleeps: true, ..shown() });
    let told_asleep = words(
        "True",
        "Asleep",
        "no client has a session; clients find the service, and the first initialize wakes it",
    );
    assert_eq!((told(&asleep, "Ready"), told(&asleep, "Registered")), (told_asleep.clone(), told_asleep));
    let refused =
        registry::wanted::Seen { sleeps: true, unscaled: Some("exceeded quota".to_owned()), ..shown() };
    let expected = "spec.replicas is 0, and the last attempt to wake the service failed: exceeded quota";
    assert_eq!(
        told(&with_registry(0, Vec::new(), refused), "Ready"),
        words("False", "ScaledToZero", expected)
    );
    let away = registry::wanted::Seen { unreachable: Some("no route".to_owned()), ..shown() };
    let expected =
        "spec.replicas is 0; clients find no instance, and the operator cannot ask the broker (no route)";
    let away = with_registry(0, Vec::new(), away);
    assert_eq!(told(&away, "Ready"), words("False", "ScaledToZero", expected));
    assert_eq!(told(&away, "Registered"), words("False", "RegistryUnreachable", expected));
}

#[test]
fn what_the_broker_has_to_allow_for_a_service_to_sleep_is_told() {
    let forbidden = || registry::wanted::Seen { forbidden: Some("allow it".to_owned()), ..shown() };
    let expected = "spec.replicas is 0; clients find no instance, and none can wake the service: allow it";
    let asleep = with_registry(0, Vec::new(), forbidden());
    assert_eq!(told(&asleep, "Ready"), words("False", "ScaledToZero", expected));
    assert_eq!(told(&asleep, "Registered"), words("False", "BrokerNotAuthorized", expected));
    let parked = || registry::wanted::Seen { parked: true, ..forbidden() };
    let expected = "spec.replicas is 0; clients find the service, but none can wake it: allow it";
    assert_eq!(told(&with_registry(0, Vec::new(), parked()), "Ready").2, expected);
    let away = registry::wanted::Seen { unreachable: Some("no route".to_owned()), ..parked() };
    let away = told(&with_registry(0, Vec::new(), away), "Ready").2;
    assert!(away.ends_with("the operator cannot ask the broker (no route)"), "{away}");
    let awake = with_registry(1, vec![(ready_pod("a"), Some(registered(0)))], forbidden());
    let expected = "1 of 1 instances in the broker's registry; it could not be put to sleep: allow it";
    assert_eq!(told(&awake, "Registered"), words("True", "Registered", expected));
}

#[test]
fn what_the_broker_does_not_show_is_not_registered_whatever_its_gateway_says() {
    let pods = || vec![(ready_pod("a"), Some(registered(3))), (ready_pod("b"), Some(registered(4)))];
    let missing = registry::wanted::Seen { missing: vec!["b".to_owned()], ..shown() };
    let status = with_registry(2, pods(), missing);
    assert_eq!((status.registered, status.instances.as_slice()), (1, ["a".to_owned()].as_slice()));
    let condition = told(&status, "Registered");
    assert!(
        condition.2.starts_with("1 of 2 instances in the broker's registry; b: the broker's registry"),
        "{condition:?}"
    );
    assert_eq!((condition.0, condition.1), ("False".to_owned(), "PresenceMissing".to_owned()));

    let away = registry::wanted::Seen { unreachable: Some("no route".to_owned()), ..shown() };
    let expected = "2 of 2 instances in the broker's registry, as the gateways report: the operator cannot ask \
                    the broker (no route)";
    let away = with_registry(2, pods(), away);
    assert_eq!(told(&away, "Registered"), words("True", "RegistryUnreachable", expected));
}

#[test]
fn an_instance_that_the_broker_shows_is_registered_though_its_gateway_cannot_be_asked() {
    let silent = || Some(observed(Err("no route".to_owned())));
    let pods = || vec![(ready_pod("a"), silent()), (ready_pod("b"), silent())];
    let present = registry::wanted::Seen { present: vec!["b".to_owned()], ..shown() };
    let status = with_registry(2, pods(), present);
    assert_eq!((status.registered, status.instances.as_slice()), (1, ["b".to_owned()].as_slice()));
    let expected =
        "1 of 2 instances in the broker's registry; a: its gateway does not answer the operator: no route";
    assert_eq!(told(&status, "Registered"), words("False", "GatewayNotAnswering", expected));
    let present = registry::wanted::Seen { present: vec!["a".to_owned(), "b".to_owned()], ..shown() };
    assert_eq!(told(&with_registry(2, pods(), present), "Registered").1, "Registered");
}

#[test]
fn an_instance_that_is_neither_registered_nor_shown_is_counted_once() {
    let missing = || registry::wanted::Seen { missing: vec!["a".to_owned()], ..shown() };
    let status = with_registry(1, vec![(starting_pod("a"), Some(refused_by_broker()))], missing());
    let expected = "0 of 1 instances in the broker's registry; a: the words on BrokerRefusedCredentials";
    assert_eq!(told(&status, "Registered"), words("False", "BrokerRefusedCredentials", expected));
    let pods = vec![(starting_pod("a"), Some(refused_by_broker())), (ready_pod("b"), Some(registered(0)))];
    let status = with_registry(2, pods, missing());
    let expected = "1 of 2 instances in the broker's registry; a: the words on BrokerRefusedCredentials";
    assert_eq!(told(&status, "Registered"), words("False", "BrokerRefusedCredentials", expected));
}

#[test]
fn sessions_of_an_instance_that_goes_down_are_told_in_every_state() {
    let mut leaving = (*ready_pod("b")).clone();
    leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2027-01-15T08:00:00Z")).unwrap();
    let leaving = (Arc::new(leaving), Some(registered(3)));
    let waits = "; b is draining and has 3 sessions left";
    for (replicas, others, status_and_reason, message) in [
        (0, vec![], ("False", "ScaledToZero"), "spec.replicas is 0; clients find no instance"),
        (1, vec![], ("False", "Progressing"), "0 of 1 instances ready; waiting for the pods"),
        (
            1,
            vec![(starting_pod("a"), None)],
            ("False", "Progressing"),
            "0 of 1 instances ready; a: starting (pod Running)",
        ),
        (
            1,
            vec![(ready_pod("a"), Some(registered(0))), (starting_pod("c"), None)],
            ("True", "RollingOut"),
            "1 of 1 instances ready; the rollout waits for c: starting (pod Running)",
        ),
    ] {
        let pods = others.into_iter().chain([leaving.clone()]).collect();
        let (status, reason) = status_and_reason;
        let expected = words(status, reason, &format!("{message}{waits}"));
        assert_eq!(told(&super::tests::status(replicas, pods), "Ready"), expected);
    }
    let sleeps = registry::wanted::Seen { sleeps: true, ..shown() };
    let message = told(&with_registry(0, vec![leaving], sleeps), "Ready").2;
    assert!(message.ends_with(waits), "{message}");
}
