//! What was applied a moment ago and is not in the stores yet.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{
    controller::{scope::lock, versions::is_behind},
    live::Meta,
    names,
};

/// How long a store may be behind; the watch takes milliseconds, unless it has to be opened anew.
pub(super) const BEHIND: Duration = Duration::from_secs(5);

/// What was applied a moment ago: the stores may not have it yet, and must not make us apply it again.
#[derive(Debug, Default)]
pub struct AppliedMemory(Mutex<HashMap<Key, Record>>);

pub(super) type Key = (&'static str, String, String);

#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) hash: String,
    /// What the store had when we applied; see [`is_behind`].
    pub(super) before: Option<Box<str>>,
    /// What the API server answered; as long as that stands, nobody changed it.
    pub(super) after: Option<Box<str>>,
    /// When.
    pub(super) at: Instant,
}

/// What is remembered of an object says …
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// nothing: look closer.
    Silent,
    /// that it stands as it was applied.
    Settled,
    /// that the store is behind: look again soon.
    Behind,
    /// that the store is behind for longer than a watch takes, or a list came after the object was deleted: the API
    /// server knows.
    Stale,
}

impl AppliedMemory {
    /// The service is gone; an object of the same name will be another one.
    pub fn forget(&self, namespace: &str, name: &str) {
        let (child, secret) = (names::child(name), names::broker_secret(name));
        lock(&self.0)
            .retain(|(_, other, object), _| other != namespace || (*object != child && *object != secret));
    }

    pub(super) fn ask(&self, key: &Key, live: Option<&Meta>, hash: &str) -> Memory {
        let records = lock(&self.0);
        let Some(record) = records.get(key).filter(|record| record.hash == hash) else {
            return Memory::Silent;
        };
        let version = live.and_then(|live| live.version.as_deref());
        if version.is_some() && version == record.after.as_deref() {
            Memory::Settled
        } else if is_behind(version, record.before.as_deref(), record.after.as_deref()) {
            if record.at.elapsed() < BEHIND { Memory::Behind } else { Memory::Stale }
        } else {
            Memory::Silent
        }
    }

    /// Whether this is what the API server answered to our own last apply.
    pub fn is_own(&self, kind: &'static str, live: &Meta) -> bool {
        let records = lock(&self.0);
        let key = (kind, live.namespace.to_string(), live.name.to_string());
        let after = records.get(&key).and_then(|record| record.after.as_ref());
        after.is_some() && after == live.version.as_ref()
    }

    /// The watch saw the object go: what was written to it by then is not waited for any more. What was written later
    /// made another one.
    pub fn note_deletion(&self, kind: &'static str, gone: &Meta) {
        let mut records = lock(&self.0);
        let key = (kind, gone.namespace.to_string(), gone.name.to_string());
        let Some(record) = records.get(&key) else { return };
        if !is_behind(gone.version.as_deref(), record.before.as_deref(), record.after.as_deref()) {
            records.remove(&key);
        }
    }

    /// How long ago the object was applied; none: not by this operator.
    pub fn age(&self, kind: &'static str, namespace: &str, name: &str) -> Option<Duration> {
        let records = lock(&self.0);
        Some(records.get(&(kind, namespace.to_owned(), name.to_owned()))?.at.elapsed())
    }

    pub(super) fn remember(&self, key: Key, record: Record) {
        lock(&self.0).insert(key, record);
    }

    pub(super) fn drop_record(&self, key: &Key) {
        lock(&self.0).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(version: &str) -> Meta {
        Meta { version: Some(version.into()), ..Meta::default() }
    }

    fn key() -> Key {
        ("Deployment", "meteo".to_owned(), "weather".to_owned())
    }

    fn record(before: Option<&str>, after: &str) -> Record {
        Record {
            hash: "h".to_owned(),
            before: before.map(Into::into),
            after: Some(after.into()),
            at: Instant::now(),
        }
    }

    #[test]
    fn a_store_that_is_behind_does_not_make_us_apply_again() {
        let memory = AppliedMemory::default();
        assert_eq!(memory.ask(&key(), None, "h"), Memory::Silent);
        memory.remember(key(), record(None, "5"));
        assert_eq!(memory.ask(&key(), None, "h"), Memory::Behind, "the store has not seen it yet");
        assert_eq!(
            memory.ask(&key(), Some(&meta("5")), "h"),
            Memory::Settled,
            "the store has it as it was applied"
        );
        assert_eq!(memory.ask(&key(), Some(&meta("6")), "h"), Memory::Silent, "somebody changed it");
        assert_eq!(memory.ask(&key(), Some(&meta("5")), "other"), Memory::Silent, "something else is wanted");
    }

    #[test]
    fn what_others_wrote_just_before_us_is_not_taken_for_what_they_wrote_after() {
        let memory = AppliedMemory::default();
        memory.remember(key(), record(Some("8"), "10"));
        assert_eq!(memory.ask(&key(), Some(&meta("9")), "h"), Memory::Behind);
        assert_eq!(memory.ask(&key(), Some(&meta("11")), "h"), Memory::Silent);
        assert_eq!(memory.ask(&key(), Some(&meta("9a")), "h"), Memory::Silent, "no number");
    }

    #[test]
    fn our_own_write_is_known_when_it_comes_back() {
        let memory = AppliedMemory::default();
        let seen =
            |version: &str| Meta { namespace: "meteo".into(), name: "weather".into(), ..meta(version) };
        assert!(!memory.is_own("Deployment", &seen("5")));
        memory.remember(key(), record(None, "5"));
        assert!(memory.is_own("Deployment", &seen("5")));
        assert!(!memory.is_own("Deployment", &seen("6")), "somebody changed it since");
        assert!(!memory.is_own("Secret", &seen("5")));
        assert!(memory.age("Deployment", "meteo", "weather").is_some());
        assert!(memory.age("Deployment", "meteo", "tides").is_none());
    }

    #[test]
    fn an_object_that_the_watch_saw_go_is_not_waited_for() {
        let gone =
            |version: &str| Meta { namespace: "meteo".into(), name: "weather".into(), ..meta(version) };
        for before in [None, Some("3")] {
            let memory = AppliedMemory::default();
            memory.remember(key(), record(before, "5"));
            memory.note_deletion("Secret", &gone("6"));
            memory.note_deletion("Deployment", &gone("4"));
            assert!(memory.is_own("Deployment", &gone("5")), "another one was made after that");
            memory.note_deletion("Deployment", &gone("6"));
            assert_eq!(memory.ask(&key(), None, "h"), Memory::Silent, "it was made a moment ago");
        }
        let memory = AppliedMemory::default();
        memory.remember(key(), record(None, "5"));
        memory.note_deletion("Deployment", &gone("5"));
        assert_eq!(memory.ask(&key(), None, "h"), Memory::Silent, "as it was when it went");
    }

    #[test]
    fn an_object_that_was_deleted_since_or_whose_watch_stands_still_is_not_waited_for_for_ever() {
        let memory = AppliedMemory::default();
        let Some(long_ago) = Instant::now().checked_sub(BEHIND) else { return };
        memory.remember(key(), Record { at: long_ago, ..record(None, "5") });
        assert_eq!(memory.ask(&key(), None, "h"), Memory::Stale);
    }

    #[test]
    fn an_object_of_a_service_that_is_gone_is_forgotten() {
        let memory = AppliedMemory::default();
        memory.remember(key(), record(None, "5"));
        memory.forget("other", "weather");
        assert_eq!(memory.ask(&key(), None, "h"), Memory::Behind);
        memory.forget("meteo", "weather");
        assert_eq!(memory.ask(&key(), None, "h"), Memory::Silent);
    }
}
