//! Observe: asks each gateway for its `/status`, over the pod network and never through the API server. A gateway
//! that does not answer delays nobody else, and a service is reconciled only when something changed.

mod hosts;
mod queue;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use kube::ResourceExt;
use mcp_mqtt_sidecar::{config::ADMIN_PORT, status::GatewayStatus};
use tokio::{sync::mpsc, time::Instant};

use self::{
    hosts::Hosts,
    queue::{Due, Kind, LONG_SILENT, Queue, SELDOM},
};
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
/// A gateway's status has a few hundred bytes.
const MAX_BODY: usize = 64 * 1024;
/// A service whose session counts alone changed is reconciled, and its status written, at most this often.
const SESSIONS_INTERVAL: Duration = Duration::from_secs(5);
/// Where there are many services, all of them together are written so many times a second for their session counts. Those
/// that somebody begins to use, or nobody uses any more, do not wait for that.
const SESSIONS_A_SECOND: u32 = 20;
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
    /// Its sessions when it answered last; none: it never did.
    pub sessions: Option<u32>,
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
        let sessions = match &status {
            Ok(status) => Some(status.sessions),
            Err(_) => known.said.get(uid).and_then(|last| last.sessions),
        };
        known.said.insert(uid.to_owned(), Box::new(Observation { status, sessions, at: Instant::now() }));
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
    /// Of these somebody has a session now, or nobody any more.
    use_changed: HashSet<ServiceRef>,
    sessions: HashSet<ServiceRef>,
    sessions_told: HashMap<ServiceRef, Instant>,
}

impl Observer {
    /// Runs until it is dropped.
    pub async fn run(self) {
        let http = HttpGet::new(ANSWER, MAX_BODY);
        let mut pending = Pending::default();
        let mut counts = ServiceCounts::default();
        let mut queue = Queue::default();
        let mut answers = FuturesUnordered::new();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            while let Some((uid, pod)) = queue.next() {
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
                    let due = self.due(&pods, &queue);
                    queue.fill(due);
                }
                Some((uid, status, pod)) = answers.next() => {
                    queue.done(&uid);
                    self.note(&uid, &pod, status, &mut pending);
                }
            }
            pending.flush(&self.changed, self.stores.services.len());
        }
    }

    /// Whom to ask now, and why.
    fn due(&self, pods: &[Arc<Pod>], queue: &Queue) -> Vec<Due> {
        let hosts = Hosts::of(pods, &self.observations);
        let due = pods.iter().filter(|pod| is_asked(pod)).filter_map(|pod| {
            let uid = pod.uid().filter(|uid| !queue.asks(uid))?;
            let last = self.observations.last(&uid);
            let silent = self.observations.silent_for(&uid);
            let kind = if silent.is_some_and(|silent| silent >= LONG_SILENT) {
                last.is_none_or(|(at, _)| at.elapsed() >= SELDOM).then_some(Kind::LongSilent)
            } else if hosts.represents(&uid) {
                Some(Kind::Representative)
            } else {
                let is_due = last.is_none_or(|last| self.is_due(pod, last));
                if hosts.suspects(pod) { Some(Kind::Suspected) } else { is_due.then_some(Kind::Own) }
            };
            let last = last.map(|(at, _)| at);
            Some(Due { kind: kind?, last, owes: silent.is_some(), uid, pod: pod.clone() })
        });
        due.collect()
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
            Change::Use => {
                pending.use_changed.insert(service);
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
    /// There are more or fewer sessions.
    Sessions,
    /// There are sessions, and were none, or the other way round.
    Use,
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
            } else if (last.sessions == 0) != (now.sessions == 0) {
                Change::Use
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
    fn flush(&mut self, changed: &mpsc::Sender<ServiceRef>, services: usize) {
        let told = &mut self.sessions_told;
        let all = Duration::from_secs(1) / SESSIONS_A_SECOND * u32::try_from(services).unwrap_or(u32::MAX);
        let interval = all.max(SESSIONS_INTERVAL);
        told.retain(|_, at| at.elapsed() < interval);
        self.now.extend(self.sessions.extract_if(|service| !told.contains_key(service)));
        let waits =
            |service: &ServiceRef| told.get(service).is_some_and(|at| at.elapsed() < SESSIONS_INTERVAL);
        self.now.extend(self.use_changed.extract_if(|service| !waits(service)));
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
/// was; whether all have answered but those of pods that are on their way out.
pub async fn ask_now(pods: &[Arc<Pod>], observations: &Observations, concurrency: usize) -> bool {
    let http = &HttpGet::new(ANSWER, MAX_BODY);
    let answered = &AtomicBool::new(true);
    futures::stream::iter(pods)
        .for_each_concurrent(concurrency, async |pod| {
            if let (Some(uid), Ok(status)) = (pod.uid(), ask(http, pod).await) {
                observations.set(&uid, Ok(status));
            } else if !leaves(pod) {
                answered.store(false, Relaxed);
            }
        })
        .await;
    answered.load(Relaxed)
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
mod tests;
