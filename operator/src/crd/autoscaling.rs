//! `spec.autoscaling`: what becomes the service's `HorizontalPodAutoscaler`.

use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscalerBehavior, ResourceMetricSource};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many instances run, by Kubernetes' own `HorizontalPodAutoscaler`: of the metrics given, the one that asks for
/// the most instances wins. Without any: sessions, at 80 % of `gateway.maxSessions`.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.minReplicas <= self.maxReplicas").message("autoscaling.minReplicas must not be more than autoscaling.maxReplicas"),
    validation = Rule::new("self.minReplicas == 0 || !has(self.idleSeconds) && !has(self.wakeTimeoutSeconds)").message("autoscaling.idleSeconds and autoscaling.wakeTimeoutSeconds are for autoscaling.minReplicas 0")
)]
pub struct AutoscalingSpec {
    /// The fewest instances. With 0 the service goes to sleep when nobody uses it, at no instance at all: clients still
    /// find it, and the first `initialize` wakes it and is answered.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 10_000))]
    pub min_replicas: i32,

    /// With `minReplicas` 0: for how long, in seconds, there has been no session when the service goes to sleep; 300
    /// where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub idle_seconds: Option<i32>,

    /// With `minReplicas` 0: how long, in seconds, an `initialize` may wait for an instance before it is answered with
    /// an error; 60 where it is not said. Where it is known earlier that none can come, so is the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 600))]
    pub wake_timeout_seconds: Option<i32>,

    /// The most instances.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_replicas: i32,

    /// MCP sessions. Where neither these nor `inFlight` nor `resources` are given: at 80 % of `gateway.maxSessions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<SessionsTarget>,

    /// Requests in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<InFlightTarget>,

    /// CPU or memory, as in `autoscaling/v2`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub resources: Vec<ResourceMetricSource>,

    /// How fast it goes up and down, as in `autoscaling/v2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<HorizontalPodAutoscalerBehavior>,
}

/// How many sessions an instance should have: exactly one of the fields.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.targetPerReplica) != has(self.targetUtilization)")
        .message("autoscaling.sessions needs exactly one of targetPerReplica and targetUtilization")
)]
pub struct SessionsTarget {
    /// Sessions of one instance, on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub target_per_replica: Option<i32>,

    /// Percentage of `gateway.maxSessions`, on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub target_utilization: Option<i32>,

    /// Whether sessions that were refused within the last minute, because all were taken, count as if they were open:
    /// a burst is then met in one step, while otherwise the number of instances grows by what the open sessions are
    /// over the target. A client that asks again and again counts each time, so `maxReplicas` has to be one that you
    /// can afford.
    #[serde(default)]
    pub include_refused: bool,
}

/// How many requests an instance should be working on.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct InFlightTarget {
    /// Requests in flight of one instance, on average.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub target_per_replica: i32,
}

fn one() -> i32 {
    1
}
