//! What waits for a service: in the broker's journal, where the operator that comes after this one finds it, and for a
//! while here, where the service is not known yet.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mcp_mqtt_transport::{
    jsonrpc::{Kind, Message},
    mqtt::{Publication, Qos, Received},
    topic::{ClientId, ServerId, ServerName},
    user_property,
};

use super::Broker;
use crate::registry::pending::{Held, MAX_BYTES, WakeError};

/// Where what is held is written down, for the operator that comes after this one: retained, below the client id.
pub(super) const JOURNAL: &str = "mcp-mqtt/held";
/// User property there: when it came, in milliseconds of Unix time.
const SINCE: &str = "MCP-MQTT-SINCE";
/// A message for a service of which we were not told waits this long: the first reconciles take their time.
/// Many clients give a request up after a minute, and are to hear before that that nobody knows of it.
const UNCLAIMED: Duration = Duration::from_secs(30);
/// So long after it came, a message may wait for a namespace to be listed: by default nobody is woken later.
const UNLISTED: Duration = Duration::from_mins(1);

/// A message for a service of which we were not told yet.
#[derive(Debug)]
pub(in crate::registry::controller) struct Unclaimed {
    pub(in crate::registry::controller) client: ClientId,
    pub(in crate::registry::controller) payload: Bytes,
    /// When it came.
    pub(in crate::registry::controller) since: Instant,
    /// The name of the service that it is for; a line of the journal by an older operator has none.
    pub(in crate::registry::controller) server_name: Option<ServerName>,
}

/// What the journal has of a message that is held.
pub(in crate::registry::controller) struct Line<'a> {
    pub(in crate::registry::controller) payload: &'a Bytes,
    pub(in crate::registry::controller) since: Instant,
    pub(in crate::registry::controller) server_name: Option<&'a ServerName>,
}

/// A line of the journal, as it is read.
#[derive(Debug)]
pub(in crate::registry::controller) enum Journalled {
    /// Not of the journal.
    Other,
    /// Nothing to read: what we write ourselves comes back, too.
    Nothing,
    /// What an operator before us wrote down, and the server id that it was for.
    Message(String, Unclaimed),
}

impl Broker {
    /// Writes down what is held, and since when, or (none) that it is no more.
    pub(in crate::registry::controller) fn write_down(
        &mut self,
        standby: &str,
        client: &ClientId,
        line: Option<Line<'_>>,
    ) {
        let mut user_properties = Vec::new();
        if let Some(Line { since, server_name, .. }) = &line {
            let since = SystemTime::now().checked_sub(since.elapsed()).unwrap_or(UNIX_EPOCH);
            let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            user_properties.push((SINCE.to_owned(), since.to_string()));
            let name =
                server_name.map(|name| (user_property::SERVER_NAME.to_owned(), name.as_str().to_owned()));
            user_properties.extend(name);
        }
        self.say(Publication {
            topic: format!("{JOURNAL}/{}/{standby}/{client}", self.client_id),
            payload: line.map(|line| line.payload.clone()).unwrap_or_default(),
            qos: Qos::AtLeastOnce,
            retain: true,
            user_properties,
        });
    }

    /// What an operator before us wrote down, if this is it.
    pub(in crate::registry::controller) fn journalled(&self, received: &Received) -> Journalled {
        let below = |topic: &str, level: &str| {
            topic.strip_prefix(level).and_then(|rest| rest.strip_prefix('/')).map(str::to_owned)
        };
        let line = below(&received.topic, JOURNAL).and_then(|rest| below(&rest, &self.client_id));
        let Some(line) = line else { return Journalled::Other };
        let Some((standby, client)) = line.split_once('/') else { return Journalled::Nothing };
        let Ok(client) = ClientId::new(client) else { return Journalled::Nothing };
        if !received.retain || received.payload.is_empty() {
            return Journalled::Nothing;
        }
        let since = user_property::find(&received.user_properties, SINCE);
        let since = since.and_then(|since| since.parse().ok()).map(Duration::from_millis);
        let age = since.and_then(|since| SystemTime::now().duration_since(UNIX_EPOCH + since).ok());
        let since = Instant::now().checked_sub(age.unwrap_or_default()).unwrap_or_else(Instant::now);
        let server_name = user_property::find(&received.user_properties, user_property::SERVER_NAME);
        let server_name = server_name.and_then(|name| ServerName::new(name).ok());
        let message = Unclaimed { client, payload: received.payload.clone(), since, server_name };
        Journalled::Message(standby.to_owned(), message)
    }

    /// At most one of each client, as in the journal. `room`: whether there is any, over all services.
    pub(in crate::registry::controller) fn keep_unclaimed(
        &mut self,
        standby: &str,
        message: Unclaimed,
        room: bool,
        now: Instant,
    ) {
        let waiting = self.unclaimed.entry(standby.to_owned()).or_default();
        waiting.retain(|(_, other)| other.client != message.client);
        if message.payload.len() > MAX_BYTES || !room {
            return self.refuse_unclaimed(standby, &message);
        }
        let Unclaimed { client, payload, since, server_name } = &message;
        let line = Line { payload, since: *since, server_name: server_name.as_ref() };
        self.write_down(standby, client, Some(line));
        self.unclaimed.entry(standby.to_owned()).or_default().push((now + UNCLAIMED, message));
    }

    /// How many wait for a service that is not known yet, and their bytes.
    pub(in crate::registry::controller) fn unclaimed(&self) -> Held {
        let all = self.unclaimed.values().flatten();
        all.map(|(_, message)| Held { messages: 1, bytes: message.payload.len() }).sum()
    }

    pub(in crate::registry::controller) fn claim(&mut self, standby: &str) -> Vec<Unclaimed> {
        let waiting = self.unclaimed.remove(standby).unwrap_or_default();
        waiting.into_iter().map(|(_, message)| message).collect()
    }

    /// Nobody knows of that service. Of one whose namespace is `unlisted` it is too early to say so.
    pub(in crate::registry::controller) fn forget_unclaimed(
        &mut self,
        now: Instant,
        unlisted: impl Fn(&str) -> bool,
    ) {
        let mut forgotten = Vec::new();
        self.unclaimed.retain(|standby, messages| {
            if unlisted(standby) {
                // Once it is listed, the first reconciles take their time.
                for (until, message) in &mut *messages {
                    *until = (*until).max((now + UNCLAIMED).min(message.since + UNLISTED));
                }
            }
            let late = messages.extract_if(.., |(until, _)| *until <= now);
            forgotten.extend(late.map(|(_, message)| (standby.clone(), message)));
            !messages.is_empty()
        });
        for (standby, message) in forgotten {
            self.refuse_unclaimed(&standby, &message);
        }
    }

    /// Answers a message that nobody is to take, as far as its request can be read and its answer sent.
    fn refuse_unclaimed(&mut self, standby: &str, message: &Unclaimed) {
        let Unclaimed { client, payload, server_name, .. } = message;
        tracing::warn!(standby, %client, "refused: for a service that is not known, or too large or one too many");
        let request = Message::parse(payload.clone(), usize::MAX).ok();
        let id = request.as_ref().and_then(|request| match request.kind() {
            Kind::Request { id, .. } => Some(id),
            _ => None,
        });
        if let (Some(id), Some(name), Ok(standby)) = (id, server_name, ServerId::new(standby)) {
            self.say_refusal((&standby, name), client, id, &WakeError::Unknown);
        }
        self.write_down(standby, client, None);
    }
}
