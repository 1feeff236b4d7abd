//! What the pods and their gateways say: for how long nobody has had a session, who could take a service's place, and
//! what keeps them from starting.

use std::time::Duration;

use kube::runtime::reflector::ObjectRef;
use mcp_mqtt_sidecar::status::{GatewayStatus, reason};
use mcp_mqtt_transport::topic::ServerId;

use super::scale_to_zero::{Elsewhere, Idle, Obstacle};
use crate::{
    controller::{problems, scope::ServiceRef},
    live::pod::Pod,
    names,
    observe::{Observation, leaves},
    reasons,
    watched::Watched,
};

/// An answer takes a millisecond: who owes one for so long is asked by way of the broker, too.
const SILENT: Duration = Duration::from_millis(250);

/// What was found of one service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Sessions.
    pub idle: Idle,
    /// Whether there are instances, or are about to be.
    pub any: bool,
    /// These, the oldest first; of a service that may sleep.
    pub instances: Vec<ServerId>,
    /// Instances that stand in the registry under an id of their own, or gave the service's up; of a service that may
    /// sleep.
    pub elsewhere: Vec<Elsewhere>,
    /// Whether one of them says that it has the service's own place, or may have it and cannot be asked.
    pub stands_in: bool,
    /// Those that call themselves registered: pod and server id.
    pub registered: Vec<(String, ServerId)>,
    /// Those that stay and do not say that they are registered: pod, and the id under which it would stand.
    pub unregistered: Vec<(String, ServerId)>,
    /// Ids under which those may stand that owe the operator an answer.
    pub silent: Vec<ServerId>,
    /// What keeps all of them from starting.
    pub problem: Option<Obstacle>,
}

/// What the pods of a service say. Where it never `sleeps`, nobody is to take its place, and nothing is made of who
/// could: services and pods are many, and this is done twice a second.
pub fn find(
    watched: &Watched,
    service: &ServiceRef,
    standby: &ServerId,
    sleeps: bool,
    cluster: &str,
) -> Found {
    let pods = watched.stores.pods.of(service);
    let seen: Vec<(&Pod, Option<Observation>)> = pods
        .iter()
        .map(|pod| (&**pod, pod.metadata.uid.as_deref().and_then(|uid| watched.observations.get(uid))))
        .collect();
    let namespace = service.namespace.as_deref().unwrap_or_default();
    let deployment =
        watched.stores.deployments.get(&ObjectRef::new(&names::child(&service.name)).within(namespace));
    let refused = || deployment.as_deref().and_then(problems::of_deployment);
    Found {
        idle: idle(&seen),
        any: seen.iter().any(|(pod, _)| !leaves(pod)),
        instances: if sleeps { staying(&seen, cluster, namespace) } else { Vec::new() },
        elsewhere: if sleeps { elsewhere(&seen, standby, cluster, namespace) } else { Vec::new() },
        stands_in: stands_in(&seen, standby),
        registered: registered(&seen),
        unregistered: unregistered(&seen, standby, |pod| id(pod, cluster, namespace)),
        silent: silent(&seen, watched, standby, |pod| id(pod, cluster, namespace)),
        problem: if seen.is_empty() {
            refused().map(|problem| Obstacle { why: problem.message, hopeless: true })
        } else {
            problem(&seen, || listens(watched, service))
        },
    }
}

/// Whether its server listens somewhere, and is no process of each session's.
fn listens(watched: &Watched, service: &ServiceRef) -> bool {
    let service = watched.stores.services.get(service);
    service
        .is_some_and(|service| service.0.as_ref().is_ok_and(|service| service.spec.transport.stdio.is_none()))
}

fn status(seen: Option<&Observation>) -> Option<&GatewayStatus> {
    seen?.status.as_ref().ok()
}

/// Only where every gateway says so: one that is silent may have sessions.
fn idle(pods: &[(&Pod, Option<Observation>)]) -> Idle {
    if pods.iter().any(|(_, seen)| status(seen.as_ref()).is_some_and(|status| status.sessions > 0)) {
        return Idle::Busy;
    }
    let mut least = None;
    for (_, seen) in pods.iter().filter(|(pod, _)| !leaves(pod)) {
        let Some(seconds) = status(seen.as_ref()).and_then(|status| status.idle_seconds) else {
            return Idle::Unknown;
        };
        least = Some(least.map_or(seconds, |least: u64| least.min(seconds)));
    }
    least.map_or(Idle::Unknown, |seconds| Idle::For(Duration::from_secs(seconds)))
}

/// The id of its own that an instance has.
fn id(pod: &Pod, cluster: &str, namespace: &str) -> Option<ServerId> {
    ServerId::new(&names::pod_id(cluster, namespace, pod.metadata.name.as_deref()?)).ok()
}

fn staying(pods: &[(&Pod, Option<Observation>)], cluster: &str, namespace: &str) -> Vec<ServerId> {
    let mut staying: Vec<&Pod> = pods.iter().map(|(pod, _)| *pod).filter(|pod| !leaves(pod)).collect();
    staying.sort_by_key(|pod| (&pod.metadata.creation_timestamp, &pod.metadata.name));
    staying.into_iter().filter_map(|pod| id(pod, cluster, namespace)).collect()
}

fn elsewhere(
    pods: &[(&Pod, Option<Observation>)],
    standby: &ServerId,
    cluster: &str,
    namespace: &str,
) -> Vec<Elsewhere> {
    let staying = pods.iter().filter(|(pod, _)| !leaves(pod));
    let places = staying.filter_map(|(pod, seen)| {
        let status = status(seen.as_ref())?;
        let own = status.broker.ok && status.server_id != standby.as_str();
        let relieved = status.broker.reason == reason::RELIEVED;
        let at = ServerId::new(&status.server_id).ok().filter(|_| own || relieved)?;
        Some(Elsewhere { instance: id(pod, cluster, namespace)?, at, busy: status.sessions > 0 })
    });
    places.collect()
}

fn registered(pods: &[(&Pod, Option<Observation>)]) -> Vec<(String, ServerId)> {
    let registered = pods.iter().filter_map(|(pod, seen)| {
        let status =
            status(seen.as_ref()).filter(|status| status.broker.ok && !status.draining && !leaves(pod))?;
        Some((pod.metadata.name.clone()?, ServerId::new(&status.server_id).ok()?))
    });
    registered.collect()
}

/// By the id that the gateway said last; where it does not answer, by the pod's own. A single instance that has been woken
/// has the service's, and where it is the only one that does not answer nobody else can have that.
fn unregistered(
    pods: &[(&Pod, Option<Observation>)],
    standby: &ServerId,
    id: impl Fn(&Pod) -> Option<ServerId>,
) -> Vec<(String, ServerId)> {
    let staying = || pods.iter().filter(|(pod, _)| !leaves(pod));
    let only = match pods {
        [(pod, seen)] if !leaves(pod) && status(seen.as_ref()).is_none() => pod.metadata.name.clone(),
        _ => None,
    };
    let unregistered = staying().filter_map(|(pod, seen)| {
        let status = status(seen.as_ref());
        if status.is_some_and(|status| status.broker.ok || status.draining) {
            return None;
        }
        let id = status.map_or_else(|| id(pod), |status| ServerId::new(&status.server_id).ok());
        Some((pod.metadata.name.clone()?, id?))
    });
    unregistered.chain(only.map(|pod| (pod, standby.clone()))).collect()
}

fn stands_in(pods: &[(&Pod, Option<Observation>)], standby: &ServerId) -> bool {
    pods.iter()
        .any(|(_, seen)| status(seen.as_ref()).is_none_or(|status| status.server_id == standby.as_str()))
}

/// By their own ids, and by the service's, if it may be one of them that has it.
fn silent(
    pods: &[(&Pod, Option<Observation>)],
    watched: &Watched,
    standby: &ServerId,
    id: impl Fn(&Pod) -> Option<ServerId>,
) -> Vec<ServerId> {
    let is_silent = |pod: &Pod| {
        let silent = pod.metadata.uid.as_deref().and_then(|uid| watched.observations.silent_for(uid));
        silent.is_some_and(|silent| silent >= SILENT)
    };
    let mut silent: Vec<ServerId> =
        pods.iter().filter(|(pod, _)| is_silent(pod)).filter_map(|(pod, _)| id(pod)).collect();
    let has_it = |seen: &Option<Observation>| {
        status(seen.as_ref()).is_some_and(|status| status.server_id == standby.as_str())
    };
    if !silent.is_empty() && !pods.iter().any(|(pod, seen)| !is_silent(pod) && has_it(seen)) {
        silent.push(standby.clone());
    }
    silent
}

/// The first pod's, when none of them is merely on its way. While one waits for a node, there is hope: a cluster's
/// autoscaler makes one in a minute or two. So there is while nobody listens in a container that runs: some servers take
/// long to start, and of those that crash the kubelet tells.
fn problem(pods: &[(&Pod, Option<Observation>)], listens: impl Fn() -> bool) -> Option<Obstacle> {
    let mut first: Option<Obstacle> = None;
    let mut hopeless = true;
    for (pod, seen) in pods.iter().filter(|(pod, _)| !leaves(pod)) {
        let problem = problems::of_pod(pod, seen.as_ref())?;
        if reasons::passes(&problem.reason) {
            return None;
        }
        hopeless &= match &*problem.reason {
            reasons::UNSCHEDULABLE => false,
            reason::BACKEND_NOT_ANSWERING => !listens(),
            _ => true,
        };
        first.get_or_insert_with(|| Obstacle { why: problem.quoted(), hopeless: true });
    }
    first.map(|first| Obstacle { hopeless, ..first })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        controller::{fixtures, problems::tests::gateway},
        watched::tests::watched,
    };

    /// Of pods of `meteo/weather`, the oldest first, each with its phase, and its gateway's last word: sessions, or
    /// silence.
    fn found(pods: &[(&str, &str, Option<u32>)]) -> Found {
        found_of(true, pods)
    }

    /// The same of a service that sleeps, or never does.
    fn found_of(sleeps: bool, pods: &[(&str, &str, Option<u32>)]) -> Found {
        let made = pods.iter().enumerate().map(|(minute, (name, phase, _))| {
            let created = format!("2026-01-15T08:{minute:02}:00Z");
            let annotations = json!({"mcp-mqtt.io/service-name": "weather"});
            let metadata = json!({"name": name, "namespace": "meteo", "uid": name, "creationTimestamp": created, "annotations": annotations});
            serde_json::from_value(json!({"metadata": metadata, "status": {"phase": phase}})).unwrap()
        });
        let watched = watched(None, vec![fixtures::service(fixtures::STDIO)], made.collect());
        for (name, _, sessions) in pods {
            let status = sessions.map(|sessions| GatewayStatus {
                sessions,
                idle_seconds: (sessions == 0).then_some(60),
                ..gateway((reason::BACKEND_READY, true), (reason::REGISTERED, true))
            });
            watched.observations.set(name, status.ok_or_else(|| "silence".to_owned()));
        }
        let standby = ServerId::new("north.meteo.weather_service").unwrap();
        find(&watched, &ServiceRef::new("weather").within("meteo"), &standby, sleeps, "north")
    }

    #[test]
    fn of_a_service_that_never_sleeps_nothing_is_made_of_who_could_take_its_place() {
        let pods = [("weather-1", "Running", Some(0)), ("weather-2", "Running", None)];
        let (sleeps, never) = (found(&pods), found_of(false, &pods));
        assert_eq!((sleeps.instances.len(), sleeps.elsewhere.len(), sleeps.any), (2, 1, true));
        let expected = Found { instances: Vec::new(), elsewhere: Vec::new(), ..sleeps };
        assert_eq!(never, expected);
        assert!(!found_of(false, &[]).any);
    }

    #[test]
    fn one_that_is_silent_may_have_sessions_and_the_place() {
        let found = found(&[("weather-1", "Running", None), ("weather-2", "Running", Some(0))]);
        assert_eq!((found.idle, found.stands_in), (Idle::Unknown, true));
        assert_eq!(found.instances.first().map(ServerId::as_str), Some("north.meteo.weather-1"));
        let [(pod, id)] = found.unregistered.as_slice() else { panic!("{:?}", found.unregistered) };
        assert_eq!((pod.as_str(), id.as_str()), ("weather-1", "north.meteo.weather-1"));
        let alone = super::tests::found(&[("weather-1", "Running", None)]).unregistered;
        let ids: Vec<_> = alone.iter().map(|(pod, id)| (pod.as_str(), id.as_str())).collect();
        assert_eq!(
            ids,
            [("weather-1", "north.meteo.weather-1"), ("weather-1", "north.meteo.weather_service")]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_owes_an_answer_is_silent_and_may_have_the_place() {
        let pod = |name: &str| {
            let annotations = json!({"mcp-mqtt.io/service-name": "weather"});
            let metadata =
                json!({"name": name, "namespace": "meteo", "uid": name, "annotations": annotations});
            serde_json::from_value(json!({"metadata": metadata})).unwrap()
        };
        let services = vec![fixtures::service(fixtures::STDIO)];
        let watched = watched(None, services, vec![pod("weather-1"), pod("weather-2")]);
        let standby = ServerId::new("north.meteo.weather_service").unwrap();
        let silent = || {
            let service = ServiceRef::new("weather").within("meteo");
            let found = find(&watched, &service, &standby, false, "north");
            found.silent.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>()
        };
        let says = |pod: &str, server_id: &str| {
            let gateway = gateway((reason::BACKEND_READY, true), (reason::REGISTERED, true));
            watched.observations.set(pod, Ok(GatewayStatus { server_id: server_id.to_owned(), ..gateway }));
        };
        says("weather-1", standby.as_str());
        says("weather-2", "north.meteo.weather-2");
        watched.observations.ask("weather-1");
        watched.observations.ask("weather-2");
        tokio::time::advance(SILENT / 2).await;
        assert!(silent().is_empty(), "they have not had the time");
        tokio::time::advance(SILENT / 2).await;
        says("weather-1", standby.as_str());
        assert_eq!(silent(), ["north.meteo.weather-2"]);
        watched.observations.ask("weather-1");
        tokio::time::advance(SILENT).await;
        says("weather-2", "north.meteo.weather-2");
        assert_eq!(silent(), ["north.meteo.weather-1", standby.as_str()]);
    }

    #[test]
    fn what_one_said_that_is_over_counts_no_more() {
        let idle = Idle::For(Duration::from_mins(1));
        for frozen in [Some(3), Some(0), None] {
            let found = found(&[("weather-1", "Failed", frozen), ("weather-2", "Running", Some(0))]);
            assert_eq!((found.idle, found.stands_in), (idle, false), "{frozen:?}");
            let ids: Vec<&str> = found.instances.iter().map(ServerId::as_str).collect();
            assert_eq!(ids, ["north.meteo.weather-2"], "it would be the successor");
            assert_eq!(found.registered.len(), 1);
        }
    }

    #[test]
    fn a_pod_that_waits_for_a_node_may_yet_get_one() {
        let condition =
            json!({"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available."});
        let unscheduled = json!({"phase": "Pending", "conditions": [condition]});
        let state = json!({"waiting": {"reason": "ErrImageNeverPull", "message": "not present"}});
        let imageless =
            json!({"phase": "Pending", "containerStatuses": [{"name": "server", "state": state}]});
        let pod = |status| serde_json::from_value::<Pod>(json!({"metadata": {}, "status": status})).unwrap();
        let (unscheduled, imageless) = (pod(unscheduled), pod(imageless));
        let problem =
            |pods: &[&Pod]| problem(&pods.iter().map(|pod| (*pod, None)).collect::<Vec<_>>(), || false);
        let why = "Unschedulable: no node takes it: 0/3 nodes are available".to_owned();
        assert_eq!(problem(&[&unscheduled]), Some(Obstacle { why, hopeless: false }));
        assert!(problem(&[&imageless]).is_some_and(|problem| problem.hopeless));
        assert!(problem(&[&imageless, &unscheduled]).is_some_and(|problem| !problem.hopeless));
    }

    #[test]
    fn a_server_over_http_may_yet_listen_and_a_process_that_does_not_answer_will_not() {
        let running = json!({"metadata": {"name": "weather-1", "uid": "1"}, "status": {"phase": "Running"}});
        let running: Pod = serde_json::from_value(running).unwrap();
        let status = gateway((reason::BACKEND_NOT_ANSWERING, false), (reason::WAITING_FOR_BACKEND, false));
        let observations = crate::observe::Observations::default();
        observations.set("1", Ok(status));
        for listens in [true, false] {
            let obstacle = problem(&[(&running, observations.get("1"))], || listens).unwrap();
            assert_eq!(obstacle.hopeless, !listens, "{obstacle:?}");
        }
    }
}
