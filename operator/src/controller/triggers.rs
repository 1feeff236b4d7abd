//! What makes a service be looked at beside its own changes: its children, its pods, its gateways.
//!
//! What may be drift is looked at on the spot; what only tells how far things are comes in bursts (a pod alone tells of
//! five changes while it starts) and is looked at once for each.

use std::{sync::Arc, time::Duration};

use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use kube::runtime::{
    reflector::{ObjectRef, Store},
    scheduler,
    scheduler::ScheduleRequest,
    watcher,
};
use tokio::time::Instant;

use super::{
    apply::Child,
    scope::{Scope, ServiceRef},
    validate::references::Kind,
    watches::{Children, Objects, Referred},
};
use crate::{
    live::{Deployment, Live, Meta},
    observe::service_of,
};

/// News of one service within this are one look.
const BURST: Duration = Duration::from_millis(50);

/// Whom to look at, and when.
type Trigger = (ServiceRef, Instant);

/// The services to be looked at, each as soon as it is time.
pub fn triggers(
    scope: &Arc<Scope>,
    children: Children,
    referred: Referred,
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
        owned(scope, deployments, &stores.deployments, is_unobserved),
        owned(scope, service_accounts, &stores.service_accounts, |_| false),
        owned(scope, disruption_budgets, &stores.disruption_budgets, |_| false),
        owned(scope, autoscalers, &stores.autoscalers, |_| false),
        pods,
        of_reference(scope, Kind::Secret, referred.secrets),
        of_reference(scope, Kind::ConfigMap, referred.config_maps),
        changed.boxed(),
    ];
    if let Some((policies, store)) = network_policies.zip(stores.network_policies.as_ref()) {
        all.push(owned(scope, policies, store, |_| false));
    }
    if let Some((objects, store)) = scaled_objects.zip(stores.scaled_objects.as_ref()) {
        all.push(owned(scope, objects, store, |_| false));
    }
    let requests = stream::select_all(all).map(|(message, run_at)| ScheduleRequest { message, run_at });
    scheduler(requests)
}

fn soon() -> Instant {
    Instant::now() + BURST
}

/// A Deployment whose spec was changed a moment ago: its own controller has not seen it yet.
fn is_unobserved(deployment: &Deployment) -> bool {
    deployment.state.observed_generation != deployment.meta.generation
}

/// Of what a service owns: at once where it is gone, or `urgent`; not at all where it is our own write that comes back.
fn owned<K, State>(
    scope: &Arc<Scope>,
    objects: Objects<Live<K, State>>,
    store: &Store<Live<K, State>>,
    urgent: impl Fn(&Live<K, State>) -> bool + Send + 'static,
) -> BoxStream<'static, Trigger>
where
    K: Child,
    State: Clone + Send + Sync + 'static,
{
    let store = store.clone();
    of_watch(scope, objects, move |scope, object| {
        let service = ServiceRef::new(&object.meta.owners.first()?.name).within(&object.meta.namespace);
        let gone = store.get(&ObjectRef::from_obj(&object)).is_none();
        if !gone && scope.applied.is_own(K::KIND, &object.meta) {
            return None;
        }
        Some((service, if gone || urgent(&object) { Instant::now() } else { soon() }))
    })
}

/// Of a Secret or `ConfigMap`: those that refer to it, and the one that owns it.
fn of_reference<K: 'static>(
    scope: &Arc<Scope>,
    kind: Kind,
    objects: Objects<Live<K>>,
) -> BoxStream<'static, Trigger> {
    of_watch(scope, objects, move |scope, object| {
        let Meta { namespace, name, owners, .. } = &object.meta;
        let mut services = scope.references.referrers(kind, namespace, name);
        services.extend(owners.iter().map(|owner| ServiceRef::new(&owner.name).within(namespace)));
        services.into_iter().map(|service| (service, Instant::now())).collect::<Vec<_>>()
    })
}

/// Of any watch; one that fails is told, and opened anew by itself.
fn of_watch<K: Send + 'static, Triggers: IntoIterator<Item = Trigger>>(
    scope: &Arc<Scope>,
    objects: Objects<K>,
    judge: impl Fn(&Scope, K) -> Triggers + Send + 'static,
) -> BoxStream<'static, Trigger>
where
    Triggers::IntoIter: Send + 'static,
{
    let scope = scope.clone();
    let told = move |object: Result<K, watcher::Error>| match object {
        Ok(object) => Some(stream::iter(judge(&scope, object))),
        Err(error) => {
            tell_failed(&scope, &error);
            None
        }
    };
    objects.filter_map(move |object| futures::future::ready(told(object))).flatten().boxed()
}

/// A watch failed.
pub(super) fn tell_failed(scope: &Scope, error: &dyn std::fmt::Display) {
    scope.metrics.watch_failed();
    tracing::warn!(
        "a watch failed and is opened anew: {error}; does the operator's role allow list and watch of it?"
    );
}
