//! Random interleavings of clients, servers, broker and clock, with everything that may go wrong. Whatever happens:
//! each request is answered exactly once or its session is over, nothing crosses sessions, nothing outlives its
//! session, messages keep their order, and who has a session is subscribed.

mod judge;
mod steps;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use proptest::prelude::*;

use self::steps::{Step, step};
use super::*;
use crate::{
    backend::BackendEnd,
    bridge::tests::shorthand::{RULES, client, message},
};

const CLIENTS: [&str; 3] = ["a", "b", "c"];
const MAX_SESSIONS: u32 = 2;
const WORKERS: usize = 2;

/// What the outside world knows.
#[derive(Default)]
struct World {
    next_id: u64,
    /// Ids that a client has ever used, in order.
    used: HashMap<String, Vec<u64>>,
    /// Of each client: how often each id was asked and how often answered, since its session began.
    asked: HashMap<(String, u64), usize>,
    answered: HashMap<(String, u64), usize>,
    cancelled: HashSet<(String, u64)>,
    /// Answers that the broker refused: the client need not hear another one.
    unheard: HashSet<(String, u64)>,
    /// `initialize` requests that were refused: no session's end concerns them.
    refused: HashSet<(String, u64)>,
    /// Backend sessions that are open: whose they are, and the requests they got.
    backends: HashMap<SessionId, (String, Vec<u64>)>,
    ever: Vec<SessionId>,
    /// By client: the connection that hears it.
    subscribed: HashMap<String, LinkId>,
    standing: HashSet<LinkId>,
    suback_due: Vec<SessionId>,
    server_asks: HashMap<String, Vec<u64>>,
    /// Of each session: how often its server asked each id, and how often it was answered.
    server_asked: HashMap<(SessionId, u64), usize>,
    server_answered: HashMap<(SessionId, u64), usize>,
    withdrawn: HashSet<(SessionId, u64)>,
    /// For whom the numbered notifications of clients and servers are: the client, by the session that its server had
    /// then. Nobody, when that was over.
    numbered_for: HashMap<u64, Option<String>>,
    /// The requests that the servers of sessions got which are over.
    past: HashMap<SessionId, Vec<u64>>,
    /// The last numbered notification that came through, to a session's server and to a client.
    last_told: HashMap<SessionId, u64>,
    last_heard: HashMap<String, u64>,
    /// The last message published for each client.
    last_published: HashMap<String, Message>,
    next_number: u64,
    busy: bool,
    open: HashSet<String>,
}

struct Scene {
    sessions: Sessions,
    world: World,
    now: Instant,
    out: Vec<Action>,
}

impl Scene {
    fn new() -> Self {
        let rules = Rules { idle_timeout: Some(Duration::from_secs(45)), ..RULES };
        let mut sessions = Sessions::new(rules, MAX_SESSIONS, WORKERS, 0);
        sessions.backend_up();
        Self { sessions, world: World::default(), now: Instant::now(), out: Vec::new() }
    }

    fn ask(&mut self, who: &str, id: u64, method: &str) {
        *self.world.asked.entry((who.to_owned(), id)).or_default() += 1;
        let text = message(&format!("{id} {method}"));
        self.tell(who, text);
    }

    /// The client's message comes on the connection that hears it.
    fn tell(&mut self, who: &str, text: Message) {
        let came_by = self.world.subscribed.get(who).copied().unwrap_or(LinkId::REGISTERING);
        self.sessions.client_message(&client(who), came_by, text, self.now, &mut self.out);
    }

    fn play(&mut self, step: &Step) {
        match step {
            Step::Initialize(c) => self.initialize(CLIENTS[*c]),
            Step::Request(c, method) => {
                self.world.next_id += 1;
                let id = self.world.next_id;
                self.world.used.entry(CLIENTS[*c].to_owned()).or_default().push(id);
                self.ask(CLIENTS[*c], id, method);
            }
            Step::Repeat(c, n) => {
                let used = self.world.used.get(CLIENTS[*c]).cloned().unwrap_or_default();
                if !used.is_empty() {
                    self.ask(CLIENTS[*c], used[n % used.len()], "tools/call");
                }
            }
            Step::Cancel(c, n) => {
                let used = self.world.used.get(CLIENTS[*c]).cloned().unwrap_or_default();
                if !used.is_empty() {
                    let id = used[n % used.len()];
                    self.world.cancelled.insert((CLIENTS[*c].to_owned(), id));
                    let text = message(&format!("notifications/cancelled {id}"));
                    self.tell(CLIENTS[*c], text);
                }
            }
            Step::Leave(c) => {
                let came_by = self.sessions.place(CLIENTS[*c]);
                let session = self.sessions.of_client(CLIENTS[*c]);
                let late = came_by != LinkId::REGISTERING
                    && session.is_some_and(|session| self.world.suback_due.contains(&session));
                self.sessions.client_left(&client(CLIENTS[*c]), came_by, self.now, &mut self.out);
                let after = self.sessions.of_client(CLIENTS[*c]);
                assert_eq!(
                    after,
                    session.filter(|_| late),
                    "a goodbye concerns the session that it was said in"
                );
            }
            Step::Tells(c, progress) => {
                let text = self.number(*progress, Some(CLIENTS[*c].to_owned()));
                self.tell(CLIENTS[*c], message(&text));
            }
            Step::Undelivered(c) => self.undelivered(CLIENTS[*c]),
            Step::Lost => {
                self.sessions.end_all(&EndReason::BrokerLost, self.now, &mut self.out);
                self.perform();
                assert!(self.sessions.is_empty() && self.sessions.in_flight() == 0);
                assert_eq!(self.sessions.next_deadline(), None, "nothing is left to wait for");
                self.world.subscribed.clear(); // with the connection
                self.world.forget_clients();
                let last_id = self.sessions.last_id();
                self.sessions = Sessions::new(RULES, MAX_SESSIONS, WORKERS, last_id);
                self.world.standing.clear();
                self.sessions.backend_up();
            }
            Step::ClientAnswers(c, n) => {
                let asks = self.world.server_asks.get(CLIENTS[*c]).cloned().unwrap_or_default();
                if !asks.is_empty() {
                    let text = message(&format!("{} ok", asks[n % asks.len()]));
                    self.tell(CLIENTS[*c], text);
                }
            }
            Step::Suback(s, ok) => {
                if self.world.suback_due.is_empty() {
                    return;
                }
                let at = s % self.world.suback_due.len();
                let session = self.world.suback_due.remove(at);
                let result = if *ok { Ok(()) } else { Err("refused".to_owned()) };
                self.sessions.subscribed(session, result, self.now, &mut self.out);
            }
            Step::Busy => self.world.busy = true,
            Step::Link(link, true) => {
                self.world.standing.insert(LinkId(*link));
                self.sessions.link_up(LinkId(*link));
            }
            Step::Link(link, false) => {
                self.world.standing.remove(&LinkId(*link));
                self.sessions.link_lost(LinkId(*link), self.now, &mut self.out);
            }
            Step::Wait(seconds) => {
                self.now += Duration::from_secs(*seconds);
                self.sessions.expire(self.now, &mut self.out);
            }
            Step::BackendUp(true) => self.sessions.backend_up(),
            Step::BackendUp(false) => self.sessions.backend_down("it is away"),
            Step::Drain => self.sessions.drain(self.now, &mut self.out),
            Step::Answer(s, ..)
            | Step::Ask(s)
            | Step::Told(s, _)
            | Step::Withdraws(s, _)
            | Step::ServerFails(s, _)
            | Step::Ends(s) => {
                let ever = &self.world.ever;
                if let Some(session) = (!ever.is_empty()).then(|| ever[s % ever.len()]) {
                    self.play_server(session, step);
                }
            }
        }
    }

    /// The broker refuses what was published last for this client.
    fn undelivered(&mut self, who: &str) {
        let (Some(last), Some(session)) =
            (self.world.last_published.remove(who), self.sessions.of_client(who))
        else {
            return;
        };
        if let Kind::Response { id: Some(id), .. } = last.kind() {
            // Not heard, so not answered yet.
            let key = (who.to_owned(), id.as_u64().unwrap());
            if let Some(answered) = self.world.answered.get_mut(&key) {
                *answered -= 1;
            }
            self.world.unheard.insert(key);
        }
        self.sessions.undelivered(session, &last, "quota", self.now, &mut self.out);
    }

    /// What the server of a session does, which may be over.
    fn play_server(&mut self, session: SessionId, step: &Step) {
        match step {
            Step::Answer(_, n, error) => {
                let got = self.world.backends.get(&session).map(|(_, got)| got.clone());
                let got = got.or_else(|| self.world.past.get(&session).cloned()).unwrap_or_default();
                let id = if got.is_empty() { 0 } else { got[n % got.len()] };
                let text = message(&format!("{id} {}", if *error { "error" } else { "ok" }));
                self.event(session, FromBackend::Message(text));
            }
            Step::Ask(_) => {
                self.world.next_id += 1;
                let id = self.world.next_id;
                if self.world.backends.contains_key(&session) {
                    self.world.server_asked.insert((session, id), 1);
                }
                self.event(session, FromBackend::Message(message(&format!("{id} roots/list"))));
            }
            Step::Told(_, progress) => {
                let owner = self.world.backends.get(&session).map(|(owner, _)| owner.clone());
                let text = self.number(*progress, owner);
                self.event(session, FromBackend::Message(message(&text)));
            }
            Step::Withdraws(_, n) => {
                let asked: Vec<u64> = {
                    let asked = self.world.server_asked.keys().filter(|(of, _)| *of == session);
                    let mut asked: Vec<u64> = asked.map(|(_, id)| *id).collect();
                    asked.sort_unstable();
                    asked
                };
                if !asked.is_empty() {
                    let id = asked[n % asked.len()];
                    self.world.withdrawn.insert((session, id));
                    self.event(
                        session,
                        FromBackend::Message(message(&format!("notifications/cancelled {id}"))),
                    );
                }
            }
            Step::ServerFails(_, n) => {
                let got = self.world.backends.get(&session).map(|(_, got)| got.clone()).unwrap_or_default();
                if !got.is_empty() {
                    let id = RequestId::number(got[n % got.len()]);
                    self.event(
                        session,
                        FromBackend::RequestFailed { id, reason: "broken", detail: String::new() },
                    );
                }
            }
            Step::Ends(_) => {
                self.event(session, FromBackend::Ended(BackendEnd::Exited("gone".to_owned())));
            }
            _ => unreachable!("the clients' or the broker's"),
        }
    }

    /// A notification with a number, or progress of something.
    fn number(&mut self, progress: bool, of: Option<String>) -> String {
        if progress {
            return format!("notifications/progress p{}", self.world.next_id);
        }
        self.world.next_number += 1;
        self.world.numbered_for.insert(self.world.next_number, of);
        format!("numbered/{}", self.world.next_number)
    }

    fn initialize(&mut self, who: &str) {
        self.world.next_id += 1;
        let id = self.world.next_id;
        let request = Initialize {
            client: client(who),
            via: self.sessions.place(who),
            id: RequestId::number(id),
            message: message(&format!("{id} initialize")),
            max_to_client: 1000,
        };
        let mut opened = None;
        self.sessions.initialize(request, self.now, &mut self.out, |session| opened = Some(session));
        *self.world.asked.entry((who.to_owned(), id)).or_default() += 1;
        if let Some(session) = opened {
            self.world.backends.insert(session, (who.to_owned(), Vec::new()));
            self.world.ever.push(session);
        } else {
            self.world.refused.insert((who.to_owned(), id));
        }
    }

    fn event(&mut self, session: SessionId, event: FromBackend) {
        self.sessions.backend_event(session, event, self.now, &mut self.out);
    }

    fn check(&self) {
        assert_eq!(self.world.backends.len(), self.sessions.len());
        assert!(self.sessions.len() <= MAX_SESSIONS as usize);
        let owners: HashSet<&str> = self.world.backends.values().map(|(owner, _)| owner.as_str()).collect();
        let subscribed: HashSet<&str> = self.world.subscribed.keys().map(String::as_str).collect();
        assert_eq!(owners, subscribed, "who has a session is subscribed, and nobody else");
        for (session, (owner, _)) in &self.world.backends {
            assert_eq!(self.sessions.of_client(owner), Some(*session));
        }
        for link in (0..=WORKERS).map(LinkId) {
            let here = self.world.subscribed.values().filter(|via| **via == link).count();
            assert_eq!(self.sessions.on_link(link), here, "the loads are those of the sessions");
        }
    }

    /// Lets time pass until everything has to be answered.
    fn finish(&mut self) {
        for _ in 0..20 {
            self.play(&Step::Wait(30));
            self.perform();
        }
    }

    fn check_all_answered(&self) {
        for (key, asked) in &self.world.asked {
            let answered = self.world.answered.get(key).copied().unwrap_or_default();
            // Then nobody need answer.
            let cancelled = self.world.cancelled.contains(key) || self.world.unheard.contains(key);
            assert!(
                answered == *asked || cancelled,
                "{key:?} was asked {asked} times, answered {answered} times"
            );
        }
        for (key, asked) in &self.world.server_asked {
            let answered = self.world.server_answered.get(key).copied().unwrap_or_default();
            assert!(
                answered == *asked || self.world.withdrawn.contains(key),
                "the server's {key:?} was asked {asked} times, answered {answered} times"
            );
        }
        assert_eq!(self.sessions.in_flight(), 0);
    }

    /// Ends all; nothing is left of anything.
    fn check_nothing_left(&mut self) {
        self.sessions.end_all(&EndReason::Drained, self.now, &mut self.out);
        self.perform();
        assert!(
            self.sessions.is_empty() && self.world.backends.is_empty() && self.world.subscribed.is_empty()
        );
        assert_eq!((self.sessions.next_deadline(), self.sessions.in_flight()), (None, 0));
    }
}

impl World {
    /// Their connection to us is gone: they wait for nothing any more, not even for what was refused.
    fn forget_clients(&mut self) {
        self.suback_due.clear();
        self.server_asks.clear();
        self.last_published.clear();
        for (key, asked) in &mut self.asked {
            *asked = self.answered.get(key).copied().unwrap_or_default();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn each_request_is_answered_once_or_its_session_over_and_nothing_crosses_or_outlives_a_session(
        steps in proptest::collection::vec(step(), 1..200)
    ) {
        let mut scene = Scene::new();
        for step in &steps {
            scene.play(step);
            scene.perform();
            scene.check();
        }
        scene.finish();
        scene.check();
        scene.check_all_answered();
        scene.check_nothing_left();
    }
}
