//! Answers: what KEDA is told, from what the gateways said.

use std::collections::HashMap;

use tonic::Status;

use super::protocol::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, MetricSpec, MetricValue, ScaledObjectRef,
};
use crate::session_metrics::{
    Metric,
    counts::{CountError, Counts},
};

/// Trigger metadata: name of the `McpService`.
pub const SERVICE: &str = "service";
/// Trigger metadata: name of the metric.
pub const METRIC: &str = "metric";
/// Trigger metadata: how much of it one instance should have.
pub const TARGET: &str = "targetPerReplica";

/// What a trigger asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    namespace: String,
    service: String,
    metric: Metric,
    target: f64,
}

impl TryFrom<&ScaledObjectRef> for Trigger {
    type Error = Status;

    fn try_from(object: &ScaledObjectRef) -> Result<Self, Status> {
        let of = |key: &str| text(&object.scaler_metadata, key);
        let (metric, target) = (of(METRIC)?, of(TARGET)?);
        let wrong = |key: &str, value: &str, wanted: &str| {
            Status::invalid_argument(format!("the trigger's metadata {key} is {value:?} and not {wanted}"))
        };
        let names = || Metric::ALL.map(Metric::name).join(", ");
        Ok(Self {
            namespace: object.namespace.clone(),
            service: of(SERVICE)?.to_owned(),
            metric: Metric::named(metric)
                .ok_or_else(|| wrong(METRIC, metric, &format!("one of {}", names())))?,
            target: target
                .parse()
                .ok()
                .filter(|target: &f64| *target > 0.0 && target.is_finite())
                .ok_or_else(|| wrong(TARGET, target, "a number above 0"))?,
        })
    }
}

fn text<'a>(metadata: &'a HashMap<String, String>, key: &str) -> Result<&'a str, Status> {
    let missing = || Status::invalid_argument(format!("the trigger's metadata has no {key}"));
    metadata.get(key).map(String::as_str).ok_or_else(missing)
}

/// Whether the `McpService` has any instance. KEDA decides on the number of them as long as there are some, and leaves
/// alone one that is parked or scaled to zero.
///
/// # Errors
/// The trigger makes no sense, or there is no such service.
pub fn is_active(counts: &Counts, object: &ScaledObjectRef) -> Result<bool, Status> {
    let Trigger { namespace, service, .. } = object.try_into()?;
    let replicas = counts.replicas(&namespace, &service).map_err(|error| status(&error))?;
    Ok(replicas > 0)
}

/// What is measured.
///
/// # Errors
/// The trigger makes no sense.
pub fn metric_spec(object: &ScaledObjectRef) -> Result<GetMetricSpecResponse, Status> {
    let Trigger { metric, target, .. } = object.try_into()?;
    let spec = MetricSpec { metric_name: metric.name().to_owned(), target_size_float: target };
    Ok(GetMetricSpecResponse { metric_specs: vec![spec] })
}

/// The number.
///
/// # Errors
/// The trigger makes no sense, there is no such service, or too few of its gateways answer.
pub fn metrics(counts: &Counts, request: &GetMetricsRequest) -> Result<GetMetricsResponse, Status> {
    let object = request.scaled_object_ref.as_ref();
    let object = object.ok_or_else(|| Status::invalid_argument("no ScaledObject is named"))?;
    let Trigger { namespace, service, metric, .. } = object.try_into()?;
    let value = counts.of(&namespace, &service, metric).map_err(|error| status(&error))?;
    #[expect(clippy::cast_precision_loss, reason = "nobody has 2^53 sessions")]
    let value = MetricValue { metric_name: metric.name().to_owned(), metric_value_float: value as f64 };
    Ok(GetMetricsResponse { metric_values: vec![value] })
}

fn status(error: &CountError) -> Status {
    match error {
        CountError::NoService { .. } => Status::not_found(error.to_string()),
        CountError::TooFewAnswers { .. } | CountError::Unlisted { .. } => {
            Status::unavailable(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::session_metrics::counts::tests::counts;

    fn object(service: &str, metadata: &[(&str, &str)]) -> ScaledObjectRef {
        let all = [(SERVICE, service), (METRIC, "mcp_sessions"), (TARGET, "7")];
        let mut scaler_metadata: HashMap<String, String> =
            all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        scaler_metadata.extend(metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        ScaledObjectRef { name: "any".to_owned(), namespace: "meteo".to_owned(), scaler_metadata }
    }

    fn value(counts: &Counts, object: ScaledObjectRef) -> Result<f64, Code> {
        let request =
            GetMetricsRequest { scaled_object_ref: Some(object), metric_name: "mcp_sessions".to_owned() };
        metrics(counts, &request).map(|all| all.metric_values[0].metric_value_float).map_err(|e| e.code())
    }

    #[test]
    fn the_number_is_the_services_and_the_target_the_triggers() {
        let counts = counts(&[Some((3, 1)), Some((4, 0))]);
        assert_eq!(value(&counts, object("weather", &[])), Ok(7.0));
        assert_eq!(value(&counts, object("weather", &[(METRIC, "mcp_requests_in_flight")])), Ok(1.0));
        let spec = metric_spec(&object("weather", &[])).unwrap().metric_specs;
        assert_eq!(spec, [MetricSpec { metric_name: "mcp_sessions".to_owned(), target_size_float: 7.0 }]);
        assert_eq!(is_active(&counts, &object("weather", &[])).ok(), Some(true));
    }

    #[test]
    fn without_a_number_kedas_fallback_is_better_than_a_guess() {
        let silent = counts(&[None, None, Some((1, 1))]);
        assert_eq!(value(&silent, object("weather", &[])), Err(Code::Unavailable));
        assert_eq!(value(&silent, object("sky", &[])), Err(Code::NotFound));
    }

    #[test]
    fn a_trigger_that_makes_no_sense_is_told_what_is_wrong() {
        let counts = counts(&[]);
        for (metadata, says) in [
            ([(METRIC, "mcp_session")], "metric is \"mcp_session\" and not one of mcp_sessions"),
            ([(TARGET, "0")], "targetPerReplica is \"0\" and not a number above 0"),
            ([(TARGET, "many")], "a number above 0"),
        ] {
            let error = is_active(&counts, &object("weather", &metadata)).unwrap_err();
            assert!(error.code() == Code::InvalidArgument && error.message().contains(says), "{error}");
        }
        let error = metric_spec(&ScaledObjectRef::default()).unwrap_err();
        assert!(error.message().contains("has no metric"), "{error}");
    }
}
