//! Whatever the order: each request of the client is answered once, and nothing is left of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mcp_mqtt_transport::jsonrpc::{Kind, Message, RequestId};
use proptest::prelude::*;

use super::{super::Translator, CAPABLE, Rig, versioned};
use crate::backend::{FromBackend, modern::Action};

/// What happens next; numbers pick one of what there is.
#[derive(Debug, Clone)]
enum Step {
    Call,
    Ping,
    Subscribe(u8),
    Unsubscribe(u8),
    Initialized,
    Cancel(usize),
    ServerAnswers(usize, Said),
    ServerForgets(usize),
    ClientAnswers(usize, bool),
    Wait(u16),
}

#[derive(Debug, Clone, Copy)]
enum Said {
    Complete,
    Error,
    Asks,
    WantsAnother,
    Nonsense,
}

fn step() -> impl Strategy<Value = Step> {
    let said = prop_oneof![
        3 => Just(Said::Complete),
        1 => Just(Said::Error),
        3 => Just(Said::Asks),
        2 => Just(Said::WantsAnother),
        1 => Just(Said::Nonsense),
    ];
    prop_oneof![
        4 => Just(Step::Call),
        1 => Just(Step::Ping),
        2 => (0u8..3).prop_map(Step::Subscribe),
        1 => (0u8..3).prop_map(Step::Unsubscribe),
        1 => Just(Step::Initialized),
        2 => any::<usize>().prop_map(Step::Cancel),
        6 => (any::<usize>(), said).prop_map(|(which, said)| Step::ServerAnswers(which, said)),
        1 => any::<usize>().prop_map(Step::ServerForgets),
        5 => (any::<usize>(), any::<bool>()).prop_map(|(which, well)| Step::ClientAnswers(which, well)),
        2 => any::<u16>().prop_map(Step::Wait),
    ]
}

/// Both sides, as far as they keep the rules.
struct World {
    translator: Translator,
    now: Instant,
    next_id: u64,
    /// Requests of the client: how often each was answered.
    answers: BTreeMap<String, u32>,
    cancelled: BTreeSet<String>,
    at_server: Vec<(RequestId, String)>,
    at_client: Vec<RequestId>,
}

impl World {
    fn new() -> Self {
        let Rig { translator, now } = Rig::open(CAPABLE);
        Self {
            translator,
            now,
            next_id: 1,
            answers: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            at_server: Vec::new(),
            at_client: Vec::new(),
        }
    }

    fn client(&mut self, json: &str) {
        let mut out = Vec::new();
        self.translator.client_message(versioned(json), None, self.now, &mut out);
        self.take(out);
    }

    fn request(&mut self, method: &str, params: &str) {
        let id = self.next_id;
        self.next_id += 1;
        self.answers.insert(id.to_string(), 0);
        self.client(&format!(r#"{{"id":{id},"method":"{method}","params":{params}}}"#));
    }

    fn server(&mut self, event: FromBackend) {
        let mut out = Vec::new();
        self.translator.server_event(event, self.now, &mut out);
        self.take(out);
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        let mut out = Vec::new();
        self.translator.expire(self.now, &mut out);
        self.take(out);
        assert!(
            self.translator.next_deadline().is_none_or(|deadline| deadline > self.now),
            "a deadline that stays"
        );
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::ToServer(message) => match message.kind() {
                    Kind::Request { id, method } => {
                        assert!(
                            self.at_server.iter().all(|(open, _)| open != id),
                            "{id} twice at the server"
                        );
                        self.at_server.push((id.clone(), method.to_string()));
                    }
                    Kind::Notification { .. } => {
                        let id = message.cancelled_request().expect("nothing else is told to the server");
                        let before = self.at_server.len();
                        self.at_server.retain(|(open, _)| *open != id);
                        assert!(self.at_server.len() < before, "{id} is cancelled and was not open");
                    }
                    Kind::Response { .. } => panic!("a client of 2026-07-28 answers nothing: {message:?}"),
                },
                Action::ToClient(FromBackend::Message(message)) => self.client_hears(&message),
                Action::ToClient(FromBackend::RequestFailed { id, .. }) => self.answered(&id),
                other => panic!("{other:?}"),
            }
        }
    }

    fn client_hears(&mut self, message: &Message) {
        match message.kind() {
            Kind::Request { id, .. } => {
                assert!(!self.at_client.contains(id), "{id} twice at the client");
                self.at_client.push(id.clone());
            }
            Kind::Response { id, .. } => self.answered(id.as_ref().expect("an id")),
            Kind::Notification { .. } => {
                if let Some(id) = message.cancelled_request() {
                    let before = self.at_client.len();
                    self.at_client.retain(|open| *open != id);
                    assert!(self.at_client.len() < before, "{id} is taken back and was not asked");
                }
            }
        }
    }

    fn answered(&mut self, id: &RequestId) {
        let times = self.answers.get_mut(id.as_json()).unwrap_or_else(|| panic!("{id} was never asked"));
        *times += 1;
        assert_eq!(*times, 1, "{id} is answered twice");
        assert!(!self.cancelled.contains(id.as_json()), "{id} was cancelled");
    }

    fn server_answers(&mut self, which: usize, said: Said) {
        if self.at_server.is_empty() {
            return;
        }
        let at = which % self.at_server.len();
        let (id, method) = self.at_server[at].clone();
        let result = match said {
            Said::Complete if method == "subscriptions/listen" => {
                // First it says that it listens, most of the time.
                let ack = format!(
                    r#"{{"method":"notifications/subscriptions/acknowledged","params":{{"notifications":{{"toolsListChanged":true,"resourceSubscriptions":["0","1"]}},"_meta":{{"io.modelcontextprotocol/subscriptionId":{id}}}}}}}"#
                );
                if !which.is_multiple_of(4) {
                    return self.server(FromBackend::Message(versioned(&ack)));
                }
                r#""result":{"resultType":"complete"}"#
            }
            Said::Complete => r#""result":{"resultType":"complete","content":[]}"#,
            Said::Error => r#""error":{"code":-32603,"message":"m"}"#,
            Said::Asks => {
                r#""result":{"resultType":"input_required","inputRequests":{"a":{"method":"roots/list"},"b":{"method":"sampling/createMessage","params":{}}}}"#
            }
            Said::WantsAnother => r#""result":{"resultType":"input_required","requestState":"s"}"#,
            Said::Nonsense => r#""result":{"resultType":"x"}"#,
        };
        self.at_server.remove(at);
        self.server(FromBackend::Message(versioned(&format!(r#"{{"id":{id},{result}}}"#))));
    }

    fn client_answers(&mut self, which: usize, well: bool) {
        if self.at_client.is_empty() {
            return;
        }
        let id = self.at_client.remove(which % self.at_client.len());
        let said = if well { r#""result":{}"# } else { r#""error":{"code":-1,"message":"m"}"# };
        self.client(&format!(r#"{{"id":{id},{said}}}"#));
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Call => self.request("tools/call", r#"{"name":"t"}"#),
            Step::Ping => self.request("ping", "{}"),
            Step::Subscribe(uri) => self.request("resources/subscribe", &format!(r#"{{"uri":"{uri}"}}"#)),
            Step::Unsubscribe(uri) => self.request("resources/unsubscribe", &format!(r#"{{"uri":"{uri}"}}"#)),
            Step::Initialized => self.client(r#"{"method":"notifications/initialized"}"#),
            Step::Cancel(which) => {
                let open: Vec<String> =
                    self.answers.iter().filter(|(_, times)| **times == 0).map(|(id, _)| id.clone()).collect();
                if let Some(id) = open.get(which % open.len().max(1)) {
                    self.cancelled.insert(id.clone());
                    self.client(&format!(
                        r#"{{"method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#
                    ));
                }
            }
            Step::ServerAnswers(which, said) => self.server_answers(*which, *said),
            Step::ServerForgets(which) => {
                if !self.at_server.is_empty() {
                    let (id, _) = self.at_server.remove(which % self.at_server.len());
                    self.server(FromBackend::RequestFailed { id, reason: "r", detail: String::new() });
                }
            }
            Step::ClientAnswers(which, well) => self.client_answers(*which, *well),
            Step::Wait(millis) => self.wait(Duration::from_millis((*millis).into())),
        }
    }

    /// Both sides do what they should until nothing is open but the one listening.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let open = self.answers.iter().any(|(id, times)| *times == 0 && !self.cancelled.contains(id));
            if !open && self.at_client.is_empty() {
                return;
            }
            while !self.at_client.is_empty() {
                self.client_answers(0, true);
            }
            for (id, _) in self.at_server.clone() {
                let Some(at) = self.at_server.iter().position(|(open, _)| *open == id) else { continue };
                // The position among these, and for a listening the choice to acknowledge it.
                let count = self.at_server.len();
                let which =
                    (0..4).map(|n| at + n * count).find(|which| !which.is_multiple_of(4)).unwrap_or(at);
                self.server_answers(which, Said::Complete);
            }
            self.wait(Duration::from_secs(20));
        }
        panic!("something is never answered: {:?}", self.answers);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn each_request_is_answered_once_whatever_happens(steps in prop::collection::vec(step(), 0..80)) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
        }
        world.settle();
        prop_assert!(world.translator.calls.is_empty());
        prop_assert!(world.translator.calls_of.is_empty());
    }
}
