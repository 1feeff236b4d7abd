//! KEDA's `ScaledObject`, as far as it is written here.

use k8s_openapi::api::autoscaling::v2::{CrossVersionObjectReference, HorizontalPodAutoscalerBehavior};
use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// What is scaled, within which bounds and by what.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "keda.sh",
    version = "v1alpha1",
    kind = "ScaledObject",
    plural = "scaledobjects",
    namespaced,
    derive = "PartialEq",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct ScaledObjectSpec {
    /// What is scaled.
    pub scale_target_ref: CrossVersionObjectReference,
    /// The fewest instances.
    pub min_replica_count: i32,
    /// The most.
    pub max_replica_count: i32,
    /// How fast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advanced: Option<Advanced>,
    /// By what: the one that asks for the most instances wins.
    pub triggers: Vec<Trigger>,
}

/// What becomes the autoscaler's own settings.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Advanced {
    /// Of the autoscaler that KEDA makes.
    pub horizontal_pod_autoscaler_config: AutoscalerConfig,
}

/// Settings of the autoscaler that KEDA makes.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AutoscalerConfig {
    /// How fast it goes up and down.
    pub behavior: HorizontalPodAutoscalerBehavior,
}

/// Something that is measured.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Trigger {
    /// KEDA's name of who measures it.
    #[serde(rename = "type")]
    pub type_: String,
    /// `AverageValue` or `Utilization`.
    pub metric_type: String,
    /// What KEDA, or who measures it, needs to know.
    pub metadata: std::collections::BTreeMap<String, String>,
}
