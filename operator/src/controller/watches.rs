//! The watches: one stream a kind, each into its store, trimmed to what is read of it.

use std::sync::Arc;

use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ConfigMap, Pod, Secret, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource,
    core::PartialObjectMeta,
    runtime::{
        PredicateConfig, WatchStreamExt, predicates,
        reflector::{self, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{
    ownership,
    pods::{Index, Pods},
    resolve,
    scope::{Guarded, Stores},
    trim,
};
use crate::{keda::scaled_object::ScaledObject, names::SERVICE_LABEL};

/// Objects in a page of a first list: they are held whole until they are trimmed.
const PAGE: u32 = 100;

/// Counts up with each list but the first.
type Relist = Arc<watch::Sender<u64>>;

/// A watch's objects: all that are touched, deleted ones too.
pub type Objects<K> = BoxStream<'static, Result<K, watcher::Error>>;

/// The streams that fill [`Stores`].
pub struct Watches {
    /// By generation: our own status writes are no news.
    pub services: Objects<Guarded>,
    /// What we made, and what came of it.
    pub children: Children,
    /// All Secrets, by their metadata.
    pub secrets: Objects<PartialObjectMeta<Secret>>,
    /// All `ConfigMaps`, by their metadata.
    pub config_maps: Objects<PartialObjectMeta<ConfigMap>>,
    /// The default broker's Secret.
    pub default_broker_secret: Option<Objects<Secret>>,
    /// Counts the lists that came after a watch was too old: what was deleted meanwhile is in none, and no object tells.
    pub relisted: watch::Receiver<u64>,
}

/// Streams of what we made, and of what came of it.
pub struct Children {
    /// What we made.
    pub deployments: Objects<Deployment>,
    /// What we made.
    pub service_accounts: Objects<PartialObjectMeta<ServiceAccount>>,
    /// What we made.
    pub disruption_budgets: Objects<PartialObjectMeta<PodDisruptionBudget>>,
    /// What we made.
    pub autoscalers: Objects<PartialObjectMeta<HorizontalPodAutoscaler>>,
    /// What we made.
    pub network_policies: Option<Objects<PartialObjectMeta<NetworkPolicy>>>,
    /// What we made, with KEDA.
    pub scaled_objects: Option<Objects<PartialObjectMeta<ScaledObject>>>,
    /// The instances.
    pub pods: Objects<Pod>,
}

/// The default broker's Secret: namespace and name.
pub struct DefaultSecret<'a> {
    /// The operator's own namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// Kinds that are watched only where they are made: an older chart gives no permission for them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Optional {
    /// `ScaledObjects`.
    pub keda: bool,
    /// `NetworkPolicies`.
    pub network_policies: bool,
}

/// Watches one namespace, or (`None`) all.
pub fn watch(
    client: &Client,
    namespace: Option<&str>,
    default_secret: Option<&DefaultSecret<'_>>,
    optional: Optional,
) -> (Stores, Watches) {
    let everything = watcher::Config::default().page_size(PAGE);
    let ours = everything.clone().labels(SERVICE_LABEL);
    let (relist, relisted) = watch::channel(0);
    let relist = &Arc::new(relist);

    let (services, writer) = reflector::store();
    let stream = watcher::watcher(api::<Guarded>(client, namespace), everything.clone())
        .modify(trim::service)
        .default_backoff()
        .reflect(writer)
        .applied_objects()
        .predicate_filter(predicates::generation, PredicateConfig::default());
    let service_stream = stream.boxed();

    let (deployments, deployment_stream) = full(client, namespace, ours.clone(), relist, trim::deployment);
    let index = Index::default();
    let noted = index.clone();
    let pod_events = watcher::watcher(api::<Pod>(client, namespace), ours.clone()).modify(trim::pod);
    let (pods, pod_stream) = into_store(pod_events.inspect_ok(move |event| noted.note(event)), relist);
    let pods = Pods::new(pods, index);
    let (service_accounts, service_account_stream) =
        metadata(client, namespace, ours.clone(), relist, |object| trim::child(&mut object.metadata));
    let (disruption_budgets, disruption_budget_stream) =
        metadata(client, namespace, ours.clone(), relist, |object| trim::child(&mut object.metadata));
    let (autoscalers, autoscaler_stream) =
        metadata(client, namespace, ours.clone(), relist, |object| trim::child(&mut object.metadata));
    let (network_policies, network_policy_stream) = optional
        .network_policies
        .then(|| {
            metadata::<NetworkPolicy>(client, namespace, ours.clone(), relist, |object| {
                trim::child(&mut object.metadata);
            })
        })
        .unzip();
    let (scaled_objects, scaled_object_stream) = optional
        .keda
        .then(|| {
            metadata::<ScaledObject>(client, namespace, ours, relist, |object| {
                trim::child(&mut object.metadata);
            })
        })
        .unzip();
    let (secrets, secret_stream) = metadata(client, namespace, everything.clone(), relist, |object| {
        resolve::trim(&mut object.metadata);
        ownership::trim(&mut object.metadata);
    });
    let (config_maps, config_map_stream) =
        metadata(client, namespace, everything, relist, |object| resolve::trim(&mut object.metadata));
    let (default_broker_secret, default_stream) = default_secret
        .map(|secret| {
            let only = watcher::Config::default().fields(&format!("metadata.name={}", secret.name));
            full(client, Some(secret.namespace), only, relist, |secret: &mut Secret| {
                ownership::trim(&mut secret.metadata);
            })
        })
        .unzip();
    (
        Stores {
            services,
            deployments,
            service_accounts,
            disruption_budgets,
            autoscalers,
            network_policies,
            scaled_objects,
            pods,
            secrets,
            config_maps,
            default_broker_secret,
        },
        Watches {
            services: service_stream,
            children: Children {
                deployments: deployment_stream,
                service_accounts: service_account_stream,
                disruption_budgets: disruption_budget_stream,
                autoscalers: autoscaler_stream,
                network_policies: network_policy_stream,
                scaled_objects: scaled_object_stream,
                pods: pod_stream,
            },
            secrets: secret_stream,
            config_maps: config_map_stream,
            default_broker_secret: default_stream,
            relisted,
        },
    )
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    namespace.map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace))
}

fn full<K>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
    relist: &Relist,
    trim: impl FnMut(&mut K) + Send + 'static,
) -> (Store<K>, Objects<K>)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    into_store(watcher::watcher(api::<K>(client, namespace), config).modify(trim), relist)
}

fn metadata<K>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
    relist: &Relist,
    trim: impl FnMut(&mut PartialObjectMeta<K>) + Send + 'static,
) -> (Store<PartialObjectMeta<K>>, Objects<PartialObjectMeta<K>>)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    into_store(watcher::watcher(api::<PartialObjectMeta<K>>(client, namespace), config).modify(trim), relist)
}

fn into_store<K>(
    events: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
    relist: &Relist,
) -> (Store<K>, Objects<K>)
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let (relist, mut lists) = (relist.clone(), 0_u32);
    let noted = move |event: &watcher::Event<K>| {
        if matches!(event, watcher::Event::InitDone) {
            if lists > 0 {
                relist.send_modify(|count| *count += 1);
            }
            lists = lists.saturating_add(1);
        }
    };
    // After the store: whoever looks then finds the new list.
    let events = events.default_backoff().reflect(writer).inspect_ok(noted);
    let objects = events.touched_objects().into_stream();
    (store, objects.boxed())
}
