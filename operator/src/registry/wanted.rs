//! What a service wants of the registry, and what the broker says of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use k8s_openapi::ByteString;
use mcp_mqtt_transport::{
    presence::{Online, Rbac},
    topic::{ServerId, ServerName},
};
use url::Url;

use crate::{
    controller::{
        resolve::ReferenceMemory,
        validate::{
            Sleep, ValidService,
            broker::{Source, ValidBroker, file},
            references::Kind,
        },
    },
    names,
    salt::Salt,
    settings::{DefaultBroker, Settings},
};

/// Key of the operator's own default broker.
pub(super) const DEFAULT: &str = "default";

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
        default_secret: Option<&BTreeMap<String, ByteString>>,
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

    /// The presence of the service asleep, left to any or to one of its instances.
    pub fn parked_for(&self, successor: Option<&ServerId>) -> Bytes {
        let Some(successor) = successor else { return self.parked.clone() };
        let online = Online::parse(&self.parked).expect("made of a presence");
        online.left_to(successor).to_payload()
    }
}

impl Broker {
    /// The operator's own default, with this content of its Secret; none: there is no way in but for pods, or not now.
    pub(super) fn of_operator(
        default: &DefaultBroker,
        secret: Option<&BTreeMap<String, ByteString>>,
    ) -> Option<Self> {
        if default.token.is_some() || (default.secret.is_some() && secret.is_none()) {
            return None;
        }
        let has = |key: &&str| secret.is_some_and(|data| data.contains_key(*key));
        let files = file::KEYS.into_iter().filter(has).map(|key| (key, Origin::Default(key.to_owned())));
        Some(Self {
            key: DEFAULT.to_owned(),
            url: default.url.clone(),
            files: files.collect(),
            is_default: true,
        })
    }

    fn of(
        broker: &ValidBroker,
        namespace: &str,
        references: &ReferenceMemory,
        default_secret: Option<&BTreeMap<String, ByteString>>,
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
    /// Pods that the broker's registry shows, though their gateways do not say that they are registered.
    pub present: Vec<String>,
    /// Whether the service sleeps, and can be woken.
    pub sleeps: bool,
    /// Why the last attempt to wake it failed, by the API server's word.
    pub unscaled: Option<String>,
    /// What the broker refused when the service was last to sleep, and what it has to allow.
    pub forbidden: Option<String>,
    /// Whether its presence stands there all the same.
    pub parked: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::{
        fetch::Fetched,
        fixtures::{STDIO, salt, service, settings},
        validate::validate,
    };

    #[test]
    fn the_default_broker_is_the_same_with_and_without_a_service() {
        let mut settings = settings();
        let default = settings.default_broker.as_mut().unwrap();
        default.url = Url::parse("mqtts://hub.example").unwrap();
        default.secret = Some("hub-credentials".to_owned());
        let content = |key: &str| (key.to_owned(), ByteString(b"x".to_vec()));
        let data: BTreeMap<_, _> = ["username", "password", "ca.crt", "note"].map(content).into();
        let fetched = Fetched { default_broker_secret: Some(data.clone()) };
        let valid = validate(&service(STDIO), &fetched, &settings).unwrap();
        let memory = ReferenceMemory::default();
        let of_service = Wanted::of(&valid, &settings, &memory, Some(&data), &salt()).unwrap().broker;
        let default = settings.default_broker.as_ref().unwrap();
        assert_eq!(Broker::of_operator(default, Some(&data)), Some(of_service));
        assert_eq!(Broker::of_operator(default, None), None, "its Secret is missing");
    }
}
