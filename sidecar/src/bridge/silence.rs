//! Whether the server has fallen silent, as its clients' requests tell: it may hang while it still listens.

use std::time::Duration;

use super::request::{Asker, Method, Outcome};

/// So many requests in a row without an answer, of whatever session, are a reason to ask the server whether it is there.
const UNANSWERED: u32 = 3;
/// One that its client gave up after so long was without an answer too: clients have timeouts of their own.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(10);

/// Answered by the translator, in front of a server of 2026-07-28: such an answer says nothing of the server.
const TRANSLATED: [&str; 4] = ["ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"];

/// The requests since the last answer.
#[derive(Debug, Default)]
pub(super) struct Silence {
    unanswered: u32,
}

impl Silence {
    /// A request has ended. True: it is time to ask the server, and to count anew.
    pub(super) fn ended(
        &mut self,
        asker: Asker,
        method: Method,
        outcome: Outcome,
        elapsed: Duration,
    ) -> bool {
        match (asker, outcome) {
            (Asker::Server, _) | (_, Outcome::Failed) => return false, // says nothing of the server
            (_, Outcome::Ok | Outcome::Error) if TRANSLATED.contains(&method.as_str()) => return false,
            (_, Outcome::Ok | Outcome::Error) => self.unanswered = 0,
            (_, Outcome::Abandoned) if elapsed < GIVEN_UP_AFTER => return false,
            (_, Outcome::Abandoned | Outcome::TimedOut) => self.unanswered += 1,
        }
        let is_silent = self.unanswered >= UNANSWERED;
        if is_silent {
            self.unanswered = 0;
        }
        is_silent
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
            let ended = requests.iter().filter(|(asker, method, outcome, elapsed)| {
                silence.ended(*asker, *method, *outcome, *elapsed)
            });
            assert_eq!(ended.count(), expected, "{requests:?}");
        }
    }
}
