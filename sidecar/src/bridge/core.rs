//! From topics to sessions, and from actions to topics: everything of the bridge that needs no IO.

use std::{collections::HashSet, time::Instant};

use bytes::Bytes;
use mcp_mqtt_transport::{
    jsonrpc::{Batch, Kind, Message, ParseError, ParseErrorKind},
    mqtt::{Filter, Publication, Publisher, Qos, Received},
    topic::{self, ClientId, ServerId, ServerName, Topic},
    user_property::{self, Component, UserProperties},
};

use super::{
    action::Action,
    placement::LinkId,
    refusal::Refusal,
    session::Rules,
    sessions::{Initialize, Sessions},
};
use crate::backend::SessionId;

/// The MQTT header may take three bytes more with a payload than without: its length is a varint.
const LENGTH_BYTES: usize = 3;

/// Clients remembered to have spoken to us themselves while we stand in for a service: whatever is held for that one
/// comes in the moment after the presence.
const HEARD: usize = 4096;

/// Messages of one batch: four times what may be in flight by default. A packet has room for a hundred thousand.
const MAX_BATCH: usize = 256;

/// What the core needs to know of its connection and of the configuration.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Our MQTT client id.
    pub server_id: ServerId,
    /// The server name in use.
    pub server_name: ServerName,
    /// Quality of service of what we publish.
    pub qos: Qos,
    /// The largest packet that the broker takes on the registering connection, in bytes.
    pub max_packet: Option<u32>,
    /// Connections beside that one.
    pub workers: usize,
    /// What holds for all sessions.
    pub rules: Rules,
    /// Sessions at one time.
    pub max_sessions: u32,
    /// Whether it stands in for a service that slept: an `initialize` that was held may be passed on to it.
    pub stands_in: bool,
}

/// The bridge without its IO, for the life of one registration.
#[derive(Debug)]
pub struct Core {
    setting: Setting,
    properties: UserProperties,
    capability_topic: String,
    /// The largest packet that the broker takes, by connection: a broker may tell each another limit.
    max_packets: Vec<Option<u32>>,
    /// Who spoke on control while [`Setting::stands_in`].
    heard: HashSet<ClientId>,
    /// The sessions; public to the driver, which reports to them.
    pub sessions: Sessions,
}

impl Core {
    /// No sessions yet; their ids will follow `last_id`.
    pub fn new(setting: Setting, last_id: u64) -> Self {
        let properties = user_property::of_publish(Component::Server, setting.server_id.as_str());
        let capability_topic = topic::server_capability(&setting.server_id, &setting.server_name);
        let sessions = Sessions::new(setting.rules.clone(), setting.max_sessions, setting.workers, last_id);
        let mut max_packets = vec![None; setting.workers + 1];
        max_packets[0] = setting.max_packet;
        Self { setting, properties, capability_topic, max_packets, heard: HashSet::new(), sessions }
    }

    /// A worker's connection stands; the largest packet that the broker takes there, in bytes.
    pub fn link_up(&mut self, link: LinkId, max_packet: Option<u32>) {
        self.max_packets[link.0] = max_packet;
        self.sessions.link_up(link);
    }

    /// Connections beside the registering one.
    pub fn workers(&self) -> usize {
        self.setting.workers
    }

    /// A message of the broker, and the connection on which it came. `open` opens a backend session for a session
    /// that this connection will carry.
    pub fn received(
        &mut self,
        came_by: LinkId,
        received: Received,
        now: Instant,
        out: &mut Vec<Action>,
        open: impl FnOnce(SessionId, LinkId),
    ) {
        let Received { topic, payload, retain, user_properties, ack: _ } = received;
        let sender = user_property::find(&user_properties, user_property::MQTT_CLIENT_ID);
        if retain {
            // Nothing that concerns a session is meant for whoever comes later.
            return out.push(Action::Dropped { reason: "retained" });
        }
        if sender == Some(self.setting.server_id.as_str()) {
            return; // the self-test's own message
        }
        let ours = |id: &str, name: &str| {
            id == self.setting.server_id.as_str() && name == self.setting.server_name.as_str()
        };
        match Topic::parse(&topic) {
            Ok(Topic::Rpc { client_id, server_id, server_name }) if ours(server_id, server_name) => {
                let Ok(client) = ClientId::new(client_id) else { return };
                let matches = sender.is_none_or(|sender| sender == client_id);
                self.rpc((&client, came_by), matches, &payload, now, out);
            }
            Ok(Topic::Control { server_id, server_name }) if ours(server_id, server_name) => {
                let held_for = user_property::find(&user_properties, user_property::HELD_FOR);
                match held_for.filter(|_| self.setting.stands_in).or(sender).map(ClientId::new) {
                    Some(Ok(client)) if self.heard_already(&client, held_for.is_some()) => {
                        out.push(Action::Dropped { reason: "held-twice" });
                    }
                    Some(Ok(client)) => self.control((client, came_by), &payload, now, out, open),
                    Some(Err(_)) => out.push(Action::Dropped { reason: "bad-client-id" }),
                    None => out.push(Action::Dropped { reason: "no-client-id" }),
                }
            }
            Ok(Topic::ClientPresence { client_id } | Topic::ClientCapability { client_id })
                if sender.is_some_and(|sender| sender != client_id) =>
            {
                out.push(Action::Dropped { reason: Refusal::ClientIdMismatch.reason() });
            }
            Ok(Topic::ClientPresence { client_id }) => {
                self.presence((client_id, came_by), payload, now, out);
            }
            Ok(Topic::ClientCapability { client_id }) => {
                self.capability((client_id, came_by), payload, now, out);
            }
            _ => out.push(Action::Dropped { reason: "unknown-topic" }),
        }
    }

    /// Both we and who holds messages for a sleeping service are subscribed for a moment: what came to us directly is
    /// not to be taken once more.
    fn heard_already(&mut self, client: &ClientId, held: bool) -> bool {
        if !self.setting.stands_in {
            return false;
        }
        if held {
            return self.heard.contains(client) || self.sessions.of_client(client.as_str()).is_some();
        }
        if self.heard.len() < HEARD {
            self.heard.insert(client.clone());
        }
        false
    }

    /// A message of ours did not reach its client; `note` is as in [`Core::note`].
    pub fn undelivered(&mut self, note: u64, payload: Bytes, why: &str, now: Instant, out: &mut Vec<Action>) {
        if let Ok(message) = Message::parse(payload, usize::MAX) {
            self.sessions.undelivered(SessionId(note), &message, why, now, out);
        }
    }

    /// By what a refusal of a publish to this client finds its session; 0, which no session has, for none.
    pub fn note(&self, client: &ClientId) -> u64 {
        self.sessions.of_client(client.as_str()).map_or(0, |session| session.0)
    }

    fn rpc(
        &mut self,
        (client, came_by): (&ClientId, LinkId),
        matches: bool,
        payload: &Bytes,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if matches
            && self.sessions.takes_batches(client)
            && let Some(batch) = batch(payload)
        {
            return self.batch((client, came_by), batch, payload.len(), now, out);
        }
        let Some(message) = self.parse((client, came_by), payload, out) else { return };
        if matches {
            return self.sessions.client_message(client, came_by, message, now, out);
        }
        match message.kind() {
            Kind::Request { id, .. } => {
                self.sessions.refuse(client, came_by, id, &Refusal::ClientIdMismatch, out);
            }
            _ => out.push(Action::Dropped { reason: Refusal::ClientIdMismatch.reason() }),
        }
    }

    /// Takes a batch apart, or none of it.
    fn batch(
        &mut self,
        (client, came_by): (&ClientId, LinkId),
        batch: Batch,
        size: usize,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let limit = self.setting.rules.max_message_bytes;
        let refusal = if size > limit {
            Refusal::TooLarge(size, limit)
        } else if batch.more {
            Refusal::BatchTooLong(MAX_BATCH)
        } else {
            for part in batch.parts {
                if let Some(message) = self.parse((client, came_by), &part, out) {
                    self.sessions.client_message(client, came_by, message, now, out);
                }
            }
            return;
        };
        out.push(Action::Dropped { reason: refusal.reason() });
        self.refuse_batch((client, came_by), batch, &refusal, out);
    }

    fn control(
        &mut self,
        (client, came_by): (ClientId, LinkId),
        payload: &Bytes,
        now: Instant,
        out: &mut Vec<Action>,
        open: impl FnOnce(SessionId, LinkId),
    ) {
        let Some(message) = self.parse((&client, came_by), payload, out) else { return };
        match message.kind() {
            Kind::Request { id, method } if &**method == "initialize" => {
                let via = self.sessions.place(client.as_str());
                let max_to_client = self.max_to_client(&client, via);
                let request = Initialize { id: id.clone(), message, client, via, max_to_client };
                self.sessions.initialize(request, now, out, |session| open(session, via));
            }
            // Before `initialize`, too, and of nobody's session: whether this instance lives.
            Kind::Request { id, method }
                if &**method == "ping" && self.sessions.of_client(client.as_str()).is_none() =>
            {
                let message = Message::result_of_parts(id, &["{}"]);
                out.push(Action::ToClient { via: came_by, client, message, owed: false });
            }
            Kind::Request { id, .. } => {
                self.sessions.refuse(&client, came_by, id, &Refusal::NotInitialize, out);
            }
            _ => out.push(Action::Dropped { reason: Refusal::NotInitialize.reason() }),
        }
    }

    /// A client leaves by `notifications/disconnected`, or by an empty presence.
    fn presence(
        &mut self,
        (client, came_by): (&str, LinkId),
        payload: Bytes,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Ok(client) = ClientId::new(client) else { return };
        if payload.is_empty() {
            return self.sessions.client_left(&client, came_by, now, out);
        }
        match Message::parse(payload, usize::MAX) {
            Ok(message) if message.method() == Some("notifications/disconnected") => {
                self.sessions.client_left(&client, came_by, now, out);
            }
            _ => out.push(Action::Dropped { reason: "unknown-client-presence" }),
        }
    }

    fn capability(
        &mut self,
        (client, came_by): (&str, LinkId),
        payload: Bytes,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Ok(client) = ClientId::new(client) else { return };
        match Message::parse(payload, self.setting.rules.max_message_bytes) {
            Ok(message) if message.method() == Some("notifications/roots/list_changed") => {
                // Also wanted by servers to which this client has not spoken yet.
                if self.sessions.of_client(client.as_str()).is_some() {
                    self.sessions.client_message(&client, came_by, message, now, out);
                }
            }
            _ => out.push(Action::Dropped { reason: "unknown-client-capability" }),
        }
    }

    /// A payload that is no message is answered where it has an id, and counted otherwise.
    fn parse(
        &mut self,
        (client, came_by): (&ClientId, LinkId),
        payload: &Bytes,
        out: &mut Vec<Action>,
    ) -> Option<Message> {
        // What is over our own limit is parsed all the same, up to the packet size that we announced: its
        // sender waits for an answer.
        match Message::parse(payload.clone(), usize::MAX) {
            Ok(message) => Some(message),
            Err(ParseError { kind, request_id }) => {
                out.push(Action::Dropped { reason: kind.reason() });
                if kind == ParseErrorKind::Batch {
                    if let Some(batch) = batch(payload) {
                        self.refuse_batch((client, came_by), batch, &Refusal::Malformed(kind), out);
                    }
                } else if let Some(id) = request_id {
                    let refusal = Refusal::Malformed(kind);
                    self.sessions.refuse(client, came_by, &id, &refusal, out);
                }
                None
            }
        }
    }

    /// An error for each request of a batch: nobody is to wait for an answer that will not come. Whoever sends more
    /// than may be in a batch hears it for the first ones.
    fn refuse_batch(
        &mut self,
        (client, came_by): (&ClientId, LinkId),
        batch: Batch,
        refusal: &Refusal,
        out: &mut Vec<Action>,
    ) {
        for part in batch.parts {
            let part = Message::parse(part, usize::MAX);
            if let Ok(Kind::Request { id, .. }) = part.as_ref().map(Message::kind) {
                self.sessions.refuse(client, came_by, id, refusal, out);
            }
        }
    }

    /// A publish on a client's RPC topic.
    pub fn to_client(&self, client: &ClientId, payload: Bytes) -> Publication {
        let topic = topic::rpc(client, &self.setting.server_id, &self.setting.server_name);
        self.publication(topic, payload)
    }

    /// A publish on the capability topic.
    pub fn to_all(&self, payload: Bytes) -> Publication {
        self.publication(self.capability_topic.clone(), payload)
    }

    /// The three subscriptions of a session.
    pub fn filters(&self, client: &ClientId) -> [Filter; 3] {
        let filter = |filter, no_local| Filter { filter, qos: self.setting.qos, no_local };
        [
            // Both ways use this one, so our own messages must not come back.
            filter(topic::rpc(client, &self.setting.server_id, &self.setting.server_name), true),
            filter(topic::client_presence(client), false),
            filter(topic::client_capability(client), false),
        ]
    }

    fn publication(&self, topic: String, payload: Bytes) -> Publication {
        let user_properties = self.properties.clone();
        Publication { topic, payload, qos: self.setting.qos, retain: false, user_properties }
    }

    /// The whole packet has to fit the broker's Maximum Packet Size, so the payload's limit depends on the length of the client's id.
    fn max_to_client(&self, client: &ClientId, via: LinkId) -> usize {
        let ours = self.setting.rules.max_message_bytes;
        let Some(max_packet) = self.max_packets[via.0] else { return ours };
        let without_payload = Publisher::packet_size(&self.to_client(client, Bytes::new()));
        ours.min((max_packet as usize).saturating_sub(without_payload + LENGTH_BYTES))
    }
}

/// A batch, when it is one and has any parts.
fn batch(payload: &Bytes) -> Option<Batch> {
    if !payload.trim_ascii_start().starts_with(b"[") {
        return None;
    }
    Batch::read(payload, MAX_BATCH).ok().filter(|batch| !batch.parts.is_empty())
}

#[cfg(test)]
mod tests;
