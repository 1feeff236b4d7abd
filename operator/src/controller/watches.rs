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
    apply::{AppliedMemory, Child},
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

/// What becomes of the lists of one controller's watches.
#[derive(Clone)]
struct Lists {
    /// Kinds whose first list is not there yet.
    unsynced: Arc<watch::Sender<Vec<&'static str>>>,
    /// Counts up with each list but the first.
    relist: Arc<watch::Sender<u64>>,
    /// What was applied to the objects in them.
    applied: Arc<AppliedMemory>,
}

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
    applied: &Arc<AppliedMemory>,
) -> (Stores, Watches) {
    let everything = watcher::Config::default().page_size(PAGE);
    let ours = everything.clone().labels(SERVICE_LABEL);
    let (unsynced, relisted) = (watch::Sender::new(Vec::new()), watch::Sender::new(0));
    let (when_synced, when_relisted) = (unsynced.subscribe(), relisted.subscribe());
    let lists = &Lists { unsynced: Arc::new(unsynced), relist: Arc::new(relisted), applied: applied.clone() };

    let (services, writer) = reflector::store();
    let stream = watcher::watcher(api::<Guarded>(client, namespace), everything.clone())
        .modify(trim::service)
        .backoff(backoff())
        .reflect(writer)
        .inspect_ok(lists.count("McpServices"))
        .applied_objects()
        .predicate_filter(
            predicates::generation.combine(predicates::annotations),
            PredicateConfig::default(),
        );
    let service_stream = stream.boxed();

    let (deployments, deployment_stream) =
        kept::<wire::Deployment>(client, namespace, ours.clone(), lists.count_ours("Deployments"));
    let index = Index::default();
    let noted = index.clone();
    let pod_events = events(client, namespace, ours.clone(), |mut pod: Pod| {
        trim::pod(&mut pod);
        pod
    });
    let (pods, pod_stream) =
        into_store(pod_events.inspect_ok(move |event| noted.note(event)), lists.count("Pods"));
    let pods = Pods::new(pods, index);
    let (service_accounts, service_account_stream) = kept::<Metadata<ServiceAccount>>(
        client,
        namespace,
        ours.clone(),
        lists.count_ours("ServiceAccounts"),
    );
    let (disruption_budgets, disruption_budget_stream) = kept::<Metadata<PodDisruptionBudget>>(
        client,
        namespace,
        ours.clone(),
        lists.count_ours("PodDisruptionBudgets"),
    );
    let (autoscalers, autoscaler_stream) = kept::<Metadata<HorizontalPodAutoscaler>>(
        client,
        namespace,
        ours.clone(),
        lists.count_ours("HorizontalPodAutoscalers"),
    );
    let (network_policies, network_policy_stream) = optional
        .network_policies
        .then(|| {
            let count = lists.count_ours("NetworkPolicies");
            kept::<Metadata<NetworkPolicy>>(client, namespace, ours.clone(), count)
        })
        .unzip();
    let (scaled_objects, scaled_object_stream) = optional
        .keda
        .then(|| {
            let count = lists.count_ours("ScaledObjects (is KEDA installed?)");
            kept::<Metadata<ScaledObject>>(client, namespace, ours, count)
        })
        .unzip();
    let (secrets, secret_stream) =
        kept::<Metadata<Secret>>(client, namespace, everything.clone(), lists.count_ours("Secrets"));
    let (config_maps, config_map_stream) =
        kept::<Metadata<ConfigMap>>(client, namespace, everything, lists.count("ConfigMaps"));
    let (default_broker_secret, default_stream) = default_secret
        .map(|secret| default_broker_secret(client, secret, lists.count("the default broker's Secret")))
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
            unsynced: when_synced,
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
            relisted: when_relisted,
        },
    )
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    namespace.map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace))
}

/// The default broker's Secret is kept with its content.
fn default_broker_secret(
    client: &Client,
    secret: &DefaultSecret<'_>,
    count: impl FnMut(&watcher::Event<Secret>) + Send + 'static,
) -> (Store<Secret>, Objects<Secret>) {
    let only = watcher::Config::default().fields(&format!("metadata.name={}", secret.name));
    let trimmed = |mut secret: Secret| {
        secret.metadata.managed_fields = None;
        secret
    };
    into_store(events(client, Some(secret.namespace), only, trimmed), count)
}

/// A watch of whose objects there is kept what is read of them.
fn kept<W>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
    count: impl FnMut(&watcher::Event<W::Kept>) + Send + 'static,
) -> (Store<W::Kept>, Objects<W::Kept>)
where
    W: Wire + Read,
    W::Kept: Lookup<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let mut shapes = Shapes::default();
    into_store(events(client, namespace, config, move |object: W| object.keep(&mut shapes)), count)
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

impl Lists {
    /// Takes note of the lists of this kind's watch. What it gives is to be called when the store has taken the event:
    /// whoever looks then finds the new list. An object that came in a page of it was told of before the store had it.
    fn count<K>(&self, kind: &'static str) -> impl FnMut(&watcher::Event<K>) + Send + use<K> + 'static {
        self.unsynced.send_modify(|kinds| kinds.push(kind));
        let (lists, mut is_first) = (self.clone(), true);
        move |event| match event {
            watcher::Event::InitDone if std::mem::take(&mut is_first) => {
                lists.unsynced.send_modify(|kinds| kinds.retain(|other| *other != kind));
            }
            watcher::Event::InitDone => lists.relist.send_modify(|count| *count += 1),
            _ => {}
        }
    }

    /// As [`count`](Self::count), of a kind that we make: the end of an object ends the wait for what was written to it.
    fn count_ours<K: Child, State: 'static>(
        &self,
        kind: &'static str,
    ) -> impl FnMut(&watcher::Event<Live<K, State>>) + Send + use<K, State> + 'static {
        let (applied, mut count) = (self.applied.clone(), self.count(kind));
        move |event| {
            if let watcher::Event::Delete(object) = event {
                applied.note_deletion(K::KIND, &object.meta);
            }
            count(event);
        }
    }
}

fn into_store<K>(
    events: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
    mut count: impl FnMut(&watcher::Event<K>) + Send + 'static,
) -> (Store<K>, Objects<K>)
where
    K: Lookup<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let mut writer = Writer::<K>::default();
    let store = writer.as_reader();
    let noted = move |event: &watcher::Event<K>| {
        writer.apply_watcher_event(event);
        count(event);
    };
    let events = events.backoff(backoff()).inspect_ok(noted);
    (store, events.touched_objects().boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_synced_by_its_first_list_and_every_other_list_is_counted() {
        let (unsynced, relist) = (watch::Sender::new(Vec::new()), watch::Sender::new(0));
        let applied = Arc::default();
        let lists = Lists { unsynced: Arc::new(unsynced), relist: Arc::new(relist), applied };
        let mut pods = lists.count::<Pod>("Pods");
        let mut secrets = lists.count::<Live<Secret>>("Secrets");
        let so_far = || (lists.unsynced.borrow().clone(), *lists.relist.borrow());
        pods(&watcher::Event::Init);
        assert_eq!(so_far(), (vec!["Pods", "Secrets"], 0));
        pods(&watcher::Event::InitDone);
        assert_eq!(so_far(), (vec!["Secrets"], 0));
        pods(&watcher::Event::InitDone);
        assert_eq!(so_far(), (vec!["Secrets"], 1));
        secrets(&watcher::Event::InitDone);
        assert_eq!(so_far(), (Vec::new(), 1));
    }
}
