//! The watches: one stream a kind, each into its store, trimmed to what is read of it.

use std::{sync::Arc, time::Duration};

use backon::ExponentialBuilder;
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ConfigMap, Secret, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource,
    runtime::{
        Predicate, PredicateConfig, WatchStreamExt, predicates,
        reflector::{self, Lookup, Store, store::Writer},
        utils::{Backoff, ResetTimerBackoff},
        watcher::{self, ExponentialBackoff},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{
    pods::{Index, Pods},
    scope::{Guarded, Stores},
    trim,
};
use crate::{
    keda::scaled_object::ScaledObject,
    live::{
        Deployment, Live, Shapes,
        pod::Pod,
        wire::{self, Metadata, Wire},
    },
    names::SERVICE_LABEL,
};

/// Objects in a page of a first list: they are held whole until they are trimmed.
const PAGE: u32 = 100;

/// Counts up with each list but the first.
type Relist = Arc<watch::Sender<u64>>;

/// A watch's objects: all that are touched, deleted ones too.
pub type Objects<K> = BoxStream<'static, Result<K, watcher::Error>>;

/// The streams that fill [`Stores`].
pub struct Watches {
    /// By generation, and by the annotations that [`trim`] leaves: our own status writes are no news.
    pub services: Objects<Guarded>,
    /// What we made, and what came of it.
    pub children: Children,
    /// What they may refer to.
    pub referred: Referred,
    /// The default broker's Secret.
    pub default_broker_secret: Option<Objects<Secret>>,
    /// Counts the lists that came after a watch was too old: what was deleted meanwhile is in none, and no object tells.
    pub relisted: watch::Receiver<u64>,
}

/// Streams of what services may refer to, by its metadata alone.
pub struct Referred {
    /// All Secrets.
    pub secrets: Objects<Live<Secret>>,
    /// All `ConfigMaps`.
    pub config_maps: Objects<Live<ConfigMap>>,
}

/// Streams of what we made, and of what came of it.
pub struct Children {
    /// What we made.
    pub deployments: Objects<Deployment>,
    /// What we made.
    pub service_accounts: Objects<Live<ServiceAccount>>,
    /// What we made.
    pub disruption_budgets: Objects<Live<PodDisruptionBudget>>,
    /// What we made.
    pub autoscalers: Objects<Live<HorizontalPodAutoscaler>>,
    /// What we made.
    pub network_policies: Option<Objects<Live<NetworkPolicy>>>,
    /// What we made, with KEDA.
    pub scaled_objects: Option<Objects<Live<ScaledObject>>>,
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

/// Between a watch that failed and the next. At most 5 s, where kube's own is a minute: a dozen watches
/// are no load to an API server that has just come back, and what happened meanwhile waits for them.
fn backoff() -> ResetTimerBackoff<ExponentialBackoff> {
    let waits = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(400))
        .with_max_delay(Duration::from_millis(2500)) // jitter adds as much again
        .with_jitter()
        .without_max_times();
    ResetTimerBackoff::new(waits.into(), Duration::from_mins(2))
}

/// What the controller is to wait after an error of its own watch: nothing, for that watch waits itself. Kube's default
/// is up to a minute, in which the controller looks at none of the other watches either.
#[derive(Debug)]
pub struct AtOnce;

impl Iterator for AtOnce {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
}

impl Backoff for AtOnce {
    fn reset(&mut self) {}
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
        .backoff(backoff())
        .reflect(writer)
        .inspect_ok(count_lists(relist))
        .applied_objects()
        .predicate_filter(
            predicates::generation.combine(predicates::annotations),
            PredicateConfig::default(),
        );
    let service_stream = stream.boxed();

    let (deployments, deployment_stream) = kept::<wire::Deployment>(client, namespace, ours.clone(), relist);
    let index = Index::default();
    let noted = index.clone();
    let pod_events = events(client, namespace, ours.clone(), |mut pod: Pod| {
        trim::pod(&mut pod);
        pod
    });
    let (pods, pod_stream) = into_store(pod_events.inspect_ok(move |event| noted.note(event)), relist);
    let pods = Pods::new(pods, index);
    let (service_accounts, service_account_stream) =
        kept::<Metadata<ServiceAccount>>(client, namespace, ours.clone(), relist);
    let (disruption_budgets, disruption_budget_stream) =
        kept::<Metadata<PodDisruptionBudget>>(client, namespace, ours.clone(), relist);
    let (autoscalers, autoscaler_stream) =
        kept::<Metadata<HorizontalPodAutoscaler>>(client, namespace, ours.clone(), relist);
    let (network_policies, network_policy_stream) = optional
        .network_policies
        .then(|| kept::<Metadata<NetworkPolicy>>(client, namespace, ours.clone(), relist))
        .unzip();
    let (scaled_objects, scaled_object_stream) =
        optional.keda.then(|| kept::<Metadata<ScaledObject>>(client, namespace, ours, relist)).unzip();
    let (secrets, secret_stream) = kept::<Metadata<Secret>>(client, namespace, everything.clone(), relist);
    let (config_maps, config_map_stream) = kept::<Metadata<ConfigMap>>(client, namespace, everything, relist);
    let (default_broker_secret, default_stream) = default_secret
        .map(|secret| {
            let only = watcher::Config::default().fields(&format!("metadata.name={}", secret.name));
            whole(client, Some(secret.namespace), only, relist, |secret: &mut Secret| {
                secret.metadata.managed_fields = None;
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
            referred: Referred { secrets: secret_stream, config_maps: config_map_stream },
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

/// A watch whose objects are kept as they come.
fn whole<K>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
    relist: &Relist,
    mut trim: impl FnMut(&mut K) + Send + 'static,
) -> (Store<K>, Objects<K>)
where
    K: Read,
{
    let keep = move |mut object: K| {
        trim(&mut object);
        object
    };
    into_store(events(client, namespace, config, keep), relist)
}

/// A watch of whose objects there is kept what is read of them.
fn kept<W>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
    relist: &Relist,
) -> (Store<W::Kept>, Objects<W::Kept>)
where
    W: Wire + Read,
    W::Kept: Lookup<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let mut shapes = Shapes::default();
    into_store(events(client, namespace, config, move |object: W| object.keep(&mut shapes)), relist)
}

/// What can be watched.
trait Read:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + DeserializeOwned
    + std::fmt::Debug
    + Send
    + Sync
    + 'static
{
}

impl<K> Read for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static
{
}

fn events<K: Read, Kept: 'static>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
    mut keep: impl FnMut(K) -> Kept + Send + 'static,
) -> impl Stream<Item = Result<watcher::Event<Kept>, watcher::Error>> + Send + 'static {
    watcher::watcher(api::<K>(client, namespace), config).map_ok(move |event| match event {
        watcher::Event::Apply(object) => watcher::Event::Apply(keep(object)),
        watcher::Event::Delete(object) => watcher::Event::Delete(keep(object)),
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitApply(object) => watcher::Event::InitApply(keep(object)),
        watcher::Event::InitDone => watcher::Event::InitDone,
    })
}

/// Counts a watch's lists but the first. To be called when the store has taken the event: whoever looks then finds the
/// new list. An object that came in a page of it was told of before the store had it.
fn count_lists<K>(relist: &Relist) -> impl FnMut(&watcher::Event<K>) + Send + 'static {
    let (relist, mut lists) = (relist.clone(), 0_u32);
    move |event| {
        if matches!(event, watcher::Event::InitDone) {
            if lists > 0 {
                relist.send_modify(|count| *count += 1);
            }
            lists = lists.saturating_add(1);
        }
    }
}

fn into_store<K>(
    events: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
    relist: &Relist,
) -> (Store<K>, Objects<K>)
where
    K: Lookup<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let mut count = count_lists(relist);
    let mut writer = Writer::<K>::default();
    let store = writer.as_reader();
    let noted = move |event: &watcher::Event<K>| {
        writer.apply_watcher_event(event);
        count(event);
    };
    let events = events.backoff(backoff()).inspect_ok(noted);
    (store, events.touched_objects().boxed())
}
