//! What comes on which topic, from whom, and what becomes of it (tests/PROTOCOL.md, items 9, 12, 20, 22 to 26).

use super::*;
use crate::bridge::tests::shorthand::{self, RULES, assert_actions, client};

const RPC: &str = "$mcp-rpc/c/gw/a/b";
const CONTROL: &str = "$mcp-server/gw/a/b";
const PRESENCE: &str = "$mcp-client/presence/c";
const CAPABILITY: &str = "$mcp-client/capability/c";

struct Scene {
    core: Core,
    now: Instant,
    out: Vec<Action>,
}

impl Scene {
    fn new(max_packet: Option<u32>) -> Self {
        let setting = Setting {
            server_id: ServerId::new("gw").unwrap(),
            server_name: ServerName::new("a/b").unwrap(),
            qos: Qos::AtLeastOnce,
            max_packet,
            workers: 0,
            rules: RULES,
            max_sessions: 10,
            stands_in: false,
        };
        let mut core = Core::new(setting, 0);
        core.sessions.backend_up();
        Self { core, now: Instant::now(), out: Vec::new() }
    }

    fn with_session() -> Self {
        Self::with_session_of(r#"{"jsonrpc":"2.0","id":0,"result":{}}"#)
    }

    /// In the revision that has batches.
    fn with_batches() -> Self {
        Self::with_session_of(
            r#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-03-26","capabilities":{},"serverInfo":{"name":"n","version":"1"}}}"#,
        )
    }

    fn with_session_of(result: &'static str) -> Self {
        let mut scene = Self::new(None);
        scene.receive(CONTROL, Some("c"), shorthand::json("0 initialize"));
        scene.core.sessions.subscribed(SessionId(1), Ok(()), scene.now, &mut scene.out);
        let result = Message::parse(Bytes::from_static(result.as_bytes()), usize::MAX).unwrap();
        let result = crate::backend::FromBackend::Message(result);
        scene.core.sessions.backend_event(SessionId(1), result, scene.now, &mut scene.out);
        scene.out.clear();
        scene
    }

    fn receive(&mut self, topic: &str, sender: Option<&str>, payload: impl Into<Bytes>) {
        self.receive_with(topic, sender, payload, false);
    }

    fn receive_with(&mut self, topic: &str, sender: Option<&str>, payload: impl Into<Bytes>, retain: bool) {
        let user_properties =
            sender.map(|sender| user_property::of_publish(Component::Client, sender)).unwrap_or_default();
        let received =
            Received { topic: topic.to_owned(), payload: payload.into(), retain, user_properties, ack: None };
        self.core.received(LinkId::REGISTERING, received, self.now, &mut self.out, |_, _| ());
    }

    #[track_caller]
    fn expect(&mut self, expected: &[&str]) {
        assert_actions(&mut self.out, expected);
    }
}

#[test]
fn initialize_is_taken_on_control_and_its_client_is_the_user_propertys() {
    let mut scene = Scene::new(None);
    scene.receive(CONTROL, Some("c"), shorthand::json("0 initialize"));
    scene.expect(&["subscribe c", "server 1 < 0 initialize"]);
    let filters = scene.core.filters(&client("c"));
    assert_eq!(
        filters.each_ref().map(|f| (f.filter.as_str(), f.no_local)),
        [(RPC, true), (PRESENCE, false), (CAPABILITY, false)]
    );
}

#[test]
fn initialize_without_a_usable_client_id_goes_nowhere() {
    let mut scene = Scene::new(None);
    for (sender, expected) in [
        (None, "dropped no-client-id"),
        (Some(""), "dropped bad-client-id"),
        (Some("a/b"), "dropped bad-client-id"),
        (Some("+"), "dropped bad-client-id"),
    ] {
        scene.receive(CONTROL, sender, shorthand::json("0 initialize"));
        scene.expect(&[expected]);
    }
}

#[test]
fn other_messages_on_control_are_refused() {
    let mut scene = Scene::with_session();
    for (text, expected) in [
        ("5 tools/call", "c < 5 error not-initialize"),
        ("notifications/disconnected", "dropped not-initialize"),
        ("5 ok", "dropped not-initialize"),
    ] {
        scene.receive(CONTROL, Some("c"), shorthand::json(text));
        scene.expect(&[expected]);
    }
    // Not as an answer to the same id in flight.
    scene.receive(RPC, Some("c"), shorthand::json("6 tools/call"));
    scene.receive(CONTROL, Some("c"), shorthand::json("6 tools/call"));
    scene.expect(&["server 1 < 6 tools/call", "dropped not-initialize"]);
}

#[test]
fn who_has_no_session_may_ask_on_control_whether_the_instance_lives() {
    let mut scene = Scene::with_session();
    scene.receive(CONTROL, Some("d"), shorthand::json("5 ping"));
    scene.expect(&["d < 5 ok"]);
    // Who has one might take it for the answer to another request of that id.
    scene.receive(CONTROL, Some("c"), shorthand::json("5 ping"));
    scene.expect(&["c < 5 error not-initialize"]);
}

#[test]
fn rpc_needs_a_session_and_the_topics_own_client_id() {
    let mut scene = Scene::with_session();
    for (topic, sender, text, expected) in [
        (RPC, Some("c"), "1 tools/call", "server 1 < 1 tools/call"),
        (RPC, None, "2 tools/call", "server 1 < 2 tools/call"), // the topic says who it is
        (RPC, Some("mallory"), "1 tools/call", "dropped client-id-mismatch"), // c waits for that id
        (RPC, Some("mallory"), "9 tools/call", "c < 9 error client-id-mismatch"),
        (RPC, Some("mallory"), "notifications/disconnected", "dropped client-id-mismatch"),
        (RPC, Some("mallory"), "1 ok", "dropped client-id-mismatch"),
        ("$mcp-rpc/x/gw/a/b", Some("x"), "3 tools/call", "x < 3 error no-session"),
        ("$mcp-rpc/c/other/a/b", Some("c"), "4 tools/call", "dropped unknown-topic"),
        ("$mcp-rpc/c/gw/a/other", Some("c"), "4 tools/call", "dropped unknown-topic"),
        ("$mcp-server/gw/a/other", Some("c"), "4 initialize", "dropped unknown-topic"),
        ("$mcp-server/capability/gw/a/b", Some("c"), "4 tools/call", "dropped unknown-topic"),
        ("some/thing", Some("c"), "4 tools/call", "dropped unknown-topic"),
    ] {
        scene.receive(topic, sender, shorthand::json(text));
        scene.expect(&[expected]);
    }
}

#[test]
fn what_is_no_message_is_answered_where_there_is_an_id_and_counted() {
    let mut scene = Scene::with_session();
    let table: [(&[u8], &[&str]); 11] = [
        (b"", &["dropped not-json"]),
        (b"hello", &["dropped not-json"]),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\"", &["dropped not-json"]),
        (b"\xff\xfe{}", &["dropped not-utf8"]),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}",
            &["dropped not-utf8", "c < 1 error not-utf8"],
        ),
        (b"{\"jsonrpc\":\"2.0\",\"id\":\"\xff\",\"method\":\"m\"}", &["dropped not-utf8"]),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"\xff\"}", &["dropped not-utf8"]),
        (b"42", &["dropped not-an-object"]),
        (br#"{"id":7,"method":"tools/call"}"#, &["dropped wrong-version", "c < 7 error wrong-version"]),
        (br#"{"jsonrpc":"2.0","id":7,"method":3}"#, &["dropped wrong-method", "c < 7 error wrong-method"]),
        (br#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, &["dropped wrong-id"]),
    ];
    for (payload, expected) in table {
        for topic in [RPC, CONTROL] {
            scene.receive(topic, Some("c"), payload);
            scene.expect(expected);
        }
    }
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    scene.receive(RPC, Some("c"), format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{deep}}}"#));
    scene.expect(&["dropped nested-too-deep", "c < 1 error nested-too-deep"]);
}

#[test]
fn each_request_of_a_batch_is_refused_by_its_id() {
    let mut scene = Scene::with_session();
    let batch = ["1 tools/call", "notifications/own", "2 ping", "3 ok"].map(shorthand::json).join(",");
    scene.receive(RPC, Some("c"), format!("[{batch}]"));
    scene.expect(&["dropped batch", "c < 1 error batch", "c < 2 error batch"]);
    for payload in ["[]", "[1,[2]]", "[{"] {
        scene.receive(RPC, Some("c"), payload);
        scene.expect(&["dropped batch"]);
    }
}

#[test]
fn a_batch_is_taken_whole_or_not_at_all() {
    let mut scene = Scene::with_batches();
    let batch = ["1 tools/call", "notifications/own", "2 ping"].map(shorthand::json).join(",");
    scene.receive(RPC, Some("c"), format!("[{batch}]"));
    scene.expect(&["server 1 < 1 tools/call", "server 1 < notifications/own", "server 1 < 2 ping"]);
    let large = ["3 tools/call {600}", "4 tools/call {600}"].map(shorthand::json).join(",");
    scene.receive(RPC, Some("c"), format!("[{large}]"));
    scene.expect(&[
        "dropped message-too-large",
        "c < 3 error message-too-large",
        "c < 4 error message-too-large",
    ]);
    scene.core.setting.rules.max_message_bytes = 1 << 20;
    let many = vec![shorthand::json("notifications/own"); MAX_BATCH].join(",");
    scene.receive(RPC, Some("c"), format!("[{},{many}]", shorthand::json("5 ping")));
    scene.expect(&["dropped batch-too-long", "c < 5 error batch-too-long"]);
    scene.receive(RPC, Some("c"), format!("[{many}]"));
    assert_eq!(scene.out.len(), MAX_BATCH);
}

/// As large as a packet that we have announced to take.
#[test]
fn what_a_batch_leads_to_has_a_bound() {
    let ones = format!("[{}1]", "1,".repeat(2 << 20));
    let request = r#"{"jsonrpc":"2.0","id":1,"method":""},"#;
    let requests = format!("[{}1]", request.repeat((4 << 20) / request.len()));
    for (payload, refused) in [(&ones, 0), (&requests, MAX_BATCH)] {
        for (mut scene, topic) in [(Scene::new(None), CONTROL), (Scene::with_batches(), RPC)] {
            scene.receive(topic, Some("c"), payload.clone());
            // That it was dropped, and of each one that is refused that it is.
            assert_eq!(scene.out.len(), 1 + 2 * refused);
            assert!(scene.out.iter().all(|action| !matches!(action, Action::ToClient { owed: true, .. })));
        }
    }
}

#[test]
fn a_client_leaves_by_its_presence_in_two_ways_and_by_nobody_elses_word() {
    for payload in [String::new(), shorthand::json("notifications/disconnected")] {
        let mut scene = Scene::with_session();
        scene.receive(PRESENCE, Some("mallory"), payload.clone());
        scene.expect(&["dropped client-id-mismatch"]);
        scene.receive("$mcp-client/presence/other", Some("other"), payload.clone());
        scene.expect(&[]);
        scene.receive_with(PRESENCE, Some("c"), payload.clone(), true);
        scene.expect(&["dropped retained"]);
        scene.receive(PRESENCE, None, payload); // a will may lack user properties
        scene.expect(&["unsubscribe c", "ended c client-left"]);
    }
    let mut scene = Scene::with_session();
    scene.receive(PRESENCE, Some("c"), shorthand::json("notifications/other"));
    scene.expect(&["dropped unknown-client-presence"]);
}

#[test]
fn on_the_capability_topic_only_the_clients_own_change_of_roots_passes() {
    let mut scene = Scene::with_session();
    for (topic, text, expected) in [
        (
            CAPABILITY,
            "notifications/roots/list_changed",
            &["server 1 < notifications/roots/list_changed"][..],
        ),
        (CAPABILITY, "1 tools/call", &["dropped unknown-client-capability"]),
        ("$mcp-client/capability/x", "notifications/roots/list_changed", &[]),
    ] {
        scene.receive(topic, None, shorthand::json(text));
        scene.expect(expected);
    }
}

#[test]
fn nothing_retained_is_taken_and_our_own_words_are_passed_over() {
    let mut scene = Scene::new(None);
    scene.receive_with(CONTROL, Some("c"), shorthand::json("0 initialize"), true);
    scene.expect(&["dropped retained"]);
    scene.receive(CONTROL, Some("gw"), shorthand::json("notifications/self-test"));
    scene.expect(&[]);
}

// tests/PROTOCOL.md, item 20.
#[test]
fn what_may_go_to_a_client_fits_the_brokers_packets_with_topic_and_properties() {
    for max_packet in [300, 1000, 20_000] {
        let mut scene = Scene::new(Some(max_packet));
        scene.core.setting.rules.max_message_bytes = 1_000_000;
        for id in ["c", "a-client-with-a-rather-long-name"] {
            let limit = scene.core.max_to_client(&client(id), LinkId::REGISTERING);
            let largest = scene.core.to_client(&client(id), Bytes::from(vec![b'x'; limit]));
            let size = Publisher::packet_size(&largest);
            assert!(size <= max_packet as usize && size + LENGTH_BYTES >= max_packet as usize, "{size}");
        }
    }
    let unlimited = Scene::new(None).core.max_to_client(&client("c"), LinkId::REGISTERING);
    assert_eq!(unlimited, RULES.max_message_bytes);
}

#[test]
fn what_was_held_for_a_client_is_taken_once_and_only_by_who_stands_in() {
    let held_for = |client: &str| {
        let mut user_properties = user_property::of_publish(Component::Server, "holder");
        user_properties.push((user_property::HELD_FOR.to_owned(), client.to_owned()));
        let payload = shorthand::json("0 initialize").into();
        Received { topic: CONTROL.to_owned(), payload, retain: false, user_properties, ack: None }
    };
    let receive = |scene: &mut Scene, received| {
        scene.core.received(LinkId::REGISTERING, received, scene.now, &mut scene.out, |_, _| ());
    };
    let mut scene = Scene::new(None);
    receive(&mut scene, held_for("c"));
    scene.expect(&["subscribe holder", "server 1 < 0 initialize"]);

    let mut scene = Scene::new(None);
    scene.core.setting.stands_in = true;
    receive(&mut scene, held_for("c"));
    scene.expect(&["subscribe c", "server 1 < 0 initialize"]);
    receive(&mut scene, held_for("c"));
    scene.expect(&["dropped held-twice"]);
    scene.receive(CONTROL, Some("d"), shorthand::json("0 initialize"));
    scene.expect(&["subscribe d", "server 2 < 0 initialize"]);
    receive(&mut scene, held_for("d"));
    scene.expect(&["dropped held-twice"]);
    receive(&mut scene, held_for("+"));
    scene.expect(&["dropped bad-client-id"]);
}
