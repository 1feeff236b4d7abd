//! Resolve: the Secrets and `ConfigMaps` that pods read. Their metadata is watched; their content is read only when
//! it changed, and only a salted hash of it is kept.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Mutex,
};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, runtime::reflector::ObjectRef};

use super::{
    scope::{Scope, ServiceRef, lock},
    validate::{
        Identity,
        references::{Kind, Reference},
    },
};
use crate::live::Meta;

/// Why what the pods read cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Objects or keys are missing: all of them, a sentence each.
    #[error("{}", .0.join("; "))]
    Missing(Vec<String>),
    /// The API server did not answer as it should.
    #[error("{kind} {namespace}/{name} cannot be read: {source}")]
    Api {
        /// Kind of the object.
        kind: Kind,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: kube::Error,
    },
}

/// What is remembered of referenced objects.
#[derive(Debug, Default)]
pub struct ReferenceMemory {
    /// Which objects a service refers to, so that a change of one finds the services.
    referrers: Mutex<HashMap<ServiceRef, Vec<(Kind, String)>>>,
    /// Hash and keys of an object's content, by the version that was read; of what some service refers to.
    contents: Mutex<HashMap<(Kind, String, String), Content>>,
}

#[derive(Debug, Clone)]
struct Content {
    version: Version,
    hash: String,
    keys: BTreeSet<String>,
}

/// Which state of which object.
type Version = (Option<Box<str>>, Option<Box<str>>);

impl ReferenceMemory {
    /// Services that refer to the object.
    pub fn referrers(&self, kind: Kind, namespace: &str, name: &str) -> Vec<ServiceRef> {
        lock(&self.referrers)
            .iter()
            .filter(|(service, references)| {
                service.namespace.as_deref() == Some(namespace)
                    && references.iter().any(|(other, named)| *other == kind && named == name)
            })
            .map(|(service, _)| service.clone())
            .collect()
    }

    /// Hash of the content that was read last; empty: none was.
    pub fn content_hash(&self, kind: Kind, namespace: &str, name: &str) -> String {
        let key = (kind, namespace.to_owned(), name.to_owned());
        lock(&self.contents).get(&key).map(|content| content.hash.clone()).unwrap_or_default()
    }

    /// The service is gone.
    pub fn forget(&self, service: &ServiceRef) {
        let former = lock(&self.referrers).remove(service);
        self.drop_unread(service, former.unwrap_or_default());
    }

    fn remember(&self, service: &ServiceRef, references: &[Reference]) {
        let named: Vec<_> =
            references.iter().map(|reference| (reference.kind, reference.name.clone())).collect();
        let former = lock(&self.referrers).insert(service.clone(), named.clone());
        let dropped = former.unwrap_or_default().into_iter().filter(|object| !named.contains(object));
        self.drop_unread(service, dropped.collect());
    }

    /// Drops the content of objects that the service referred to, where no other service does.
    fn drop_unread(&self, service: &ServiceRef, objects: Vec<(Kind, String)>) {
        let namespace = service.namespace.as_deref().unwrap_or_default();
        for (kind, name) in objects {
            if self.referrers(kind, namespace, &name).is_empty() {
                lock(&self.contents).remove(&(kind, namespace.to_owned(), name));
            }
        }
    }
}

/// Hash over everything that the pods read; none: they read nothing.
///
/// # Errors
/// All that is missing, by name and with the field that wants it.
pub async fn resolve(
    scope: &Scope,
    identity: &Identity,
    references: &[Reference],
) -> Result<Option<String>, ResolveError> {
    let service = ServiceRef::new(&identity.name).within(&identity.namespace);
    // Before the look into the stores: what appears after it finds the service by this.
    scope.references.remember(&service, references);
    let mut missing = Vec::new();
    let mut hashes = Vec::new();
    for reference in references {
        let content = fetch_content(scope, &identity.namespace, reference).await?;
        missing.extend(problems(&identity.namespace, reference, content.as_ref()));
        let hash = content.as_ref().map_or("absent", |content| content.hash.as_str());
        hashes.push(format!("{} {} {hash}", reference.kind, reference.name));
    }
    if !missing.is_empty() {
        return Err(ResolveError::Missing(missing));
    }
    Ok((!references.is_empty()).then(|| scope.salt.hash(hashes.join("\n").as_bytes())))
}

fn problems(namespace: &str, reference: &Reference, content: Option<&Content>) -> Vec<String> {
    let Reference { kind, name, keys, optional, field } = reference;
    match content {
        None if *optional => Vec::new(),
        None => {
            vec![format!("{kind} {namespace}/{name} does not exist, and {field} refers to it: create it")]
        }
        Some(content) => keys
            .difference(&content.keys)
            .map(|key| {
                format!("{kind} {namespace}/{name} has no key {key}, and {field} refers to it: add the key")
            })
            .collect(),
    }
}

async fn fetch_content(
    scope: &Scope,
    namespace: &str,
    reference: &Reference,
) -> Result<Option<Content>, ResolveError> {
    let (kind, name) = (reference.kind, &reference.name);
    let Some(version) = known_version(scope, kind, namespace, name) else { return Ok(None) };
    let key = (kind, namespace.to_owned(), name.clone());
    if let Some(content) =
        lock(&scope.references.contents).get(&key).filter(|content| content.version == version)
    {
        return Ok(Some(content.clone()));
    }
    let failed =
        |source| ResolveError::Api { kind, namespace: namespace.to_owned(), name: name.clone(), source };
    let read = match kind {
        Kind::Secret => {
            let secret = Api::<Secret>::namespaced(scope.client.clone(), namespace)
                .get_opt(name)
                .await
                .map_err(failed)?;
            secret.map(|secret| (secret.metadata, secret.data.unwrap_or_default()))
        }
        Kind::ConfigMap => {
            let map = Api::<ConfigMap>::namespaced(scope.client.clone(), namespace)
                .get_opt(name)
                .await
                .map_err(failed)?;
            map.map(|map| {
                let data = config_map_data(&map);
                (map.metadata, data)
            })
        }
    };
    let Some((metadata, data)) = read else { return Ok(None) };
    let content = Content {
        version: version_of(&metadata),
        hash: scope.salt.hash_data(&data),
        keys: data.into_keys().collect(),
    };
    lock(&scope.references.contents).insert(key, content.clone());
    Ok(Some(content))
}

/// What a `ConfigMap` has, texts and bytes.
pub fn config_map_data(map: &ConfigMap) -> BTreeMap<String, ByteString> {
    let texts =
        map.data.iter().flatten().map(|(key, value)| (key.clone(), ByteString(value.clone().into_bytes())));
    let bytes = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
    texts.chain(bytes).collect()
}

/// The version that the watch knows; none: there is no such object.
fn known_version(scope: &Scope, kind: Kind, namespace: &str, name: &str) -> Option<Version> {
    match kind {
        Kind::Secret => {
            let found = scope.stores.secrets.get(&ObjectRef::new(name).within(namespace));
            found.map(|object| live_version(&object.meta))
        }
        Kind::ConfigMap => {
            let found = scope.stores.config_maps.get(&ObjectRef::new(name).within(namespace));
            found.map(|object| live_version(&object.meta))
        }
    }
}

fn version_of(metadata: &ObjectMeta) -> Version {
    (metadata.uid.as_deref().map(Into::into), metadata.resource_version.as_deref().map(Into::into))
}

fn live_version(live: &Meta) -> Version {
    (live.uid.clone(), live.version.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(optional: bool) -> Reference {
        Reference {
            kind: Kind::Secret,
            name: "badge".to_owned(),
            keys: if optional { BTreeSet::new() } else { BTreeSet::from(["tls.key".to_owned()]) },
            optional,
            field: "spec.server.env[0]".to_owned(),
        }
    }

    #[test]
    fn what_is_missing_is_named_with_the_field_and_the_next_step() {
        assert_eq!(
            problems("meteo", &reference(false), None),
            ["Secret meteo/badge does not exist, and spec.server.env[0] refers to it: create it"]
        );
        let content = Content {
            version: (None, None),
            hash: String::new(),
            keys: BTreeSet::from(["tls.crt".to_owned()]),
        };
        assert_eq!(
            problems("meteo", &reference(false), Some(&content)),
            ["Secret meteo/badge has no key tls.key, and spec.server.env[0] refers to it: add the key"]
        );
        assert_eq!(problems("meteo", &reference(true), None), Vec::<String>::new());
    }

    #[test]
    fn a_change_finds_the_services_that_refer_to_the_object() {
        let memory = ReferenceMemory::default();
        let weather = ServiceRef::new("weather").within("meteo");
        memory.remember(&weather, &[reference(false)]);
        memory.remember(&ServiceRef::new("weather").within("other"), &[reference(false)]);
        assert_eq!(memory.referrers(Kind::Secret, "meteo", "badge"), std::slice::from_ref(&weather));
        assert_eq!(memory.referrers(Kind::ConfigMap, "meteo", "badge"), []);
        memory.forget(&weather);
        assert_eq!(memory.referrers(Kind::Secret, "meteo", "badge"), []);
    }

    #[test]
    fn the_content_of_an_object_is_kept_as_long_as_a_service_refers_to_it() {
        let memory = ReferenceMemory::default();
        let [weather, tides] = ["weather", "tides"].map(|name| ServiceRef::new(name).within("meteo"));
        let named = |name: &str| Reference { name: name.to_owned(), ..reference(false) };
        let read = |name: &str| {
            let content = Content { version: (None, None), hash: "h".to_owned(), keys: BTreeSet::new() };
            lock(&memory.contents).insert((Kind::Secret, "meteo".to_owned(), name.to_owned()), content);
        };
        let is_kept = |name: &str| !memory.content_hash(Kind::Secret, "meteo", name).is_empty();
        memory.remember(&weather, &[named("badge"), named("key")]);
        memory.remember(&tides, &[named("badge"), named("map")]);
        for name in ["badge", "key", "map"] {
            read(name);
        }
        memory.remember(&weather, &[named("badge")]);
        assert!(is_kept("badge") && !is_kept("key") && is_kept("map"));
        memory.forget(&weather);
        assert!(is_kept("badge"), "tides refers to it");
        memory.forget(&tides);
        assert!(lock(&memory.contents).is_empty());
    }
}
