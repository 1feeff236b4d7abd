//! What stands in one broker's registry, as far as an operator of this cluster may have made it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mcp_mqtt_transport::{
    presence::Online,
    topic::{ServerId, ServerName},
    user_property,
};

use super::sleeper::Place;
use crate::names::of_server_id;

/// After the last of the presences that the broker tells at first, it is taken to have told all: some brokers look
/// for them on the side of a subscription.
pub(super) const SETTLE: Duration = Duration::from_millis(700);

/// See the module.
#[derive(Debug)]
pub struct Presences {
    cluster: String,
    keeper: String,
    /// By server id and server name.
    known: BTreeMap<(String, String), Presence>,
    /// Counts connections: what an earlier one told and this one does not is no more.
    connection: u64,
    told: Told,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// Whether nobody stands behind it but us.
    pub parked: bool,
    /// The instance that it is left to; of a parked one.
    pub heir: Option<ServerId>,
    /// Whether it bears our mark.
    pub ours: bool,
    connection: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// The subscription is not granted yet.
    Nothing,
    /// Something came at this time last.
    Some(Instant),
    /// All.
    All,
}

impl Presences {
    /// Nothing is known yet.
    pub fn new(cluster: String, keeper: String) -> Self {
        Self { cluster, keeper, known: BTreeMap::new(), connection: 0, told: Told::Nothing }
    }

    /// A new connection, or none: the broker has told nothing yet.
    pub fn unlinked(&mut self) {
        self.connection += 1;
        self.told = Told::Nothing;
    }

    /// The subscription is granted.
    pub fn subscribed(&mut self, now: Instant) {
        if self.told == Told::Nothing {
            self.told = Told::Some(now);
        }
    }

    /// Whether the broker has just told all there is.
    pub fn settle(&mut self, now: Instant) -> bool {
        if matches!(self.told, Told::Some(last) if now.duration_since(last) >= SETTLE) {
            self.told = Told::All;
            self.known.retain(|_, presence| presence.connection == self.connection);
            return true;
        }
        false
    }

    /// Whether the broker has told all there is.
    pub fn settled(&self) -> bool {
        self.told == Told::All
    }

    /// A presence, or (empty) none any more.
    pub fn received(
        &mut self,
        server_id: &str,
        server_name: &str,
        payload: &Bytes,
        properties: &[(String, String)],
        now: Instant,
    ) {
        if let Told::Some(last) = &mut self.told {
            *last = now;
        }
        if of_server_id(&self.cluster, server_id).is_none() {
            return;
        }
        let key = (server_id.to_owned(), server_name.to_owned());
        if payload.is_empty() {
            self.known.remove(&key);
            return;
        }
        let parked = Online::parse(payload).ok().filter(Online::is_parked);
        let presence = Presence {
            parked: parked.is_some(),
            heir: parked.and_then(|online| ServerId::new(online.heir()?).ok()),
            ours: user_property::find(properties, user_property::KEEPER) == Some(self.keeper.as_str()),
            connection: self.connection,
        };
        self.known.insert(key, presence);
    }

    /// Whose presence stands under a service's own id.
    pub fn place(&self, standby: &str, server_name: &str) -> Place {
        match self.known.get(&(standby.to_owned(), server_name.to_owned())) {
            None => Place::Empty,
            Some(presence) if presence.parked => Place::Parked,
            Some(_) => Place::Taken,
        }
    }

    /// The instance that a parked presence there names as the one to take it over.
    pub fn heir(&self, standby: &str, server_name: &str) -> Option<&ServerId> {
        self.known.get(&(standby.to_owned(), server_name.to_owned()))?.heir.as_ref()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(keeper: &str) -> Vec<(String, String)> {
        vec![(user_property::KEEPER.to_owned(), keeper.to_owned())]
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
        presences.received(standby, "meteo/weather", &online(true), &properties("k"), now);
        presences.received("north.meteo.weather-1", "meteo/weather", &online(false), &properties("x"), now);
        presences.received("desk-1", "meteo/weather", &online(false), &[], now);
        assert!(!presences.settle(now));
        now += SETTLE;
        assert!(presences.settle(now) && presences.settled() && !presences.settle(now));
        assert_eq!(presences.place(standby, "meteo/weather"), Place::Parked);
        let marks: Vec<_> =
            presences.iter().map(|(id, _, presence)| (id.to_owned(), presence.ours)).collect();
        assert_eq!(marks, [("north.meteo.weather-1".to_owned(), false), (standby.to_owned(), true)]);
        let name_of_ours =
            |presences: &Presences, id| presences.name_of_ours(id).map(|name| name.to_string());
        assert_eq!(name_of_ours(&presences, "north.meteo.weather-1"), None, "another operator's");
        assert_eq!(name_of_ours(&presences, standby), None, "parked");

        presences.unlinked();
        presences.subscribed(now);
        presences.received(standby, "meteo/weather", &online(false), &properties("k"), now);
        now += SETTLE;
        assert!(presences.settle(now));
        assert_eq!(presences.place(standby, "meteo/weather"), Place::Taken);
        assert!(!presences.has("north.meteo.weather-1"));
        assert_eq!(name_of_ours(&presences, standby).as_deref(), Some("meteo/weather"));
        presences.received(standby, "meteo/weather", &Bytes::new(), &[], now);
        assert_eq!(presences.place(standby, "meteo/weather"), Place::Empty);
    }
    #[test]
    fn whom_a_parked_presence_is_left_to_is_read_from_it() {
        let (now, standby, name) = (Instant::now(), "north.meteo.weather_service", "meteo/weather");
        let heir = ServerId::new("north.meteo.weather-2").unwrap();
        let mut presences = Presences::new("north".to_owned(), "k".to_owned());
        let parked = Online::new(name, "", None).parked().left_to(&heir).to_payload();
        presences.received(standby, name, &parked, &properties("k"), now);
        assert_eq!(presences.heir(standby, name), Some(&heir));
        presences.received(standby, name, &online(true), &properties("k"), now);
        assert_eq!((presences.place(standby, name), presences.heir(standby, name)), (Place::Parked, None));
    }
}
