//! Hosts: of each node, one gateway is asked every second, and all of them as soon as one does not answer. So the loss
//! of a node is noticed at once, though each single gateway is asked only now and then.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{Observations, TICK, is_asked, queue::LONG_SILENT};
use crate::live::pod::Pod;

/// A question that is open for so long makes the whole host suspect: an answer takes a millisecond.
const SUSPICION: Duration = Duration::from_millis(700);
/// Hosts that are heard of in one tick, those of which nothing was heard for the longest time first: where there are
/// more of them, each is heard of a little less often.
const A_TICK: usize = 256;

/// See the module.
pub(super) struct Hosts<'a> {
    suspected: HashSet<&'a str>,
    /// One pod of each host that is to be heard of, by uid.
    representatives: HashSet<&'a str>,
}

/// What is known of a host.
struct Host<'a> {
    /// When one of its gateways was heard of last.
    heard: Instant,
    /// Which was heard of the longest time ago, and when.
    next: (Instant, &'a str),
}

impl<'a> Hosts<'a> {
    pub(super) fn of(pods: &'a [Arc<Pod>], observations: &Observations) -> Self {
        let mut hosts: HashMap<&str, Host<'_>> = HashMap::new();
        let mut suspected = HashSet::new();
        for pod in pods {
            let Some((host, uid)) = place(pod) else { continue };
            let Some((at, _)) = observations.last(uid) else { continue }; // it is asked anyway
            let silent = observations.silent_for(uid).unwrap_or_default();
            if silent >= LONG_SILENT {
                continue; // its own trouble: its neighbours have answered meanwhile, or are suspected themselves
            }
            if silent >= SUSPICION {
                suspected.insert(host);
            }
            let entry = hosts.entry(host).or_insert(Host { heard: at, next: (at, uid) });
            entry.heard = entry.heard.max(at);
            entry.next = entry.next.min((at, uid));
        }
        let mut due: Vec<Host<'_>> =
            hosts.into_values().filter(|host| host.heard.elapsed() >= TICK / 2).collect();
        due.sort_by_key(|host| host.heard);
        let representatives = due.iter().take(A_TICK).map(|host| host.next.1).collect();
        Self { suspected, representatives }
    }

    /// Whether this one is to be asked for its host's sake.
    pub(super) fn represents(&self, uid: &str) -> bool {
        self.representatives.contains(uid)
    }

    /// Whether one of its neighbours owes an answer, so that all of them are asked.
    pub(super) fn suspects(&self, pod: &Pod) -> bool {
        place(pod).is_some_and(|(host, _)| self.suspected.contains(host))
    }
}

/// Host and uid of a pod whose gateway runs.
fn place(pod: &Pod) -> Option<(&str, &str)> {
    let host = pod.status.as_ref()?.host_ip.as_deref()?;
    is_asked(pod).then_some((host, pod.metadata.uid.as_deref()?))
}

#[cfg(test)]
mod tests {
    use mcp_mqtt_sidecar::status::reason;
    use serde_json::json;

    use super::*;
    use crate::controller::problems::tests::gateway;

    /// Pods with their hosts.
    fn pods<'a>(pods: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<Arc<Pod>> {
        let gateway = json!([{"name": "gateway", "state": {"running": {}}}]);
        let pod = |(uid, host)| {
            let status = json!({
                "phase": "Running", "podIP": "10.0.0.1", "hostIP": host, "initContainerStatuses": gateway,
            });
            Arc::new(serde_json::from_value(json!({"metadata": {"uid": uid}, "status": status})).unwrap())
        };
        pods.into_iter().map(pod).collect()
    }

    fn answer(observations: &Observations, uid: &str) {
        observations.ask(uid);
        let status = gateway((reason::BACKEND_READY, true), (reason::REGISTERED, true));
        observations.set(uid, Ok(status));
    }

    /// Whom to ask now.
    fn asked<'a>(pods: &'a [Arc<Pod>], observations: &Observations) -> Vec<&'a str> {
        let hosts = Hosts::of(pods, observations);
        let uids = pods.iter().filter_map(|pod| Some((pod, pod.metadata.uid.as_deref()?)));
        uids.filter(|(pod, uid)| hosts.represents(uid) || hosts.suspects(pod)).map(|(_, uid)| uid).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_gateways_of_a_host_take_turns() {
        let pods = pods([("a", "h1"), ("b", "h1"), ("c", "h2")]);
        let observations = Observations::default();
        assert!(asked(&pods, &observations).is_empty(), "who was never asked is asked anyway");
        for uid in ["b", "a", "c"] {
            answer(&observations, uid);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(asked(&pods, &observations).is_empty(), "each host was heard of just now");
        for expected in [["b", "c"], ["a", "c"], ["b", "c"]] {
            tokio::time::advance(TICK).await;
            assert_eq!(asked(&pods, &observations), expected);
            for uid in expected {
                answer(&observations, uid);
                tokio::time::advance(Duration::from_millis(1)).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_answer_makes_its_host_suspected_for_a_while() {
        let pods = pods([("a", "h1"), ("b", "h1"), ("c", "h2")]);
        let observations = Observations::default();
        for uid in ["a", "b", "c"] {
            answer(&observations, uid);
        }
        observations.ask("a");
        assert!(asked(&pods, &observations).is_empty(), "it has not had the time");
        tokio::time::advance(TICK).await;
        answer(&observations, "c");
        assert_eq!(asked(&pods, &observations), ["a", "b"]);
        tokio::time::advance(LONG_SILENT).await;
        for uid in ["b", "c"] {
            answer(&observations, uid);
        }
        assert!(asked(&pods, &observations).is_empty(), "its own trouble");
    }

    #[tokio::test(start_paused = true)]
    async fn of_more_hosts_than_a_tick_has_room_for_the_rest_comes_next() {
        let names: Vec<String> = (0..A_TICK + 2).map(|number| format!("{number:03}")).collect();
        let pods = pods(names.iter().map(|name| (name.as_str(), name.as_str())));
        let observations = Observations::default();
        for name in &names {
            answer(&observations, name);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        tokio::time::advance(TICK).await;
        let first = asked(&pods, &observations);
        assert_eq!(first, names[..A_TICK]);
        for uid in first {
            answer(&observations, uid);
        }
        assert_eq!(asked(&pods, &observations), names[A_TICK..]);
    }
}
