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
    session_metrics::Metric,
};

/// So many sessions of one instance that they never ask for another one.
const NO_TARGET: i32 = i32::MAX;

/// None without `spec.autoscaling`.
pub(super) fn build_scaled_object(service: &ValidService, scaler: &str) -> Option<ScaledObject> {
    let autoscaling = service.autoscaling.as_ref()?;
    let mut targets = autoscaling.targets.clone();
    if autoscaling.sleep.is_some() && targets.is_empty() {
        // CPU and memory alone cannot call a service inactive: KEDA would wake it again at once.
        targets.push(Target { metric: Metric::Sessions, per_replica: NO_TARGET });
    }
    let of_service = targets.iter().map(|target| of_service(service, scaler, *target));
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

    #[test]
    fn a_service_that_may_sleep_always_has_a_trigger_that_lets_it() {
        let settings = Settings { keda_scaler: Some("scaler.ours.svc:9091".to_owned()), ..settings() };
        let triggers = |min_replicas: u32, sessions: &str| {
            let resources = "[{name: cpu, target: {type: Utilization, averageUtilization: 60}}]";
            let spec = format!(
                "{STDIO}
autoscaling: {{minReplicas: {min_replicas}, maxReplicas: 9, {sessions} resources: {resources}}}
"
            );
            let object = built(&spec, &settings, &Fetched::default()).scaled_object.unwrap();
            assert_eq!(object.spec.min_replica_count == 0, min_replicas == 0);
            let triggers = object.spec.triggers.into_iter();
            triggers.map(|mut it| (it.type_, it.metadata.remove("targetPerReplica"))).collect::<Vec<_>>()
        };
        let (cpu, push) = (("cpu".to_owned(), None), "external-push".to_owned());
        let never = Some(super::NO_TARGET.to_string());
        assert_eq!(triggers(0, ""), [(push.clone(), never), cpu.clone()]);
        let seven = Some("7".to_owned());
        assert_eq!(triggers(0, "sessions: {targetPerReplica: 7},"), [(push, seven), cpu.clone()]);
        assert_eq!(triggers(1, ""), [cpu]);
    }
}
