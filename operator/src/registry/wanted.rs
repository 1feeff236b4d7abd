//! What the reconciles tell the registry's controller, and what it tells them.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use k8s_openapi::ByteString;
use mcp_mqtt_transport::{
    presence::{Online, Rbac},
    topic::{ServerId, ServerName},
};
use tokio::sync::Notify;
use url::Url;

use crate::{
    controller::{
        resolve::ReferenceMemory,
        scope::{ServiceRef, lock},
        validate::{
            Sleep, ValidService,
            broker::{Source, ValidBroker},
            references::Kind,
        },
    },
    names,
    salt::Salt,
    settings::Settings,
};

/// Key of the operator's own default broker.
const DEFAULT: &str = "default";

/// A service, as far as the registry is concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The name by which clients find it.
    pub server_name: ServerName,
    /// Its own server id.
    pub standby: ServerId,
    /// Its presence while it sleeps.
    pub parked: Bytes,
    /// Instances wanted.
    pub replicas: i32,
    /// When it sleeps; none: never.
    pub sleep: Option<Sleep>,
    /// Its broker.
    pub broker: Broker,
    /// Why it cannot be as it is asked for: no instance of it comes.
    pub refused: Option<String>,
    /// Whether it could be so once, in this operator's time. Else what stands of it in the registry stays, and nothing
    /// new is put there.
    pub accepted: bool,
}

/// A broker, and how the operator gets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// The same for all services with the same URL and the same credentials.
    pub key: String,
    /// Its URL.
    pub url: Url,
    /// Files of a gateway and where they come from, with the namespace of the service.
    pub files: Vec<(&'static str, Origin)>,
    /// Whether it is the operator's own default.
    pub is_default: bool,
}

/// Where a credential comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A key of an object.
    Object {
        /// Of which kind.
        kind: Kind,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
        /// Salted hash of the object's content, as it is part of the broker's key.
        hash: String,
    },
    /// A key of the operator's own default Secret.
    Default(String),
    /// A token that only pods get.
    Token,
    /// A text.
    Text(String),
}

impl Wanted {
    /// Of a service that is valid, and whose references were resolved.
    pub fn of(
        service: &ValidService,
        settings: &Settings,
        references: &ReferenceMemory,
        default_secret: Option<&std::collections::BTreeMap<String, ByteString>>,
        salt: &Salt,
    ) -> Option<Self> {
        let (namespace, name) = (&service.identity.namespace, &service.identity.name);
        let rbac: Option<Rbac> =
            service.gateway.rbac.as_deref().and_then(|rbac| serde_json::from_str(rbac).ok());
        let parked = Online::new(&service.server_name, &service.gateway.description, rbac.as_ref()).parked();
        Some(Self {
            server_name: ServerName::new(&service.server_name).ok()?,
            standby: ServerId::new(&names::standby_id(&settings.cluster_name, namespace, name)).ok()?,
            parked: parked.to_payload(),
            replicas: service.replicas,
            sleep: service.autoscaling.as_ref().and_then(|autoscaling| autoscaling.sleep),
            broker: Broker::of(&service.broker, namespace, references, default_secret, salt),
            refused: None,
            accepted: true,
        })
    }

    /// The presence of the service asleep, left to one of its instances.
    pub fn parked_for(&self, successor: &ServerId) -> Bytes {
        let online = Online::parse(&self.parked).expect("made of a presence");
        online.left_to(successor).to_payload()
    }
}

impl Broker {
    fn of(
        broker: &ValidBroker,
        namespace: &str,
        references: &ReferenceMemory,
        default_secret: Option<&std::collections::BTreeMap<String, ByteString>>,
        salt: &Salt,
    ) -> Self {
        let mut contents = vec![broker.url.to_string()];
        let mut files = Vec::with_capacity(broker.files.len());
        let object = |kind, name: &str, key: &str| {
            let hash = references.content_hash(kind, namespace, name);
            let (namespace, name, key) = (namespace.to_owned(), name.to_owned(), key.to_owned());
            (format!("{key} {hash}"), Origin::Object { kind, namespace, name, key, hash })
        };
        for file in &broker.files {
            let (content, origin) = match &file.source {
                Source::Secret { key, field: None, .. } => {
                    let hash = default_secret.map(|data| salt.hash_data(data)).unwrap_or_default();
                    (format!("{key} {hash}"), Origin::Default(key.clone()))
                }
                Source::Secret { name, key, field: Some(_) } => object(Kind::Secret, name, key),
                Source::ConfigMap { name, key } => object(Kind::ConfigMap, name, key),
                Source::Token { audience, .. } => (audience.clone(), Origin::Token),
                Source::Text(text) => (text.clone(), Origin::Text(text.clone())),
            };
            contents.push(format!("{} {content}", file.name));
            files.push((file.name, origin));
        }
        Self {
            // New credentials of the default broker are read at the next connect: it stays the same connection.
            key: if broker.is_default {
                DEFAULT.to_owned()
            } else {
                salt.hash(contents.join("\n").as_bytes())
            },
            url: broker.url.clone(),
            files,
            is_default: broker.is_default,
        }
    }
}

/// What the broker says of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Why the broker says nothing, for some time now.
    pub unreachable: Option<String>,
    /// Pods whose gateways call themselves registered, and which the broker's registry has not shown for some time.
    pub missing: Vec<String>,
    /// Whether the service sleeps, and can be woken.
    pub sleeps: bool,
    /// Why the last attempt to wake it failed, by the API server's word.
    pub unscaled: Option<String>,
}

/// So long after its start an operator waits for what brokers say: twice what a connection may take before it is told.
const FIRST_WORD: Duration = Duration::from_secs(30);

/// Between the reconciles and the registry's controller; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Shared>);

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

impl Registry {
    /// A service is like this now.
    pub fn tell(&self, service: &ServiceRef, wanted: Wanted) {
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
    pub fn introduce(&self, service: &ServiceRef, wanted: Wanted) {
        if !lock(&self.0.told).known.contains_key(service) {
            self.tell(service, Wanted { accepted: false, ..wanted });
        }
    }

    /// The service cannot be as it is asked for now: what is known of it still holds, and whoever wakes it hears why
    /// nothing comes.
    pub fn refuse(&self, service: &ServiceRef, replicas: Option<i32>, why: String) {
        let known = lock(&self.0.told).known.get(service).map(|known| Wanted::clone(known));
        if let Some(known) = known {
            let replicas = replicas.unwrap_or(known.replicas);
            self.tell(service, Wanted { replicas, refused: Some(why), ..known });
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

    /// Whether the broker is about to say something of it: this operator has just started.
    pub fn awaits(&self, service: &ServiceRef) -> bool {
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
    pub(super) fn show(&self, service: &ServiceRef, seen: Seen) {
        lock(&self.0.seen).insert(service.clone(), seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::fixtures;

    fn wanted() -> Wanted {
        let valid = fixtures::validated(fixtures::STDIO).unwrap();
        let (settings, references) = (fixtures::settings(), ReferenceMemory::default());
        Wanted::of(&valid, &settings, &references, None, &fixtures::salt()).unwrap()
    }

    async fn told(registry: &Registry) -> Wanted {
        let (_, wanted) = registry.news().await.pop().unwrap();
        Wanted::clone(&wanted.unwrap())
    }

    const WHY: &str = "ReferenceNotFound: Secret meteo/keys does not exist";

    #[tokio::test]
    async fn what_is_known_of_a_service_holds_while_it_is_refused() {
        let (registry, weather) = (Registry::default(), ServiceRef::new("weather").within("meteo"));
        registry.tell(&weather, wanted());
        // As it is asked for now, it would have another name.
        registry
            .introduce(&weather, Wanted { server_name: ServerName::new("meteo/sun").unwrap(), ..wanted() });
        registry.refuse(&weather, Some(3), WHY.to_owned());
        let refused = Wanted { replicas: 3, refused: Some(WHY.to_owned()), ..wanted() };
        assert_eq!(told(&registry).await, refused);
        registry.tell(&weather, wanted());
        assert_eq!(told(&registry).await, wanted());
    }

    #[tokio::test]
    async fn one_that_was_refused_from_the_first_is_known_all_the_same() {
        let (registry, weather) = (Registry::default(), ServiceRef::new("weather").within("meteo"));
        registry.introduce(&weather, wanted());
        registry.refuse(&weather, None, WHY.to_owned());
        let refused = Wanted { accepted: false, refused: Some(WHY.to_owned()), ..wanted() };
        assert_eq!(told(&registry).await, refused);
    }
}
