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

#[cfg(test)]
mod tests {
    use crate::controller::{
        build::{
            GATEWAY,
            tests::{METADATA, container, of, value, yaml},
        },
        fixtures::STDIO,
    };

    #[test]
    fn an_autoscaler_goes_by_the_service_itself() {
        let spec = format!(
            "{STDIO}
gateway: {{maxSessions: 50}}
autoscaling:
  minReplicas: 2
  maxReplicas: 9
  sessions: {{targetUtilization: 70}}
  inFlight: {{targetPerReplica: 4}}
  resources: [{{name: cpu, target: {{type: Utilization, averageUtilization: 60}}}}]
  behavior: {{scaleDown: {{stabilizationWindowSeconds: 30}}}}
"
        );
        let this = "{apiVersion: mcp-mqtt.io/v1alpha1, kind: McpService, name: weather}";
        let expected = yaml(&format!(
            "
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {METADATA_INLINE}
spec:
  scaleTargetRef: {this}
  minReplicas: 2
  maxReplicas: 9
  metrics:
  - type: Object
    object:
      describedObject: {this}
      metric: {{name: mcp_sessions}}
      target: {{type: AverageValue, averageValue: '35'}}
  - type: Object
    object:
      describedObject: {this}
      metric: {{name: mcp_requests_in_flight}}
      target: {{type: AverageValue, averageValue: '4'}}
  - type: Resource
    resource: {{name: cpu, target: {{type: Utilization, averageUtilization: 60}}}}
  behavior: {{scaleDown: {{stabilizationWindowSeconds: 30}}}}
",
            METADATA_INLINE = serde_json::to_string(&yaml(METADATA)).unwrap(),
        ));
        assert_eq!(value(&of(&spec).autoscaler), expected);
    }

    #[test]
    fn without_a_metric_the_autoscaler_goes_by_four_fifths_of_the_sessions() {
        let autoscaler = value(&of(&format!("{STDIO}\nautoscaling: {{maxReplicas: 3}}")).autoscaler);
        assert_eq!(autoscaler["spec"]["metrics"][0]["object"]["target"]["averageValue"], "80");
        assert_eq!(autoscaler["spec"]["minReplicas"], 1);
        let refused = "autoscaling: {maxReplicas: 3, sessions: {targetPerReplica: 7, includeRefused: true}}";
        let autoscaler = value(&of(&format!("{STDIO}\n{refused}")).autoscaler);
        assert_eq!(autoscaler["spec"]["metrics"][0]["object"]["metric"]["name"], "mcp_sessions_wanted");
        let cpu = "autoscaling: {maxReplicas: 3, resources: [{name: cpu, target: {type: Utilization, averageUtilization: 60}}]}";
        let autoscaler = value(&of(&format!("{STDIO}\n{cpu}")).autoscaler);
        assert_eq!(autoscaler["spec"]["metrics"].as_array().unwrap().len(), 1, "{autoscaler}");
        assert_eq!(of(STDIO).autoscaler, None);
    }

    #[test]
    fn a_service_that_sleeps_has_an_autoscaler_for_when_it_is_awake_and_gateways_that_stand_in_for_it() {
        let resources = of(&format!("{STDIO}\nautoscaling: {{minReplicas: 0, maxReplicas: 3}}"));
        assert_eq!(value(&resources.autoscaler)["spec"]["minReplicas"], 1);
        let args = container(&resources, GATEWAY).args.unwrap();
        assert!(args.contains(&"--standby-id=north.meteo.weather_service".to_owned()), "{args:?}");
        let args = container(&of(STDIO), GATEWAY).args.unwrap();
        assert!(!args.iter().any(|arg| arg.starts_with("--standby-id")), "{args:?}");
    }
}
