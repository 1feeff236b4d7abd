//! What is watched: one part a namespace, or one for all of them.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::{
    controller::scope::{ServiceRef, Stores},
    observe::Observations,
};

/// One watched namespace, or all.
#[derive(Clone)]
pub struct Watched {
    /// The namespace; none: all of them.
    pub namespace: Option<String>,
    /// What the watches know.
    pub stores: Stores,
    /// What the gateways say.
    pub observations: Arc<Observations>,
    /// Where a service is announced of which something changed.
    pub changed: mpsc::Sender<ServiceRef>,
}

/// All parts; cheap to clone.
#[derive(Clone)]
pub struct Parts(Arc<[Watched]>);

impl FromIterator<Watched> for Parts {
    fn from_iter<All: IntoIterator<Item = Watched>>(all: All) -> Self {
        Self(all.into_iter().collect())
    }
}

impl Parts {
    /// The part that this service is in.
    pub fn of(&self, service: &ServiceRef) -> Option<&Watched> {
        self.of_namespace(service.namespace.as_deref()?)
    }

    /// The part that this namespace is in.
    pub fn of_namespace(&self, namespace: &str) -> Option<&Watched> {
        self.0.iter().find(|part| part.namespace.as_deref().is_none_or(|watched| watched == namespace))
    }

    /// What each of them lacks a first list of, the namespace with it; none: nothing.
    pub fn unsynced(&self) -> Vec<String> {
        let lacking = self.0.iter().filter(|part| !part.stores.is_synced());
        let told = lacking.map(|part| {
            let kinds = part.stores.unsynced.borrow().join(", ");
            let place = part.namespace.as_ref().map(|name| format!(" in the namespace {name}"));
            format!("{kinds}{}", place.unwrap_or_default())
        });
        told.collect()
    }

    /// The default broker's Secret is watched by each of them alike.
    pub fn any(&self) -> Option<&Watched> {
        self.0.first()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use kube::{
        core::DeserializeGuard,
        runtime::{
            reflector::{self, Store, store::Writer},
            watcher::Event,
        },
    };

    use tokio::sync::watch;

    use super::*;
    use crate::{
        controller::{
            pods::{Index, Pods},
            scope::Guarded,
        },
        crd::McpService,
        live::pod::Pod,
        observe::CHANGED_CAPACITY,
    };

    fn empty<K>() -> Store<K>
    where
        K: reflector::Lookup<DynamicType = ()> + Clone + 'static,
    {
        reflector::store().0
    }

    /// A part that has listed these.
    pub(crate) fn watched(namespace: Option<&str>, services: Vec<McpService>, pods: Vec<Pod>) -> Watched {
        let (service_store, mut writer) = reflector::store::<Guarded>();
        for service in services {
            writer.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(service))));
        }
        let (pod_store, mut writer): (_, Writer<Pod>) = reflector::store();
        let index = Index::default();
        for pod in pods {
            let event = Event::Apply(pod);
            index.note(&event);
            writer.apply_watcher_event(&event);
        }
        Watched {
            namespace: namespace.map(str::to_owned),
            stores: Stores {
                services: service_store,
                pods: Pods::new(pod_store, index),
                deployments: empty(),
                service_accounts: empty(),
                disruption_budgets: empty(),
                autoscalers: empty(),
                network_policies: None,
                scaled_objects: None,
                secrets: empty(),
                config_maps: empty(),
                default_broker_secret: None,
                unsynced: watch::channel(Vec::new()).1,
            },
            observations: Arc::default(),
            changed: mpsc::channel(CHANGED_CAPACITY).0,
        }
    }

    #[test]
    fn a_service_is_in_the_part_of_its_namespace_or_in_the_one_for_all() {
        let part = |namespace| watched(namespace, Vec::new(), Vec::new());
        let weather = ServiceRef::new("weather").within("meteo");
        let found = |parts: &Parts| parts.of(&weather).map(|part| part.namespace.clone());
        let some: Parts = [part(Some("tools")), part(Some("meteo"))].into_iter().collect();
        assert_eq!(found(&some), Some(Some("meteo".to_owned())));
        assert!(some.of_namespace("other").is_none());
        assert_eq!(found(&[part(None)].into_iter().collect()), Some(None));
        assert_eq!(found(&[part(Some("tools"))].into_iter().collect()), None);
    }

    #[test]
    fn what_is_not_listed_yet_is_named_with_its_namespace() {
        let lacks = |namespace, kinds: &[&'static str]| {
            let mut part = watched(namespace, Vec::new(), Vec::new());
            part.stores.unsynced = watch::channel(kinds.to_vec()).1;
            part
        };
        let parts: Parts =
            [lacks(Some("meteo"), &[]), lacks(Some("tools"), &["Pods", "Secrets"])].into_iter().collect();
        assert_eq!(parts.unsynced(), ["Pods, Secrets in the namespace tools"]);
        assert_eq!([lacks(None, &["Pods"])].into_iter().collect::<Parts>().unsynced(), ["Pods"]);
    }
}
