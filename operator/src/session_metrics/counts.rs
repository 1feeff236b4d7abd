//! Counts: what the gateways of a service said last, added up.

use kube::ResourceExt;

use super::Metric;
use crate::{
    controller::scope::ServiceRef,
    live::pod::Pod,
    observe::{is_ready, leaves},
    watched::Parts,
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
    /// No such service.
    pub fn replicas(&self, namespace: &str, name: &str) -> Result<i32, CountError> {
        let service = ServiceRef::new(name).within(namespace);
        let found = self.0.of_namespace(namespace).and_then(|watched| watched.stores.services.get(&service));
        let readable = found.and_then(|found| found.0.as_ref().ok().map(|service| service.spec.replicas));
        readable
            .ok_or_else(|| CountError::NoService { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// How much of it the service has. A gateway that does not answer counts as the others do on average, as long as
    /// at least half of them answer.
    ///
    /// # Errors
    /// No such service, or too few answers.
    pub fn of(&self, namespace: &str, name: &str, metric: Metric) -> Result<u64, CountError> {
        let service = ServiceRef::new(name).within(namespace);
        let watched =
            self.0.of_namespace(namespace).filter(|watched| watched.stores.services.get(&service).is_some());
        let watched = watched.ok_or_else(|| CountError::NoService {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })?;
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
    fn a_service_without_instances_has_no_sessions() {
        assert_eq!(counts(&[]).of("meteo", "weather", Metric::Sessions), Ok(0));
    }
}
