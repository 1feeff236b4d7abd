//! Answers: the documents of the API, in the shapes of `custom.metrics.k8s.io/v1beta2`.

use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use serde_json::{Value, json};

use super::{GROUP, Metric, VERSION};
use crate::crd::McpService;

/// The resource that the metrics describe, as it stands in paths.
pub fn described_resource() -> String {
    format!("{}.{}", McpService::plural(&()), McpService::group(&()))
}

/// `/apis/custom.metrics.k8s.io`.
pub fn group() -> Value {
    let version = json!({"groupVersion": format!("{GROUP}/{VERSION}"), "version": VERSION});
    json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": GROUP,
        "versions": [version], "preferredVersion": version,
    })
}

/// `/apis/custom.metrics.k8s.io/v1beta2`.
pub fn resources() -> Value {
    let resources: Vec<Value> = Metric::ALL
        .into_iter()
        .map(|metric| {
            json!({
                "name": format!("{}/{}", described_resource(), metric.name()),
                "singularName": "", "namespaced": true, "kind": "MetricValueList", "verbs": ["get"],
            })
        })
        .collect();
    json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": format!("{GROUP}/{VERSION}"), "resources": resources,
    })
}

/// One metric of some services of a namespace, each with its number.
pub fn values(namespace: &str, metric: Metric, values: &[(String, u64)], now: Timestamp) -> Value {
    let items: Vec<Value> = values
        .iter()
        .map(|(name, value)| {
            json!({
                "describedObject": {
                    "kind": McpService::kind(&()), "apiVersion": McpService::api_version(&()),
                    "namespace": namespace, "name": name,
                },
                "metric": {"name": metric.name(), "selector": null},
                "timestamp": Timestamp::from_second(now.as_second()).unwrap_or(now),
                "value": value.to_string(),
            })
        })
        .collect();
    json!({
        "kind": "MetricValueList", "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": {}, "items": items,
    })
}

/// An error, as Kubernetes tells it.
pub fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_names_what_it_describes() {
        let noon = Timestamp::from_second(1_800_000_000).unwrap();
        let expected = json!({
            "kind": "MetricValueList", "apiVersion": "custom.metrics.k8s.io/v1beta2", "metadata": {},
            "items": [{
                "describedObject": {
                    "kind": "McpService", "apiVersion": "mcp-mqtt.io/v1alpha1",
                    "namespace": "meteo", "name": "weather",
                },
                "metric": {"name": "mcp_sessions", "selector": null},
                "timestamp": "2027-01-15T08:00:00Z",
                "value": "12",
            }],
        });
        assert_eq!(values("meteo", Metric::Sessions, &[("weather".to_owned(), 12)], noon), expected);
    }

    #[test]
    fn discovery_names_every_metric() {
        let resources = resources();
        let names: Vec<&str> =
            resources["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
        assert_eq!(
            names,
            ["mcp_sessions", "mcp_requests_in_flight", "mcp_sessions_refused", "mcp_sessions_wanted"]
                .map(|name| format!("mcpservices.mcp-mqtt.io/{name}"))
        );
        assert_eq!(group()["preferredVersion"]["groupVersion"], "custom.metrics.k8s.io/v1beta2");
    }
}
