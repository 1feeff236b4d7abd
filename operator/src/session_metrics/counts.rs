//! Counts: what the gateways of a service said last, added up.

use std::sync::Arc;

use kube::ResourceExt;

use super::Metric;
use crate::{
    controller::scope::{Guarded, ServiceRef},
    live::pod::Pod,
    observe::{is_ready, leaves},
    watched::{Parts, Watched},
};

/// The services that are served, their pods, and what these say.
#[derive(Clone)]
pub struct Counts(Parts);

/// Why there is no number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CountError {
    /// Nobody of that name is served.
    #[error("no McpService {namespace}/{name} is served here")]
    NoService {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Whether there is such a service, and which pods it has, is not known yet.
    #[error("the namespace {namespace} has not been listed yet: see the operator's /readyz")]
    Unlisted {
        /// Which one.
        namespace: String,
    },
    /// A guess would have the service scaled by it: no number is better.
    #[error(
        "only {answered} of {running} gateways of McpService {namespace}/{name} answer: too few to tell its load by"
    )]
    TooFewAnswers {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Gateways that said something.
        answered: usize,
        /// Gateways that should.
        running: usize,
    },
}

impl Counts {
    /// Over these.
    pub fn new(watched: Parts) -> Self {
        Self(watched)
    }

    /// The services of a namespace, by name.
    pub fn services(&self, namespace: &str) -> Vec<String> {
        let all = self.0.of_namespace(namespace).map(|watched| watched.stores.services.state());
        let mut names: Vec<String> = all
            .into_iter()
            .flatten()
            .filter(|service| service.namespace().as_deref() == Some(namespace))
            .map(|service| service.name_any())
            .collect();
        names.sort_unstable();
        names
    }

    /// How many instances it is to have.
    ///
    /// # Errors
    /// No such service, or not known yet.
    pub fn replicas(&self, namespace: &str, name: &str) -> Result<i32, CountError> {
        let (_, service) = self.find(namespace, name)?;
        let readable = service.0.as_ref().ok().map(|service| service.spec.replicas);
        readable
            .ok_or_else(|| CountError::NoService { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// An autoscaler that hears of no sessions ends instances: a namespace that has not been listed has no answer.
    fn find(&self, namespace: &str, name: &str) -> Result<(&Watched, Arc<Guarded>), CountError> {
        let no_service = || CountError::NoService { namespace: namespace.to_owned(), name: name.to_owned() };
        let watched = self.0.of_namespace(namespace).ok_or_else(no_service)?;
        if !watched.stores.is_synced() {
            return Err(CountError::Unlisted { namespace: namespace.to_owned() });
        }
        let service = watched.stores.services.get(&ServiceRef::new(name).within(namespace));
        Ok((watched, service.ok_or_else(no_service)?))
    }

    /// How much of it the service has. A gateway that does not answer counts as the others do on average, as long as
    /// at least half of them answer.
    ///
    /// # Errors
    /// No such service, not known yet, or too few answers.
    pub fn of(&self, namespace: &str, name: &str, metric: Metric) -> Result<u64, CountError> {
        let (watched, _) = self.find(namespace, name)?;
        let service = ServiceRef::new(name).within(namespace);
        let seen = |pod: &Pod| watched.observations.get(&pod.uid()?);
        let mut pods = watched.stores.pods.of(&service);
        // One that starts has no sessions; one whose gateway was asked counts, whatever the kubelet says of it.
        pods.retain(|pod| !leaves(pod) && (is_ready(pod) || seen(pod).is_some()));
        let answers = pods.iter().filter_map(|pod| {
            let status = seen(pod)?.status.ok()?;
            Some(match metric {
                Metric::Sessions => u64::from(status.sessions),
                Metric::InFlight => u64::from(status.in_flight),
                Metric::Refused => u64::from(status.refused_sessions),
                Metric::Wanted => u64::from(status.sessions) + u64::from(status.refused_sessions),
            })
        });
        let (answered, sum) = answers.fold((0, 0), |(count, sum), more| (count + 1, sum + more));
        estimate(sum, answered, pods.len()).ok_or_else(|| CountError::TooFewAnswers {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            answered,
            running: pods.len(),
        })
    }
}

/// The sum over all, from the sum over those that answered.
fn estimate(sum: u64, answered: usize, running: usize) -> Option<u64> {
    if answered == running {
        return Some(sum);
    }
    if answered * 2 < running {
        return None;
    }
    let (answered, running) = (u64::try_from(answered).ok()?, u64::try_from(running).ok()?);
    Some((sum * running).div_ceil(answered))
}

#[cfg(test)]
pub(crate) mod tests {
    use mcp_mqtt_sidecar::status::{GatewayStatus, reason};
    use serde_json::json;

    use super::*;
    use crate::{
        controller::{fixtures, problems::tests::gateway},
        watched::tests::watched,
    };

    /// The service `meteo/weather` with these gateways: sessions and requests in flight, or silence.
    pub(crate) fn counts(gateways: &[Option<(u32, u32)>]) -> Counts {
        let name = |number: usize| format!("weather-{number}");
        let pod = |number| {
            let name = name(number);
            serde_json::from_value(json!({
                "metadata": {
                    "name": name, "namespace": "meteo", "uid": name,
                    "annotations": {"mcp-mqtt.io/service-name": "weather"},
                },
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
            }))
            .unwrap()
        };
        let pods = (0..gateways.len()).map(pod).collect();
        let watched = watched(None, vec![fixtures::service(fixtures::STDIO)], pods);
        for (number, said) in gateways.iter().enumerate() {
            let status = said.map(|(sessions, in_flight)| GatewayStatus {
                sessions,
                in_flight,
                refused_sessions: 2,
                ..gateway((reason::BACKEND_READY, true), (reason::REGISTERED, true))
            });
            watched.observations.set(&name(number), status.ok_or_else(|| "silence".to_owned()));
        }
        Counts::new([watched].into_iter().collect())
    }

    #[test]
    fn the_gateways_are_added_up() {
        let counts = counts(&[Some((3, 1)), Some((4, 0))]);
        assert_eq!(counts.of("meteo", "weather", Metric::Sessions), Ok(7));
        assert_eq!(counts.of("meteo", "weather", Metric::InFlight), Ok(1));
        assert_eq!(counts.of("meteo", "weather", Metric::Refused), Ok(4));
        assert_eq!(counts.of("meteo", "weather", Metric::Wanted), Ok(11));
        assert_eq!(counts.services("meteo"), ["weather"]);
        assert!(counts.services("other").is_empty());
    }

    #[test]
    fn one_that_is_silent_counts_as_the_others_do() {
        let counts = counts(&[Some((3, 0)), None, Some((4, 0))]);
        assert_eq!(counts.of("meteo", "weather", Metric::Sessions), Ok(11), "7 by 2, times 3, rounded up");
    }

    #[test]
    fn without_enough_answers_there_is_no_number() {
        let counts = counts(&[Some((3, 0)), None, None]);
        let error = counts.of("meteo", "weather", Metric::Sessions).unwrap_err().to_string();
        assert!(error.contains("1 of 3 gateways of McpService meteo/weather"), "{error}");
        assert!(matches!(counts.of("meteo", "sky", Metric::Sessions), Err(CountError::NoService { .. })));
    }

    #[test]
    fn a_namespace_that_is_not_listed_has_no_numbers() {
        let (unsynced, stores) = tokio::sync::watch::channel(vec!["Pods"]);
        let mut part = watched(None, vec![fixtures::service(fixtures::STDIO)], Vec::new());
        part.stores.unsynced = stores;
        let counts = Counts::new([part].into_iter().collect());
        let error = counts.of("meteo", "weather", Metric::Sessions).unwrap_err();
        assert_eq!(error, CountError::Unlisted { namespace: "meteo".to_owned() });
        assert_eq!(counts.replicas("meteo", "weather"), Err(error));
        unsynced.send_replace(Vec::new());
        assert_eq!(counts.of("meteo", "weather", Metric::Sessions), Ok(0));
    }

    #[test]
    fn a_service_without_instances_has_no_sessions() {
        assert_eq!(counts(&[]).of("meteo", "weather", Metric::Sessions), Ok(0));
    }
}
