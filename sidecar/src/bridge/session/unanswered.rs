//! What cannot be passed on, and the error that whoever waits for it gets in its place.

use mcp_mqtt_transport::jsonrpc::{Kind, Message, RequestId};

use super::{Action, Asker, EndReason, Outcome, Refusal, Session, State, Turn, dropped, resolved};

impl Session {
    /// The client's messages to the backend found its queue full.
    pub fn backend_busy(&mut self, message: &Message, turn: &mut Turn<'_>) {
        match message.kind() {
            Kind::Request { id, .. } => {
                let id = id.clone();
                if let Some(pending) = self.from_client.complete(&id) {
                    resolved(Asker::Client, &pending, Outcome::Failed, turn);
                    self.tell(Refusal::BackendBusy.answer(&id), false, turn);
                }
                if matches!(&self.state, State::Opening { initialize, .. } if *initialize == id) {
                    self.end(EndReason::InitializeFailed, turn);
                }
                self.end_when_drained(turn);
            }
            // The server is not to wait for an answer that was given.
            Kind::Response { id: Some(id), .. }
                if message.error().is_none_or(|e| e.reason() != Some(Refusal::BackendBusy.reason())) =>
            {
                dropped("backend-busy", turn);
                self.to_backend(Refusal::BackendBusy.answer(id), turn);
            }
            // The server's own time-out has to deal with these.
            Kind::Notification { .. } | Kind::Response { .. } => dropped("backend-busy", turn),
        }
    }

    /// A message did not reach the client: the broker refused it. Whoever waits gets an error in its place; when that
    /// does not reach the client either, it cannot be told of anything any more, and the session is over.
    pub fn undelivered(&mut self, message: &Message, why: &str, turn: &mut Turn<'_>) {
        let refusal = Refusal::Undelivered(why.to_owned());
        match message.kind() {
            Kind::Response { .. }
                if message.error().is_some_and(|e| e.reason() == Some(refusal.reason())) =>
            {
                self.end(EndReason::Undeliverable(why.to_owned()), turn);
            }
            // The client may have used the id again, if it did not wait for the answer.
            Kind::Response { id: Some(id), .. } if !self.from_client.contains(id) => {
                self.tell_client(refusal.answer(id), turn);
                if *id == self.initialize {
                    self.end(EndReason::InitializeFailed, turn);
                }
            }
            Kind::Request { id, .. } => {
                if let Some(pending) = self.from_server.complete(id) {
                    resolved(Asker::Server, &pending, Outcome::Failed, turn);
                    self.to_backend(refusal.answer(id), turn);
                }
            }
            Kind::Response { .. } | Kind::Notification { .. } => {}
        }
    }

    /// A request in flight gets an error of ours in place of its answer; without its `initialize` a session is over.
    pub(super) fn fail(&mut self, id: &RequestId, refusal: &Refusal, turn: &mut Turn<'_>) {
        self.stir(turn);
        if !self.from_client.contains(id) {
            return dropped("unknown-answer-of-server", turn);
        }
        self.refuse(id, refusal, turn);
        if matches!(&self.state, State::Opening { initialize, .. } if initialize == id) {
            self.end(EndReason::InitializeFailed, turn);
        }
    }

    pub(super) fn refuse(&mut self, id: &RequestId, refusal: &Refusal, turn: &mut Turn<'_>) {
        if let Some(pending) = self.from_client.complete(id) {
            resolved(Asker::Client, &pending, Outcome::Failed, turn);
            self.tell_client(refusal.answer(id), turn);
        }
    }

    /// Whoever waits for it gets an error in its place: the asker for a request, the server for an answer.
    pub(super) fn too_large_from_client(&mut self, message: &Message, size: usize, turn: &mut Turn<'_>) {
        let refusal = Refusal::TooLarge(size, turn.rules.max_message_bytes);
        match message.kind() {
            Kind::Request { id, .. } if self.from_client.contains(id) => dropped("message-too-large", turn),
            Kind::Request { id, .. } => self.not_taken(id, &refusal, turn),
            Kind::Response { id: Some(id), .. } => match self.from_server.complete(id) {
                Some(pending) => {
                    resolved(Asker::Server, &pending, Outcome::Failed, turn);
                    self.to_backend(refusal.answer(id), turn);
                }
                None => dropped("unknown-answer-of-client", turn),
            },
            Kind::Notification { .. } | Kind::Response { id: None, .. } => dropped("message-too-large", turn),
        }
    }

    /// A request that was not taken gets its error.
    pub(super) fn not_taken(&mut self, id: &RequestId, refusal: &Refusal, turn: &mut Turn<'_>) {
        turn.out.push(Action::Refused { reason: refusal.reason() });
        self.tell(refusal.answer(id), false, turn);
    }
}
