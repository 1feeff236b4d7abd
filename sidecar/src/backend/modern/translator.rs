//! One session of a client that begins with `initialize`, in front of a server of 2026-07-28. Without IO: messages of
//! both sides and a clock in, [`Action`]s out.
//!
//! | the client says | the server hears |
//! |---|---|
//! | `initialize` | `server/discover`, whose result becomes the one of `initialize` |
//! | `ping`, `logging/setLevel` | nothing: answered here; the level goes with every request from then on |
//! | `resources/subscribe`, `…/unsubscribe` | one `subscriptions/listen` for all |
//! | any other request | the same, with the envelope in `params._meta` |
//! | an answer to what the server asked | the call that asked, again, with the answers |
//! | `notifications/cancelled` | the same, for the id under which the request stands there |
//! | any other notification | nothing: there is no counterpart |

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use mcp_mqtt_transport::jsonrpc::{Kind, Message, RequestId, code};

use super::{
    Action, Ids, MODERN_REVISION,
    client::{Client, Opening},
    envelope::MAX_IN_EACH,
    members::{member, string},
    reason,
    result::{self, Answer},
    rounds::{Impossible, MAX_ROUNDS, Round},
    subscriptions::{LISTEN, SUBSCRIPTION_ID, Step, Subscriptions, without_subscription},
};
use crate::backend::{FromBackend, failure, send_quota::Reserved};

/// Pause before a call is repeated of which the server wants nothing but that: what the official SDKs make.
const REPEAT_PAUSE: Duration = Duration::from_millis(250);

/// See the module.
#[derive(Debug)]
pub(super) struct Translator {
    ids: Ids,
    client: Client,
    calls: HashMap<RequestId, Call>,
    /// Repeated calls by the id under which the server has them, and questions by the id under which the client
    /// has them: whose call they are of.
    calls_of: HashMap<RequestId, RequestId>,
    subscriptions: Subscriptions,
}

/// A request of the client in flight.
#[derive(Debug)]
struct Call {
    /// As it came, or as the server first got it: what is repeated of it is the same.
    request: Message,
    /// The room of a large one.
    _reserved: Option<Reserved>,
    rounds: u32,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The server has it, under this id.
    AtServer(RequestId),
    /// The client is asked.
    Asking(Round),
    /// It is about to be repeated.
    Pausing(Round, Instant),
}

impl Translator {
    pub(super) fn new() -> Self {
        Self {
            ids: Ids::default(),
            client: Client::default(),
            calls: HashMap::new(),
            calls_of: HashMap::new(),
            subscriptions: Subscriptions::new([false; 3]),
        }
    }

    /// A message of the client. `reserved`: the room of a large one, to be kept as long as the message.
    pub(super) fn client_message(
        &mut self,
        message: Message,
        reserved: Option<Reserved>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        match message.kind() {
            Kind::Request { .. } => self.request(message, reserved, now, out),
            Kind::Notification { method } => match &**method {
                "notifications/initialized" if matches!(self.client.opening, Opening::Open) => {
                    self.subscribing(now, out, Subscriptions::begin);
                }
                "notifications/cancelled" => {
                    if let Some(id) = message.cancelled_request() {
                        self.cancel(&id, out);
                    }
                }
                other => tracing::debug!(method = other, "has no counterpart in {MODERN_REVISION}"),
            },
            Kind::Response { .. } => self.input(message, reserved, out),
        }
    }

    /// What the transport reports of the server; not its end.
    pub(super) fn server_event(&mut self, event: FromBackend, now: Instant, out: &mut Vec<Action>) {
        match event {
            FromBackend::Message(message) => match message.kind() {
                Kind::Response { id: Some(_), .. } => self.response(message, now, out),
                Kind::Notification { .. } => self.notification(message, now, out),
                Kind::Request { method, .. } => {
                    let detail =
                        format!("the server sent a request (`{method}`), which {MODERN_REVISION} has not");
                    out.push(Action::ToClient(FromBackend::Malformed { detail }));
                }
                Kind::Response { id: None, .. } => out.push(Action::ToClient(FromBackend::Message(message))),
            },
            FromBackend::RequestFailed { id, reason, detail } => {
                self.unanswered(&id, (reason, detail), false, now, out);
            }
            other @ (FromBackend::Malformed { .. } | FromBackend::Ended(_)) => {
                out.push(Action::ToClient(other));
            }
        }
    }

    /// When to call [`Translator::expire`].
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let pauses = self.calls.values().filter_map(|call| match call.stage {
            Stage::Pausing(_, until) => Some(until),
            _ => None,
        });
        pauses.chain(self.subscriptions.next_deadline()).min()
    }

    /// Does what is due.
    pub(super) fn expire(&mut self, now: Instant, out: &mut Vec<Action>) {
        let due = |call: &Call| matches!(call.stage, Stage::Pausing(_, until) if until <= now);
        let due: Vec<RequestId> =
            self.calls.iter().filter(|(_, call)| due(call)).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.repeat(&id, out);
        }
        self.subscribing(now, out, Subscriptions::expire);
    }

    fn request(&mut self, message: Message, reserved: Option<Reserved>, now: Instant, out: &mut Vec<Action>) {
        let Kind::Request { id, method } = message.kind() else { return };
        let id = id.clone();
        let params = message.params();
        let mut refuse = |code, what: &str, reason| {
            out.push(Action::to_client(Message::error_response(&id, code, what, reason)));
        };
        if Ids::are_like(&id) || self.calls.contains_key(&id) {
            return refuse(code::INVALID_REQUEST, "a request with this id is in flight", "duplicate-id");
        }
        if params.is_some_and(|params| !params.starts_with('{')) {
            return refuse(code::INVALID_PARAMS, "params are not an object", "wrong-params");
        }
        let is_open = matches!(self.client.opening, Opening::Open);
        match &**method {
            "ping" => out.push(Action::to_client(Message::result_of_parts(&id, &["{}"]))),
            "initialize" if matches!(self.client.opening, Opening::Not) => self.initialize(&message, out),
            "initialize" => refuse(code::INVALID_REQUEST, "initialize comes once", "duplicate-initialize"),
            _ if !is_open => refuse(code::INVALID_REQUEST, "initialize comes first", "not-initialized"),
            "logging/setLevel" if self.client.can_log => {
                let level = params.and_then(|params| member(params, "level")).and_then(string);
                if self.client.envelope.set_log_level(level.as_deref().unwrap_or_default()) {
                    out.push(Action::to_client(Message::result_of_parts(&id, &["{}"])));
                } else {
                    refuse(code::INVALID_PARAMS, "there is no such log level", "wrong-log-level");
                }
            }
            "resources/subscribe" | "resources/unsubscribe" if self.client.can_subscribe => {
                let uri = params.and_then(|params| member(params, "uri")).and_then(string);
                let Some(uri) = uri.map(std::borrow::Cow::into_owned) else {
                    return refuse(code::INVALID_PARAMS, "`uri` is missing", "wrong-params");
                };
                let wanted = &**method == "resources/subscribe";
                self.subscribing(now, out, |subscriptions, step| {
                    if wanted {
                        subscriptions.subscribe(id, uri, step);
                    } else {
                        subscriptions.unsubscribe(&id, &uri, step);
                    }
                });
            }
            // The methods of 2026-07-28 itself are the gateway's to use; tasks of 2025-11-25 are another protocol.
            "logging/setLevel"
            | "resources/subscribe"
            | "resources/unsubscribe"
            | "server/discover"
            | LISTEN
            | "tasks/get"
            | "tasks/result"
            | "tasks/list"
            | "tasks/cancel" => {
                let what =
                    format!("`{method}` cannot be had of this server, which speaks only {MODERN_REVISION}");
                refuse(code::METHOD_NOT_FOUND, &what, reason::NO_COUNTERPART);
            }
            method => {
                let request = self.client.envelope.request(&id, method, params, &[]);
                // There is to be one copy of what is large.
                let kept = if reserved.is_some() { request.clone() } else { message };
                out.push(Action::ToServer(request));
                let stage = Stage::AtServer(id.clone());
                self.calls.insert(id, Call { request: kept, _reserved: reserved, rounds: 0, stage });
            }
        }
    }

    fn initialize(&mut self, message: &Message, out: &mut Vec<Action>) {
        let Some(id) = message.id() else { return };
        let params = message.params().unwrap_or("{}");
        if member(params, "capabilities").is_some_and(|declared| declared.len() > MAX_IN_EACH) {
            let what = format!("`capabilities` are over {MAX_IN_EACH} bytes, and each request carries them");
            let refused = Message::error_response(id, code::INVALID_PARAMS, &what, "wrong-params");
            return out.push(Action::to_client(refused));
        }
        self.client = Client::begin(id, params);
        out.push(Action::ToServer(self.client.envelope.request(id, "server/discover", None, &[])));
    }

    /// The result of `server/discover` becomes the one of `initialize`.
    fn discovered(&mut self, id: &RequestId, result: &str, out: &mut Vec<Action>) {
        match self.client.discovered(result) {
            Ok(lists) => {
                self.subscriptions = Subscriptions::new(lists);
                out.push(Action::to_client(self.client.initialize_result(id, result)));
            }
            Err(versions) => {
                let detail = format!("the server does not speak {MODERN_REVISION}; it speaks {versions}");
                out.push(Action::RevisionChanged);
                fail(id, (reason::REVISION_REFUSED, detail), out);
            }
        }
    }

    fn response(&mut self, message: Message, now: Instant, out: &mut Vec<Action>) {
        let Some(wire_id) = message.id().cloned() else { return };
        let wire_id = &wire_id;
        if let Some(error) = message.error() {
            let unknown = result::unknown_error(&error);
            // Every server of the revision has `server/discover`.
            if error.code == result::UNSUPPORTED_VERSION || self.client.is_discovering(wire_id) {
                out.push(Action::RevisionChanged);
            }
            if self.subscriptions.owns(wire_id) {
                let said = unknown.unwrap_or_else(|| {
                    (
                        reason::SUBSCRIPTION_NOT_HONORED,
                        format!("the server refused the subscription: {error}"),
                    )
                });
                return self.unanswered(wire_id, said, error.code == code::METHOD_NOT_FOUND, now, out);
            }
            return match (unknown, self.complete(wire_id)) {
                (Some(failed), Some(id)) => fail(&id, failed, out),
                (None, Some(id)) if id == *wire_id => out.push(Action::to_client(message)),
                (None, Some(id)) => out.push(Action::to_client(Message::error_of(&id, &error))),
                (_, None) => unknown_answer(wire_id),
            };
        }
        let Some(said) = message.result() else { return };
        if self.client.is_discovering(wire_id) {
            return self.discovered(wire_id, said, out);
        }
        if self.subscriptions.owns(wire_id) {
            return self.subscribing(now, out, |subscriptions, step| {
                subscriptions.ended(wire_id, None, false, step);
            });
        }
        let Some(id) = self.caller(wire_id) else { return unknown_answer(wire_id) };
        let Some(call) = self.calls.get(&id) else { return unknown_answer(wire_id) };
        match result::read(call.request.method().unwrap_or_default(), said) {
            Answer::AsItIs if id == *wire_id => out.push(Action::to_client(message)),
            Answer::AsItIs => out.push(Action::to_client(Message::result_of_parts(&id, &[said]))),
            Answer::Result(parts) => {
                let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
                out.push(Action::to_client(Message::result_of_parts(&id, &parts)));
            }
            Answer::InputRequired { requests, state } => {
                self.calls_of.remove(wire_id);
                return self.ask(&id, requests, state, now, out);
            }
            Answer::Unknown(kind) => {
                let detail =
                    format!("the server answered a result of type {kind}, which {MODERN_REVISION} has not");
                fail(&id, (failure::BAD_ANSWER, detail), out);
            }
        }
        self.complete(wire_id);
    }

    /// The server wants to know more before it answers this call.
    fn ask(
        &mut self,
        id: &RequestId,
        requests: Option<&str>,
        state: Option<&str>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Some(call) = self.calls.get_mut(id) else { return };
        call.rounds += 1;
        let begun = if call.rounds > MAX_ROUNDS {
            let detail = format!("the server asked for input {MAX_ROUNDS} times and wants more");
            Err((reason::TOO_MANY_ROUNDS, detail))
        } else {
            Round::begin(requests, state, &self.client.asking, &mut self.ids)
        };
        match begun {
            Err(failed) => {
                self.calls.remove(id);
                fail(id, failed, out);
            }
            Ok((round, _)) if round.is_complete() => call.stage = Stage::Pausing(round, now + REPEAT_PAUSE),
            Ok((round, questions)) => {
                for question in questions {
                    self.calls_of.extend(question.id().cloned().map(|question| (question, id.clone())));
                    out.push(Action::to_client(question));
                }
                call.stage = Stage::Asking(round);
            }
        }
    }

    /// An answer of the client to what the server asked; an error is how one that it never gives ends.
    fn input(&mut self, message: Message, reserved: Option<Reserved>, out: &mut Vec<Action>) {
        let Some(id) = message.id().and_then(|question| self.calls_of.remove(question)) else {
            return tracing::debug!("an answer to nothing that was asked");
        };
        let Some(Call { stage: Stage::Asking(round), .. }) = self.calls.get_mut(&id) else { return };
        match round.answer(message, reserved) {
            Ok(false) => {}
            Ok(true) => self.repeat(&id, out),
            Err(failed) => {
                self.give_up(&id, "another question was refused", out);
                fail(&id, failed, out);
            }
        }
    }

    /// Calls the server again with what its client answered.
    fn repeat(&mut self, id: &RequestId, out: &mut Vec<Action>) {
        let Some(call) = self.calls.get_mut(id) else { return };
        let (Stage::Asking(round) | Stage::Pausing(round, _)) = &call.stage else { return };
        let wire_id = self.ids.next(); // each round is a request of its own
        let more = round.members();
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let method = call.request.method().unwrap_or_default();
        let request = self.client.envelope.request(&wire_id, method, call.request.params(), &more);
        out.push(Action::ToServer(request));
        call.stage = Stage::AtServer(wire_id.clone());
        self.calls_of.insert(wire_id, id.clone());
    }

    /// The client no longer wants an answer.
    fn cancel(&mut self, id: &RequestId, out: &mut Vec<Action>) {
        if self.subscriptions.forget(id) {
            return;
        }
        if let Some(Stage::AtServer(wire_id)) = self.give_up(id, "the call was cancelled", out) {
            out.push(Action::ToServer(Message::cancelled(&wire_id, "cancelled by the client")));
        }
    }

    /// Forgets a call, and what its client is asked for it.
    fn give_up(&mut self, id: &RequestId, why: &str, out: &mut Vec<Action>) -> Option<Stage> {
        let call = self.calls.remove(id)?;
        match &call.stage {
            Stage::AtServer(wire_id) => drop(self.calls_of.remove(wire_id)),
            Stage::Asking(round) => {
                for question in round.open() {
                    self.calls_of.remove(question);
                    out.push(Action::to_client(Message::cancelled(question, why)));
                }
            }
            Stage::Pausing(..) => {}
        }
        Some(call.stage)
    }

    /// A request that gets no answer of the server.
    fn unanswered(
        &mut self,
        wire_id: &RequestId,
        failed: Impossible,
        for_good: bool,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if self.subscriptions.owns(wire_id) {
            return self.subscribing(now, out, |subscriptions, step| {
                subscriptions.ended(wire_id, Some(failed), for_good, step);
            });
        }
        // A connection that broke says nothing of the revision. A status without an error of MCP may: older servers
        // refuse so what they do not know.
        if self.client.is_discovering(wire_id) && failed.0 != failure::CONNECTION_BROKEN {
            out.push(Action::RevisionChanged);
        }
        if let Some(id) = self.complete(wire_id) {
            fail(&id, failed, out);
        } else {
            unknown_answer(wire_id);
        }
    }

    fn notification(&mut self, message: Message, now: Instant, out: &mut Vec<Action>) {
        let (method, params) = (message.method().unwrap_or_default(), message.params().unwrap_or_default());
        let subscription = || {
            let id = member(member(params, "_meta")?, SUBSCRIPTION_ID)?;
            RequestId::from_json(id).ok()
        };
        match method {
            "notifications/subscriptions/acknowledged" => {
                if let Some(id) = subscription() {
                    self.subscribing(now, out, |subscriptions, step| {
                        subscriptions.acknowledged(&id, params, step);
                    });
                }
            }
            // Servers cancel nothing but these.
            "notifications/cancelled" => {
                if let Some(id) = message.cancelled_request().filter(|id| self.subscriptions.owns(id)) {
                    self.subscribing(now, out, |subscriptions, step| {
                        subscriptions.ended(&id, None, false, step);
                    });
                }
            }
            "notifications/tools/list_changed"
            | "notifications/prompts/list_changed"
            | "notifications/resources/list_changed"
            | "notifications/resources/updated" => match subscription() {
                Some(id) if self.subscriptions.owns(&id) => {
                    out.push(Action::to_client(without_subscription(method, params)));
                }
                Some(id) => tracing::debug!(%id, "{method} of a subscription that is over"),
                None => out.push(Action::to_client(message)),
            },
            _ => out.push(Action::to_client(message)),
        }
    }

    /// Whose request this is; nothing when nobody waits for it.
    fn caller(&self, wire_id: &RequestId) -> Option<RequestId> {
        if let Some(id) = self.calls_of.get(wire_id) {
            return Some(id.clone());
        }
        let call = self.calls.get(wire_id)?;
        matches!(&call.stage, Stage::AtServer(id) if id == wire_id).then(|| wire_id.clone())
    }

    /// The request is over: the id that its client gave it.
    fn complete(&mut self, wire_id: &RequestId) -> Option<RequestId> {
        if self.client.is_discovering(wire_id) {
            self.client.opening = Opening::Not;
            return Some(wire_id.clone());
        }
        let id = self.caller(wire_id)?;
        self.calls_of.remove(wire_id);
        self.calls.remove(&id);
        Some(id)
    }

    fn subscribing<'a>(
        &'a mut self,
        now: Instant,
        out: &'a mut Vec<Action>,
        step: impl FnOnce(&mut Subscriptions, &mut Step<'a>),
    ) {
        let mut turn = Step { now, envelope: &self.client.envelope, ids: &mut self.ids, out };
        step(&mut self.subscriptions, &mut turn);
    }
}

fn fail(id: &RequestId, (reason, detail): Impossible, out: &mut Vec<Action>) {
    out.push(Action::ToClient(FromBackend::RequestFailed { id: id.clone(), reason, detail }));
}

fn unknown_answer(id: &RequestId) {
    tracing::debug!(%id, "an answer to nothing that waits: cancelled meanwhile, or never asked");
}

#[cfg(test)]
mod tests;
