//! Services that wait to be taken up: what they are to have comes before what is to be told of others.

use std::{collections::HashSet, sync::Mutex, time::Duration};

use super::scope::{ServiceRef, lock};

/// Services that are new, or were changed, and that no reconcile has taken up since.
#[derive(Debug, Default)]
pub struct Backlog(Mutex<HashSet<ServiceRef>>);

/// Between two looks whether it is empty; longer with many services, all of which may look.
const RELOOK: Duration = Duration::from_millis(500);
const RELOOK_EACH: Duration = Duration::from_millis(1);

impl Backlog {
    /// The watch has something new of it.
    pub fn note(&self, service: ServiceRef) {
        lock(&self.0).insert(service);
    }

    /// A reconcile did what it could for it, or there is no such service any more.
    pub fn done(&self, service: &ServiceRef) {
        lock(&self.0).remove(service);
    }

    /// When to look again whether it is empty, with so many services in all; none: it is.
    pub fn relook(&self, services: usize) -> Option<Duration> {
        let each = RELOOK_EACH.saturating_mul(u32::try_from(services).unwrap_or(u32::MAX));
        (!lock(&self.0).is_empty()).then(|| RELOOK.max(each))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_with_the_last_service_that_waits() {
        let backlog = Backlog::default();
        let service = |name: &str| ServiceRef::new(name).within("meteo");
        assert_eq!(backlog.relook(0), None);
        backlog.note(service("weather"));
        backlog.note(service("weather"));
        backlog.note(service("tides"));
        backlog.done(&service("weather"));
        assert_eq!(backlog.relook(2), Some(RELOOK));
        assert_eq!(backlog.relook(10_000), Some(Duration::from_secs(10)), "they do not all look at one time");
        backlog.done(&service("tides"));
        backlog.done(&service("tides"));
        assert_eq!(backlog.relook(2), None);
        backlog.note(service("tides"));
        assert_eq!(backlog.relook(2), Some(RELOOK), "it was changed");
    }
}
