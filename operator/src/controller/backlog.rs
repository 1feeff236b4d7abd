//! Services that wait for their first look: what they are to have comes before what is to be told of others.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Mutex,
};

use super::scope::{ServiceRef, lock};

/// Which services were looked at, by a hash of their names: two that share one are told apart by nothing that matters.
#[derive(Debug, Default)]
pub struct Backlog(Mutex<HashSet<u64>>);

impl Backlog {
    /// Once more, or for the first time.
    pub fn looked_at(&self, service: &ServiceRef) {
        lock(&self.0).insert(hash(service));
    }

    /// The service is gone.
    pub fn forget(&self, service: &ServiceRef) {
        lock(&self.0).remove(&hash(service));
    }

    /// Whether of so many there are services that were not looked at.
    pub fn is_any(&self, services: usize) -> bool {
        lock(&self.0).len() < services
    }
}

fn hash(service: &ServiceRef) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&service.namespace, &service.name).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_with_the_last_first_look() {
        let backlog = Backlog::default();
        let service = |name: &str| ServiceRef::new(name).within("meteo");
        assert!(!backlog.is_any(0));
        backlog.looked_at(&service("weather"));
        backlog.looked_at(&service("weather"));
        assert!(backlog.is_any(2));
        backlog.looked_at(&service("tides"));
        assert!(!backlog.is_any(2));
        backlog.forget(&service("tides"));
        assert!(!backlog.is_any(1));
        backlog.looked_at(&ServiceRef::new("weather").within("elsewhere"));
        assert!(!backlog.is_any(2), "a name counts with its namespace");
    }
}
