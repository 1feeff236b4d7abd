//! The instances, found by their service: a look through all pods for each service would be the square of them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
};

use kube::{
    ResourceExt,
    runtime::{
        reflector::{ObjectRef, Store},
        watcher::Event,
    },
};

use super::scope::{ServiceRef, lock};
use crate::{
    live::pod::Pod,
    observe::{is_over, service_of},
};

/// All pods that are watched.
#[derive(Clone)]
pub struct Pods {
    store: Store<Pod>,
    index: Index,
}

impl Pods {
    /// A store with the index that is kept beside it.
    pub fn new(store: Store<Pod>, index: Index) -> Self {
        Self { store, index }
    }

    /// Those of a service, the ones on their way out too; not those that are over, of which nobody can be asked.
    pub fn of(&self, service: &ServiceRef) -> Vec<Arc<Pod>> {
        let namespace = service.namespace.as_deref().unwrap_or_default();
        let names = lock(&self.index.0);
        let names = names.now.get(service).into_iter().flatten();
        let pods = names.filter_map(|name| self.store.get(&ObjectRef::new(name).within(namespace)));
        pods.filter(|pod| !is_over(pod)).collect()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.store.state()
    }

    /// Whether this pod lives, or is yet to.
    pub fn lives(&self, namespace: &str, name: &str) -> bool {
        self.store.get(&ObjectRef::new(name).within(namespace)).is_some_and(|pod| !is_over(&pod))
    }

    /// The store itself.
    pub fn store(&self) -> &Store<Pod> {
        &self.store
    }
}

/// Names of pods by their service.
#[derive(Debug, Clone, Default)]
pub struct Index(Arc<Mutex<Names>>);

#[derive(Debug, Default)]
struct Names {
    now: HashMap<ServiceRef, BTreeSet<String>>,
    /// A new list is complete at its end only.
    coming: HashMap<ServiceRef, BTreeSet<String>>,
}

impl Index {
    /// Follows the watch, ahead of the store.
    pub fn note(&self, event: &Event<Pod>) {
        let Names { now, coming } = &mut *lock(&self.0);
        match event {
            Event::Init => coming.clear(),
            Event::InitApply(pod) => insert(coming, pod),
            Event::InitDone => *now = std::mem::take(coming),
            Event::Apply(pod) => insert(now, pod),
            Event::Delete(pod) => {
                let Some(service) = service_of(pod) else { return };
                if let Some(names) = now.get_mut(&service) {
                    names.remove(&pod.name_any());
                    if names.is_empty() {
                        now.remove(&service);
                    }
                }
            }
        }
    }
}

fn insert(all: &mut HashMap<ServiceRef, BTreeSet<String>>, pod: &Pod) {
    if let Some(service) = service_of(pod) {
        all.entry(service).or_default().insert(pod.name_any());
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector;
    use serde_json::json;

    use super::*;
    use crate::names::SERVICE_ANNOTATION;

    fn pod(name: &str, service: &str) -> Pod {
        let annotations = json!({SERVICE_ANNOTATION: service});
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "meteo", "annotations": annotations},
        }))
        .unwrap()
    }

    #[test]
    fn a_services_pods_are_found_as_they_come_and_go_and_after_a_new_list() {
        let (store, mut writer) = reflector::store();
        let pods = Pods::new(store, Index::default());
        let mut see = |event: Event<Pod>| {
            pods.index.note(&event);
            writer.apply_watcher_event(&event);
        };
        let weather = ServiceRef::new("weather").within("meteo");
        let names = || pods.of(&weather).iter().map(|pod| pod.name_any()).collect::<Vec<_>>();
        see(Event::Init);
        see(Event::InitApply(pod("weather-1", "weather")));
        see(Event::InitApply(pod("tides-1", "tides")));
        see(Event::InitDone);
        see(Event::Apply(pod("weather-2", "weather")));
        assert_eq!(names(), ["weather-1", "weather-2"]);
        see(Event::Delete(pod("weather-1", "weather")));
        assert_eq!(names(), ["weather-2"]);
        see(Event::Init);
        see(Event::InitApply(pod("weather-3", "weather")));
        assert_eq!(names(), ["weather-2"], "the new list is not complete");
        see(Event::InitDone);
        assert_eq!(names(), ["weather-3"]);
    }

    #[test]
    fn a_pod_that_is_over_is_no_instance_though_its_object_stays() {
        let (store, mut writer) = reflector::store();
        let pods = Pods::new(store, Index::default());
        for (name, phase) in [("lives", "Running"), ("evicted", "Failed"), ("ended", "Succeeded")] {
            let mut pod = pod(name, "weather");
            pod.status = serde_json::from_value(json!({"phase": phase})).unwrap();
            let event = Event::Apply(pod);
            pods.index.note(&event);
            writer.apply_watcher_event(&event);
        }
        let weather = ServiceRef::new("weather").within("meteo");
        let names: Vec<String> = pods.of(&weather).iter().map(|pod| pod.name_any()).collect();
        assert_eq!(names, ["lives"]);
        assert_eq!(pods.all().len(), 3);
        let living = ["lives", "evicted", "ended", "unheard-of"].map(|name| pods.lives("meteo", name));
        assert_eq!(living, [true, false, false, false]);
    }
}
