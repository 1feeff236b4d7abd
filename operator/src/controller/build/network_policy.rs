//! Who may open a connection to an instance: whoever asks the gateway how it does, and nobody to the MCP server, so
//! that its clients come by the broker and its ACLs.

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use mcp_mqtt_sidecar::config::ADMIN_PORT;

use super::metadata;
use crate::{controller::validate::ValidService, names};

/// None where the operator is told of nobody. The kubelet need not be named: Kubernetes lets a pod's own node through.
/// What the pod itself connects to is left alone: MCP servers call out, and the gateway has to reach the broker.
pub(super) fn build_network_policy(
    service: &ValidService,
    askers: Option<&[NetworkPolicyPeer]>,
) -> Option<NetworkPolicy> {
    let gateway = |askers: &[NetworkPolicyPeer]| NetworkPolicyIngressRule {
        from: Some(askers.to_vec()),
        ports: Some(vec![NetworkPolicyPort {
            port: Some(IntOrString::Int(ADMIN_PORT.into())),
            protocol: Some("TCP".to_owned()),
            end_port: None,
        }]),
    };
    askers.map(|askers| NetworkPolicy {
        metadata: metadata(service, service.child_name()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(names::selector(&service.identity.name)),
                ..LabelSelector::default()
            }),
            policy_types: Some(vec!["Ingress".to_owned()]),
            // A rule from nobody would be one from everybody.
            ingress: (!askers.is_empty()).then(|| vec![gateway(askers)]),
            egress: None,
        }),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        controller::{
            fetch::Fetched,
            fixtures::{HTTP, built, settings},
        },
        settings::Settings,
    };

    fn policy(from: Option<Value>) -> Value {
        let network_policy_from = from.map(|from| serde_json::from_value(from).unwrap());
        let settings = Settings { network_policy_from, ..settings() };
        serde_json::to_value(built(HTTP, &settings, &Fetched::default()).network_policy).unwrap()
    }

    #[test]
    fn only_those_that_are_named_get_through_and_only_to_the_gateway() {
        let asker = json!({"podSelector": {"matchLabels": {"app": "asker"}}});
        let policy = policy(Some(json!([asker])));
        let expected = json!({
            "podSelector": {"matchLabels": {"mcp-mqtt.io/service": "weather"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [asker], "ports": [{"port": 8079, "protocol": "TCP"}]}],
        });
        assert_eq!(policy["spec"], expected);
        assert_eq!(policy["metadata"]["name"], "weather");
        assert_eq!(policy["metadata"]["ownerReferences"][0]["kind"], "McpService");
    }

    #[test]
    fn from_nobody_is_no_rule_and_nothing_said_is_no_policy() {
        assert_eq!(policy(Some(json!([])))["spec"].get("ingress"), None);
        assert_eq!(policy(None), Value::Null);
    }
}
