//! Scale-in: which instances go when there are to be fewer. Kubernetes ends the pods with the lowest deletion cost
//! first; the cost of one is its sessions, written just before its Deployment shrinks.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, stream};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
};
use serde_json::json;

use super::{
    scope::{Scope, ServiceRef},
    validate::Identity,
};
use crate::{
    live::pod::Pod,
    names::{FIELD_MANAGER, POD_DELETION_COST},
    observe::{Observations, ask_now, leaves},
};

/// Gateways asked, and pods written, at one time.
const CONCURRENCY: usize = 32;

/// Writes what each instance's end would cost. One that cannot be written keeps the cost it has, and one that does
/// not answer counts as it did when it answered last: the scale-in does not wait for either.
pub async fn weigh(scope: &Scope, identity: &Identity) {
    let service = ServiceRef::new(&identity.name).within(&identity.namespace);
    let mut pods = scope.stores.pods.of(&service);
    pods.retain(|pod| !leaves(pod));
    ask_now(&pods, &scope.observations, CONCURRENCY).await;
    let api: Api<PartialObjectMeta<Pod>> = Api::namespaced(scope.client.clone(), &identity.namespace);
    let changes = changes(&pods, &scope.observations);
    stream::iter(changes)
        .for_each_concurrent(CONCURRENCY, |(pod, cost)| {
            let api = api.clone();
            async move {
                let patch = json!({"metadata": {"annotations": {POD_DELETION_COST: cost.to_string()}}});
                let parameters =
                    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
                match api.patch_metadata(&pod, &parameters, &Patch::Merge(patch)).await {
                    Ok(_) => scope.metrics.wrote("Pod", "patch"),
                    Err(error) => tracing::warn!(
                        namespace = identity.namespace,
                        service = identity.name,
                        pod,
                        "its sessions do not count in the scale-in: {error}"
                    ),
                }
            }
        })
        .await;
}

/// The pods whose cost is not what it should be, and what it should be.
fn changes(pods: &[Arc<Pod>], observations: &Observations) -> BTreeMap<String, u32> {
    let cost = |pod: &Pod| observations.get(&pod.uid()?)?.sessions;
    pods.iter()
        .filter_map(|pod| {
            let cost = cost(pod).unwrap_or_default();
            let written = pod.annotations().get(POD_DELETION_COST).and_then(|text| text.parse().ok());
            (written.unwrap_or(0) != cost).then(|| (pod.name_any(), cost))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use mcp_mqtt_sidecar::status::{GatewayStatus, reason};

    use super::*;
    use crate::controller::problems::tests::{gateway, pod};

    #[test]
    fn an_instance_costs_as_much_as_it_has_sessions() {
        let observations = Observations::default();
        let with = |name: &str, sessions: Option<u32>, cost: Option<&str>| {
            let mut pod = pod(name, &json!({"phase": "Running"}));
            if let Some(cost) = cost {
                pod.annotations_mut().insert(POD_DELETION_COST.to_owned(), cost.to_owned());
            }
            if let Some(sessions) = sessions {
                let gateway = gateway((reason::BACKEND_READY, true), (reason::REGISTERED, true));
                observations.set(name, Ok(GatewayStatus { sessions, ..gateway }));
            }
            Arc::new(pod)
        };
        let pods = [
            with("busy", Some(7), None),
            with("empty", Some(0), None),
            with("emptied", Some(0), Some("3")),
            with("same", Some(2), Some("2")),
            with("silent", None, None),
            with("fell-silent", Some(4), None),
        ];
        observations.set("fell-silent", Err("no answer within 2s".to_owned()));
        let expected = [("busy".to_owned(), 7), ("emptied".to_owned(), 0), ("fell-silent".to_owned(), 4)];
        assert_eq!(changes(&pods, &observations), BTreeMap::from(expected));
    }
}
