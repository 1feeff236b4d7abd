//! Server instances, as their presences show them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::Link;
use crate::{
    presence::Online,
    topic::{self, ServerId, ServerName},
};

/// One instance of a server that is online.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub server_id: ServerId,
    /// Its name, from the topic.
    pub server_name: ServerName,
    /// What its presence says.
    pub online: Online,
}

/// All instances that some subscription has shown.
#[derive(Debug)]
pub(super) struct Registry {
    entries: Mutex<Entries>,
    /// Counts the changes.
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Entries {
    instances: BTreeMap<(ServerName, ServerId), Instance>,
    /// Name filters that are watched, and by how many.
    filters: HashMap<String, usize>,
    closed: bool,
}

impl Registry {
    pub(super) fn new() -> Self {
        Self { entries: Mutex::default(), version: watch::Sender::new(0) }
    }

    /// Nothing that is done under this lock can fail half-way.
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A presence; none: offline. Overlapping subscriptions repeat them, so the same again is no change.
    pub(super) fn update(&self, server_id: ServerId, server_name: ServerName, online: Option<Online>) {
        let mut entries = self.entries();
        let key = (server_name.clone(), server_id.clone());
        let changed = match online {
            None => entries.instances.remove(&key).is_some(),
            Some(_) if !entries.watches(&server_name) => false,
            Some(online) => {
                let instance = Instance { server_id, server_name, online };
                let before = entries.instances.insert(key.clone(), instance);
                before.as_ref() != entries.instances.get(&key)
            }
        };
        drop(entries);
        if changed {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// The connection is over: nothing is known any more, and nothing will change.
    pub(super) fn close(&self) {
        let mut entries = self.entries();
        entries.closed = true;
        entries.instances.clear();
        drop(entries);
        self.version.send_modify(|version| *version += 1);
    }
}

impl Entries {
    fn watches(&self, server_name: &ServerName) -> bool {
        self.filters.keys().any(|filter| topic::name_matches(filter, server_name.as_str()))
    }
}

/// A view of the instances that match one filter, kept up to date. Dropping it ends the subscription, when no other
/// has the same filter.
#[derive(Debug)]
pub struct Watch {
    link: Arc<Link>,
    filter: String,
    version: watch::Receiver<u64>,
}

impl Watch {
    pub(super) fn new(link: Arc<Link>, filter: &str) -> Self {
        let registry = &link.router.registry;
        *registry.entries().filters.entry(filter.to_owned()).or_default() += 1;
        let version = registry.version.subscribe();
        Self { link, filter: filter.to_owned(), version }
    }

    /// The instances that are online now, by name and id.
    pub fn instances(&self) -> Vec<Instance> {
        let entries = self.link.router.registry.entries();
        entries
            .instances
            .values()
            .filter(|instance| topic::name_matches(&self.filter, instance.server_name.as_str()))
            .cloned()
            .collect()
    }

    /// Waits for a change (an instance came, went, or says something else; maybe one that another watch is for).
    /// False when the connection is over.
    pub async fn changed(&mut self) -> bool {
        // The registry holds the sender and outlives us.
        let _ = self.version.changed().await;
        !self.link.router.registry.entries().closed
    }

    /// Waits until `condition` holds for the instances, and returns them; none when the connection is over.
    /// The caller bounds the wait.
    pub async fn until(&mut self, mut condition: impl FnMut(&[Instance]) -> bool) -> Option<Vec<Instance>> {
        loop {
            self.version.mark_unchanged();
            let instances = self.instances();
            if condition(&instances) {
                return Some(instances);
            }
            if !self.changed().await {
                return None;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut entries = self.link.router.registry.entries();
        let Some(count) = entries.filters.get_mut(&self.filter) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        entries.filters.remove(&self.filter);
        let Entries { instances, filters, .. } = &mut *entries;
        instances
            .retain(|(name, _), _| filters.keys().any(|filter| topic::name_matches(filter, name.as_str())));
        drop(entries);
        // A full queue or a closed connection: what still comes is not for any watch and is passed over.
        if let Err(error) = self.link.publisher.unsubscribe(vec![topic::server_presence_filter(&self.filter)])
        {
            tracing::debug!(%error, filter = self.filter, "cannot unsubscribe from presences");
        }
    }
}
