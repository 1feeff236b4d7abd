//! Whether the server has fallen silent, or takes no new session, as its clients' requests tell: it may hang while it
//! still listens, and fail at its start while the sessions that it has go on.

use std::time::Duration;

use super::request::{Asker, Method, Outcome};
use crate::backend::Suspicion;

/// So many requests in a row without an answer, of whatever session, are a reason to ask the server whether it is there.
const UNANSWERED: u32 = 3;
/// So many `initialize` in a row that came to nothing, of whatever client, are a reason to try one.
const UNOPENED: u32 = 3;
/// One that its client gave up after so long was without an answer too: clients have timeouts of their own.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(10);

/// Answered by the translator, in front of a server of 2026-07-28: such an answer says nothing of the server.
const TRANSLATED: [&str; 4] = ["ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"];

/// The requests since the last answer, and the `initialize` since the last that had a result.
#[derive(Debug, Default)]
pub(super) struct Silence {
    unanswered: u32,
    unopened: u32,
}

impl Silence {
    /// A request has ended. What it makes us suspect, if it is time to ask the server, and to count anew.
    pub(super) fn ended(
        &mut self,
        asker: Asker,
        method: Method,
        outcome: Outcome,
        elapsed: Duration,
    ) -> Option<Suspicion> {
        if asker == Asker::Server {
            return None; // says nothing of the server
        }
        if method.as_str() == "initialize" {
            match outcome {
                Outcome::Ok => self.unopened = 0,
                Outcome::Abandoned => {} // its client has another one, or has left
                // Whether it is the server's fault or the client's is for the answer to tell.
                Outcome::Error | Outcome::Failed | Outcome::TimedOut => self.unopened += 1,
            }
        }
        match outcome {
            Outcome::Failed => {}
            Outcome::Ok | Outcome::Error if TRANSLATED.contains(&method.as_str()) => {}
            Outcome::Ok | Outcome::Error => self.unanswered = 0,
            Outcome::Abandoned if elapsed < GIVEN_UP_AFTER => {}
            Outcome::Abandoned | Outcome::TimedOut => self.unanswered += 1,
        }
        let suspicion = if self.unopened >= UNOPENED {
            Suspicion::NoSession
        } else if self.unanswered >= UNANSWERED {
            Suspicion::Silence
        } else {
            return None;
        };
        *self = Self::default();
        Some(suspicion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn three_requests_in_a_row_without_an_answer_are_silence() {
        let call = Method::of("tools/call");
        let late = (Asker::Client, call, Outcome::TimedOut, LONG);
        let given_up = (Asker::Client, call, Outcome::Abandoned, LONG);
        let dropped = (Asker::Client, call, Outcome::Abandoned, Duration::from_secs(1));
        let answer = (Asker::Client, call, Outcome::Ok, LONG);
        let refusal = (Asker::Client, call, Outcome::Error, LONG);
        let failure = (Asker::Client, call, Outcome::Failed, LONG);
        let pong = (Asker::Client, Method::of("ping"), Outcome::Ok, LONG);
        let client = (Asker::Server, call, Outcome::Ok, LONG);
        let clients_silence = (Asker::Server, call, Outcome::TimedOut, LONG);
        for (requests, expected) in [
            (vec![late, late], 0),
            (vec![late, late, late], 1),
            (vec![late, given_up, late], 1),
            (vec![late, late, answer, late, late], 0),
            (vec![late, refusal, late, late], 0),
            (vec![late, pong, late, pong, late], 1),
            (vec![late, late, dropped, dropped], 0),
            (vec![late, failure, client, late, late], 1),
            (vec![clients_silence, clients_silence, clients_silence], 0),
            (vec![late; 8], 2),
        ] {
            let mut silence = Silence::default();
            let suspected = requests.iter().filter_map(|(asker, method, outcome, elapsed)| {
                silence.ended(*asker, *method, *outcome, *elapsed)
            });
            assert_eq!(suspected.collect::<Vec<_>>(), vec![Suspicion::Silence; expected], "{requests:?}");
        }
    }

    #[test]
    fn three_sessions_in_a_row_that_do_not_come_up_are_no_chance() {
        use Outcome::{Abandoned, Error, Failed, Ok, TimedOut};
        for (outcomes, expected) in [
            (vec![Failed, Failed], None),
            (vec![Failed, Failed, Failed], Some(Suspicion::NoSession)),
            (vec![Error, TimedOut, Failed], Some(Suspicion::NoSession)),
            (vec![TimedOut, TimedOut, TimedOut], Some(Suspicion::NoSession)),
            (vec![Failed, Failed, Ok, Failed, Failed], None),
            (vec![Failed, Failed, Abandoned, Abandoned], None),
            (vec![Failed; 5], Some(Suspicion::NoSession)),
        ] {
            let mut silence = Silence::default();
            let suspected: Vec<Suspicion> = outcomes
                .iter()
                .flat_map(|outcome| {
                    // Those that run go on.
                    let call = silence.ended(Asker::Client, Method::of("tools/call"), Ok, LONG);
                    let opening = silence.ended(Asker::Client, Method::of("initialize"), *outcome, LONG);
                    [call, opening]
                })
                .flatten()
                .collect();
            assert_eq!(suspected, Vec::from_iter(expected), "{outcomes:?}");
        }
    }
}
