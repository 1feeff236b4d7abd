//! All sessions of a gateway: who has one, how many there may be, whose deadline comes next. Without IO.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use mcp_mqtt_transport::{
    jsonrpc::{Kind, Message, RequestId},
    topic::ClientId,
};

use super::{
    action::{Action, EndReason},
    placement::{LinkId, Placement},
    refusal::Refusal,
    session::{Rules, Session, Turn},
};
use crate::backend::{FromBackend, SessionId};

/// A refused `initialize` is answered this late: one real client publishes it about 2 ms before the broker has taken
/// its subscription to the answer. (An accepted one takes three SUBACKs.)
pub const REFUSAL_DELAY: Duration = Duration::from_millis(20);
/// Refusals that may wait so; more are answered at once. Bounds what a flood of `initialize` can hold here.
const DELAYED_REFUSALS: usize = 1024;
/// Of a message that was meant for a session which its client had before.
const STALE: &str = "stale-connection";

/// What is asked for with [`Sessions::initialize`].
#[derive(Debug)]
pub struct Initialize {
    /// Who asks.
    pub client: ClientId,
    /// The connection that will carry the session: see [`Sessions::place`].
    pub via: LinkId,
    /// The request's id.
    pub id: RequestId,
    /// The request.
    pub message: Message,
    /// Largest payload that the broker takes on this client's RPC topic, in bytes.
    pub max_to_client: usize,
}

/// The session table.
#[derive(Debug)]
pub struct Sessions {
    rules: Rules,
    limit: u32,
    draining: bool,
    /// Why the MCP server takes no session; nothing when it does.
    backend_down: Option<String>,
    by_id: HashMap<SessionId, Entry>,
    by_client: HashMap<ClientId, SessionId>,
    /// One entry a session that waits for something: the earliest deadline, or an earlier time.
    deadlines: BTreeSet<(Instant, SessionId)>,
    delayed: VecDeque<(Instant, ClientId, Message)>,
    last_id: u64,
    in_flight: usize,
    placement: Placement,
}

#[derive(Debug)]
struct Entry {
    session: Session,
    armed: Option<Instant>,
}

impl Sessions {
    /// None yet, and at most `limit`; ids are given out after `last_id`. They spread over so many workers.
    pub fn new(rules: Rules, limit: u32, workers: usize, last_id: u64) -> Self {
        Self {
            rules,
            limit,
            draining: false,
            backend_down: Some("it was not asked yet".to_owned()),
            by_id: HashMap::new(),
            by_client: HashMap::new(),
            deadlines: BTreeSet::new(),
            delayed: VecDeque::new(),
            last_id,
            in_flight: 0,
            placement: Placement::new(workers),
        }
    }

    /// Sessions open or opening.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Client requests that wait for an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The session of a client.
    pub fn of_client(&self, client: &str) -> Option<SessionId> {
        self.by_client.get(client).copied()
    }

    /// The connection that carries the client's session, or will carry its next one.
    pub fn place(&self, client: &str) -> LinkId {
        self.link_of(client).unwrap_or_else(|| self.placement.place())
    }

    /// Whether the client's session is on another connection: what comes by this one, or was to go by it, belongs to a
    /// session that it had before.
    pub fn is_elsewhere(&self, client: &str, link: LinkId) -> bool {
        self.link_of(client).is_some_and(|via| via != link)
    }

    /// The connection that carries this session.
    pub fn via(&self, session: SessionId) -> Option<LinkId> {
        self.by_id.get(&session).map(|entry| entry.session.via())
    }

    fn session_of(&self, client: &str) -> Option<&Session> {
        self.by_id.get(&self.of_client(client)?).map(|entry| &entry.session)
    }

    fn link_of(&self, client: &str) -> Option<LinkId> {
        self.session_of(client).map(Session::via)
    }

    /// Whether what came by this connection was meant for a session that the client had before, though this one is
    /// carried by it. `initialize` comes by the registering connection, and may so overtake what its client said
    /// earlier to a worker; the broker's answer to the new session's subscriptions does not, as it comes by that
    /// worker too.
    fn is_late(&self, client: &str, came_by: LinkId) -> bool {
        came_by != LinkId::REGISTERING && self.session_of(client).is_some_and(Session::is_subscribing)
    }

    /// Sessions on a connection.
    pub fn on_link(&self, link: LinkId) -> usize {
        self.placement.sessions(link)
    }

    /// A worker's connection stands.
    pub fn link_up(&mut self, link: LinkId) {
        self.placement.set_standing(link, true);
    }

    /// A worker's connection is lost: its sessions end, and no others.
    pub fn link_lost(&mut self, link: LinkId, now: Instant, out: &mut Vec<Action>) {
        self.placement.set_standing(link, false);
        for session in self.ids() {
            if self.by_id.get(&session).is_some_and(|entry| entry.session.via() == link) {
                self.step(session, now, out, |session, turn| session.end(EndReason::ConnectionLost, turn));
            }
        }
    }

    /// Whether a client's session has agreed on the one revision with batches.
    pub fn takes_batches(&self, client: &ClientId) -> bool {
        self.session_of(client.as_str()).is_some_and(Session::takes_batches)
    }

    /// The last session id that was given out.
    pub fn last_id(&self) -> u64 {
        self.last_id
    }

    /// The MCP server takes sessions.
    pub fn backend_up(&mut self) {
        self.backend_down = None;
    }

    /// It takes none, and why: `initialize` is refused.
    pub fn backend_down(&mut self, why: &str) {
        self.backend_down = Some(why.to_owned());
    }

    /// `initialize` on the control topic. `open` opens the backend session, and is called only if there will be one;
    /// what a client had before is ended first.
    pub fn initialize(
        &mut self,
        request: Initialize,
        now: Instant,
        out: &mut Vec<Action>,
        open: impl FnOnce(SessionId),
    ) -> Option<SessionId> {
        let Initialize { client, via, id, message, max_to_client } = request;
        let old = self.of_client(client.as_str());
        let size = message.raw().len();
        let refusal = if self.draining {
            Some(Refusal::Draining)
        } else if let Some(why) = &self.backend_down {
            Some(Refusal::BackendDown(why.clone()))
        } else if size > self.rules.max_message_bytes {
            Some(Refusal::TooLarge(size, self.rules.max_message_bytes))
        } else if old.is_none() && self.by_id.len() >= self.limit as usize {
            Some(Refusal::MaxSessions(self.limit))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            out.push(Action::Refused { reason: refusal.reason() });
            // A session that the client has here stays: the refusal is about another one.
            self.delay(client, refusal.answer(&id), now, out);
            return None;
        }
        if let Some(old) = old {
            self.step(old, now, out, |session, turn| session.end(EndReason::Replaced(id.clone()), turn));
        }
        self.last_id += 1;
        let session_id = SessionId(self.last_id);
        open(session_id);
        let mut turn = Turn { now, rules: &self.rules, out };
        let session =
            Session::begin(session_id, (client.clone(), via), (id, message), max_to_client, &mut turn);
        self.placement.joined(via);
        self.in_flight += session.in_flight();
        self.by_client.insert(client, session_id);
        self.by_id.insert(session_id, Entry { session, armed: None });
        self.arm(session_id);
        Some(session_id)
    }

    /// A message of a client on its RPC topic, or on its capability topic, and the connection on which it came.
    pub fn client_message(
        &mut self,
        client: &ClientId,
        came_by: LinkId,
        message: Message,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if self.is_elsewhere(client.as_str(), came_by) {
            return out.push(Action::Dropped { reason: STALE });
        }
        if self.is_late(client.as_str(), came_by) {
            // Somebody may wait for an answer.
            return match message.kind() {
                Kind::Request { id, .. } => self.refuse(client, came_by, id, &Refusal::NotInitialized, out),
                _ => out.push(Action::Dropped { reason: STALE }),
            };
        }
        if let Some(session) = self.of_client(client.as_str()) {
            return self.step(session, now, out, |session, turn| session.client_message(message, turn));
        }
        match message.kind() {
            Kind::Request { id, .. } => {
                let refusal = if self.draining { Refusal::Draining } else { Refusal::NoSession };
                out.push(Action::Refused { reason: refusal.reason() });
                let message = refusal.answer(id);
                out.push(Action::ToClient { via: came_by, client: client.clone(), message, owed: false });
            }
            // Its session ended while this was on its way.
            Kind::Notification { method } if &**method == "notifications/disconnected" => {}
            Kind::Notification { .. } | Kind::Response { .. } => {
                out.push(Action::Dropped { reason: Refusal::NoSession.reason() });
            }
        }
    }

    /// An error for a request that was not taken. Not when the client waits for an answer to another request with
    /// this id: it would take the error for that.
    pub fn refuse(
        &mut self,
        client: &ClientId,
        came_by: LinkId,
        id: &RequestId,
        refusal: &Refusal,
        out: &mut Vec<Action>,
    ) {
        let session = self.session_of(client.as_str());
        if session.is_some_and(|session| session.has_in_flight(id)) {
            out.push(Action::Dropped { reason: refusal.reason() });
        } else {
            out.push(Action::Refused { reason: refusal.reason() });
            let via = session.map_or(came_by, Session::via);
            let message = refusal.answer(id);
            out.push(Action::ToClient { via, client: client.clone(), message, owed: false });
        }
    }

    /// The client left, as was heard on this connection.
    pub fn client_left(&mut self, client: &ClientId, came_by: LinkId, now: Instant, out: &mut Vec<Action>) {
        if self.is_elsewhere(client.as_str(), came_by) || self.is_late(client.as_str(), came_by) {
            out.push(Action::Dropped { reason: STALE });
        } else if let Some(session) = self.of_client(client.as_str()) {
            self.step(session, now, out, |session, turn| session.end(EndReason::ClientLeft, turn));
        }
    }

    /// The broker answered a session's subscriptions.
    pub fn subscribed(
        &mut self,
        session: SessionId,
        result: Result<(), String>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        self.step(session, now, out, |session, turn| session.subscribed(result, turn));
    }

    /// What a backend session reports.
    pub fn backend_event(
        &mut self,
        session: SessionId,
        event: FromBackend,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if self.by_id.contains_key(&session) {
            self.step(session, now, out, |session, turn| session.backend_event(event, turn));
        } else if matches!(event, FromBackend::Message(_)) {
            out.push(Action::Dropped { reason: "session-over" });
        }
    }

    /// A message did not reach a session's client.
    pub fn undelivered(
        &mut self,
        session: SessionId,
        message: &Message,
        why: &str,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        self.step(session, now, out, |session, turn| session.undelivered(message, why, turn));
    }

    /// A backend's queue was full for this message.
    pub fn backend_busy(
        &mut self,
        session: SessionId,
        message: &Message,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        self.step(session, now, out, |session, turn| session.backend_busy(message, turn));
    }

    /// When to call [`Sessions::expire`].
    pub fn next_deadline(&self) -> Option<Instant> {
        let session = self.deadlines.first().map(|(deadline, _)| *deadline);
        let delayed = self.delayed.front().map(|(due, ..)| *due);
        [session, delayed].into_iter().flatten().min()
    }

    /// Deals with all deadlines that have passed.
    pub fn expire(&mut self, now: Instant, out: &mut Vec<Action>) {
        while let Some((_, client, message)) = self.delayed.pop_front_if(|(due, ..)| *due <= now) {
            self.answer_initialize(client, message, out);
        }
        while let Some((deadline, session)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.pop_first();
            if let Some(entry) = self.by_id.get_mut(&session) {
                entry.armed = None;
            }
            self.step(session, now, out, Session::expire);
        }
    }

    /// Begins the drain: `initialize` is refused, idle sessions end, the others when nobody waits any more.
    pub fn drain(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.draining = true;
        for session in self.ids() {
            self.step(session, now, out, Session::drain);
        }
    }

    /// Ends all sessions, and answers what is delayed.
    pub fn end_all(&mut self, reason: &EndReason, now: Instant, out: &mut Vec<Action>) {
        if *reason == EndReason::BrokerLost {
            self.delayed.clear();
        }
        self.answer_delayed(out);
        for session in self.ids() {
            self.step(session, now, out, |session, turn| session.end(reason.clone(), turn));
        }
    }

    /// Answers what is delayed, without waiting any longer.
    pub fn answer_delayed(&mut self, out: &mut Vec<Action>) {
        for (_, client, message) in std::mem::take(&mut self.delayed) {
            self.answer_initialize(client, message, out);
        }
    }

    fn ids(&self) -> Vec<SessionId> {
        self.by_id.keys().copied().collect()
    }

    fn delay(&mut self, client: ClientId, answer: Message, now: Instant, out: &mut Vec<Action>) {
        if self.delayed.len() < DELAYED_REFUSALS {
            self.delayed.push_back((now + REFUSAL_DELAY, client, answer));
        } else {
            self.answer_initialize(client, answer, out);
        }
    }

    /// Meanwhile the client may have got a session.
    fn answer_initialize(&self, client: ClientId, message: Message, out: &mut Vec<Action>) {
        let via = self.link_of(client.as_str()).unwrap_or(LinkId::REGISTERING);
        out.push(Action::ToClient { via, client, message, owed: false });
    }

    /// One step of one session, and what follows from it for the table.
    fn step(
        &mut self,
        id: SessionId,
        now: Instant,
        out: &mut Vec<Action>,
        step: impl FnOnce(&mut Session, &mut Turn<'_>),
    ) {
        let Some(Entry { session, .. }) = self.by_id.get_mut(&id) else { return };
        self.in_flight -= session.in_flight();
        step(session, &mut Turn { now, rules: &self.rules, out });
        self.in_flight += session.in_flight();
        if session.is_over() {
            self.remove(id);
        } else {
            self.arm(id);
        }
    }

    fn remove(&mut self, id: SessionId) {
        let Some(Entry { session, armed }) = self.by_id.remove(&id) else { return };
        if let Some(armed) = armed {
            self.deadlines.remove(&(armed, id));
        }
        self.placement.left(session.via());
        self.by_client.remove(session.client()); // one that replaces it comes only now
    }

    /// Sees to it that the session is called at its deadline, or before: one that moved away is not followed, so
    /// that a call and its answer cost nothing here.
    fn arm(&mut self, id: SessionId) {
        let Some(entry) = self.by_id.get_mut(&id) else { return };
        let Some(deadline) = entry.session.next_deadline_before(entry.armed) else { return };
        if let Some(armed) = entry.armed.replace(deadline) {
            self.deadlines.remove(&(armed, id));
        }
        self.deadlines.insert((deadline, id));
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
