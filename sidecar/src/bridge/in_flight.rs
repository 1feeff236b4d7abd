//! Requests in flight in one direction of a session: who waits, until when.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use mcp_mqtt_transport::jsonrpc::{Message, ProgressToken, RequestId};

use super::request::Method;
use crate::{config::Timeouts, traces::Span};

/// How long the answer to a cancelled request is still let through. The asker need not wait for it, but some servers
/// answer, and some clients wait.
const CANCELLED_GRACE: Duration = Duration::from_secs(10);

/// A request that waits for its answer.
#[derive(Debug)]
pub struct Pending {
    /// What was asked.
    pub method: Method,
    /// When it was taken.
    pub started: Instant,
    deadline: Instant,
    /// Progress extends the deadline up to here.
    limit: Instant,
    timeout: Duration,
    progress_token: Option<ProgressToken>,
    cancelled: bool,
    /// Its span, if it has one.
    pub span: Option<Arc<Span>>,
}

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Its id is that of a request in flight.
    DuplicateId,
    /// As many are in flight as may be.
    TooMany,
}

/// What a deadline brought.
#[derive(Debug)]
pub enum Expired {
    /// Nobody answered in time.
    TimedOut(RequestId, Pending),
    /// It had been cancelled, and nobody answered: as it should be.
    Cancelled(Pending),
}

/// The requests in flight in one direction.
#[derive(Debug)]
pub struct InFlight {
    open: HashMap<RequestId, Pending>,
    limit: usize,
    /// Of `open`, how many were cancelled: nobody waits for these.
    cancelled: usize,
}

impl InFlight {
    /// None yet; somebody waits for `limit` of them at most, and there are twice as many with those that were cancelled.
    pub fn new(limit: usize) -> Self {
        Self { open: HashMap::new(), limit, cancelled: 0 }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// Its id is in use, or too many are in flight.
    pub fn take(
        &mut self,
        id: &RequestId,
        request: &Message,
        timeouts: &Timeouts,
        now: Instant,
    ) -> Result<(), Refused> {
        if self.open.contains_key(id) {
            return Err(Refused::DuplicateId);
        }
        // What nobody waits for takes no place, up to a bound: who cancels all calls at once may call again.
        if self.waiting() >= self.limit || self.open.len() >= self.limit.saturating_mul(2) {
            return Err(Refused::TooMany);
        }
        let method = Method::of(request.method().unwrap_or_default());
        let timeout = timeouts.of(method.as_str());
        let pending = Pending {
            method,
            started: now,
            deadline: now + timeout,
            limit: now + timeouts.timeout_max,
            timeout,
            progress_token: request.progress_token(),
            cancelled: false,
            span: None,
        };
        self.open.insert(id.clone(), pending);
        Ok(())
    }

    /// Gives a request in flight its span.
    pub fn attach(&mut self, id: &RequestId, span: Arc<Span>) {
        if let Some(pending) = self.open.get_mut(id) {
            pending.span = Some(span);
        }
    }

    /// Its answer came (or will never come): it is in flight no longer. Nothing for an id that is not in flight.
    pub fn complete(&mut self, id: &RequestId) -> Option<Pending> {
        let pending = self.open.remove(id)?;
        self.cancelled -= usize::from(pending.cancelled);
        Some(pending)
    }

    /// The asker no longer waits. False for an id that is not in flight.
    pub fn cancel(&mut self, id: &RequestId, now: Instant) -> bool {
        let Some(pending) = self.open.get_mut(id) else { return false };
        if !pending.cancelled {
            pending.cancelled = true;
            pending.deadline = pending.deadline.min(now + CANCELLED_GRACE);
            self.cancelled += 1;
        }
        true
    }

    /// Progress gives its request another time-out, up to the limit.
    pub fn progress(&mut self, notification: &Message, now: Instant) {
        let Some(token) = notification.progress_token() else { return };
        let pending =
            self.open.values_mut().find(|f| f.progress_token.as_ref() == Some(&token) && !f.cancelled);
        if let Some(pending) = pending {
            pending.deadline = (now + pending.timeout).min(pending.limit);
        }
    }

    /// Takes out what is due.
    pub fn expire(&mut self, now: Instant) -> Vec<Expired> {
        let due = self.open.iter().filter(|(_, pending)| pending.deadline <= now);
        let due: Vec<RequestId> = due.map(|(id, _)| id.clone()).collect();
        due.into_iter()
            .filter_map(|id| {
                let pending = self.complete(&id)?;
                Some(if pending.cancelled {
                    Expired::Cancelled(pending)
                } else {
                    Expired::TimedOut(id, pending)
                })
            })
            .collect()
    }

    /// Takes out all; the second tells whether somebody waits for it.
    pub fn complete_all(&mut self) -> Vec<(RequestId, Pending, bool)> {
        self.cancelled = 0;
        self.open
            .drain()
            .map(|(id, pending)| {
                let waiting = !pending.cancelled;
                (id, pending, waiting)
            })
            .collect()
    }

    /// The earliest deadline.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.open.values().map(|pending| pending.deadline).min()
    }

    /// How many are waited for.
    pub fn waiting(&self) -> usize {
        self.open.len() - self.cancelled
    }

    /// Whether this id is in flight.
    pub fn contains(&self, id: &RequestId) -> bool {
        self.open.contains_key(id)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        timeout_ping: Duration::from_secs(10),
        timeout_call: Duration::from_mins(1),
        timeout_default: Duration::from_secs(30),
        timeout_max: Duration::from_secs(100),
    };

    fn message(json: &str) -> Message {
        Message::parse(Bytes::copy_from_slice(json.as_bytes()), 1 << 20).unwrap()
    }

    fn request(id: u64, method: &str) -> Message {
        message(&format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{"_meta":{{"progressToken":"p{id}"}}}}}}"#
        ))
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn each_method_has_its_own_time() {
        let start = Instant::now();
        let table = [
            ("ping", 10),
            ("tools/call", 60),
            ("sampling/createMessage", 60),
            ("completion/complete", 60),
            ("initialize", 30),
            ("tools/list", 30),
            ("elicitation/create", 30),
            ("own/method", 30),
        ];
        for (method, seconds) in table {
            let mut in_flight = InFlight::new(1);
            let id = RequestId::number(1);
            in_flight.take(&id, &request(1, method), &TIMEOUTS, start).unwrap();
            assert_eq!(in_flight.next_deadline(), Some(after(start, seconds)), "{method}");
            assert!(in_flight.expire(after(start, seconds - 1)).is_empty(), "{method}");
            assert!(
                matches!(&in_flight.expire(after(start, seconds))[..], [Expired::TimedOut(i, _)] if *i == id),
                "{method}"
            );
            assert_eq!(in_flight.waiting(), 0);
        }
    }

    #[test]
    fn progress_extends_the_deadline_up_to_the_limit() {
        let start = Instant::now();
        let mut in_flight = InFlight::new(2);
        for id in [1, 2] {
            in_flight.take(&RequestId::number(id), &request(id, "tools/call"), &TIMEOUTS, start).unwrap();
        }
        let progress = message(
            r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"p1","progress":1}}"#,
        );
        in_flight.progress(&progress, after(start, 30));
        assert_eq!(in_flight.expire(after(start, 60)).len(), 1, "the one without progress");
        assert_eq!(in_flight.next_deadline(), Some(after(start, 90)));
        in_flight.progress(&progress, after(start, 80));
        assert_eq!(in_flight.next_deadline(), Some(after(start, 100)), "not beyond the limit");
    }

    #[test]
    fn an_id_in_flight_is_not_taken_twice_and_the_limit_holds() {
        let now = Instant::now();
        let mut in_flight = InFlight::new(2);
        let mut take = |id: u64| in_flight.take(&RequestId::number(id), &request(id, "ping"), &TIMEOUTS, now);
        assert_eq!(take(1), Ok(()));
        assert_eq!(take(1), Err(Refused::DuplicateId));
        assert_eq!(take(2), Ok(()));
        assert_eq!(take(3), Err(Refused::TooMany));
        assert!(in_flight.complete(&RequestId::number(1)).is_some());
        assert!(in_flight.complete(&RequestId::number(1)).is_none());
    }

    #[test]
    fn nobody_waits_for_a_cancelled_request_but_its_answer_is_known_for_a_while() {
        let now = Instant::now();
        let mut in_flight = InFlight::new(2);
        let id = RequestId::number(1);
        in_flight.take(&id, &request(1, "tools/call"), &TIMEOUTS, now).unwrap();
        assert!(in_flight.cancel(&id, now) && in_flight.cancel(&id, now));
        assert_eq!((in_flight.waiting(), in_flight.contains(&id)), (0, true));
        assert!(matches!(&in_flight.expire(now + CANCELLED_GRACE)[..], [Expired::Cancelled(_)]));
        assert!(!in_flight.cancel(&id, now));
    }
}
