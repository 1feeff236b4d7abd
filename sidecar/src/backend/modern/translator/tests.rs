use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use mcp_mqtt_transport::jsonrpc::Message;
use serde_json::Value;

use super::*;
use crate::backend::send_quota::{Outbound, SendQuota};

mod properties;
mod subscribing;

/// A translator, what it said last, and the time.
pub(super) struct Rig {
    pub(super) translator: Translator,
    pub(super) now: Instant,
}

pub(super) const CAPABLE: &str = r#"{"elicitation":{"form":{},"url":{}},"sampling":{},"roots":{}}"#;
const DISCOVERED: &str = r#"{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"logging":{},"tools":{"listChanged":true},"resources":{"subscribe":true}},"ttlMs":0,"cacheScope":"private","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"s","version":"1"}}}"#;

pub(super) fn message(json: &str) -> Message {
    Message::parse(Bytes::copy_from_slice(json.as_bytes()), usize::MAX)
        .unwrap_or_else(|error| panic!("{error}: {json}"))
}

/// `S …`: to the server, without `_meta`. `C …`: to the client. `F id reason`: a request failed.
pub(super) fn told(actions: Vec<Action>) -> Vec<String> {
    let text = |message: &Message, without_meta: bool| {
        let read = self::message(std::str::from_utf8(message.raw()).unwrap());
        assert_eq!(
            (read.kind(), read.params(), read.result()),
            (message.kind(), message.params(), message.result())
        );
        let mut json: Value = serde_json::from_slice(message.raw()).unwrap();
        json.as_object_mut().unwrap().remove("jsonrpc");
        if without_meta && let Some(params) = json.get_mut("params") {
            params.as_object_mut().unwrap().remove("_meta");
        }
        json.to_string()
    };
    let tell = |action| match action {
        Action::ToServer(message) => format!("S {}", text(&message, true)),
        Action::ToClient(FromBackend::Message(message)) => format!("C {}", text(&message, false)),
        Action::ToClient(FromBackend::RequestFailed { id, reason, .. }) => format!("F {id} {reason}"),
        Action::ToClient(FromBackend::Malformed { .. }) => "malformed".to_owned(),
        Action::ToClient(FromBackend::Ended(_)) => unreachable!("not the translator's"),
        Action::RevisionChanged => "doubt".to_owned(),
    };
    actions.into_iter().map(tell).collect()
}

impl Rig {
    pub(super) fn new() -> Self {
        Self { translator: Translator::new(), now: Instant::now() }
    }

    /// A session that is open, of a client with these capabilities.
    pub(super) fn open(capabilities: &str) -> Self {
        let mut rig = Self::new();
        rig.client(&format!(
            r#"{{"id":0,"method":"initialize","params":{{"protocolVersion":"2025-11-25","capabilities":{capabilities},"clientInfo":{{"name":"c","version":"1"}}}}}}"#
        ));
        let opened = rig.server(&format!(r#"{{"id":0,"result":{DISCOVERED}}}"#));
        assert!(opened[0].contains("protocolVersion"), "{opened:?}");
        rig
    }

    pub(super) fn client(&mut self, json: &str) -> Vec<String> {
        let mut out = Vec::new();
        self.translator.client_message(versioned(json), None, self.now, &mut out);
        told(out)
    }

    pub(super) fn server(&mut self, json: &str) -> Vec<String> {
        self.event(FromBackend::Message(versioned(json)))
    }

    pub(super) fn event(&mut self, event: FromBackend) -> Vec<String> {
        let mut out = Vec::new();
        self.translator.server_event(event, self.now, &mut out);
        told(out)
    }

    pub(super) fn fail(&mut self, id: &str) -> Vec<String> {
        self.fail_as(id, failure::CONNECTION_BROKEN)
    }

    fn fail_as(&mut self, id: &str, reason: &'static str) -> Vec<String> {
        let id = RequestId::from_json(id).unwrap();
        self.event(FromBackend::RequestFailed { id, reason, detail: "broke".to_owned() })
    }

    pub(super) fn after(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        let mut out = Vec::new();
        self.translator.expire(self.now, &mut out);
        told(out)
    }

    fn call(&mut self) {
        let called = self
            .client(r#"{"id":1,"method":"tools/call","params":{"name":"t","_meta":{"progressToken":"p"}}}"#);
        assert_eq!(called, [r#"S {"id":1,"method":"tools/call","params":{"name":"t"}}"#]);
    }

    /// The server asks these things for the call that it has under this id.
    fn asks(&mut self, id: &str, fields: &str) -> Vec<String> {
        self.server(&format!(r#"{{"id":{id},"result":{{"resultType":"input_required",{fields}}}}}"#))
    }
}

fn versioned(json: &str) -> Message {
    message(&format!(r#"{{"jsonrpc":"2.0",{}"#, &json[1..]))
}

const ELICIT: &str = r#""who":{"method":"elicitation/create","params":{"mode":"form","message":"?"}}"#;
const ROOTS: &str = r#""where":{"method":"roots/list"}"#;

#[test]
fn initialize_is_answered_from_discovery_in_the_clients_own_revision() {
    for (asked, spoken) in [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
        ("1.0", "2025-11-25"),
    ] {
        let mut rig = Rig::new();
        let initialize = format!(
            r#"{{"id":"i","method":"initialize","params":{{"protocolVersion":"{asked}","capabilities":{{}},"clientInfo":{{"name":"c","version":"1"}}}}}}"#
        );
        assert_eq!(rig.client(&initialize), [r#"S {"id":"i","method":"server/discover","params":{}}"#]);
        assert_eq!(
            rig.server(&format!(r#"{{"id":"i","result":{DISCOVERED}}}"#)),
            [format!(
                r#"C {{"id":"i","result":{{"capabilities":{{"logging":{{}},"resources":{{"subscribe":true}},"tools":{{"listChanged":true}}}},"protocolVersion":"{spoken}","serverInfo":{{"name":"s","version":"1"}}}}}}"#
            )]
        );
        assert!(rig.client(&initialize)[0].contains("duplicate-initialize"));
    }
}

#[test]
fn a_server_without_a_name_has_one_all_the_same_and_instructions_pass() {
    let mut rig = Rig::new();
    rig.client(r#"{"id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#);
    let told = rig.server(
        r#"{"id":1,"result":{"supportedVersions":["2026-07-28"],"capabilities":{},"instructions":"a \"b\""}}"#,
    );
    assert_eq!(
        told,
        [
            r#"C {"id":1,"result":{"capabilities":{},"instructions":"a \"b\"","protocolVersion":"2025-11-25","serverInfo":{"name":"unnamed","version":"unknown"}}}"#
        ]
    );
}

#[test]
fn a_server_that_does_not_speak_the_revision_is_doubted() {
    let initialize = r#"{"id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#;
    for (answer, expected) in [
        (
            r#""result":{"supportedVersions":["2027-01-01"],"capabilities":{}}"#,
            vec!["doubt", "F 1 backend-revision-refused"],
        ),
        (r#""error":{"code":-32022,"message":"no"}"#, vec!["doubt", "F 1 backend-revision-refused"]),
        (
            r#""error":{"code":-32601,"message":"no"}"#,
            vec!["doubt", r#"C {"error":{"code":-32601,"message":"no"},"id":1}"#],
        ),
    ] {
        let mut rig = Rig::new();
        rig.client(initialize);
        assert_eq!(rig.server(&format!(r#"{{"id":1,{answer}}}"#)), expected);
    }
    for (reason, expected) in [
        (failure::HTTP_STATUS, vec!["doubt", "F 1 http-status"]),
        (failure::CONNECTION_BROKEN, vec!["F 1 connection-broken"]),
    ] {
        let mut rig = Rig::new();
        rig.client(initialize);
        assert_eq!(rig.fail_as("1", reason), expected);
    }
    let mut rig = Rig::new();
    rig.client(initialize);
    assert_eq!(rig.fail("1"), ["F 1 connection-broken"]);
    assert!(rig.client(r#"{"id":2,"method":"tools/list"}"#)[0].contains("not-initialized"));
}

#[test]
fn what_a_client_says_of_itself_makes_no_large_requests_of_small_ones() {
    let much = "x".repeat(MAX_IN_EACH);
    let initialize = |capabilities: &str, name: &str| {
        format!(
            r#"{{"id":0,"method":"initialize","params":{{"protocolVersion":"2025-11-25","capabilities":{capabilities},"clientInfo":{{"name":"{name}","version":"1"}}}}}}"#
        )
    };
    let mut rig = Rig::new();
    let told = rig.client(&initialize(&format!(r#"{{"experimental":{{"{much}":{{}}}}}}"#), "c"));
    assert!(told[0].contains("-32602") && told[0].contains("wrong-params"), "{told:?}");
    let mut out = Vec::new();
    rig.translator.client_message(versioned(&initialize("{}", &much)), None, rig.now, &mut out);
    assert!(matches!(&out[0], Action::ToServer(discover) if discover.raw().len() < 1000), "{out:?}");
}

/// The copy that the server has is the one that is kept, and its room is kept with it.
#[test]
fn a_large_request_keeps_its_room_until_it_is_over() {
    let (_session, mut from_bridge) = {
        let quota = SendQuota::for_messages_of(1 << 20);
        let (session, from_bridge) = quota.session();
        session.say(versioned(r#"{"id":1,"method":"tools/call","params":{"name":"t"}}"#)).unwrap();
        (session, from_bridge)
    };
    let Outbound { message, reserved } = *from_bridge.messages.try_recv().unwrap();
    let (kept, others) = reserved.map(Reserved::share).unzip();
    let Some(Reserved::Shared(others)) = others else { panic!("it was reserved") };
    let mut rig = Rig::open("{}");
    let mut out = Vec::new();
    rig.translator.client_message(message, kept, rig.now, &mut out);
    let Action::ToServer(request) = &out[0] else { panic!("{out:?}") };
    let call = rig.translator.calls.values().next().unwrap();
    assert_eq!(call.request.raw().as_ptr(), request.raw().as_ptr());
    assert_eq!(Arc::strong_count(&others), 2);
    assert_eq!(rig.server(r#"{"id":1,"result":{}}"#), [r#"C {"id":1,"result":{}}"#]);
    assert_eq!(Arc::strong_count(&others), 1);
}

#[test]
fn what_the_revision_no_longer_has_is_answered_here() {
    let mut rig = Rig::open("{}");
    for (request, expected) in [
        (r#"{"id":1,"method":"ping"}"#, r#"C {"id":1,"result":{}}"#),
        (r#"{"id":2,"method":"logging/setLevel","params":{"level":"info"}}"#, r#"C {"id":2,"result":{}}"#),
        (
            r#"{"id":3,"method":"logging/setLevel","params":{"level":"loud"}}"#,
            r#"C {"error":{"code":-32602,"data":{"reason":"wrong-log-level"},"message":"there is no such log level"},"id":3}"#,
        ),
    ] {
        assert_eq!(rig.client(request), [expected]);
    }
    let mut out = Vec::new();
    let list = versioned(r#"{"id":4,"method":"tools/list"}"#);
    rig.translator.client_message(list, None, rig.now, &mut out);
    let Action::ToServer(list) = &out[0] else { panic!("{out:?}") };
    assert!(list.params().unwrap().contains(r#""io.modelcontextprotocol/logLevel":"info""#), "{list:?}");
    for method in
        ["server/discover", "subscriptions/listen", "tasks/get", "tasks/list", "tasks/result", "tasks/cancel"]
    {
        let told = rig.client(&format!(r#"{{"id":5,"method":"{method}"}}"#));
        assert!(told[0].contains("-32601") && told[0].contains("no-counterpart-in-revision"), "{told:?}");
    }
    for told in ["notifications/roots/list_changed", "notifications/progress", "notifications/x"] {
        assert!(rig.client(&format!(r#"{{"method":"{told}","params":{{}}}}"#)).is_empty());
    }
    // A server without the capability.
    rig.translator.client.can_log = false;
    rig.translator.client.can_subscribe = false;
    for method in ["logging/setLevel", "resources/subscribe", "resources/unsubscribe"] {
        let told =
            rig.client(&format!(r#"{{"id":6,"method":"{method}","params":{{"uri":"a","level":"info"}}}}"#));
        assert!(told[0].contains("-32601"), "{told:?}");
    }
}

#[test]
fn a_request_passes_and_its_answer_comes_back() {
    for (answer, expected) in [
        (r#""result":{"resultType":"complete","a":1}"#, r#"C {"id":1,"result":{"a":1}}"#),
        (r#""result":{"a":1}"#, r#"C {"id":1,"result":{"a":1}}"#),
        (r#""error":{"code":-32602,"message":"m"}"#, r#"C {"error":{"code":-32602,"message":"m"},"id":1}"#),
        (r#""error":{"code":-32021,"message":"m"}"#, "F 1 client-lacks-capability"),
        (r#""error":{"code":-32020,"message":"m"}"#, "F 1 backend-revision-refused"),
        (r#""result":{"resultType":"task"}"#, "F 1 bad-answer"),
    ] {
        let mut rig = Rig::open("{}");
        rig.call();
        assert_eq!(rig.server(&format!(r#"{{"id":1,{answer}}}"#)), [expected]);
        assert!(rig.server(&format!(r#"{{"id":1,{answer}}}"#)).is_empty(), "a second answer is none");
        assert!(rig.translator.calls.is_empty() && rig.translator.calls_of.is_empty());
    }
    let mut rig = Rig::open("{}");
    rig.call();
    assert!(rig.client(r#"{"id":1,"method":"tools/list"}"#)[0].contains("duplicate-id"));
    assert!(rig.client(r#"{"id":"mcp-mqtt-gateway/1","method":"tools/list"}"#)[0].contains("duplicate-id"));
    assert!(rig.client(r#"{"id":2,"method":"tools/list","params":[]}"#)[0].contains("wrong-params"));
    let progress = r#"{"method":"notifications/progress","params":{"progress":1,"progressToken":"p"}}"#;
    assert_eq!(rig.server(progress), [format!("C {progress}")]);
    assert_eq!(rig.server(r#"{"id":9,"method":"roots/list"}"#), ["malformed"]);
    assert_eq!(rig.fail("1"), ["F 1 connection-broken"]);
}

#[test]
fn what_the_server_wants_to_know_is_asked_of_the_client_and_the_call_repeated() {
    let mut rig = Rig::open(CAPABLE);
    rig.call();
    let asked = rig.asks("1", &format!(r#""inputRequests":{{{ELICIT},{ROOTS}}},"requestState":"s\"1""#));
    assert_eq!(
        asked,
        [
            r#"C {"id":"mcp-mqtt-gateway/1","method":"elicitation/create","params":{"message":"?","mode":"form"}}"#,
            r#"C {"id":"mcp-mqtt-gateway/2","method":"roots/list"}"#,
        ]
    );
    assert!(rig.client(r#"{"id":"mcp-mqtt-gateway/2","result":{"roots":[]}}"#).is_empty(), "one is missing");
    assert!(
        rig.client(r#"{"id":"mcp-mqtt-gateway/2","result":{"roots":[1]}}"#).is_empty(),
        "answered already"
    );
    let repeated =
        rig.client(r#"{"id":"mcp-mqtt-gateway/1","result":{"action":"accept","content":{"n":1.0}}}"#);
    assert_eq!(
        repeated,
        [
            r#"S {"id":"mcp-mqtt-gateway/3","method":"tools/call","params":{"inputResponses":{"where":{"roots":[]},"who":{"action":"accept","content":{"n":1.0}}},"name":"t","requestState":"s\"1"}}"#
        ]
    );
    // Once more, of a page, without a state.
    let page = r#""inputRequests":{"p":{"method":"elicitation/create","params":{"mode":"url","url":"u"}}}"#;
    assert_eq!(
        rig.asks("\"mcp-mqtt-gateway/3\"", page),
        [
            r#"C {"id":"mcp-mqtt-gateway/4","method":"elicitation/create","params":{"elicitationId":"mcp-mqtt-gateway/4","mode":"url","url":"u"}}"#
        ]
    );
    assert_eq!(
        rig.client(r#"{"id":"mcp-mqtt-gateway/4","result":{"action":"decline"}}"#),
        [
            r#"S {"id":"mcp-mqtt-gateway/5","method":"tools/call","params":{"inputResponses":{"p":{"action":"decline"}},"name":"t"}}"#
        ]
    );
    assert!(rig.server(r#"{"id":1,"result":{}}"#).is_empty(), "nobody waits under the first id");
    let done = rig.server(r#"{"id":"mcp-mqtt-gateway/5","result":{"resultType":"complete","content":[]}}"#);
    assert_eq!(done, [r#"C {"id":1,"result":{"content":[]}}"#]);
    assert!(rig.translator.calls.is_empty() && rig.translator.calls_of.is_empty());
}

#[test]
fn a_repeated_call_fails_under_the_id_of_its_client() {
    for (answer, expected) in [
        (r#""error":{"code":-32602,"message":"m"}"#, r#"C {"error":{"code":-32602,"message":"m"},"id":1}"#),
        (r#""result":{"a":1}"#, r#"C {"id":1,"result":{"a":1}}"#),
        (r#""result":{"resultType":"x"}"#, "F 1 bad-answer"),
        ("", "F 1 connection-broken"),
    ] {
        let mut rig = Rig::open(CAPABLE);
        rig.call();
        rig.asks("1", &format!(r#""inputRequests":{{{ROOTS}}}"#));
        rig.client(r#"{"id":"mcp-mqtt-gateway/1","result":{"roots":[]}}"#);
        let told = if answer.is_empty() {
            rig.fail("\"mcp-mqtt-gateway/2\"")
        } else {
            rig.server(&format!(r#"{{"id":"mcp-mqtt-gateway/2",{answer}}}"#))
        };
        assert_eq!(told, [expected]);
        assert!(rig.translator.calls.is_empty() && rig.translator.calls_of.is_empty());
    }
}

#[test]
fn a_server_that_wants_nothing_but_another_call_gets_it_after_a_pause() {
    let mut rig = Rig::open("{}");
    rig.call();
    assert!(rig.asks("1", r#""requestState":"s""#).is_empty());
    assert_eq!(rig.translator.next_deadline(), Some(rig.now + REPEAT_PAUSE));
    assert!(rig.after(REPEAT_PAUSE / 2).is_empty());
    assert_eq!(
        rig.after(REPEAT_PAUSE),
        [r#"S {"id":"mcp-mqtt-gateway/1","method":"tools/call","params":{"name":"t","requestState":"s"}}"#]
    );
    assert_eq!(rig.translator.next_deadline(), None);
}

#[test]
fn a_server_that_asks_for_ever_is_stopped() {
    let mut rig = Rig::open(CAPABLE);
    rig.call();
    let mut id = "1".to_owned();
    for round in 1..=MAX_ROUNDS {
        rig.asks(&id, &format!(r#""inputRequests":{{{ROOTS}}}"#));
        let answered = rig.client(&format!(r#"{{"id":"mcp-mqtt-gateway/{}","result":{{}}}}"#, 2 * round - 1));
        assert_eq!(answered.len(), 1, "round {round}");
        id = format!("\"mcp-mqtt-gateway/{}\"", 2 * round);
    }
    assert_eq!(rig.asks(&id, &format!(r#""inputRequests":{{{ROOTS}}}"#)), ["F 1 too-many-input-rounds"]);
    assert!(rig.translator.calls.is_empty() && rig.translator.calls_of.is_empty());
}

#[test]
fn a_question_that_cannot_be_asked_fails_the_call() {
    for (capabilities, fields, reason) in [
        ("{}", format!(r#""inputRequests":{{{ROOTS}}}"#), "client-lacks-capability"),
        (r#"{"roots":{}}"#, format!(r#""inputRequests":{{{ROOTS},{ELICIT}}}"#), "client-lacks-capability"),
        (CAPABLE, r#""inputRequests":{"a":{"method":"tools/list"}}"#.to_owned(), "bad-answer"),
        (CAPABLE, r#""inputRequests":{"a":{}}"#.to_owned(), "bad-answer"),
        (CAPABLE, r#""inputRequests":[]"#.to_owned(), "bad-answer"),
        (CAPABLE, r#""inputRequests":{}"#.to_owned(), "bad-answer"),
        (CAPABLE, r#""requestState":{}"#.to_owned(), "bad-answer"),
    ] {
        let mut rig = Rig::open(capabilities);
        rig.call();
        assert_eq!(rig.asks("1", &fields), [format!("F 1 {reason}")], "{fields}");
        assert!(rig.translator.calls.is_empty() && rig.translator.calls_of.is_empty());
    }
}

#[test]
fn a_client_that_answers_with_an_error_fails_its_call_and_the_other_questions_are_taken_back() {
    let mut rig = Rig::open(CAPABLE);
    rig.call();
    rig.asks("1", &format!(r#""inputRequests":{{{ELICIT},{ROOTS}}}"#));
    // Also how a question ends that is never answered: the bridge's time-out answers it.
    let told =
        rig.client(r#"{"id":"mcp-mqtt-gateway/1","error":{"code":-32603,"message":"no answer in time"}}"#);
    assert_eq!(
        told,
        [
            r#"C {"method":"notifications/cancelled","params":{"reason":"another question was refused","requestId":"mcp-mqtt-gateway/2"}}"#,
            "F 1 client-input-refused",
        ]
    );
    assert!(rig.client(r#"{"id":"mcp-mqtt-gateway/2","result":{}}"#).is_empty(), "too late");
    assert!(rig.translator.calls.is_empty() && rig.translator.calls_of.is_empty());
}

#[test]
fn a_cancelled_call_is_taken_back_wherever_it_is() {
    const CANCEL: &str = r#"{"method":"notifications/cancelled","params":{"requestId":1}}"#;
    let at_server = |id: &str| {
        format!(
            r#"S {{"method":"notifications/cancelled","params":{{"reason":"cancelled by the client","requestId":{id}}}}}"#
        )
    };
    let mut rig = Rig::open(CAPABLE);
    rig.call();
    assert_eq!(rig.client(CANCEL), [at_server("1")]);
    assert!(rig.client(CANCEL).is_empty());
    assert!(rig.server(r#"{"id":1,"result":{}}"#).is_empty(), "too late");

    rig.call();
    rig.asks("1", &format!(r#""inputRequests":{{{ROOTS}}}"#));
    assert_eq!(
        rig.client(CANCEL),
        [
            r#"C {"method":"notifications/cancelled","params":{"reason":"the call was cancelled","requestId":"mcp-mqtt-gateway/1"}}"#
        ]
    );
    assert!(rig.client(r#"{"id":"mcp-mqtt-gateway/1","result":{}}"#).is_empty(), "too late");

    rig.call();
    rig.asks("1", r#""requestState":"s""#);
    assert!(rig.client(CANCEL).is_empty());
    assert!(rig.after(REPEAT_PAUSE).is_empty());

    rig.call();
    rig.asks("1", r#""requestState":"s""#);
    rig.after(REPEAT_PAUSE);
    assert_eq!(rig.client(CANCEL), [at_server("\"mcp-mqtt-gateway/2\"")]);
    assert!(rig.translator.calls.is_empty() && rig.translator.calls_of.is_empty());
}
