//! Node drains take one instance at a time, where there are several.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::metadata;
use crate::{controller::validate::ValidService, names};

/// None with one replica or less: a budget for it would only block node drains.
pub(super) fn build_disruption_budget(service: &ValidService) -> Option<PodDisruptionBudget> {
    (service.replicas > 1).then(|| PodDisruptionBudget {
        metadata: metadata(service, service.child_name()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(names::selector(&service.identity.name)),
                ..LabelSelector::default()
            }),
            // An instance that is broken anyway must not keep a node from being drained.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    })
}
