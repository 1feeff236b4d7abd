//! The envelope of JSON-RPC, against `serde_json`'s whole reading of the same text.

use bytes::Bytes;
use mcp_mqtt_transport::jsonrpc::{
    Batch, Kind, MAX_ID_BYTES, Message, ParseError, ParseErrorKind, RequestId, RpcError,
};
use serde::de::IgnoredAny;
use serde_json::{Map, Value, value::RawValue};

use crate::pieces::knobs;

/// A knob for the limit, and a message.
pub(crate) fn run(data: &[u8]) {
    let ([knob], raw) = knobs(data);
    let limit = if knob == 0 { usize::MAX } else { usize::from(knob) };
    // Two readings of one text; serde_json keeps less (deeper nesting, numbers beyond f64, half surrogates).
    let whole: Result<Value, _> = serde_json::from_slice(raw);
    match Message::parse(Bytes::copy_from_slice(raw), limit) {
        Ok(message) => {
            assert!(raw.len() <= limit, "{} bytes passed the limit {limit}", raw.len());
            assert_eq!(message.raw(), raw);
            assert!(serde_json::from_slice::<IgnoredAny>(raw).is_ok(), "no JSON passed");
            if let Ok(whole) = whole {
                let whole = whole.as_object().expect("a message is an object");
                assert_ne!(judge(whole), Some(false), "what is no message passed");
                compare(&message, whole);
            }
            reread(&message);
        }
        Err(error) => refused(raw, limit, whole.ok().as_ref(), &error),
    }
    batch(raw);
}

/// The first parts of a batch, against all of them.
fn batch(raw: &[u8]) {
    const MOST: usize = 2;
    let first = Batch::read(&Bytes::copy_from_slice(raw), MOST);
    let all = serde_json::from_slice::<Vec<&RawValue>>(raw);
    assert_eq!(first.is_ok(), all.is_ok(), "{first:?}, {all:?}");
    if let (Ok(first), Ok(all)) = (first, all) {
        assert_eq!(first.more, all.len() > MOST);
        let parts = all.iter().take(MOST).map(|part| part.get().as_bytes());
        assert!(first.parts.iter().map(|part| &**part).eq(parts), "{first:?}, {all:?}");
    }
}

fn refused(raw: &[u8], limit: usize, whole: Option<&Value>, error: &ParseError) {
    match &error.kind {
        ParseErrorKind::TooLarge { size, limit: said } => {
            assert!(raw.len() > limit && *size == raw.len() && *said == limit);
        }
        ParseErrorKind::NotUtf8(_) => assert!(std::str::from_utf8(raw).is_err()),
        ParseErrorKind::NotJson(_) | ParseErrorKind::TooDeep => {
            assert!(whole.is_none(), "JSON is refused: {error}");
        }
        ParseErrorKind::Batch => assert!(whole.is_none_or(Value::is_array), "{error}"),
        ParseErrorKind::NotAnObject => {
            assert!(whole.is_none_or(|whole| !whole.is_object() && !whole.is_array()), "{error}");
        }
        ParseErrorKind::DuplicateField(_) => {}
        _ => {
            if let Some(whole) = whole {
                let whole = whole.as_object().expect("the error is about an object's fields");
                assert_ne!(judge(whole), Some(true), "a message is refused: {error}");
            }
        }
    }
    if let Some(answer) = error.answer() {
        let id = error.request_id.as_ref().expect("it is answered");
        assert_eq!(reread(&answer).id(), Some(id));
        assert!(answer.error().is_some_and(|error| error.reason().is_some()));
        if let Some(Value::Object(whole)) = whole {
            assert_eq!(Some(value(id)), whole.get("id").cloned(), "the error answers another id");
        }
    }
}

/// Whether this is a message, by the rules of JSON-RPC and MCP; nothing when only its text could tell.
fn judge(whole: &Map<String, Value>) -> Option<bool> {
    let id_is_one = match whole.get("id") {
        Some(Value::Number(number)) if number.is_f64() => return None, // 1e3, or larger than 64 bits
        Some(Value::String(text)) if text.len() > MAX_ID_BYTES / 6 => return None, // escapes may make it too long
        Some(Value::Number(_) | Value::String(_)) => true,
        _ => false,
    };
    let id = whole.get("id");
    if whole.get("jsonrpc") != Some(&Value::from("2.0")) {
        return Some(false);
    }
    Some(match (whole.get("method"), whole.get("result"), whole.get("error")) {
        (Some(Value::String(_)), None, None) => {
            let params =
                matches!(whole.get("params"), None | Some(Value::Null | Value::Object(_) | Value::Array(_)));
            params && (id.is_none() || id_is_one)
        }
        (None, Some(_), None) => id_is_one,
        (None, None, Some(Value::Object(_))) => matches!(id, None | Some(Value::Null)) || id_is_one,
        _ => false,
    })
}

fn compare(message: &Message, whole: &Map<String, Value>) {
    let text =
        |raw: Option<&str>| raw.map(|raw| serde_json::from_str::<Value>(raw).expect("JSON within JSON"));
    assert_eq!(message.method(), whole.get("method").and_then(Value::as_str));
    let id = whole.get("id").filter(|id| !id.is_null());
    assert_eq!(message.id().map(value), id.cloned());
    match message.kind() {
        Kind::Request { .. } | Kind::Notification { .. } => {
            assert_eq!(
                text(message.params()),
                whole.get("params").filter(|params| !params.is_null()).cloned()
            );
            assert!(message.result().is_none() && message.error().is_none());
        }
        Kind::Response { is_error: false, .. } => {
            assert_eq!(text(message.result()), whole.get("result").cloned());
            assert!(message.params().is_none() && message.error().is_none());
        }
        Kind::Response { is_error: true, .. } => {
            let error = message.error().expect("it is an error");
            let code = whole["error"].get("code").and_then(Value::as_i64);
            assert!(code.is_none_or(|code| code == error.code || error.code == 0), "{error:?}");
            assert!(message.params().is_none() && message.result().is_none());
        }
    }
    if let Some(cancelled) = message.cancelled_request() {
        assert_eq!(Some(value(&cancelled)), whole["params"].get("requestId").cloned());
    }
    if let Some(token) = message.progress_token() {
        let params = &whole["params"];
        let of = if matches!(message.kind(), Kind::Request { .. }) { &params["_meta"] } else { params };
        assert_eq!(Some(value(&token)), of.get("progressToken").cloned());
    }
}

fn value(id: &RequestId) -> Value {
    serde_json::from_str(id.as_json()).expect("an id is JSON")
}

/// Writes the message on a line and reads it again: the same message.
fn reread(message: &Message) -> Message {
    let line = message.to_line();
    assert!(!line.contains(&b'\n') && !line.contains(&b'\r'), "a line with a line break in it");
    let again = Message::parse(line, usize::MAX).expect("a message is one again");
    assert_eq!(again.kind(), message.kind());
    if let Kind::Request { id, .. } = message.kind() {
        let error = RpcError { code: -32603, message: "\u{0}\"\n".to_owned(), data: None };
        let answer = Message::error_of(id, &error);
        let answer = Message::parse(answer.into_raw(), usize::MAX).expect("our own errors are messages");
        assert_eq!((answer.id(), answer.error()), (Some(id), Some(error)));
    }
    again
}
