//! The `ScaledObject`: what the `HorizontalPodAutoscaler` is, said to KEDA, which makes one of it.

use k8s_openapi::api::autoscaling::v2::ResourceMetricSource;

use super::{
    autoscaler::{Target, this},
    metadata,
};
use crate::{
    controller::validate::ValidService,
    keda::{
        answers::{METRIC, SERVICE, TARGET},
        scaled_object::{Advanced, AutoscalerConfig, ScaledObject, ScaledObjectSpec, Trigger},
    },
};

/// None without `spec.autoscaling`.
pub(super) fn build_scaled_object(service: &ValidService, scaler: &str) -> Option<ScaledObject> {
    let autoscaling = service.autoscaling.as_ref()?;
    let of_service = autoscaling.targets.iter().map(|target| of_service(service, scaler, *target));
    let of_pods = autoscaling.resources.iter().map(of_pods);
    Some(ScaledObject {
        metadata: metadata(service, service.child_name()),
        spec: ScaledObjectSpec {
            scale_target_ref: this(service),
            // Where it may sleep, KEDA leaves none at none: the scaler calls it active only while it has instances.
            min_replica_count: if autoscaling.sleep.is_some() { 0 } else { autoscaling.min_replicas },
            max_replica_count: autoscaling.max_replicas,
            advanced: autoscaling
                .behavior
                .clone()
                .map(|behavior| Advanced { horizontal_pod_autoscaler_config: AutoscalerConfig { behavior } }),
            triggers: of_service.chain(of_pods).collect(),
        },
    })
}

/// `external-push`: a service that has instances again is told to KEDA, and not only found by it.
fn of_service(service: &ValidService, scaler: &str, target: Target) -> Trigger {
    trigger(
        "external-push",
        "AverageValue",
        &[
            ("scalerAddress", scaler),
            (SERVICE, &service.identity.name),
            (METRIC, target.metric.name()),
            (TARGET, &target.per_replica.to_string()),
        ],
    )
}

fn of_pods(resource: &ResourceMetricSource) -> Trigger {
    let target = &resource.target;
    let utilization = target.average_utilization.map(|percent| percent.to_string());
    let value = utilization.or_else(|| target.average_value.as_ref().map(|value| value.0.clone()));
    trigger(&resource.name, &target.type_, &[("value", &value.unwrap_or_default())])
}

fn trigger(type_: &str, metric_type: &str, metadata: &[(&str, &str)]) -> Trigger {
    Trigger {
        type_: type_.to_owned(),
        metric_type: metric_type.to_owned(),
        metadata: metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        controller::{
            fetch::Fetched,
            fixtures::{STDIO, built, settings},
        },
        settings::Settings,
    };

    #[test]
    fn with_keda_a_scaled_object_takes_the_autoscalers_place() {
        let spec = format!(
            "{STDIO}
autoscaling:
  minReplicas: 2
  maxReplicas: 9
  sessions: {{targetPerReplica: 7}}
  resources:
  - {{name: cpu, target: {{type: Utilization, averageUtilization: 60}}}}
  - {{name: memory, target: {{type: AverageValue, averageValue: 1Gi}}}}
  behavior: {{scaleDown: {{stabilizationWindowSeconds: 30}}}}
"
        );
        let settings = Settings { keda_scaler: Some("scaler.ours.svc:9091".to_owned()), ..settings() };
        let resources = built(&spec, &settings, &Fetched::default());
        assert_eq!(resources.autoscaler, None);
        let object: Value = serde_json::to_value(resources.scaled_object).unwrap();
        assert_eq!(object["apiVersion"], "keda.sh/v1alpha1");
        let metadata = json!({
            "scalerAddress": "scaler.ours.svc:9091",
            "service": "weather", "metric": "mcp_sessions", "targetPerReplica": "7",
        });
        let expected = json!({
            "scaleTargetRef": {"apiVersion": "mcp-mqtt.io/v1alpha1", "kind": "McpService", "name": "weather"},
            "minReplicaCount": 2,
            "maxReplicaCount": 9,
            "advanced": {"horizontalPodAutoscalerConfig": {
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 30}},
            }},
            "triggers": [
                {"type": "external-push", "metricType": "AverageValue", "metadata": metadata},
                {"type": "cpu", "metricType": "Utilization", "metadata": {"value": "60"}},
                {"type": "memory", "metricType": "AverageValue", "metadata": {"value": "1Gi"}},
            ],
        });
        assert_eq!(object["spec"], expected);
        assert_eq!(built(STDIO, &settings, &Fetched::default()).scaled_object, None);
    }
}
