//! How a session comes to its end: deadlines, silence, the drain, and what everybody is told then.

use mcp_mqtt_transport::jsonrpc::Message;

use super::{Action, Asker, EndReason, Outcome, Refusal, Session, State, Summary, Turn, resolved};
use crate::bridge::in_flight::Expired;

impl Session {
    /// Deals with the deadlines that have passed.
    pub fn expire(&mut self, turn: &mut Turn<'_>) {
        let mut initialize_failed = false;
        for expired in self.from_client.expire(turn.now) {
            match expired {
                Expired::Cancelled(pending) => resolved(Asker::Client, &pending, Outcome::Abandoned, turn),
                Expired::TimedOut(id, pending) => {
                    resolved(Asker::Client, &pending, Outcome::TimedOut, turn);
                    self.stir(turn);
                    self.tell_client(Refusal::TimedOut.answer(&id), turn);
                    if matches!(&self.state, State::Opening { initialize, .. } if *initialize == id) {
                        initialize_failed = true; // never cancelled (MCP, lifecycle)
                    } else {
                        self.to_backend(Message::cancelled(&id, "timed out at the gateway"), turn);
                    }
                }
            }
        }
        for expired in self.from_server.expire(turn.now) {
            match expired {
                Expired::Cancelled(pending) => resolved(Asker::Server, &pending, Outcome::Abandoned, turn),
                // The client stays, also when it was a ping: three of five real clients answer none.
                Expired::TimedOut(id, pending) => {
                    resolved(Asker::Server, &pending, Outcome::TimedOut, turn);
                    self.to_backend(Refusal::TimedOut.answer(&id), turn);
                    self.tell_client(Message::cancelled(&id, "timed out at the gateway"), turn);
                }
            }
        }
        if initialize_failed {
            self.end(EndReason::InitializeFailed, turn);
        }
        if self.initialized_by.is_some_and(|by| by <= turn.now) {
            self.end(EndReason::NeverInitialized, turn);
        }
        if self.may_be_idle() && self.idle_at.is_some_and(|idle_at| idle_at <= turn.now) {
            self.end(EndReason::Idle, turn);
        }
        self.end_when_drained(turn);
    }

    /// A client that waits for an answer is not idle, however long that takes.
    pub(super) fn may_be_idle(&self) -> bool {
        matches!(self.state, State::Open) && self.from_client.waiting() == 0
    }

    /// Something was said.
    pub(super) fn stir(&mut self, turn: &Turn<'_>) {
        self.idle_at = turn.rules.idle_timeout.map(|timeout| turn.now + timeout);
    }

    /// Takes nothing new, and ends once nobody waits.
    pub fn drain(&mut self, turn: &mut Turn<'_>) {
        self.draining = true;
        self.end_when_drained(turn);
    }

    /// Ends it: what is in flight is answered, the client told, the subscriptions given up, as the reason demands.
    pub fn end(&mut self, reason: EndReason, turn: &mut Turn<'_>) {
        let was_open = match self.state {
            State::Over => return,
            State::Open => true,
            State::Opening { .. } => false,
        };
        self.state = State::Over;
        self.initialized_by = None;
        let refusal = reason.refusal();
        for (id, pending, waiting) in self.from_client.complete_all() {
            match &refusal {
                // The client reuses this id for the request that replaces the session: the error would answer that.
                _ if reason.spares(&id) => resolved(Asker::Client, &pending, Outcome::Abandoned, turn),
                Some(refusal) if waiting => {
                    resolved(Asker::Client, &pending, Outcome::Failed, turn);
                    self.tell_client(refusal.answer(&id), turn);
                }
                _ => resolved(Asker::Client, &pending, Outcome::Abandoned, turn),
            }
        }
        for (_, pending, _) in self.from_server.complete_all() {
            resolved(Asker::Server, &pending, Outcome::Abandoned, turn);
        }
        if was_open && reason.tells_client() {
            self.tell_client(Message::disconnected(), turn);
        }
        if reason.unsubscribes() {
            turn.out.push(Action::Unsubscribe { via: self.via, client: self.client.clone() });
        }
        let summary = Summary { lasted: turn.now.saturating_duration_since(self.began), ..self.summary };
        turn.out.push(Action::Ended { session: self.id, client: self.client.clone(), reason, summary });
    }

    /// Ends it when nobody waits for anything any more, and it takes nothing new.
    pub(super) fn end_when_drained(&mut self, turn: &mut Turn<'_>) {
        if self.draining && matches!(self.state, State::Open) && self.from_client.waiting() == 0 {
            self.end(EndReason::Drained, turn);
        }
    }
}
