//! What stands in one broker's registry, as far as an operator of this cluster may have made it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use bytes::Bytes;
use mcp_mqtt_transport::{
    presence::Online,
    topic::{ServerId, ServerName},
    user_property,
};

use super::scale_to_zero::ServicePresence;
use crate::names::of_server_id;

/// The broker has told all retained presences once none has come for this long: some brokers look for them on the side
/// of a subscription.
pub(super) const SETTLE: Duration = Duration::from_millis(700);
/// The longest wait for that. Some brokers mark live messages as retained too, so that retained ones never end.
const SETTLE_AT_MOST: Duration = Duration::from_secs(5);

/// What may be known of one broker: fifty thousand instances, more than it serves. Whoever makes services may point them
/// at a broker of his own, whose registry has as many as he likes, and the operator's memory is everybody's.
const MAX_BYTES: usize = 16 << 20;
/// What may be known of all of them: whoever points services at many such brokers has no more of that memory.
pub(super) const MAX_BYTES_IN_ALL: usize = 2 * MAX_BYTES;
/// What each takes beside the texts in it.
const ENTRY_BYTES: usize = size_of::<((String, String), Presence)>() + 64;

/// See the module.
#[derive(Debug)]
pub struct Presences {
    cluster: String,
    mark: String,
    /// By server id and server name.
    known: BTreeMap<(String, String), Presence>,
    /// What they take.
    bytes: usize,
    /// Counts connections: what an earlier one told and this one does not is no more.
    connection: u64,
    told: Told,
}

/// A registry with more presences than may be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMuch {
    /// By itself.
    Alone,
    /// Together with those of the other brokers, of which none but the operator's own has more.
    InAll,
}

impl fmt::Display for TooMuch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whose, bytes) = match self {
            Self::Alone => ("its registry has", MAX_BYTES),
            Self::InAll => {
                ("it has most of what the registries of all brokers have, which is", MAX_BYTES_IN_ALL)
            }
        };
        write!(f, "{whose} more presences of this cluster than the operator takes in ({} MiB)", bytes >> 20)
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// Whether nobody stands behind it but us.
    pub parked: bool,
    /// The instance that it is left to; of a parked one.
    pub successor: Option<ServerId>,
    /// Of what it says: kept for those that are parked, to see whether it is what is to stand there.
    content: Option<u64>,
    /// Whether it bears our mark.
    pub ours: bool,
    connection: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// The subscription is not granted yet.
    Nothing,
    /// The subscription was granted at `since`, and the last retained presence came at `last`.
    Some { since: Instant, last: Instant },
    /// All.
    All,
    /// More than may be known: nothing is, until it is told anew.
    TooMany,
}

impl Presences {
    /// Nothing is known yet.
    pub fn new(cluster: String, mark: String) -> Self {
        Self { cluster, mark, known: BTreeMap::new(), bytes: 0, connection: 0, told: Told::Nothing }
    }

    /// A new connection, or none: the broker has told nothing yet.
    pub fn unlinked(&mut self) {
        self.connection += 1;
        self.told = Told::Nothing;
    }

    /// The subscription is granted.
    pub fn subscribed(&mut self, now: Instant) {
        if self.told == Told::Nothing {
            self.told = Told::Some { since: now, last: now };
        }
    }

    /// Whether the broker has just told all there is.
    pub fn settle(&mut self, now: Instant) -> bool {
        let all = match self.told {
            Told::Some { since, last } => {
                now.duration_since(last) >= SETTLE || now.duration_since(since) >= SETTLE_AT_MOST
            }
            Told::Nothing | Told::All | Told::TooMany => false,
        };
        if all {
            self.told = Told::All;
            self.known.retain(|_, presence| presence.connection == self.connection);
            self.bytes = self.known.iter().map(|(key, presence)| weight(key, presence)).sum();
            return true;
        }
        false
    }

    /// Whether the broker has told all there is.
    pub fn settled(&self) -> bool {
        self.told == Told::All
    }

    /// Whether they are more than may be known.
    pub fn are_too_many(&self) -> bool {
        self.told == Told::TooMany
    }

    /// A presence, or (empty) none any more. The `retained` ones are the broker's answer to the subscription; others
    /// tell of a change just now, and say nothing about how much of the answer is still to come. Whether with this one
    /// they are more than may be known: then they are to be given up.
    pub fn received(
        &mut self,
        server_id: &str,
        server_name: &str,
        retained: bool,
        payload: &Bytes,
        properties: &[(String, String)],
        now: Instant,
    ) -> bool {
        if retained && let Told::Some { last, .. } = &mut self.told {
            *last = now;
        }
        if self.told == Told::TooMany || of_server_id(&self.cluster, server_id).is_none() {
            return false;
        }
        let key = (server_id.to_owned(), server_name.to_owned());
        if payload.is_empty() {
            if let Some((key, presence)) = self.known.remove_entry(&key) {
                self.bytes -= weight(&key, &presence);
            }
            return false;
        }
        let parked = Online::parse(payload).ok().filter(Online::is_parked);
        let presence = Presence {
            parked: parked.is_some(),
            content: parked.is_some().then(|| content_hash(payload)),
            successor: parked.and_then(|online| ServerId::new(online.successor()?).ok()),
            ours: user_property::find(properties, user_property::OWNER) == Some(self.mark.as_str()),
            connection: self.connection,
        };
        self.bytes += weight(&key, &presence);
        match self.known.entry(key) {
            Entry::Occupied(mut known) => {
                let before = known.insert(presence);
                self.bytes -= weight(known.key(), &before);
            }
            Entry::Vacant(place) => drop(place.insert(presence)),
        }
        self.bytes > MAX_BYTES
    }

    /// Nothing is known any more, until it is told anew.
    pub fn give_up(&mut self) {
        self.known = BTreeMap::new();
        (self.bytes, self.told) = (0, Told::TooMany);
    }

    /// What those that are known take, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whose presence stands under a service's own id.
    pub fn place(&self, standby: &str, server_name: &str) -> ServicePresence {
        match self.known.get(&(standby.to_owned(), server_name.to_owned())) {
            None => ServicePresence::Empty,
            Some(presence) if presence.parked => ServicePresence::Parked,
            Some(_) => ServicePresence::Taken,
        }
    }

    /// The instance that a parked presence there names as the one to take it over.
    pub fn successor(&self, standby: &str, server_name: &str) -> Option<&ServerId> {
        self.known.get(&(standby.to_owned(), server_name.to_owned()))?.successor.as_ref()
    }

    /// Whether a parked presence there, which bears our mark, says anything but this.
    pub fn is_outdated(&self, standby: &str, server_name: &str, payload: &Bytes) -> bool {
        let presence = self.known.get(&(standby.to_owned(), server_name.to_owned()));
        let content = presence.filter(|presence| presence.ours).and_then(|presence| presence.content);
        content.is_some_and(|content| content != content_hash(payload))
    }

    /// Whether this server id stands there, under whatever name: a broker may give another than was asked for.
    pub fn has(&self, server_id: &str) -> bool {
        self.standing(server_id).is_some()
    }

    /// The server name under which this server id stands there, if it bears our mark.
    pub fn name_of_ours(&self, server_id: &str) -> Option<ServerName> {
        let (name, presence) = self.standing(server_id)?;
        ServerName::new(name).ok().filter(|_| presence.ours)
    }

    fn standing(&self, server_id: &str) -> Option<(&str, &Presence)> {
        let mut from = self.known.range((server_id.to_owned(), String::new())..);
        let ((id, name), presence) = from.next()?;
        (id == server_id && !presence.parked).then_some((name, presence))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &Presence)> {
        self.known.iter().map(|((id, name), presence)| (id.as_str(), name.as_str(), presence))
    }
}

fn weight((id, name): &(String, String), presence: &Presence) -> usize {
    let successor = presence.successor.as_ref().map_or(0, |successor| successor.as_str().len());
    id.len() + name.len() + successor + ENTRY_BYTES
}

/// Of a payload: a hash serves as well, and a thousand services sleep.
fn content_hash(payload: &Bytes) -> u64 {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(mark: &str) -> Vec<(String, String)> {
        vec![(user_property::OWNER.to_owned(), mark.to_owned())]
    }

    fn online(parked: bool) -> Bytes {
        let online = Online::new("meteo/weather", "", None);
        if parked { online.parked().to_payload() } else { online.to_payload() }
    }

    #[test]
    fn what_an_earlier_connection_told_and_this_one_does_not_is_no_more() {
        let (mut now, standby) = (Instant::now(), "north.meteo.weather_service");
        let mut presences = Presences::new("north".to_owned(), "k".to_owned());
        presences.unlinked();
        presences.subscribed(now);
        presences.received(standby, "meteo/weather", true, &online(true), &properties("k"), now);
        presences.received(
            "north.meteo.weather-1",
            "meteo/weather",
            true,
            &online(false),
            &properties("x"),
            now,
        );
        presences.received("desk-1", "meteo/weather", true, &online(false), &[], now);
        assert!(!presences.settle(now));
        now += SETTLE;
        assert!(presences.settle(now) && presences.settled() && !presences.settle(now));
        assert_eq!(presences.place(standby, "meteo/weather"), ServicePresence::Parked);
        let marks: Vec<_> =
            presences.iter().map(|(id, _, presence)| (id.to_owned(), presence.ours)).collect();
        assert_eq!(marks, [("north.meteo.weather-1".to_owned(), false), (standby.to_owned(), true)]);
        let name_of_ours =
            |presences: &Presences, id| presences.name_of_ours(id).map(|name| name.to_string());
        assert_eq!(name_of_ours(&presences, "north.meteo.weather-1"), None, "another operator's");
        assert_eq!(name_of_ours(&presences, standby), None, "parked");

        presences.unlinked();
        presences.subscribed(now);
        presences.received(standby, "meteo/weather", true, &online(false), &properties("k"), now);
        now += SETTLE;
        assert!(presences.settle(now));
        assert_eq!(presences.place(standby, "meteo/weather"), ServicePresence::Taken);
        assert!(!presences.has("north.meteo.weather-1"));
        assert_eq!(name_of_ours(&presences, standby).as_deref(), Some("meteo/weather"));
        presences.received(standby, "meteo/weather", true, &Bytes::new(), &[], now);
        assert_eq!(presences.place(standby, "meteo/weather"), ServicePresence::Empty);
    }

    #[test]
    fn what_changes_elsewhere_does_not_keep_a_registry_from_being_known() {
        let start = Instant::now();
        // Ten changes a second, of another cluster, of devices and of this cluster.
        let settled_after = |retained: bool| {
            let mut presences = Presences::new("north".to_owned(), "k".to_owned());
            presences.unlinked();
            presences.subscribed(start);
            presences.received(
                "north.meteo.sun_service",
                "sun",
                true,
                &online(true),
                &properties("k"),
                start,
            );
            (1..100).find_map(|number| {
                let now = start + Duration::from_millis(100) * number;
                for id in ["south.meteo.weather-1", "desk-1", "north.meteo.rain-1"] {
                    presences.received(id, "meteo/rain", retained, &online(false), &[], now);
                }
                presences.settle(now).then(|| now - start)
            })
        };
        assert_eq!(settled_after(false), Some(SETTLE));
        assert_eq!(settled_after(true), Some(SETTLE_AT_MOST), "a broker that marks all messages as retained");
    }

    #[test]
    fn whom_a_parked_presence_is_left_to_is_read_from_it() {
        let (now, standby, name) = (Instant::now(), "north.meteo.weather_service", "meteo/weather");
        let successor = ServerId::new("north.meteo.weather-2").unwrap();
        let mut presences = Presences::new("north".to_owned(), "k".to_owned());
        let parked = Online::new(name, "", None).parked().left_to(&successor).to_payload();
        presences.received(standby, name, true, &parked, &properties("k"), now);
        assert_eq!(presences.successor(standby, name), Some(&successor));
        let is_outdated = |presences: &Presences, by: &Bytes| presences.is_outdated(standby, name, by);
        assert!(is_outdated(&presences, &online(true)) && !is_outdated(&presences, &parked));
        presences.received(standby, name, true, &online(true), &properties("k"), now);
        assert_eq!(
            (presences.place(standby, name), presences.successor(standby, name)),
            (ServicePresence::Parked, None)
        );
        assert!(is_outdated(&presences, &parked) && !is_outdated(&presences, &online(true)));
        for (payload, mark) in [(online(false), "k"), (online(true), "x")] {
            presences.received(standby, name, true, &payload, &properties(mark), now);
            assert!(!is_outdated(&presences, &parked), "an instance's, or another operator's");
        }
    }

    #[test]
    fn of_a_registry_without_end_nothing_is_known_until_it_is_told_anew() {
        let (now, mark) = (Instant::now(), properties("k"));
        let tell = |presences: &mut Presences, number: usize, payload: &Bytes| {
            let id = format!("north.meteo.weather-{number}");
            let too_many = presences.received(&id, "meteo/weather", true, payload, &mark, now);
            if too_many {
                presences.give_up();
            }
            too_many
        };
        let mut presences = Presences::new("north".to_owned(), "k".to_owned());
        presences.unlinked();
        presences.subscribed(now);
        // Those that change and those that go make no more of them.
        for number in 0..1000 {
            assert!(!tell(&mut presences, number % 10, &online(false)));
            assert!(!tell(&mut presences, 1000 + number, &online(true)));
            assert!(!tell(&mut presences, 1000 + number, &Bytes::new()));
        }
        let sum: usize = presences.known.iter().map(|(key, known)| weight(key, known)).sum();
        assert_eq!(presences.bytes, sum);
        let first = (0..100_000).find(|number| tell(&mut presences, *number, &online(false))).unwrap();
        assert!(first > 40_000, "{first}");
        assert!(!tell(&mut presences, 1, &online(false)), "told once");
        assert!(!presences.settle(now + SETTLE_AT_MOST) && !presences.settled());
        assert_eq!((presences.iter().count(), presences.bytes), (0, 0));
        presences.unlinked();
        presences.subscribed(now);
        tell(&mut presences, 1, &online(false));
        assert!(presences.settle(now + SETTLE) && presences.has("north.meteo.weather-1"));
    }
}
