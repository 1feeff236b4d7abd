//! Results and errors of 2026-07-28 in the words of the revisions before it.
//!
//! `resultType` is taken out. What else is new (`ttlMs`, `cacheScope`, `_meta` with the server's name) stays: results
//! have been open for further fields in every revision.

use std::borrow::Cow;

use mcp_mqtt_transport::jsonrpc::RpcError;

use super::members::{Member, items, member, members, string};

/// HTTP headers that do not fit the body (2026-07-28, Error Codes).
pub(in crate::backend) const HEADER_MISMATCH: i64 = -32020;
/// The request would need a capability that the client has not.
const MISSING_CAPABILITY: i64 = -32021;
/// The server does not speak the revision.
pub(in crate::backend) const UNSUPPORTED_VERSION: i64 = -32022;

/// What the server answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// A result that passes as it is.
    AsItIs,
    /// A result; its JSON in pieces.
    Result(Vec<Cow<'a, str>>),
    /// It wants to know more: `inputRequests` and `requestState` as they stand.
    InputRequired {
        /// An object.
        requests: Option<&'a str>,
        /// A string.
        state: Option<&'a str>,
    },
    /// Something that this revision does not have.
    Unknown(&'a str),
}

/// Reads the result of a request of this method.
pub(super) fn read<'a>(method: &str, result: &'a str) -> Answer<'a> {
    let has = |name: &str| memchr::memmem::find(result.as_bytes(), name.as_bytes()).is_some();
    let narrow_tools = method == "tools/list" && has("outputSchema");
    if !has("resultType") && !has("structuredContent") && !narrow_tools {
        return Answer::AsItIs;
    }
    let fields: Vec<Member<'_>> = members(result).collect();
    let of = |name| fields.iter().rfind(|field| field.is(name)).map(|field| field.value);
    let kind = of("resultType");
    match kind.map(|kind| string(kind).unwrap_or(Cow::Borrowed(kind))).as_deref() {
        None | Some("complete") => {}
        Some("input_required") => {
            let of = |name| of(name).filter(|value| *value != "null");
            return Answer::InputRequired { requests: of("inputRequests"), state: of("requestState") };
        }
        Some(_) => return Answer::Unknown(kind.unwrap_or_default()),
    }
    let mut parts = Vec::with_capacity(2 * fields.len() + 1);
    for field in fields {
        let dropped = field.is("resultType")
            // Any JSON now; an object before, and clients check it. The same stands in `content`.
            || (method == "tools/call" && field.is("structuredContent") && !field.value.starts_with('{'));
        if dropped {
            continue;
        }
        parts.push(if parts.is_empty() { "{" } else { "," }.into());
        if narrow_tools && field.is("tools") {
            parts.push(format!("\"tools\":{}", narrowed(field.value)).into());
        } else {
            parts.push(field.text.into());
        }
    }
    parts.push(if parts.is_empty() { "{}" } else { "}" }.into());
    Answer::Result(parts)
}

/// Tools without an `outputSchema` that is not of an object: their results lose their `structuredContent`.
fn narrowed(tools: &str) -> String {
    let narrow = |tool| {
        let is_wide = |schema| member(schema, "type").and_then(string).is_none_or(|kind| kind != "object");
        if !member(tool, "outputSchema").is_some_and(is_wide) {
            return Cow::Borrowed(tool);
        }
        let fields = members(tool).filter(|field| !field.is("outputSchema")).map(|field| field.text);
        Cow::Owned(format!("{{{}}}", fields.collect::<Vec<_>>().join(",")))
    };
    format!("[{}]", items(tools).map(narrow).collect::<Vec<_>>().join(","))
}

/// An error that a client of an older revision cannot know: a stable word for it, and it in words. Nothing: it
/// passes as it is.
pub(super) fn unknown_error(error: &RpcError) -> Option<(&'static str, String)> {
    match error.code {
        MISSING_CAPABILITY => {
            let needed = error.data.as_ref().and_then(|data| data.get("requiredCapabilities"));
            let needed = needed.map(|needed| format!(" (it needs {needed})")).unwrap_or_default();
            Some((super::reason::CLIENT_LACKS_CAPABILITY, format!("{}{needed}", error.message)))
        }
        HEADER_MISMATCH | UNSUPPORTED_VERSION => {
            let said = &error.message;
            Some((super::reason::REVISION_REFUSED, format!("the server refused the request's form: {said}")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mapped(method: &str, result: &str) -> String {
        match read(method, result) {
            Answer::AsItIs => result.to_owned(),
            Answer::Result(parts) => parts.concat(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_new_and_in_the_way_is_taken_out_and_the_rest_passes_as_it_came() {
        for (method, result, expected) in [
            ("tools/call", r#"{"content":[ 1.0 ]}"#, r#"{"content":[ 1.0 ]}"#),
            ("tools/call", r#"{"resultType":"complete","content":[ 1.0 ]}"#, r#"{"content":[ 1.0 ]}"#),
            ("tools/call", r#"{"content":[ 1.0 ], "resultType" : "complete"}"#, r#"{"content":[ 1.0 ]}"#),
            ("tools/call", r#"{"resultType":"complete"}"#, "{}"),
            ("resources/read", r#"{"ttlMs":0,"resultType":"complete","a":1}"#, r#"{"ttlMs":0,"a":1}"#),
            (
                "tools/call",
                r#"{"content":[{"text":"\"resultType\":\"complete\""}]}"#,
                r#"{"content":[{"text":"\"resultType\":\"complete\""}]}"#,
            ),
            ("tools/call", r#"{"structuredContent":[1],"content":[]}"#, r#"{"content":[]}"#),
            (
                "tools/call",
                r#"{"structuredContent":{"a":1},"content":[]}"#,
                r#"{"structuredContent":{"a":1},"content":[]}"#,
            ),
            (
                "tools/list",
                r#"{"tools":[{"name":"a","outputSchema":{"type":"array"},"x":1},{"name":"b","outputSchema":{"type":"object"}},{"name":"c"}],"nextCursor":"n"}"#,
                r#"{"tools":[{"name":"a","x":1},{"name":"b","outputSchema":{"type":"object"}},{"name":"c"}],"nextCursor":"n"}"#,
            ),
        ] {
            assert_eq!(mapped(method, result), expected, "{method} {result}");
        }
    }

    #[test]
    fn a_wish_for_input_is_told_from_a_result() {
        let asks = r#"{"resultType":"input_required","requestState":"s","inputRequests":{"a":{}}}"#;
        assert_eq!(
            read("tools/call", asks),
            Answer::InputRequired { requests: Some(r#"{"a":{}}"#), state: Some(r#""s""#) }
        );
        assert_eq!(
            read("tools/call", r#"{"resultType":"input_required"}"#),
            Answer::InputRequired { requests: None, state: None }
        );
        assert_eq!(read("tools/call", r#"{"resultType":"task"}"#), Answer::Unknown("\"task\""));
        assert_eq!(read("tools/call", r#"{"resultType":7}"#), Answer::Unknown("7"));
    }

    #[test]
    fn errors_of_the_revision_itself_are_told_in_words() {
        let error = |code, data| RpcError { code, message: "no".to_owned(), data };
        let needed = json!({"requiredCapabilities": {"sampling": {}}});
        let (reason, detail) = unknown_error(&error(-32021, Some(needed))).unwrap();
        assert_eq!(reason, "client-lacks-capability");
        assert!(detail.contains(r#"{"sampling":{}}"#), "{detail}");
        assert_eq!(unknown_error(&error(-32022, None)).unwrap().0, "backend-revision-refused");
        assert_eq!(unknown_error(&error(-32602, None)), None);
    }
}
