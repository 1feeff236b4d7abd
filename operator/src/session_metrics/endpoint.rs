//! Endpoint: leads a Service to the leader. The Service has no selector, because only one of several operators knows
//! the numbers; the leader writes itself into the Service's `EndpointSlice`.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::{
    api::{
        core::v1::Service,
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams},
};

use crate::names::FIELD_MANAGER;

/// Where something is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The operator's namespace.
    pub namespace: String,
    /// The Service in front of it.
    pub service: String,
    /// The operator's own address, as other pods reach it.
    pub address: SocketAddr,
}

impl Place {
    /// What to listen on: the port, on every address of this family.
    pub fn listen(&self) -> SocketAddr {
        let any: IpAddr = if self.address.is_ipv4() { [0, 0, 0, 0].into() } else { [0; 16].into() };
        (any, self.address.port()).into()
    }
}

/// Makes this operator the one behind the Service, whose port has this name.
///
/// # Errors
/// The API server's; 404: there is no such Service.
pub async fn publish(client: &Client, place: &Place, port_name: &str) -> Result<(), kube::Error> {
    let service = Api::<Service>::namespaced(client.clone(), &place.namespace).get(&place.service).await?;
    let slice = slice(&service, place.address, port_name);
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &place.namespace);
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&slice.name_any(), &parameters, &Patch::Apply(&slice)).await.map(drop)
}

fn slice(service: &Service, address: SocketAddr, port_name: &str) -> EndpointSlice {
    let name = service.name_any();
    let kind = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    // An address type cannot be changed: another one is another slice.
    let slice_name = format!("{name}-{}", kind.to_ascii_lowercase());
    let labels = [
        ("kubernetes.io/service-name", name.as_str()),
        ("endpointslice.kubernetes.io/managed-by", FIELD_MANAGER),
    ];
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(slice_name),
            namespace: service.namespace(),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            // It goes with the Service, when the chart is uninstalled.
            owner_references: Some(vec![OwnerReference {
                api_version: Service::api_version(&()).into_owned(),
                kind: Service::kind(&()).into_owned(),
                name,
                uid: service.uid().unwrap_or_default(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        address_type: kind.to_owned(),
        endpoints: vec![Endpoint {
            addresses: vec![address.ip().to_string()],
            conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
            ..Endpoint::default()
        }],
        ports: Some(vec![EndpointPort {
            name: Some(port_name.to_owned()),
            port: Some(address.port().into()),
            protocol: Some("TCP".to_owned()),
            ..EndpointPort::default()
        }]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_leader_stands_behind_the_service() {
        let service: Service = serde_json::from_value(
            json!({"metadata": {"name": "metrics", "namespace": "mcp-mqtt", "uid": "uid-of-metrics"}}),
        )
        .unwrap();
        let expected = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "metrics-ipv6", "namespace": "mcp-mqtt",
                "labels": {
                    "kubernetes.io/service-name": "metrics",
                    "endpointslice.kubernetes.io/managed-by": "mcp-mqtt-operator",
                },
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Service", "name": "metrics", "uid": "uid-of-metrics"},
                ],
            },
            "addressType": "IPv6",
            "endpoints": [{"addresses": ["fd00::7"], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}],
        });
        let slice = slice(&service, "[fd00::7]:6443".parse().unwrap(), "https");
        assert_eq!(serde_json::to_value(slice).unwrap(), expected);
    }
}
