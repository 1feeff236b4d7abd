//! The operator's default broker is looked at once, even if no service uses it: the last one may have been deleted, or its
//! pods killed, while there was no operator. What it left there is cleared, and who asked for it is answered.

use std::time::{Duration, Instant};

use super::{Broker, RegistryController};
use crate::registry::wanted;

/// A broker that cannot be reached for so long is left alone until a service uses it.
const LONGEST: Duration = Duration::from_mins(1);

/// How far the look has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstLook {
    /// The watches do not know yet what there is.
    Due,
    /// It goes on until then at the latest.
    Until(Instant),
    Done,
}

impl FirstLook {
    /// Whether the connection to this broker is needed for it.
    pub(super) fn keeps(self, key: &str) -> bool {
        key == wanted::DEFAULT && matches!(self, Self::Until(_))
    }
}

impl RegistryController {
    /// Goes on with it.
    pub(super) fn look_at_default_broker(&mut self, now: Instant) {
        match self.first_look {
            FirstLook::Due if self.setting.watched.unsynced().is_empty() => {
                let setting = &self.setting;
                let secret =
                    setting.default_secret.as_ref().and_then(|store| store.state().into_iter().next());
                let data = secret.as_ref().and_then(|secret| secret.data.as_ref());
                let broker = setting.default_broker.as_ref();
                let Some(access) = broker.and_then(|broker| wanted::Broker::of_operator(broker, data)) else {
                    self.first_look = FirstLook::Done;
                    return;
                };
                let happenings = self.happenings.clone();
                self.brokers
                    .entry(access.key.clone())
                    .or_insert_with(|| Broker::open(&self.setting, &access, happenings));
                self.first_look = FirstLook::Until(now + LONGEST);
            }
            FirstLook::Until(end) if now >= end || self.is_true(wanted::DEFAULT) => {
                self.first_look = FirstLook::Done;
            }
            _ => {}
        }
    }

    /// Whether the broker has told all, and none of it is doubted.
    fn is_true(&self, key: &str) -> bool {
        self.brokers.get(key).is_some_and(|broker| broker.presences.settled()) && !self.has_suspects(key)
    }
}
