//! Feed: what the reconciles tell the registry's controller, and what it publishes for them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::wanted::{Seen, Wanted};
use crate::controller::scope::{ServiceRef, lock};

/// So long after its start an operator waits for what brokers say: twice what a connection may take before it is told.
const FIRST_WORD: Duration = Duration::from_secs(30);

/// What a service asks for, as far as that can be used.
#[derive(Debug)]
pub enum Asked {
    /// It can be made, and what it refers to is there: what was known of it is no more.
    Usable(Wanted),
    /// It cannot: what is known of it still holds. Where nothing is, it may stand in the registry, asleep, from before
    /// this operator's time.
    Unusable(Wanted),
    /// Nothing can be told but, maybe, how many instances are wanted.
    Unreadable(Option<i32>),
}

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

impl Told {
    fn put(&mut self, service: &ServiceRef, wanted: Wanted) {
        let wanted = Arc::new(wanted);
        self.known.insert(service.clone(), wanted.clone());
        self.new.insert(service.clone(), Some(wanted));
    }
}

impl RegistryFeed {
    /// What a reconcile came to: what the service asks for, and why it cannot have it; none: it has it, or is to have it
    /// as soon as the API server takes it. Whoever wakes one that is refused hears why nothing comes.
    pub fn tell(&self, service: &ServiceRef, asked: Asked, refused: Option<String>) {
        let mut told = lock(&self.0.told);
        let known = told.known.get(service);
        let wanted = match (asked, known) {
            (Asked::Usable(wanted), known) => {
                let accepted = refused.is_none() || known.is_some_and(|known| known.accepted);
                Wanted { refused, accepted, ..wanted }
            }
            (Asked::Unusable(wanted), None) => Wanted { refused, accepted: false, ..wanted },
            (Asked::Unusable(Wanted { replicas, .. }), Some(known)) => {
                Wanted { replicas, refused, ..Wanted::clone(known) }
            }
            (Asked::Unreadable(replicas), Some(known)) if refused.is_some() => {
                let replicas = replicas.unwrap_or(known.replicas);
                Wanted { replicas, refused, ..Wanted::clone(known) }
            }
            (Asked::Unreadable(_), _) => return,
        };
        if known.is_some_and(|known| **known == wanted) {
            return;
        }
        told.put(service, wanted);
        drop(told);
        self.0.news.notify_one();
    }

    /// So many instances are wanted now. The rest of what a service asks for is told once the API server has taken it,
    /// which may be long after it has taken this: until then an instance would be there that nobody wants.
    pub fn tell_replicas(&self, service: &ServiceRef, replicas: i32) {
        let mut told = lock(&self.0.told);
        let Some(known) = told.known.get(service).filter(|known| known.replicas != replicas) else { return };
        let wanted = Wanted { replicas, ..Wanted::clone(known) };
        told.put(service, wanted);
        drop(told);
        self.0.news.notify_one();
    }

    /// Whether anything is known of it.
    pub fn knows(&self, service: &ServiceRef) -> bool {
        lock(&self.0.told).known.contains_key(service)
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
        registry.tell(&weather, Asked::Usable(wanted()), None);
        // As it is asked for now, it would have another name.
        let renamed = Wanted { server_name: ServerName::new("meteo/sun").unwrap(), replicas: 3, ..wanted() };
        registry.tell(&weather, Asked::Unusable(renamed), Some(WHY.to_owned()));
        let refused = Wanted { replicas: 3, refused: Some(WHY.to_owned()), ..wanted() };
        assert_eq!(told(&registry).await, refused);
        registry.tell(&weather, Asked::Unreadable(None), Some("InvalidSpec".to_owned()));
        assert_eq!(told(&registry).await, Wanted { refused: Some("InvalidSpec".to_owned()), ..refused });
        // Whether it is refused, an API server that does not answer has not said.
        registry.tell(&weather, Asked::Unreadable(Some(5)), None);
        assert!(lock(&registry.0.told).new.is_empty());
        registry.tell(&weather, Asked::Usable(wanted()), None);
        assert_eq!(told(&registry).await, wanted());
    }

    #[tokio::test]
    async fn one_that_is_left_alone_has_its_new_credentials_all_the_same() {
        let (registry, weather) = (RegistryFeed::default(), ServiceRef::new("weather").within("meteo"));
        let mut rotated = wanted();
        rotated.broker.key = "another".to_owned();
        registry.tell(&weather, Asked::Usable(wanted()), None);
        registry.tell(&weather, Asked::Usable(rotated.clone()), Some(WHY.to_owned()));
        assert_eq!(told(&registry).await, Wanted { refused: Some(WHY.to_owned()), ..rotated });
        registry.forget(&weather);
        registry.tell(&weather, Asked::Usable(wanted()), Some(WHY.to_owned()));
        assert!(!told(&registry).await.accepted, "whether it was ever otherwise is not known");
    }

    #[tokio::test]
    async fn one_that_was_refused_from_the_first_is_known_all_the_same() {
        let (registry, weather) = (RegistryFeed::default(), ServiceRef::new("weather").within("meteo"));
        registry.tell(&weather, Asked::Unreadable(Some(0)), Some(WHY.to_owned()));
        assert!(!registry.knows(&weather), "not even its name is known");
        registry.tell(&weather, Asked::Unusable(wanted()), Some(WHY.to_owned()));
        let refused = Wanted { accepted: false, refused: Some(WHY.to_owned()), ..wanted() };
        assert_eq!(told(&registry).await, refused);
        registry.tell(&weather, Asked::Usable(wanted()), None);
        assert!(told(&registry).await.accepted);
    }

    #[tokio::test]
    async fn how_many_instances_are_wanted_is_told_before_the_rest() {
        let (registry, weather) = (RegistryFeed::default(), ServiceRef::new("weather").within("meteo"));
        registry.tell_replicas(&weather, 1);
        assert!(!registry.knows(&weather), "what it is has not been told");
        registry.tell(&weather, Asked::Usable(wanted()), Some(WHY.to_owned()));
        let known = told(&registry).await;
        registry.tell_replicas(&weather, known.replicas);
        assert!(lock(&registry.0.told).new.is_empty(), "no news");
        registry.tell_replicas(&weather, 0);
        assert!(!lock(&registry.0.told).new.is_empty(), "nobody hears of it");
        assert_eq!(told(&registry).await, Wanted { replicas: 0, ..known });
    }
}
