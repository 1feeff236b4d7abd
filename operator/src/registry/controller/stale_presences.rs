//! A presence that nobody stands behind is cleared: its pod was killed while the broker was away, or the broker was
//! restored from an old store. The watches may not know a pod yet, so the API server has the last word.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kube::Api;
use mcp_mqtt_transport::topic::{ServerId, ServerName};
use tokio::time::timeout;

use super::{Done, RegistryController, Setting};
use crate::{
    controller::scope::ServiceRef,
    crd::McpService,
    live::pod::Pod,
    names::{Minted, of_server_id},
    observe::is_over,
};

/// What nobody seems to stand behind for so long is looked into: two looks later, and a little less, so that it is not
/// three where a look comes a moment early.
const DOUBT: Duration = Duration::from_millis(900);
/// What was looked into, and exists, is left alone for so long.
const TRUST: Duration = Duration::from_secs(30);
/// And so long where the API server could not say.
const UNTOLD: Duration = Duration::from_secs(1);
/// For the API server to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Questions at one time: the next is asked as soon as one is answered, so that a thousand take a second or two, and the
/// API server no burst.
const AT_ONCE: usize = 16;

/// Presences that nobody seems to stand behind, and how far each check has come.
#[derive(Debug, Default)]
pub(super) struct StaleChecks {
    states: HashMap<StalePresence, CheckState>,
    /// Those of the last look that are to be asked about, as soon as there is room.
    due: VecDeque<StalePresence>,
    /// Questions without an answer.
    asked: usize,
}

#[derive(Debug, Clone, Copy)]
enum CheckState {
    Since(Instant),
    Asked,
    TrustedUntil(Instant),
}

/// A presence that nobody seems to stand behind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct StalePresence {
    broker: String,
    server_id: String,
    server_name: String,
}

impl StaleChecks {
    /// These are doubted now.
    fn look(&mut self, suspects: Vec<StalePresence>, now: Instant) {
        let mut before = mem::take(&mut self.states);
        self.due.clear();
        for suspect in suspects {
            let mut state = before.remove(&suspect).unwrap_or(CheckState::Since(now));
            match state {
                CheckState::Since(since) if now.duration_since(since) >= DOUBT => {
                    self.due.push_back(suspect.clone());
                }
                CheckState::TrustedUntil(until) if until <= now => state = CheckState::Since(now),
                _ => {}
            }
            self.states.insert(suspect, state);
        }
        // The answer is on its way, whether or not it is still doubted.
        self.states.extend(before.into_iter().filter(|(_, state)| matches!(state, CheckState::Asked)));
    }

    /// The next one that is to be asked about now, if it `may`; one that may not is left to the next look.
    fn next(&mut self, may: impl Fn(&StalePresence) -> bool) -> Option<StalePresence> {
        if self.asked >= AT_ONCE {
            return None;
        }
        while let Some(suspect) = self.due.pop_front() {
            if may(&suspect) {
                self.asked += 1;
                self.states.insert(suspect.clone(), CheckState::Asked);
                return Some(suspect);
            }
        }
        None
    }

    fn answered(&mut self, suspect: StalePresence, state: CheckState) {
        self.asked -= 1;
        self.states.insert(suspect, state);
    }
}

impl Setting {
    /// Whether it is of a namespace that is watched, and not listed yet.
    pub(super) fn is_unlisted(&self, server_id: &str) -> bool {
        let minted = of_server_id(&self.cluster, server_id);
        let Some(Minted::Pod { namespace, .. } | Minted::Service { namespace, .. }) = minted else {
            return false;
        };
        self.watched.of_namespace(namespace).is_some_and(|part| !part.stores.is_synced())
    }
}

impl RegistryController {
    /// Looks at all presences that bear our mark.
    pub(super) fn check_stale_presences(&mut self, now: Instant) {
        let suspects = self.suspects();
        self.stale_checks.look(suspects, now);
        self.ask_about_stale_presences();
    }

    /// As many as there is room for. What is to be cleared must have a broker that takes it: else they would push out what
    /// waits for the broker already.
    fn ask_about_stale_presences(&mut self) {
        while let Some(suspect) = self.stale_checks.next(|suspect| {
            let broker = self.brokers.get(&suspect.broker);
            broker.is_some_and(|broker| broker.presences.settled() && broker.takes())
        }) {
            self.ask_whether_it_exists(suspect);
        }
    }

    fn suspects(&self) -> Vec<StalePresence> {
        let mut suspects = Vec::new();
        for (key, broker) in self.brokers.iter().filter(|(_, broker)| broker.presences.settled()) {
            for (server_id, server_name, presence) in broker.presences.iter() {
                if presence.ours && !self.is_known(server_id) {
                    suspects.push(StalePresence {
                        broker: key.clone(),
                        server_id: server_id.to_owned(),
                        server_name: server_name.to_owned(),
                    });
                }
            }
        }
        suspects
    }

    /// Whether anything is doubted of what this broker shows.
    pub(super) fn has_suspects(&self, broker: &str) -> bool {
        self.suspects().iter().any(|suspect| suspect.broker == broker)
    }

    /// Server ids of those that are doubted.
    #[cfg(test)]
    pub(super) fn suspected(&self) -> Vec<String> {
        self.suspects().into_iter().map(|suspect| suspect.server_id).collect()
    }

    /// Whether the watches know who stands behind it; also where it is not ours to judge, or not listed yet.
    fn is_known(&self, server_id: &str) -> bool {
        let Some(minted) = of_server_id(&self.setting.cluster, server_id) else { return true };
        let (Minted::Pod { namespace, .. } | Minted::Service { namespace, .. }) = minted;
        let listed = self.setting.watched.of_namespace(namespace).filter(|part| part.stores.is_synced());
        let Some(watched) = listed else { return true };
        match minted {
            Minted::Pod { pod, .. } => watched.stores.pods.lives(namespace, pod),
            Minted::Service { service, .. } => {
                let reference = ServiceRef::new(service).within(namespace);
                match self.services.get(&reference) {
                    Some(service) => !service.is_taken() || service.found.stands_in,
                    None => watched.stores.services.get(&reference).is_some(),
                }
            }
        }
    }

    fn ask_whether_it_exists(&mut self, suspect: StalePresence) {
        let client = self.setting.client.clone();
        let cluster = self.setting.cluster.clone();
        let known = match of_server_id(&cluster, &suspect.server_id) {
            Some(Minted::Service { namespace, service }) => {
                self.services.contains_key(&ServiceRef::new(service).within(namespace))
            }
            _ => false,
        };
        self.done.push(Box::pin(async move {
            let exists = async {
                match of_server_id(&cluster, &suspect.server_id) {
                    Some(Minted::Pod { namespace, pod }) => {
                        let pods = Api::<Pod>::namespaced(client, namespace);
                        pods.get_opt(pod).await.map(|pod| pod.is_some_and(|pod| !is_over(&pod)))
                    }
                    // The service exists, and so does none of its instances that would say it has this place.
                    Some(Minted::Service { .. }) if known => Ok(false),
                    Some(Minted::Service { namespace, service }) => {
                        let services = Api::<McpService>::namespaced(client, namespace);
                        services.get_metadata_opt(service).await.map(|service| service.is_some())
                    }
                    None => Ok(true),
                }
            };
            let answer = match timeout(ANSWER, exists).await {
                Ok(answer) => answer.map_err(|error| error.to_string()),
                Err(_) => Err(format!("no answer within {ANSWER:?}")),
            };
            Done::Confirmed(suspect, answer)
        }));
    }

    /// The API server's word.
    pub(super) fn confirmed(&mut self, suspect: StalePresence, exists: Result<bool, String>) {
        // By now somebody may stand behind it.
        let exists = exists.map(|exists| exists || self.is_known(&suspect.server_id));
        match &exists {
            Ok(true) => {}
            Ok(false) => self.clear(&suspect),
            Err(error) => {
                tracing::warn!(server_id = suspect.server_id, "whether it exists cannot be told: {error}");
            }
        }
        self.stale_checks.answered(suspect, verdict(&exists, Instant::now()));
        self.ask_about_stale_presences();
    }

    fn clear(&mut self, suspect: &StalePresence) {
        let Some(broker) = self.brokers.get_mut(&suspect.broker) else { return };
        let (Ok(id), Ok(name)) = (ServerId::new(&suspect.server_id), ServerName::new(&suspect.server_name))
        else {
            return;
        };
        tracing::warn!(
            server_id = suspect.server_id,
            server_name = suspect.server_name,
            broker = %broker.url(),
            "nobody stands behind this presence any more: cleared"
        );
        self.setting.metrics.cleared();
        broker.say_presence(&id, &name, &self.setting.mark, Bytes::new());
    }
}

/// When a presence is looked into again, after what the API server said of it.
fn verdict(exists: &Result<bool, String>, now: Instant) -> CheckState {
    match exists {
        Ok(true) => CheckState::TrustedUntil(now + TRUST),
        Ok(false) => CheckState::Since(now + DOUBT), // it is cleared: the broker is to say so first
        Err(_) => CheckState::TrustedUntil(now + UNTOLD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{link::LONGEST_WAIT, presences::SETTLE};

    #[test]
    fn what_a_broker_shows_on_its_return_is_put_right_within_five_seconds() {
        let steps = LONGEST_WAIT + SETTLE + DOUBT + Duration::from_secs(1);
        assert!(steps < Duration::from_secs(5), "with the ticks, and the API server's answer: {steps:?}");
    }

    fn ghosts(broker: &str, number: usize) -> Vec<StalePresence> {
        let ghost = |number| StalePresence {
            broker: broker.to_owned(),
            server_id: format!("north.meteo.ghost-{number}"),
            server_name: "meteo/weather".to_owned(),
        };
        (0..number).map(ghost).collect()
    }

    #[test]
    fn the_next_of_a_thousand_is_asked_about_as_soon_as_one_is_answered() {
        let (mut checks, now) = (StaleChecks::default(), Instant::now());
        checks.look(ghosts("one", 1000), now);
        assert!(checks.next(|_| true).is_none(), "somebody may be about to stand behind it");
        checks.look(ghosts("one", 1000), now + DOUBT);
        let mut asked: VecDeque<_> = std::iter::from_fn(|| checks.next(|_| true)).collect();
        assert_eq!(asked.len(), AT_ONCE);
        let mut answered = 0;
        while let Some(suspect) = asked.pop_front() {
            checks.answered(suspect, verdict(&Ok(false), now + DOUBT));
            answered += 1;
            asked.extend(std::iter::from_fn(|| checks.next(|_| true)));
            assert!(asked.len() <= AT_ONCE);
        }
        assert_eq!(answered, 1000);
        checks.look(ghosts("one", 1000), now + DOUBT);
        assert!(checks.next(|_| true).is_none(), "each was asked about just now");
        checks.look(Vec::new(), now + DOUBT);
        assert!(checks.states.is_empty() && checks.due.is_empty());
    }

    #[test]
    fn what_a_broker_does_not_take_is_asked_about_later_and_holds_up_no_other() {
        let (mut checks, now) = (StaleChecks::default(), Instant::now());
        let all = [ghosts("mute", 100), ghosts("one", 3)].concat();
        let next = |checks: &mut StaleChecks, taking: &[&str]| {
            let next = || checks.next(|suspect| taking.contains(&suspect.broker.as_str()));
            std::iter::from_fn(next).collect::<Vec<_>>()
        };
        checks.look(all.clone(), now);
        checks.look(all.clone(), now + DOUBT);
        assert_eq!(next(&mut checks, &["one"]), ghosts("one", 3));
        // Their answers are on their way, though nobody doubts them any more.
        checks.look(ghosts("mute", 100), now + DOUBT);
        assert_eq!(next(&mut checks, &["one", "mute"]).len(), AT_ONCE - 3);
        checks.look(all, now + DOUBT);
        assert!(next(&mut checks, &["one", "mute"]).is_empty(), "as many as may are asked about");
    }

    #[test]
    fn a_presence_is_doubted_again_soon_where_the_api_server_could_not_say() {
        let now = Instant::now();
        let until = |answer| match verdict(answer, now) {
            CheckState::TrustedUntil(until) => until.duration_since(now),
            other => panic!("{other:?}"),
        };
        assert_eq!(until(&Ok(true)), TRUST);
        assert_eq!(until(&Err("503".to_owned())), UNTOLD);
    }
}
