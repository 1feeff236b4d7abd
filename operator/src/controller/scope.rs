//! What one controller works with: the stores that its watches fill, and what it remembers between reconciles.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{ConfigMap, Secret, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Client,
    core::DeserializeGuard,
    runtime::reflector::{ObjectRef, Store},
};

use tokio::sync::watch;

use super::{
    apply::{AppliedMemory, Contests},
    backlog::Backlog,
    events::EventWriter,
    pods::Pods,
    resolve::ReferenceMemory,
    status::StatusMemory,
};
use crate::{
    crd::McpService,
    keda::scaled_object::ScaledObject,
    live::{Deployment, Live},
    metrics::Metrics,
    observe::Observations,
    registry::RegistryFeed,
    salt::Salt,
    settings::Settings,
};

/// An `McpService` as it is watched: one that cannot be read hides none of the others.
pub type Guarded = DeserializeGuard<McpService>;
/// Names one.
pub type ServiceRef = ObjectRef<Guarded>;

/// First pause after a failure; doubled with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest pause: what only others can mend (a quota, an admission webhook) is tried again this often.
const LAST_RETRY: Duration = Duration::from_mins(2);

/// Filled by the watches of one controller.
#[derive(Clone)]
pub struct Stores {
    /// What is wanted.
    pub services: Store<Guarded>,
    /// What we made: the pods' Deployments.
    pub deployments: Store<Deployment>,
    /// What we made.
    pub service_accounts: Store<Live<ServiceAccount>>,
    /// What we made.
    pub disruption_budgets: Store<Live<PodDisruptionBudget>>,
    /// What we made.
    pub autoscalers: Store<Live<HorizontalPodAutoscaler>>,
    /// What we made.
    pub network_policies: Option<Store<Live<NetworkPolicy>>>,
    /// What we made, with KEDA.
    pub scaled_objects: Option<Store<Live<ScaledObject>>>,
    /// The instances.
    pub pods: Pods,
    /// All Secrets' metadata: what services refer to, and the copies that we made.
    pub secrets: Store<Live<Secret>>,
    /// All `ConfigMaps`' metadata.
    pub config_maps: Store<Live<ConfigMap>>,
    /// The default broker's Secret, where there is one to be.
    pub default_broker_secret: Option<Store<Secret>>,
    /// Watches that are not there yet.
    pub unsynced: Unsynced,
}

/// What one controller works with.
pub struct Scope {
    /// The API server.
    pub client: Client,
    /// The operator's settings.
    pub settings: Settings,
    /// Salts hashes.
    pub salt: Salt,
    /// What the watches know.
    pub stores: Stores,
    /// What the gateways say.
    pub observations: Arc<Observations>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What the brokers say, and are to be told.
    pub registry: RegistryFeed,
    /// Tells people of changes.
    pub events: EventWriter,
    /// Hashes of referenced objects, and who refers to them.
    pub references: ReferenceMemory,
    /// What was applied and is not in the stores yet.
    pub applied: Arc<AppliedMemory>,
    /// Objects that somebody else keeps changing.
    pub contests: Contests,
    /// Statuses that were written and are not in the stores yet.
    pub statuses: StatusMemory,
    /// Failures in a row, by service.
    pub failures: Failures,
    /// Services that wait to be taken up.
    pub backlog: Backlog,
}

impl Scope {
    /// Forgets a service that is on its way out: the garbage collector takes what it owns.
    pub fn forget(&self, service: &ServiceRef) {
        // No `..`: a new memory does not compile until it is thought of here.
        let Self {
            registry,
            references,
            applied,
            statuses,
            failures,
            backlog,
            contests: _, // forgets by itself, after minutes
            client: _,
            settings: _,
            salt: _,
            stores: _,
            observations: _, // of pods
            metrics: _,
            events: _,
        } = self;
        registry.forget(service);
        references.forget(service);
        applied.forget(service.namespace.as_deref().unwrap_or_default(), &service.name);
        statuses.forget(service);
        failures.forget(service);
        backlog.done(service);
    }
}

/// Failures in a row, by service.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<ServiceRef, u32>>);

impl Failures {
    /// Counts one more; how long to wait before the next try.
    pub fn pause(&self, service: &ServiceRef) -> Duration {
        let mut counts = lock(&self.0);
        let count = counts.entry(service.clone()).or_default();
        let pause = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(*count)).min(LAST_RETRY);
        *count += 1;
        pause
    }

    /// It went well, or the service is gone.
    pub fn forget(&self, service: &ServiceRef) {
        lock(&self.0).remove(service);
    }
}

/// Kinds of which there is no first full list yet, by the names that people hear; none: there is one of each.
pub type Unsynced = watch::Receiver<Vec<&'static str>>;

impl Stores {
    /// Whether every watch has its first full list. Until then, what exists may look as if it did not.
    pub fn is_synced(&self) -> bool {
        self.unsynced.borrow().is_empty()
    }

    /// Waits until it is so.
    pub async fn synced(&self) {
        // The watches go when the controller ends, and whoever waits for them with it.
        if self.unsynced.clone().wait_for(Vec::is_empty).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A lock whose holder panicked holds plain data all the same.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds since, for logs and metrics.
pub fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_begin_anew_after_a_success() {
        let failures = Failures::default();
        let service = ServiceRef::new("weather").within("meteo");
        let pauses: Vec<u64> = (0..9).map(|_| failures.pause(&service).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 120, 120]);
        failures.forget(&service);
        assert_eq!(failures.pause(&service), FIRST_RETRY);
    }
}
