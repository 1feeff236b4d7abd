//! Feed: what the reconciles tell the registry's controller, and what it publishes for them.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::wanted::{Seen, Wanted};
use crate::controller::scope::{ServiceRef, lock};

/// So long after its start an operator waits for what brokers say: twice what a connection may take before it is told.
const FIRST_WORD: Duration = Duration::from_secs(30);

/// Between the reconciles and the registry's controller; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RegistryFeed(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    since: Instant,
    told: Mutex<Told>,
    news: Notify,
    seen: Mutex<HashMap<ServiceRef, Seen>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { since: Instant::now(), told: Mutex::default(), news: Notify::new(), seen: Mutex::default() }
    }
}

#[derive(Debug, Default)]
struct Told {
    known: HashMap<ServiceRef, Arc<Wanted>>,
    /// Those of which something is new: bounded by the services there are.
    new: HashMap<ServiceRef, Option<Arc<Wanted>>>,
}

impl RegistryFeed {
    /// A service is like this now.
    pub fn upsert(&self, service: &ServiceRef, wanted: Wanted) {
        let mut told = lock(&self.0.told);
        let wanted = match told.known.entry(service.clone()) {
            Entry::Occupied(known) if **known.get() == wanted => return,
            known => known.insert_entry(Arc::new(wanted)).get().clone(),
        };
        told.new.insert(service.clone(), Some(wanted));
        drop(told);
        self.0.news.notify_one();
    }

    /// The service is to be like this, and cannot: told where nothing is known of it yet.
    pub fn insert_new(&self, service: &ServiceRef, wanted: Wanted) {
        if !lock(&self.0.told).known.contains_key(service) {
            self.upsert(service, Wanted { accepted: false, ..wanted });
        }
    }

    /// The service is like this now, and is left alone all the same.
    pub fn upsert_refused(&self, service: &ServiceRef, wanted: Wanted, why: String) {
        let accepted = lock(&self.0.told).known.get(service).is_some_and(|known| known.accepted);
        self.upsert(service, Wanted { accepted, refused: Some(why), ..wanted });
    }

    /// The service cannot be as it is asked for now: what is known of it still holds, and whoever wakes it hears why
    /// nothing comes.
    pub fn mark_refused(&self, service: &ServiceRef, replicas: Option<i32>, why: String) {
        let known = lock(&self.0.told).known.get(service).map(|known| Wanted::clone(known));
        if let Some(known) = known {
            let replicas = replicas.unwrap_or(known.replicas);
            self.upsert(service, Wanted { replicas, refused: Some(why), ..known });
        }
    }

    /// The service is gone.
    pub fn forget(&self, service: &ServiceRef) {
        let mut told = lock(&self.0.told);
        if told.known.remove(service).is_some() {
            told.new.insert(service.clone(), None);
            drop(told);
            self.0.news.notify_one();
        }
        lock(&self.0.seen).remove(service);
    }

    /// What the broker says of it; none: nothing yet.
    pub fn seen(&self, service: &ServiceRef) -> Option<Seen> {
        lock(&self.0.seen).get(service).cloned()
    }

    /// Whether the broker has said nothing of it yet, and is about to: this operator has just started.
    pub fn is_pending(&self, service: &ServiceRef) -> bool {
        self.0.since.elapsed() < FIRST_WORD
            && lock(&self.0.told).known.contains_key(service)
            && !lock(&self.0.seen).contains_key(service)
    }

    /// What is new, once there is something.
    pub(super) async fn news(&self) -> Vec<(ServiceRef, Option<Arc<Wanted>>)> {
        loop {
            let new = std::mem::take(&mut lock(&self.0.told).new);
            if !new.is_empty() {
                return new.into_iter().collect();
            }
            self.0.news.notified().await;
        }
    }

    /// Says what the broker says.
    pub(super) fn publish(&self, service: &ServiceRef, seen: Seen) {
        lock(&self.0.seen).insert(service.clone(), seen);
    }
}

#[cfg(test)]
mod tests {
    use mcp_mqtt_transport::topic::ServerName;

    use super::*;
    use crate::controller::{fixtures, resolve::ReferenceMemory};

    fn wanted() -> Wanted {
        let valid = fixtures::validated(fixtures::STDIO).unwrap();
        let (settings, references) = (fixtures::settings(), ReferenceMemory::default());
        Wanted::of(&valid, &settings, &references, None, &fixtures::salt()).unwrap()
    }

    async fn told(registry: &RegistryFeed) -> Wanted {
        let (_, wanted) = registry.news().await.pop().unwrap();
        Wanted::clone(&wanted.unwrap())
    }

    const WHY: &str = "ReferenceNotFound: Secret meteo/keys does not exist";

    #[tokio::test]
    async fn what_is_known_of_a_service_holds_while_it_is_refused() {
        let (registry, weather) = (RegistryFeed::default(), ServiceRef::new("weather").within("meteo"));
        registry.upsert(&weather, wanted());
        // As it is asked for now, it would have another name.
        registry
            .insert_new(&weather, Wanted { server_name: ServerName::new("meteo/sun").unwrap(), ..wanted() });
        registry.mark_refused(&weather, Some(3), WHY.to_owned());
        let refused = Wanted { replicas: 3, refused: Some(WHY.to_owned()), ..wanted() };
        assert_eq!(told(&registry).await, refused);
        registry.upsert(&weather, wanted());
        assert_eq!(told(&registry).await, wanted());
    }

    #[tokio::test]
    async fn one_that_is_left_alone_has_its_new_credentials_all_the_same() {
        let (registry, weather) = (RegistryFeed::default(), ServiceRef::new("weather").within("meteo"));
        let mut rotated = wanted();
        rotated.broker.key = "another".to_owned();
        registry.upsert(&weather, wanted());
        registry.upsert_refused(&weather, rotated.clone(), WHY.to_owned());
        assert_eq!(told(&registry).await, Wanted { refused: Some(WHY.to_owned()), ..rotated });
        registry.forget(&weather);
        registry.upsert_refused(&weather, wanted(), WHY.to_owned());
        assert!(!told(&registry).await.accepted, "whether it was ever otherwise is not known");
    }

    #[tokio::test]
    async fn one_that_was_refused_from_the_first_is_known_all_the_same() {
        let (registry, weather) = (RegistryFeed::default(), ServiceRef::new("weather").within("meteo"));
        registry.insert_new(&weather, wanted());
        registry.mark_refused(&weather, None, WHY.to_owned());
        let refused = Wanted { accepted: false, refused: Some(WHY.to_owned()), ..wanted() };
        assert_eq!(told(&registry).await, refused);
    }
}
