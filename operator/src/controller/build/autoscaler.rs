//! The `HorizontalPodAutoscaler`: on the `McpService` itself, so that the operator is asked for each change and knows
//! which instances to end.

use k8s_openapi::{
    api::autoscaling::v2::{
        CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricIdentifier,
        MetricSpec, MetricTarget, ObjectMetricSource,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::metadata;
use crate::{controller::validate::ValidService, session_metrics::Metric};

/// None without `spec.autoscaling`.
pub(super) fn build_autoscaler(service: &ValidService) -> Option<HorizontalPodAutoscaler> {
    let autoscaling = service.autoscaling.as_ref()?;
    let of_service = autoscaling.targets.iter().map(|target| MetricSpec {
        type_: "Object".to_owned(),
        object: Some(ObjectMetricSource {
            described_object: this(service),
            metric: MetricIdentifier { name: target.metric.name().to_owned(), selector: None },
            target: MetricTarget {
                type_: "AverageValue".to_owned(),
                average_value: Some(Quantity(target.per_replica.to_string())),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    });
    let of_pods = autoscaling.resources.iter().map(|resource| MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(resource.clone()),
        ..MetricSpec::default()
    });
    Some(HorizontalPodAutoscaler {
        metadata: metadata(service, service.child_name()),
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: this(service),
            min_replicas: Some(autoscaling.min_replicas),
            max_replicas: autoscaling.max_replicas,
            metrics: Some(of_service.chain(of_pods).collect()),
            behavior: autoscaling.behavior.clone(),
        }),
        status: None,
    })
}

/// The service, as autoscalers refer to it.
pub(super) fn this(service: &ValidService) -> CrossVersionObjectReference {
    let owner = &service.identity.owner;
    CrossVersionObjectReference {
        api_version: Some(owner.api_version.clone()),
        kind: owner.kind.clone(),
        name: owner.name.clone(),
    }
}

/// What is measured, and how much of it one instance should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// What.
    pub metric: Metric,
    /// How much of it, on average.
    pub per_replica: i32,
}
