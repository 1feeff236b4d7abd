//! One MCP session as a state machine without IO: messages, events and a clock in, [`Action`]s out.
//!
//! ```text
//!            SUBACKs ∧ the server's result          end
//!  Opening ────────────────────────────────► Open ───────► Over
//!     └── refused, failed, timed out, client left ──────────┘
//! ```
//!
//! It answers each request of its client exactly once: with the server's answer or with an error of its own.

use std::time::{Duration, Instant};

use mcp_mqtt_transport::{
    jsonrpc::{Kind, Message, RequestId},
    topic::ClientId,
};

use super::{
    action::{Action, EndReason, Summary},
    in_flight::{InFlight, Pending, Refused},
    placement::LinkId,
    refusal::Refusal,
    request::{Asker, Outcome},
};
use crate::{
    backend::{FromBackend, SessionId},
    config::Timeouts,
    traces::{Sampler, Span},
};

/// The only revision of MCP with batches: whoever speaks it must take them.
const WITH_BATCHES: &str = "2025-03-26";

/// How long a client may be silent after its `initialize` result, to which it owes `notifications/initialized`
/// (MCP, lifecycle) and sends it at once. One that died before the broker had our subscription to its presence never
/// does, and nothing else would tell of it.
const INITIALIZED_WITHIN: Duration = Duration::from_mins(1);

/// What all sessions have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Time-outs of requests, either way.
    pub timeouts: Timeouts,
    /// Requests in flight per session and direction.
    pub max_in_flight: usize,
    /// Largest message of a client, in bytes.
    pub max_message_bytes: usize,
    /// How long nothing may be said in a session whose client waits for nothing.
    pub idle_timeout: Option<Duration>,
    /// Which requests of clients get a span; none where nobody wants traces.
    pub sampler: Option<Sampler>,
}

/// What a session needs for one step.
#[derive(Debug)]
pub struct Turn<'a> {
    /// The time.
    pub now: Instant,
    /// What holds for all.
    pub rules: &'a Rules,
    /// Where the actions go.
    pub out: &'a mut Vec<Action>,
}

/// A session; see the module.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    client: ClientId,
    /// The connection that carries it, from its first message to its last.
    via: LinkId,
    /// The request that began it.
    initialize: RequestId,
    /// Largest payload that may go to the client, in bytes: our own limit or the broker's.
    max_to_client: usize,
    state: State,
    /// The revision agreed on is [`WITH_BATCHES`].
    batches: bool,
    /// End as soon as nobody waits; until then take nothing new.
    draining: bool,
    from_client: InFlight,
    from_server: InFlight,
    began: Instant,
    /// When it ends unless its client has said something before; none when it has.
    initialized_by: Option<Instant>,
    /// When it ends unless something is said before, or its client waits then.
    idle_at: Option<Instant>,
    /// But for the time that it lasted.
    summary: Summary,
}

#[derive(Debug)]
enum State {
    /// `initialize` went to the server and the three subscriptions to the broker; both must answer.
    Opening { initialize: RequestId, subscribed: bool, answer: Option<Message> },
    /// The client has its `initialize` result.
    Open,
    /// Nothing more comes of it.
    Over,
}

impl Session {
    /// Begins a session with an `initialize` request. The caller has opened its backend session.
    pub fn begin(
        id: SessionId,
        (client, via): (ClientId, LinkId),
        initialize: (RequestId, Message),
        max_to_client: usize,
        turn: &mut Turn<'_>,
    ) -> Self {
        let (request_id, message) = initialize;
        let summary =
            Summary { requests: 1, received_bytes: message.raw().len() as u64, ..Summary::default() };
        let mut from_client = InFlight::new(turn.rules.max_in_flight);
        from_client
            .take(&request_id, &message, &turn.rules.timeouts, turn.now)
            .expect("the first of a session: no id is in flight, and the limit is not 0");
        turn.out.push(Action::Subscribe { via, session: id, client: client.clone() });
        let mut session = Self {
            id,
            client,
            via,
            max_to_client,
            initialize: request_id.clone(),
            state: State::Opening { initialize: request_id, subscribed: false, answer: None },
            batches: false,
            draining: false,
            from_client,
            from_server: InFlight::new(turn.rules.max_in_flight),
            began: turn.now,
            initialized_by: None,
            idle_at: None,
            summary,
        };
        let message = session.traced(message, turn);
        session.to_backend(message, turn);
        session
    }

    /// Whose it is.
    pub fn client(&self) -> &ClientId {
        &self.client
    }

    /// The connection that carries it.
    pub fn via(&self) -> LinkId {
        self.via
    }

    /// Client requests that wait for an answer.
    pub fn in_flight(&self) -> usize {
        self.from_client.waiting()
    }

    /// Whether a client request with this id is in flight.
    pub fn has_in_flight(&self, id: &RequestId) -> bool {
        self.from_client.contains(id)
    }

    /// Whether the broker has not yet answered its subscriptions: on a connection that carries only sessions, what
    /// comes until then was published before its `initialize`.
    pub fn is_subscribing(&self) -> bool {
        matches!(self.state, State::Opening { subscribed: false, .. })
    }

    /// Whether its client may send batches.
    pub fn takes_batches(&self) -> bool {
        self.batches
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// When to call [`Session::expire`].
    pub fn next_deadline(&self) -> Option<Instant> {
        let idle_at = self.idle_at.filter(|_| self.may_be_idle());
        [self.from_client.next_deadline(), self.from_server.next_deadline(), self.initialized_by, idle_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// The same, if it comes before a call that is arranged already.
    pub fn next_deadline_before(&self, arranged: Option<Instant>) -> Option<Instant> {
        self.next_deadline().filter(|deadline| arranged.is_none_or(|arranged| *deadline < arranged))
    }

    /// The broker answered the three subscriptions.
    pub fn subscribed(&mut self, result: Result<(), String>, turn: &mut Turn<'_>) {
        let State::Opening { initialize, subscribed, .. } = &mut self.state else { return };
        match result {
            Ok(()) => {
                *subscribed = true;
                self.open_when_complete(turn);
            }
            Err(detail) => {
                let initialize = initialize.clone();
                self.refuse(&initialize, &Refusal::Subscription(detail), turn);
                self.end(EndReason::SubscriptionRefused, turn);
            }
        }
    }

    /// A message of the client on the RPC topic (or `notifications/roots/list_changed` on its capability topic).
    pub fn client_message(&mut self, message: Message, turn: &mut Turn<'_>) {
        let size = message.raw().len();
        self.summary.received_bytes += size as u64;
        self.summary.requests += u64::from(matches!(message.kind(), Kind::Request { .. }));
        self.initialized_by = None;
        self.stir(turn);
        if size > turn.rules.max_message_bytes {
            return self.too_large_from_client(&message, size, turn);
        }
        match message.kind() {
            Kind::Request { id, method } => {
                let refusal = match (&self.state, &**method) {
                    (_, "initialize") => Some(Refusal::InitializeOnRpc),
                    (State::Opening { .. }, method) if method != "ping" => Some(Refusal::NotInitialized),
                    _ if self.draining => Some(Refusal::Draining),
                    _ => match self.from_client.take(id, &message, &turn.rules.timeouts, turn.now) {
                        Ok(()) => None,
                        Err(Refused::DuplicateId) => Some(Refusal::DuplicateId),
                        Err(Refused::TooMany) => Some(Refusal::TooManyInFlight(turn.rules.max_in_flight)),
                    },
                };
                if let Some(refusal) = refusal {
                    self.not_taken(id, &refusal, turn);
                } else {
                    let message = self.traced(message, turn);
                    self.to_backend(message, turn);
                }
            }
            Kind::Notification { method } => match &**method {
                "notifications/disconnected" => self.end(EndReason::ClientLeft, turn),
                _ if matches!(self.state, State::Opening { .. }) => dropped("not-initialized", turn),
                "notifications/cancelled" => {
                    // For a request that is no longer in flight it crossed the answer: nothing is left to cancel.
                    if message.cancelled_request().is_some_and(|id| self.from_client.cancel(&id, turn.now)) {
                        self.to_backend(message, turn);
                        self.end_when_drained(turn);
                    } else {
                        dropped("unknown-request-cancelled", turn);
                    }
                }
                "notifications/progress" => {
                    self.from_server.progress(&message, turn.now);
                    self.to_backend(message, turn);
                }
                _ => self.to_backend(message, turn),
            },
            Kind::Response { id, is_error } => {
                let Some(pending) = id.as_ref().and_then(|id| self.from_server.complete(id)) else {
                    return dropped("unknown-answer-of-client", turn);
                };
                resolved(Asker::Server, &pending, outcome(*is_error), turn);
                self.to_backend(message, turn);
            }
        }
    }

    /// What the backend session reports.
    pub fn backend_event(&mut self, event: FromBackend, turn: &mut Turn<'_>) {
        match event {
            FromBackend::Message(message) => self.server_message(message, turn),
            FromBackend::RequestFailed { id, reason, detail } => {
                self.fail(&id, &Refusal::Backend(reason, detail), turn);
            }
            FromBackend::Malformed { .. } => dropped("malformed-from-server", turn),
            FromBackend::Ended(end) => self.end(EndReason::Backend(end), turn),
        }
        self.end_when_drained(turn);
    }

    fn server_message(&mut self, message: Message, turn: &mut Turn<'_>) {
        // Some servers ping all the time, and give up, and that does not tell whether the client is there.
        if !matches!(message.method(), Some("ping" | "notifications/cancelled")) {
            self.stir(turn);
        }
        let size = message.raw().len();
        let too_large = (size > self.max_to_client).then_some(Refusal::TooLarge(size, self.max_to_client));
        match message.kind() {
            Kind::Response { id, is_error } => {
                let Some(id) = id.clone() else { return dropped("server-error-without-id", turn) };
                if let Some(refusal) = too_large {
                    return self.fail(&id, &refusal, turn);
                }
                if let State::Opening { initialize, answer, .. } = &mut self.state
                    && *initialize == id
                {
                    if answer.is_some() {
                        return dropped("unknown-answer-of-server", turn);
                    }
                    *answer = Some(message);
                    return self.open_when_complete(turn);
                }
                match self.from_client.complete(&id) {
                    Some(pending) => {
                        resolved(Asker::Client, &pending, outcome(*is_error), turn);
                        self.tell_client(message, turn);
                    }
                    None => dropped("unknown-answer-of-server", turn),
                }
            }
            Kind::Request { id, method } => {
                let refusal = match (too_large, &self.state) {
                    (Some(refusal), _) => Some(refusal),
                    // Before that the client may not even be listening. The server may ping nevertheless (MCP, lifecycle).
                    (None, State::Opening { .. }) if &**method == "ping" => {
                        return self.to_backend(Message::result_of_parts(id, &["{}"]), turn);
                    }
                    (None, State::Opening { .. }) => Some(Refusal::NotInitialized),
                    (None, _) => match self.from_server.take(id, &message, &turn.rules.timeouts, turn.now) {
                        Ok(()) => None,
                        Err(Refused::DuplicateId) => Some(Refusal::DuplicateId),
                        Err(Refused::TooMany) => Some(Refusal::TooManyInFlight(turn.rules.max_in_flight)),
                    },
                };
                match refusal {
                    Some(refusal) => self.to_backend(refusal.answer(id), turn),
                    None => self.tell_client(message, turn),
                }
            }
            Kind::Notification { method } => {
                let opening = matches!(self.state, State::Opening { .. });
                match &**method {
                    _ if too_large.is_some() => return dropped("message-too-large", turn),
                    // Before `initialized` a server sends nothing but pings and logging (MCP, lifecycle).
                    other if opening && other != "notifications/message" => {
                        return dropped("not-initialized", turn);
                    }
                    "notifications/tools/list_changed"
                    | "notifications/prompts/list_changed"
                    | "notifications/resources/list_changed"
                    | "notifications/resources/updated" => {
                        return turn.out.push(Action::Broadcast { message });
                    }
                    "notifications/progress" => self.from_client.progress(&message, turn.now),
                    "notifications/cancelled" => {
                        if let Some(pending) =
                            message.cancelled_request().and_then(|id| self.from_server.complete(&id))
                        {
                            resolved(Asker::Server, &pending, Outcome::Abandoned, turn);
                        }
                    }
                    _ => {}
                }
                self.tell_client(message, turn);
            }
        }
    }

    /// A request in flight as the server is to get it: with its span for a parent, if it has one.
    fn traced(&mut self, request: Message, turn: &Turn<'_>) -> Message {
        let Some(sampler) = turn.rules.sampler else { return request };
        match (request.id(), Span::begin(sampler, &request, &self.client, self.id)) {
            (Some(id), Some((span, message))) => {
                self.from_client.attach(id, span);
                message
            }
            _ => request,
        }
    }

    /// The `initialize` result goes out only after the SUBACK of the three subscriptions.
    fn open_when_complete(&mut self, turn: &mut Turn<'_>) {
        let State::Opening { initialize, subscribed: true, answer } = &mut self.state else { return };
        let Some(answer) = answer.take() else { return };
        let is_error = matches!(answer.kind(), Kind::Response { is_error: true, .. });
        if let Some(pending) = self.from_client.complete(initialize) {
            resolved(Asker::Client, &pending, outcome(is_error), turn);
        }
        let batches = answer.protocol_version().as_deref() == Some(WITH_BATCHES);
        self.tell_client(answer, turn);
        if is_error {
            return self.end(EndReason::InitializeFailed, turn);
        }
        self.batches = batches;
        self.state = State::Open;
        self.initialized_by = Some(turn.now + INITIALIZED_WITHIN);
        turn.out.push(Action::Opened { session: self.id, client: self.client.clone() });
        self.end_when_drained(turn);
    }

    fn tell_client(&mut self, message: Message, turn: &mut Turn<'_>) {
        self.tell(message, true, turn);
    }

    fn tell(&mut self, message: Message, owed: bool, turn: &mut Turn<'_>) {
        self.summary.sent_bytes += message.raw().len() as u64;
        let is_error = matches!(message.kind(), Kind::Response { is_error: true, .. });
        self.summary.errors += u64::from(is_error);
        turn.out.push(Action::ToClient { via: self.via, client: self.client.clone(), message, owed });
    }

    fn to_backend(&self, message: Message, turn: &mut Turn<'_>) {
        turn.out.push(Action::ToBackend { session: self.id, message });
    }
}

fn outcome(is_error: bool) -> Outcome {
    if is_error { Outcome::Error } else { Outcome::Ok }
}

fn dropped(reason: &'static str, turn: &mut Turn<'_>) {
    turn.out.push(Action::Dropped { reason });
}

fn resolved(asker: Asker, pending: &Pending, outcome: Outcome, turn: &mut Turn<'_>) {
    let elapsed = turn.now.saturating_duration_since(pending.started);
    let span = pending.span.clone();
    turn.out.push(Action::Resolved { asker, method: pending.method, outcome, elapsed, span });
}

mod ending;
#[cfg(test)]
mod tests;
mod unanswered;
