//! What is a message, what is none, and what passes through unchanged.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const LIMIT: usize = 1 << 20;

fn parse(text: &str) -> Result<Message, ParseError> {
    Message::parse(Bytes::copy_from_slice(text.as_bytes()), LIMIT)
}

fn parsed(text: &str) -> Message {
    parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn id(json: &str) -> RequestId {
    RequestId::from_json(json).expect("an id")
}

#[test]
fn the_three_kinds_are_told_apart() {
    let request = parsed(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}"#);
    assert_eq!(*request.kind(), Kind::Request { id: id("1"), method: "tools/call".into() });
    assert_eq!(request.params(), Some(r#"{"name":"x"}"#));

    let notification = parsed(r#" { "method" : "notifications/initialized" , "jsonrpc" : "2.0" } "#);
    assert_eq!(*notification.kind(), Kind::Notification { method: "notifications/initialized".into() });
    assert_eq!((notification.params(), notification.id()), (None, None));
    // Some clients write it where they mean none.
    assert_eq!(parsed(r#"{"jsonrpc":"2.0","method":"a","params":null}"#).params(), None);

    let result = parsed(r#"{"jsonrpc":"2.0","id":"a","result":{"ok":true}}"#);
    assert_eq!(*result.kind(), Kind::Response { id: Some(id("\"a\"")), is_error: false });
    assert_eq!((result.result(), result.method()), (Some(r#"{"ok":true}"#), None));

    let error =
        parsed(r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32603,"message":"no","data":{"reason":"r"}}}"#);
    let detail = error.error().expect("an error");
    assert_eq!((detail.code, detail.message.as_str(), detail.reason()), (-32603, "no", Some("r")));
    assert_eq!((error.result(), error.params()), (None, None));

    for text in [r#"{"jsonrpc":"2.0","id":null,"error":{}}"#, r#"{"jsonrpc":"2.0","error":{}}"#] {
        assert_eq!(*parsed(text).kind(), Kind::Response { id: None, is_error: true });
    }
}

#[test]
fn each_way_to_be_no_message_has_its_own_error() {
    use ParseErrorKind as K;
    for (text, kind) in [
        ("", K::NotJson("it does not begin with '{'".to_owned())),
        ("[]", K::Batch),
        (r#" [{"jsonrpc":"2.0","id":1,"method":"a"}]"#, K::Batch),
        ("\"text\"", K::NotAnObject),
        ("null", K::NotAnObject),
        ("1", K::NotAnObject),
        ("{}", K::Version),
        (r#"{"jsonrpc":"1.0","method":"a"}"#, K::Version),
        (r#"{"jsonrpc":2.0,"method":"a"}"#, K::Version),
        (r#"{"jsonrpc":"2.0"}"#, K::NoKind),
        (r#"{"jsonrpc":"2.0","id":1}"#, K::NoKind),
        (r#"{"jsonrpc":"2.0","method":1}"#, K::Method),
        (r#"{"jsonrpc":"2.0","id":null,"method":"a"}"#, K::Id(IdError::Null)),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"a"}"#, K::Id(IdError::Type)),
        (r#"{"jsonrpc":"2.0","id":1e3,"method":"a"}"#, K::Id(IdError::Type)),
        (r#"{"jsonrpc":"2.0","id":{},"method":"a"}"#, K::Id(IdError::Type)),
        (r#"{"jsonrpc":"2.0","id":true,"method":"a"}"#, K::Id(IdError::Type)),
        (r#"{"jsonrpc":"2.0","id":1,"method":"a","params":1}"#, K::Params),
        (r#"{"jsonrpc":"2.0","id":1,"method":"a","result":1}"#, K::Ambiguous("method", "result")),
        (r#"{"jsonrpc":"2.0","id":1,"method":"a","error":{}}"#, K::Ambiguous("method", "error")),
        (r#"{"jsonrpc":"2.0","id":1,"result":1,"error":{}}"#, K::Ambiguous("result", "error")),
        (r#"{"jsonrpc":"2.0","id":1,"error":"text"}"#, K::Error),
        (r#"{"jsonrpc":"2.0","result":1}"#, K::ResultWithoutId),
        (r#"{"jsonrpc":"2.0","id":null,"result":1}"#, K::Id(IdError::Null)),
    ] {
        assert_eq!(parse(text).expect_err(text).kind, kind, "{text}");
    }
    for text in
        ["{", "{\"a\":}", r#"{"jsonrpc":"2.0","method":"a"} x"#, r#"{"jsonrpc":"2.0","method":"a","x":nul}"#]
    {
        assert!(matches!(parse(text).expect_err(text).kind, K::NotJson(_)), "{text}");
    }
    let not_utf8 = Message::parse(Bytes::from_static(b"{\"jsonrpc\":\"2.0\",\"method\":\"\xFF\"}"), LIMIT);
    assert_eq!(not_utf8.expect_err("not UTF-8").kind, K::NotUtf8(27));
    let message = Bytes::from_static(br#"{"jsonrpc":"2.0","method":"a"}"#);
    assert!(Message::parse(message.clone(), message.len()).is_ok());
    let error = Message::parse(message.clone(), message.len() - 1).expect_err("too large").kind;
    assert_eq!(error, K::TooLarge { size: 30, limit: 29 });
}

#[test]
fn a_broken_request_is_answered_by_its_id_and_a_broken_response_never() {
    for (text, answer) in [
        (r#"{"jsonrpc":"2.0","id":1}"#, Some("1")),
        (r#"{"id":"x","method":"a"}"#, Some("\"x\"")),
        (r#"{"jsonrpc":"2.0","id":2,"method":3}"#, Some("2")),
        (r#"{"jsonrpc":"2.0","id":3,"method":"a","params":"b"}"#, Some("3")),
        (r#"{"jsonrpc":"2.0","id":4,"method":"a","method":"b"}"#, Some("4")),
        (r#"{"jsonrpc":"2.0","id":5,"method":"a","result":1}"#, Some("5")),
        (r#"{"jsonrpc":"2.0","id":6,"id":7,"method":"a"}"#, None),
        (r#"{"jsonrpc":"2.0","id":8,"result":1,"error":{}}"#, None),
        (r#"{"id":9,"result":1}"#, None),
        (r#"{"jsonrpc":"2.0","id":null,"method":"a"}"#, None),
        (r#"{"jsonrpc":"2.0","method":1}"#, None),
        ("[1]", None),
    ] {
        let error = parse(text).expect_err(text);
        assert_eq!(error.request_id.as_ref().map(RequestId::as_json), answer, "{text}");
        let response = error.answer();
        assert_eq!(response.as_ref().and_then(Message::id).map(RequestId::as_json), answer);
        if let Some(detail) = response.and_then(|response| response.error()) {
            assert_eq!((detail.code, detail.reason()), (code::INVALID_REQUEST, Some(error.kind.reason())));
        }
    }
}

#[test]
fn a_field_that_stands_twice_lets_no_message_through_as_another() {
    for (text, field) in [
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}"#, "method"),
        (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#, "id"),
        (r#"{"jsonrpc":"2.0","method":"a","params":{},"params":{"x":1}}"#, "params"),
        (r#"{"jsonrpc":"2.0","jsonrpc":"2.0","method":"a"}"#, "jsonrpc"),
        (r#"{"jsonrpc":"2.0","id":1,"result":1,"result":2}"#, "result"),
        (r#"{"jsonrpc":"2.0","id":1,"error":{},"error":{}}"#, "error"),
        // The same name in another spelling.
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","meth\u006fd":"tools/call"}"#, "method"),
    ] {
        assert_eq!(parse(text).expect_err(text).kind, ParseErrorKind::DuplicateField(field), "{text}");
    }
    let other = parsed(r#"{"jsonrpc":"2.0","method":"a","x":1,"x":2}"#);
    assert_eq!(other.method(), Some("a"), "what is no field of the envelope may repeat");
    assert_eq!(parsed(r#"{"jsonrpc":"2.0","meth\u006fd":"pi\u006eg"}"#).method(), Some("ping"));
}

#[test]
fn depth_is_bounded_and_brackets_in_strings_do_not_count() {
    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
        format!(r#"{{"jsonrpc":"2.0","method":"a","params":{open}{close}}}"#)
    };
    assert!(parse(&nested(MAX_DEPTH)).is_ok());
    let whole = |depth| serde_json::from_str::<serde_json::Value>(&nested(depth));
    assert!(whole(MAX_DEPTH).is_ok() && whole(MAX_DEPTH + 1).is_err(), "as deep as serde_json goes");
    assert_eq!(parse(&nested(MAX_DEPTH + 1)).expect_err("deep").kind, ParseErrorKind::TooDeep);
    assert_eq!(parse(&nested(200_000)).expect_err("deep").kind, ParseErrorKind::TooDeep);
    let text = format!(
        r#"{{"jsonrpc":"2.0","method":"a","params":["\\\"{}", "{}"]}}"#,
        "[".repeat(500),
        "{".repeat(500)
    );
    assert!(parse(&text).is_ok());
}

#[test]
fn ids_go_back_as_they_came_and_compare_by_what_they_mean() {
    for same in ["1", "-7", "9007199254740993", "\"a\"", "\"é\"", "\"\""] {
        assert_eq!(id(same).as_json(), same);
    }
    assert_eq!(id(r#""\u0061\u00e9\n""#), id(r#""aé\n""#));
    assert_ne!(id("1"), id("\"1\""));
    assert_eq!((RequestId::number(5), RequestId::string("q\"")), (id("5"), id(r#""q\"""#)));
    assert_eq!((id("5").as_u64(), id("\"5\"").as_u64(), id("-5").as_u64()), (Some(5), None, None));
    let long = format!("\"{}\"", "x".repeat(MAX_ID_BYTES));
    assert_eq!(RequestId::from_json(&long), Err(IdError::TooLong));
}

#[test]
fn what_stands_in_params_and_results_is_read_when_it_is_asked_for() {
    let request = parsed(r#"{"jsonrpc":"2.0","id":1,"method":"a","params":{"_meta":{"progressToken":"t"}}}"#);
    assert_eq!(request.progress_token(), Some(id("\"t\"")));
    let report = parsed(
        r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":7,"progress":1.5}}"#,
    );
    assert_eq!(report.progress_token(), Some(id("7")));
    assert_eq!(report.progress(), Some(Progress { progress: 1.5, total: None, message: None }));
    // Only where it belongs.
    let elsewhere = parsed(r#"{"jsonrpc":"2.0","id":1,"method":"a","params":{"progressToken":7}}"#);
    assert_eq!(elsewhere.progress_token(), None);

    let cancelled = Message::cancelled(&id("\"x\""), "why");
    assert_eq!(
        parsed(std::str::from_utf8(cancelled.raw()).expect("UTF-8")).cancelled_request(),
        Some(id("\"x\""))
    );
    assert_eq!(report.cancelled_request(), None);

    let initialize =
        parsed(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18"}}"#);
    assert_eq!(initialize.protocol_version().as_deref(), Some("2025-06-18"));
    let result = parsed(
        r#"{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-03-26","capabilities":{"tools":{}},
            "serverInfo":{"name":"n","version":"v"},"instructions":"i"}}"#,
    );
    assert_eq!(result.protocol_version().as_deref(), Some("2025-03-26"));
    let result = result.initialize_result().expect("complete");
    assert_eq!((result.server_info.name.as_str(), result.server_info.version.as_str()), ("n", "v"));
    assert_eq!((result.capabilities.get(), result.instructions.as_deref()), (r#"{"tools":{}}"#, Some("i")));
    let lacking =
        parsed(r#"{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-03-26","capabilities":{}}}"#);
    assert!(lacking.initialize_result().expect_err("no serverInfo").to_string().contains("serverInfo"));
}

#[test]
fn what_we_build_is_what_we_would_parse() {
    let raw = serde_json::value::to_raw_value(&json!({"a": [1]})).expect("JSON");
    let messages = [
        Message::request(id("1"), "tools/\"call\"", Some(&json!({"x": 1}))).expect("JSON"),
        Message::request::<()>(id("\"s\""), "ping", None).expect("JSON"),
        Message::notification("notifications/message", Some(&json!([1]))).expect("JSON"),
        Message::disconnected(),
        Message::cancelled(&id("3"), "why"),
        Message::result_of(&id("2"), &raw),
        Message::internal_error(&id("2"), "it broke", "broken"),
        Message::error_of(&id("2"), &RpcError { code: 1, message: "m".to_owned(), data: None }),
    ];
    for built in messages {
        let parsed = Message::parse(built.raw().clone(), LIMIT).expect("ours");
        assert_eq!((parsed.kind(), parsed.body), (built.kind(), built.body), "{:?}", built.raw());
    }
    assert_eq!(
        Message::internal_error(&id("2"), "it broke", "broken").raw(),
        r#"{"jsonrpc":"2.0","id":2,"error":{"code":-32603,"message":"it broke","data":{"reason":"broken"}}}"#
    );
    assert_eq!(Message::disconnected().raw(), r#"{"jsonrpc":"2.0","method":"notifications/disconnected"}"#);
}

#[test]
fn a_line_has_no_line_break_and_is_copied_only_when_it_had_one() {
    let plain = parsed(r#"{"jsonrpc":"2.0","method":"a\n"}"#);
    assert_eq!(plain.to_line().as_ptr(), plain.raw().as_ptr(), "no copy");
    let broken = parsed("{\r\n\"jsonrpc\":\"2.0\",\n\"method\":\"a\\n\"}");
    assert_eq!(broken.to_line(), r#"{  "jsonrpc":"2.0", "method":"a\n"}"#);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::hash_map(any::<String>(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Message::parse(bytes.into(), 150);
    }

    #[test]
    fn no_json_like_text_makes_the_parser_panic(text in "[\\[\\]{}\",:0-9a-z\\\\ .\\n-]{0,400}") {
        let _ = parse(&text);
        let _ = parse(&format!("{{\"jsonrpc\":\"2.0\",{text}"));
    }

    #[test]
    fn any_params_pass_through_unchanged(params in any_json(), number: u64, method: String, pretty: bool) {
        let wrapped = json!({"p": params});
        let envelope = json!({"jsonrpc": "2.0", "id": number, "method": method, "params": wrapped});
        let text = if pretty { serde_json::to_string_pretty(&envelope) } else { serde_json::to_string(&envelope) };
        let message = parsed(&text.expect("JSON"));
        prop_assert_eq!(message.method(), Some(method.as_str()));
        prop_assert_eq!(message.id().and_then(RequestId::as_u64), Some(number));
        prop_assert_eq!(message.params_as::<Value>().expect("JSON"), Some(wrapped));
        let line = message.to_line();
        prop_assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
        prop_assert_eq!(serde_json::from_slice::<Value>(&line).expect("JSON"), envelope);
    }

    #[test]
    fn string_ids_are_the_same_however_they_are_spelt(text: String) {
        let escaped = text.encode_utf16().fold(String::new(), |text, unit| format!("{text}\\u{unit:04x}"));
        let (plain, escaped) = (RequestId::string(&text), format!("\"{escaped}\""));
        prop_assume!(escaped.len() <= MAX_ID_BYTES);
        prop_assert_eq!(plain, id(&escaped));
    }
}
