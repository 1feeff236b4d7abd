//! What makes a service be looked at beside its own changes: its children, its pods, its gateways.
//!
//! What may be drift is looked at on the spot; what only tells how far things are comes in bursts (a pod alone tells of
//! five changes while it starts) and is looked at once for each.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream::BoxStream};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Resource,
    runtime::{
        reflector::{ObjectRef, Store},
        scheduler,
        scheduler::ScheduleRequest,
        watcher,
    },
};
use tokio::time::Instant;

use super::{
    scope::{Scope, ServiceRef},
    watches::{Children, Objects},
};
use crate::{crd::McpService, observe::service_of};

/// News of one service within this are one look.
const BURST: Duration = Duration::from_millis(50);

/// Whom to look at, and when.
type Trigger = (ServiceRef, Instant);

/// The services to be looked at, each as soon as it is time.
pub fn triggers(
    scope: &Arc<Scope>,
    children: Children,
    changed: impl Stream<Item = ServiceRef> + Send + 'static,
) -> impl Stream<Item = ServiceRef> + Send + 'static {
    let Children {
        deployments,
        service_accounts,
        disruption_budgets,
        autoscalers,
        network_policies,
        scaled_objects,
        pods,
    } = children;
    let stores = &scope.stores;
    let changed = changed.map(|service| (service, soon()));
    let pods = of_watch(scope, pods, |_, pod| Some((service_of(&pod)?, soon())));
    let mut all: Vec<BoxStream<'static, Trigger>> = vec![
        owned(scope, "Deployment", deployments, &stores.deployments, is_unobserved),
        owned(scope, "ServiceAccount", service_accounts, &stores.service_accounts, |_| false),
        owned(scope, "PodDisruptionBudget", disruption_budgets, &stores.disruption_budgets, |_| false),
        owned(scope, "HorizontalPodAutoscaler", autoscalers, &stores.autoscalers, |_| false),
        pods,
        changed.boxed(),
    ];
    if let Some((policies, store)) = network_policies.zip(stores.network_policies.as_ref()) {
        all.push(owned(scope, "NetworkPolicy", policies, store, |_| false));
    }
    if let Some((objects, store)) = scaled_objects.zip(stores.scaled_objects.as_ref()) {
        all.push(owned(scope, "ScaledObject", objects, store, |_| false));
    }
    let requests =
        futures::stream::select_all(all).map(|(message, run_at)| ScheduleRequest { message, run_at });
    scheduler(requests)
}

fn soon() -> Instant {
    Instant::now() + BURST
}

/// A Deployment whose spec was changed a moment ago: its own controller has not seen it yet.
fn is_unobserved(deployment: &Deployment) -> bool {
    let observed = deployment.status.as_ref().and_then(|status| status.observed_generation);
    observed != deployment.metadata.generation
}

/// Of what a service owns: at once where it is gone, or `urgent`; not at all where it is our own write that comes back.
fn owned<K>(
    scope: &Arc<Scope>,
    kind: &'static str,
    objects: Objects<K>,
    store: &Store<K>,
    urgent: impl Fn(&K) -> bool + Send + 'static,
) -> BoxStream<'static, Trigger>
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let store = store.clone();
    of_watch(scope, objects, move |scope, object| {
        let metadata = object.meta();
        let owner = metadata.owner_references.iter().flatten().find(|owner| {
            owner.kind == McpService::kind(&()) && owner.api_version == McpService::api_version(&())
        })?;
        let service = ServiceRef::new(&owner.name).within(metadata.namespace.as_deref()?);
        let gone = store.get(&ObjectRef::from_obj(&object)).is_none();
        if !gone && scope.applied.is_own(kind, metadata) {
            return None;
        }
        Some((service, if gone || urgent(&object) { Instant::now() } else { soon() }))
    })
}

/// Of any watch; one that fails is told, and opened anew by itself.
fn of_watch<K: Send + 'static>(
    scope: &Arc<Scope>,
    objects: Objects<K>,
    judge: impl Fn(&Scope, K) -> Option<Trigger> + Send + 'static,
) -> BoxStream<'static, Trigger> {
    let scope = scope.clone();
    let told = move |object: Result<K, watcher::Error>| match object {
        Ok(object) => judge(&scope, object),
        Err(error) => {
            tell_failed(&scope, &error);
            None
        }
    };
    objects.filter_map(move |object| futures::future::ready(told(object))).boxed()
}

/// A watch failed.
pub(super) fn tell_failed(scope: &Scope, error: &dyn std::fmt::Display) {
    scope.metrics.watch_failed();
    tracing::warn!(
        "a watch failed and is opened anew: {error}; does the operator's role allow list and watch of it?"
    );
}
