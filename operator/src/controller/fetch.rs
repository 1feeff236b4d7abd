//! Fetch: what validation needs to know of the cluster, from the watches' stores; no request of its own.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;

use super::{scope::Scope, validate::broker::file};

/// What validation needs to know of the cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fetched {
    /// Content of the default broker's Secret, as far as gateways read it; none: there is no such Secret.
    pub default_broker_secret: Option<BTreeMap<String, ByteString>>,
}

/// Looks it up.
pub fn fetch(scope: &Scope) -> Fetched {
    let secret =
        scope.stores.default_broker_secret.as_ref().and_then(|store| store.state().into_iter().next());
    let known = |data: &BTreeMap<String, ByteString>| {
        data.iter()
            .filter(|(key, _)| file::KEYS.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    Fetched {
        default_broker_secret: secret.map(|secret| secret.data.as_ref().map(known).unwrap_or_default()),
    }
}
