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
use serde_json::Value;
use tokio::time::sleep;

use crate::{names::FIELD_MANAGER, serving::LOOK};

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
    apply(client, &wanted(client, place, port_name).await?).await
}

/// Looks for as long as it is polled whether the slice still stands there as it is to be. It goes with its Service, for
/// one, and a new Service has none.
pub async fn keep_published(client: &Client, place: &Place, port_name: &str) {
    let service = format!("{}/{}", place.namespace, place.service);
    loop {
        sleep(LOOK).await;
        match mend(client, place, port_name).await {
            Ok(false) => {}
            Ok(true) => tracing::warn!(
                "the Service {service} did not lead to us any more: its EndpointSlice is written again"
            ),
            Err(error) => {
                tracing::warn!(retry_in = ?LOOK, "whether the Service {service} leads to us cannot be looked after: {error}");
            }
        }
    }
}

/// Whether something was written.
async fn mend(client: &Client, place: &Place, port_name: &str) -> Result<bool, kube::Error> {
    let wanted = wanted(client, place, port_name).await?;
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &place.namespace);
    let found = api.get_opt(&wanted.name_any()).await?;
    if found.is_some_and(|found| stands(&wanted, &found)) {
        return Ok(false);
    }
    apply(client, &wanted).await.map(|()| true)
}

/// Whether the one that was found says what is wanted; the API server adds to it.
fn stands(wanted: &EndpointSlice, found: &EndpointSlice) -> bool {
    let as_json = |slice: &EndpointSlice| serde_json::to_value(slice).unwrap_or_default();
    is_within(&as_json(wanted), &as_json(found))
}

fn is_within(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|whole| is_within(value, whole)))
        }
        (Value::Array(part), Value::Array(whole)) => {
            part.len() == whole.len() && part.iter().zip(whole).all(|(part, whole)| is_within(part, whole))
        }
        _ => part == whole,
    }
}

async fn wanted(client: &Client, place: &Place, port_name: &str) -> Result<EndpointSlice, kube::Error> {
    let service = Api::<Service>::namespaced(client.clone(), &place.namespace).get(&place.service).await?;
    Ok(slice(&service, place.address, port_name))
}

async fn apply(client: &Client, slice: &EndpointSlice) -> Result<(), kube::Error> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &slice.namespace().unwrap_or_default());
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&slice.name_any(), &parameters, &Patch::Apply(slice)).await.map(drop)
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
    use std::sync::Arc;

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

    /// The API server is one of the test's own: time passes, and the real one's does not.
    #[tokio::test(start_paused = true)]
    async fn a_slice_that_is_gone_or_led_elsewhere_is_written_again() {
        /// The Service's uid, the slice, and how often it was written.
        type State = (&'static str, Option<Value>, usize);
        let stored: Arc<std::sync::Mutex<State>> = Arc::new(std::sync::Mutex::new(("first", None, 0)));
        let api = {
            let stored = stored.clone();
            tower::service_fn(move |request: http::Request<kube::client::Body>| {
                let stored = stored.clone();
                async move {
                    let (patches, path) =
                        (request.method() == http::Method::PATCH, request.uri().path().to_owned());
                    let body = request.into_body().collect_bytes().await?;
                    let mut stored = stored.lock().expect("no panic");
                    if patches {
                        let mut slice: Value = serde_json::from_slice(&body)?;
                        slice["metadata"]["resourceVersion"] = json!("7");
                        (stored.1, stored.2) = (Some(slice), stored.2 + 1);
                    }
                    let missing = json!({
                        "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "none",
                    });
                    let answer = if path.contains("/services/") {
                        json!({"metadata": {"name": "metrics", "namespace": "mcp-mqtt", "uid": stored.0}})
                    } else {
                        stored.1.clone().unwrap_or(missing)
                    };
                    let code = if answer["code"] == 404 { 404 } else { 200 };
                    let answer = kube::client::Body::from(answer.to_string().into_bytes());
                    Ok::<_, tower::BoxError>(http::Response::builder().status(code).body(answer)?)
                }
            })
        };
        let client = Client::new(api, "default");
        let place = Place {
            namespace: "mcp-mqtt".to_owned(),
            service: "metrics".to_owned(),
            address: ([127, 0, 0, 1], 6443).into(),
        };
        let kept = tokio::spawn(async move { keep_published(&client, &place, "https").await });
        let writes_after = async |change: &dyn Fn(&mut State)| {
            change(&mut stored.lock().expect("no panic"));
            sleep(LOOK * 3).await;
            stored.lock().expect("no panic").2
        };
        assert_eq!(writes_after(&|_| {}).await, 1, "there was none, and then it stands there");
        assert_eq!(writes_after(&|stored| stored.1 = None).await, 2, "somebody deleted it");
        assert_eq!(writes_after(&|stored| stored.0 = "second").await, 3, "its Service was made anew");
        let elsewhere = |stored: &mut State| {
            stored.1.as_mut().unwrap()["endpoints"][0]["addresses"] = json!(["10.0.0.9"]);
        };
        assert_eq!(writes_after(&elsewhere).await, 4, "it led elsewhere");
        kept.abort();
    }
}
