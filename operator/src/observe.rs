//! Observe: asks each gateway for its `/status`, over the pod network and never through the API server. A gateway
//! that does not answer delays nobody else, and a service is reconciled only when something changed.

mod hosts;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use kube::ResourceExt;
use mcp_mqtt_sidecar::{config::ADMIN_PORT, status::GatewayStatus};
use tokio::{sync::mpsc, time::Instant};

use self::hosts::Hosts;
use crate::{
    controller::scope::{ServiceRef, Stores, lock},
    http_get::HttpGet,
    live::pod::Pod,
    metrics::Metrics,
    names::SERVICE_ANNOTATION,
    service_counts::ServiceCounts,
};

/// Between two looks at what is due; also how often a gateway is asked that is not settled.
const TICK: Duration = Duration::from_secs(1);
/// One answer may take this long: the gateway's admin thread does nothing else.
const ANSWER: Duration = Duration::from_secs(2);
/// Gateways asked at one time, a new one as soon as another has answered: an answer takes a millisecond, so that
/// thousands of settled ones are asked in less than their interval of five seconds.
const CONCURRENCY: usize = 32;
/// A gateway's status has a few hundred bytes.
const MAX_BODY: usize = 64 * 1024;
/// A service whose session counts alone changed is reconciled, and its status written, at most this often.
const SESSIONS_INTERVAL: Duration = Duration::from_secs(5);
/// Services that wait to be reconciled; what does not fit waits for the next tick, and nothing is lost.
pub const CHANGED_CAPACITY: usize = 256;

/// What the gateways said last, by their pods' uids.
#[derive(Debug, Default)]
pub struct Observations(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    // Boxed: a map has room for twice what it holds.
    said: HashMap<String, Box<Observation>>,
    /// When those were asked first that have not answered since.
    unanswered: HashMap<String, Instant>,
}

/// What one gateway said last.
#[derive(Debug, Clone)]
pub struct Observation {
    /// Its status, or why there is none.
    pub status: Result<GatewayStatus, String>,
    /// When it was asked.
    at: Instant,
}

impl Observations {
    /// Of one pod.
    pub fn get(&self, uid: &str) -> Option<Observation> {
        lock(&self.0).said.get(uid).map(|seen| (**seen).clone())
    }

    /// For how long this pod's gateway has owed an answer; none: it owes none.
    pub fn silent_for(&self, uid: &str) -> Option<Duration> {
        lock(&self.0).unanswered.get(uid).map(Instant::elapsed)
    }

    /// For tests and the observer: this pod's gateway is asked now.
    pub fn ask(&self, uid: &str) {
        let mut known = lock(&self.0);
        if !known.unanswered.contains_key(uid) {
            known.unanswered.insert(uid.to_owned(), Instant::now());
        }
    }

    /// For tests and the observer: what this pod's gateway said now.
    pub fn set(&self, uid: &str, status: Result<GatewayStatus, String>) {
        let mut known = lock(&self.0);
        if status.is_ok() {
            known.unanswered.remove(uid);
        }
        known.said.insert(uid.to_owned(), Box::new(Observation { status, at: Instant::now() }));
    }

    /// Of one pod: when something was noted last, and whether its gateway was ready then.
    fn last(&self, uid: &str) -> Option<(Instant, bool)> {
        let known = lock(&self.0);
        let seen = known.said.get(uid)?;
        Some((seen.at, seen.status.as_ref().is_ok_and(GatewayStatus::ready)))
    }
}

/// Which service the pod belongs to.
pub fn service_of(pod: &Pod) -> Option<ServiceRef> {
    let name = pod.annotations().get(SERVICE_ANNOTATION)?;
    Some(ServiceRef::new(name).within(&pod.namespace()?))
}

/// Whether the pod is on its way out.
pub fn leaves(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether the pod has ended for good: evicted, say, or with its node shut down. Its object may stay for weeks.
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether the kubelet calls the pod ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether the pod's gateway runs, so that it is asked.
pub fn is_asked(pod: &Pod) -> bool {
    gateway_ip(pod).is_some()
}

/// Asks the gateways of the pods in a store, for as long as it is polled.
pub struct Observer {
    /// The pods, and the services whose instances they are.
    pub stores: Stores,
    /// The namespace that is watched, or `*`.
    pub watched: String,
    /// Where the answers go.
    pub observations: Arc<Observations>,
    /// How often a settled gateway is asked.
    pub interval: Duration,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Services of which something changed.
    pub changed: mpsc::Sender<ServiceRef>,
}

/// Services to be reconciled, and those whose session counts wait for their time.
#[derive(Default)]
struct Pending {
    now: HashSet<ServiceRef>,
    sessions: HashSet<ServiceRef>,
    sessions_told: HashMap<ServiceRef, Instant>,
}

impl Observer {
    /// Runs until it is dropped.
    pub async fn run(self) {
        let http = HttpGet::new(ANSWER, MAX_BODY);
        let mut pending = Pending::default();
        let mut counts = ServiceCounts::default();
        let mut asked = HashSet::new();
        let mut due: VecDeque<(String, Arc<Pod>)> = VecDeque::new();
        let mut answers = FuturesUnordered::new();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            while asked.len() < CONCURRENCY
                && let Some((uid, pod)) = due.pop_front()
            {
                asked.insert(uid.clone());
                self.observations.ask(&uid);
                let http = &http;
                answers.push(async move { (uid, ask(http, &pod).await, pod) });
            }
            tokio::select! {
                _ = ticks.tick() => {
                    let pods = self.stores.pods.all();
                    self.metrics.knows("McpService", &self.watched, self.stores.services.len());
                    counts.take(&self.stores.services, &self.watched, &self.metrics);
                    self.metrics.knows("Pod", &self.watched, pods.len());
                    self.forget_all_but(&pods);
                    due = self.due(&pods, &asked);
                }
                Some((uid, status, pod)) = answers.next() => {
                    asked.remove(&uid);
                    self.note(&uid, &pod, status, &mut pending);
                }
            }
            pending.flush(&self.changed);
        }
    }

    /// Whom to ask now: those that were not asked for the longest time first, so that the silent ones, which hold
    /// their places until the time is over, keep nobody out for good.
    fn due(&self, pods: &[Arc<Pod>], asked: &HashSet<String>) -> VecDeque<(String, Arc<Pod>)> {
        let hosts = Hosts::of(pods, &self.observations);
        let mut due: Vec<(Option<Instant>, String, Arc<Pod>)> = pods
            .iter()
            .filter(|pod| is_asked(pod))
            .filter_map(|pod| {
                let uid = pod.uid().filter(|uid| !asked.contains(uid))?;
                let last = self.observations.last(&uid);
                let is_due = last.is_none_or(|last| self.is_due(pod, last)) || hosts.ask(pod, &uid);
                is_due.then(|| (last.map(|(at, _)| at), uid, pod.clone()))
            })
            .collect();
        due.sort_by_key(|(at, ..)| *at);
        due.into_iter().map(|(_, uid, pod)| (uid, pod)).collect()
    }

    fn forget_all_but(&self, pods: &[Arc<Pod>]) {
        let uids: HashSet<&str> = pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        let mut known = lock(&self.observations.0);
        known.said.retain(|uid, _| uids.contains(uid.as_str()));
        known.unanswered.retain(|uid, _| uids.contains(uid.as_str()));
    }

    /// Each second until a gateway and the kubelet agree that it is ready, then now and then.
    fn is_due(&self, pod: &Pod, (at, ready): (Instant, bool)) -> bool {
        at.elapsed() >= if ready && is_ready(pod) { self.interval } else { TICK / 2 }
    }

    fn note(&self, uid: &str, pod: &Pod, status: Result<GatewayStatus, String>, pending: &mut Pending) {
        self.metrics.asked_gateway(status.is_ok());
        let Some(service) = service_of(pod) else { return };
        match change(self.observations.get(uid).map(|last| last.status).as_ref(), &status) {
            Change::None => {}
            Change::Sessions => {
                pending.sessions.insert(service);
            }
            Change::Rest => {
                pending.now.insert(service);
            }
        }
        self.observations.set(uid, status);
    }
}

/// What is new in an answer.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    None,
    Sessions,
    Rest,
}

fn change(last: Option<&Result<GatewayStatus, String>>, now: &Result<GatewayStatus, String>) -> Change {
    match (last, now) {
        (Some(Ok(last)), Ok(now)) => {
            // Requests in flight and refusals come and go too fast to be told anywhere.
            let alike = GatewayStatus {
                sessions: now.sessions,
                in_flight: now.in_flight,
                refused_sessions: now.refused_sessions,
                ..last.clone()
            };
            if alike != *now {
                Change::Rest
            } else if last.sessions != now.sessions {
                Change::Sessions
            } else {
                Change::None
            }
        }
        (Some(Err(last)), Err(now)) if last == now => Change::None,
        _ => Change::Rest,
    }
}

impl Pending {
    fn flush(&mut self, changed: &mpsc::Sender<ServiceRef>) {
        let told = &mut self.sessions_told;
        told.retain(|_, at| at.elapsed() < SESSIONS_INTERVAL);
        self.now.extend(self.sessions.extract_if(|service| !told.contains_key(service)));
        self.now.retain(|service| match changed.try_send(service.clone()) {
            Ok(()) => {
                told.insert(service.clone(), Instant::now());
                false
            }
            Err(_) => true, // full, or at its end: the next tick tries again
        });
    }
}

/// Asks these pods' gateways now, so many at a time, and notes what they say. A gateway that does not answer is as it
/// was.
pub async fn ask_now(pods: &[Arc<Pod>], observations: &Observations, concurrency: usize) {
    let http = &HttpGet::new(ANSWER, MAX_BODY);
    futures::stream::iter(pods)
        .for_each_concurrent(concurrency, async |pod| {
            if let (Some(uid), Ok(status)) = (pod.uid(), ask(http, pod).await) {
                observations.set(&uid, Ok(status));
            }
        })
        .await;
}

/// The pod's address, when its gateway runs.
fn gateway_ip(pod: &Pod) -> Option<&str> {
    let status = pod.status.as_ref()?;
    let ip = status.pod_ip.as_deref().filter(|ip| !ip.is_empty() && !is_over(pod))?;
    let gateway = status
        .init_container_statuses
        .iter()
        .flatten()
        .find(|container| container.name == crate::controller::build::GATEWAY)?;
    gateway.state.as_ref()?.running.as_ref()?;
    Some(ip)
}

/// Where the gateway listens; none: it does not run (yet, or any more).
fn address(pod: &Pod) -> Option<String> {
    let ip = gateway_ip(pod)?;
    Some(if ip.contains(':') { format!("[{ip}]:{ADMIN_PORT}") } else { format!("{ip}:{ADMIN_PORT}") })
}

async fn ask(http: &HttpGet, pod: &Pod) -> Result<GatewayStatus, String> {
    let address = address(pod).ok_or("its gateway does not run")?;
    let url = format!("http://{address}/status")
        .parse()
        .map_err(|error| format!("odd pod address {address}: {error}"))?;
    let body = http.get(&url).await?;
    serde_json::from_slice(&body).map_err(|error| format!("GET {url}: not a gateway's status: {error}"))
}

#[cfg(test)]
mod tests {
    use mcp_mqtt_sidecar::status::{Part, reason};

    use super::*;

    fn status(sessions: u32) -> GatewayStatus {
        let part = |reason: &str| Part { ok: true, reason: reason.to_owned(), message: String::new() };
        GatewayStatus {
            server_id: "north.meteo.weather-1".to_owned(),
            server_name: "meteo/weather".to_owned(),
            backend: part(reason::BACKEND_READY),
            broker: part(reason::REGISTERED),
            draining: false,
            sessions,
            in_flight: 0,
            idle_seconds: None,
            refused_sessions: 0,
            server: None,
            workers: Vec::new(),
        }
    }

    #[test]
    fn sessions_alone_are_told_apart_from_the_rest() {
        let now = Ok(status(2));
        assert_eq!(change(None, &now), Change::Rest);
        assert_eq!(change(Some(&Ok(status(2))), &now), Change::None);
        assert_eq!(change(Some(&Ok(status(1))), &now), Change::Sessions);
        assert_eq!(
            change(Some(&Ok(GatewayStatus { in_flight: 9, refused_sessions: 1, ..status(2) })), &now),
            Change::None
        );
        assert_eq!(change(Some(&Ok(GatewayStatus { draining: true, ..status(2) })), &now), Change::Rest);
        assert_eq!(change(Some(&Err("refused".to_owned())), &now), Change::Rest);
        assert_eq!(change(Some(&Err("refused".to_owned())), &Err("refused".to_owned())), Change::None);
    }

    #[tokio::test(start_paused = true)]
    async fn session_counts_reconcile_a_service_now_and_then_and_the_rest_at_once() {
        let (changed, mut inbox) = mpsc::channel(4);
        let weather = ServiceRef::new("weather").within("meteo");
        let mut pending = Pending::default();
        let mut sessions_of_weather = |pending: &mut Pending| {
            pending.sessions.insert(weather.clone());
            pending.flush(&changed);
            inbox.try_recv().is_ok()
        };
        assert!(sessions_of_weather(&mut pending));
        assert!(!sessions_of_weather(&mut pending), "too soon");
        tokio::time::advance(SESSIONS_INTERVAL).await;
        assert!(sessions_of_weather(&mut pending));
        pending.now.insert(weather.clone());
        pending.flush(&changed);
        assert!(inbox.try_recv().is_ok());
    }

    #[test]
    fn what_does_not_fit_waits_for_the_next_tick() {
        let (changed, mut inbox) = mpsc::channel(1);
        let mut pending = Pending::default();
        pending.now.extend(["a", "b"].map(|name| ServiceRef::new(name).within("meteo")));
        pending.flush(&changed);
        assert_eq!(pending.now.len(), 1);
        inbox.try_recv().unwrap();
        pending.flush(&changed);
        assert!(pending.now.is_empty() && inbox.try_recv().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_is_silent_from_the_first_question_that_it_leaves_open() {
        let observations = Observations::default();
        assert_eq!(observations.silent_for("u"), None);
        observations.ask("u");
        tokio::time::advance(TICK).await;
        observations.set("u", Err("timed out".to_owned()));
        observations.ask("u");
        tokio::time::advance(TICK).await;
        assert_eq!(observations.silent_for("u"), Some(2 * TICK));
        observations.set("u", Ok(status(0)));
        assert_eq!(observations.silent_for("u"), None);
        observations.ask("u");
        assert_eq!(observations.silent_for("u"), Some(Duration::ZERO));
    }

    fn pod(status: &serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"uid": "u"}, "status": status})).unwrap()
    }

    #[test]
    fn only_a_running_gateway_has_an_address() {
        let running = serde_json::json!([{"name": "gateway", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}}]);
        let of = |phase: &str, ip: &str| {
            address(&pod(&serde_json::json!({"phase": phase, "podIP": ip, "initContainerStatuses": running})))
        };
        assert_eq!(of("Running", "10.0.0.1").as_deref(), Some("10.0.0.1:8079"));
        assert_eq!(of("Pending", "fd00::1").as_deref(), Some("[fd00::1]:8079"));
        assert_eq!(of("Failed", "10.0.0.1"), None);
        assert_eq!(of("Running", ""), None);
        assert_eq!(address(&pod(&serde_json::json!({"phase": "Running", "podIP": "10.0.0.1"}))), None);
    }
}
