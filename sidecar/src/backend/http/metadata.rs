//! What 2026-07-28 mirrors from a request's body into its headers (Streamable HTTP, Request Metadata).

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};
use mcp_mqtt_transport::jsonrpc::Message;
use serde_json::{Map, Value};

use crate::backend::modern::members::{items, member, members, string};

const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");
/// Before the name that a tool gives to a parameter's header.
const PARAMETER: &str = "mcp-param-";
/// Where a tool's `inputSchema` gives it.
const ANNOTATION: &str = "x-mcp-header";
/// What is around a value that cannot stand in a header as it is.
const ENCODED: (&str, &str) = ("=?base64?", "?=");
/// Tools whose headers are remembered: far more than a model can use.
const MAX_TOOLS: usize = 4096;
/// The numbers that every JSON parser has exactly.
const MAX_SAFE_INTEGER: i64 = (1 << 53) - 1;

/// What is known of the headers that a server's tools want; one for all sessions with it.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    tools: Mutex<HashMap<String, Vec<Mirrored>>>,
}

/// A parameter that goes into a header too.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mirrored {
    header: HeaderName,
    /// The names on the way to it in `arguments`.
    path: Vec<String>,
}

impl Metadata {
    /// The headers of a request, but for the revision's.
    pub(super) fn headers(&self, request: &Message) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let (method, params) = (request.method().unwrap_or_default(), request.params().unwrap_or_default());
        headers.extend(value(method).map(|method| (METHOD, method)));
        let name = match method {
            "tools/call" | "prompts/get" => member(params, "name"),
            "resources/read" => member(params, "uri"),
            _ => None,
        };
        let Some(name) = name.and_then(string) else { return headers };
        headers.extend(value(&name).map(|name| (NAME, name)));
        if method == "tools/call" {
            let mirrored = self.lock().get(&*name).cloned().unwrap_or_default();
            for Mirrored { header, path } in mirrored {
                let argument = path
                    .iter()
                    .try_fold(member(params, "arguments"), |at, name| at.map(|at| member(at, name)));
                let text = argument.flatten().and_then(text_of);
                headers.extend(text.and_then(|text| value(&text)).map(|text| (header, text)));
            }
        }
        headers
    }

    /// Learns from the result of `tools/list`. Some: the same without the tools whose annotations cannot be used, which
    /// no client may be shown.
    pub(super) fn learn(&self, result: &str) -> Option<String> {
        memchr::memmem::find(result.as_bytes(), ANNOTATION.as_bytes())?;
        let tools = member(result, "tools")?;
        let mut kept = Vec::new();
        let mut refused = 0;
        for tool in items(tools) {
            let name = member(tool, "name").and_then(string).unwrap_or_default();
            let schema = member(tool, "inputSchema").and_then(|schema| serde_json::from_str(schema).ok());
            match read(&schema.unwrap_or_default()) {
                Ok(mirrored) => {
                    let mut known = self.lock();
                    if mirrored.is_empty() {
                        known.remove(&*name);
                    } else if known.len() < MAX_TOOLS || known.contains_key(&*name) {
                        known.insert(name.into_owned(), mirrored);
                    }
                    kept.push(tool);
                }
                Err(why) => {
                    tracing::warn!(tool = %name, "left out of tools/list: the `{ANNOTATION}` of its inputSchema {why}");
                    refused += 1;
                }
            }
        }
        (refused > 0).then(|| {
            let tools = format!("\"tools\":[{}]", kept.join(","));
            let fields = members(result).map(|field| if field.is("tools") { &*tools } else { field.text });
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vec<Mirrored>>> {
        self.tools.lock().unwrap_or_else(PoisonError::into_inner) // every change is one insertion
    }
}

/// The annotations of an `inputSchema`. `Err`: what is wrong with one.
fn read(schema: &Value) -> Result<Vec<Mirrored>, &'static str> {
    let mut found = Vec::new();
    if let Value::Object(schema) = schema {
        walk(schema, &mut Vec::new(), &mut found)?;
    }
    let names: HashSet<&HeaderName> = found.iter().map(|mirrored| &mirrored.header).collect();
    if names.len() < found.len() { Err("gives one name twice") } else { Ok(found) }
}

/// Only what is reached by `properties` alone may be annotated.
fn walk(
    schema: &Map<String, Value>,
    path: &mut Vec<String>,
    found: &mut Vec<Mirrored>,
) -> Result<(), &'static str> {
    for (keyword, value) in schema {
        match (keyword.as_str(), value) {
            (ANNOTATION, Value::String(name)) if !path.is_empty() => {
                if !matches!(
                    schema.get("type").and_then(Value::as_str),
                    Some("string" | "integer" | "boolean")
                ) {
                    return Err("stands at what is neither a string nor an integer nor a boolean");
                }
                let header = HeaderName::try_from(format!("{PARAMETER}{name}"));
                let header = header.ok().filter(|_| !name.is_empty()).ok_or("is no name for a header")?;
                found.push(Mirrored { header, path: path.clone() });
            }
            (ANNOTATION, _) => return Err("is no name, or stands at the top"),
            ("properties", Value::Object(properties)) => {
                for (name, property) in properties {
                    path.push(name.clone());
                    if let Value::Object(property) = property {
                        walk(property, path, found)?;
                    }
                    path.pop();
                }
            }
            // Examples and the like are data.
            ("default" | "const" | "enum" | "examples", _) => {}
            (_, value) if annotated(value) => {
                return Err("stands where it may not (only `properties` lead to it)");
            }
            _ => {}
        }
    }
    Ok(())
}

fn annotated(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.contains_key(ANNOTATION) || members.values().any(annotated),
        Value::Array(items) => items.iter().any(annotated),
        _ => false,
    }
}

/// An argument as a header's text; what has none (null, an object) goes without.
fn text_of(raw: &str) -> Option<Cow<'_, str>> {
    match raw.as_bytes().first()? {
        b'"' => string(raw),
        b't' | b'f' => Some(raw.into()),
        b'-' | b'0'..=b'9' => {
            // `42.0` and `4.2e1` are integers in JSON Schema.
            let integer = raw.parse::<i64>().ok().or_else(|| {
                let number: f64 = raw.parse().ok()?;
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "checked: it is an integer in this range"
                )]
                (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
            })?;
            (integer.abs() <= MAX_SAFE_INTEGER).then(|| integer.to_string().into())
        }
        _ => None,
    }
}

/// A header's value, encoded when it cannot stand there as it is.
fn value(text: &str) -> Option<HeaderValue> {
    let is_plain = text.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'))
        && text.trim_matches([' ', '\t']) == text
        && !(text.starts_with(ENCODED.0) && text.ends_with(ENCODED.1));
    if is_plain {
        return HeaderValue::from_str(text).ok();
    }
    let encoded = format!("{}{}{}", ENCODED.0, BASE64_STANDARD.encode(text), ENCODED.1);
    HeaderValue::from_str(&encoded).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn headers(metadata: &Metadata, method: &str, params: &Value) -> Vec<(String, String)> {
        let request =
            Message::request(mcp_mqtt_transport::jsonrpc::RequestId::number(1), method, Some(params));
        let headers = metadata.headers(&request.unwrap());
        let mut headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        headers.sort();
        headers
    }

    #[test]
    fn a_request_says_in_its_headers_what_it_is_and_of_what() {
        let metadata = Metadata::default();
        for (method, params, name) in [
            ("tools/call", json!({"name": "get_weather"}), Some("get_weather")),
            ("prompts/get", json!({"name": "a b"}), Some("a b")),
            ("resources/read", json!({"uri": "file:///a"}), Some("file:///a")),
            ("tools/list", json!({"name": "x"}), None),
            ("tools/call", json!({"name": 7}), None),
            ("server/discover", json!({}), None),
        ] {
            let mut expected = vec![("mcp-method".to_owned(), method.to_owned())];
            expected.extend(name.map(|name| ("mcp-name".to_owned(), name.to_owned())));
            assert_eq!(headers(&metadata, method, &params), expected);
        }
    }

    /// The specification's own examples.
    #[test]
    fn values_that_cannot_stand_in_a_header_are_encoded() {
        for (text, expected) in [
            ("us-west1", "us-west1"),
            ("Hello, 世界", "=?base64?SGVsbG8sIOS4lueVjA==?="),
            (" padded ", "=?base64?IHBhZGRlZCA=?="),
            ("line1\nline2", "=?base64?bGluZTEKbGluZTI=?="),
            ("=?base64?literal?=", "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
            ("", ""),
            ("\u{7f}", "=?base64?fw==?="),
        ] {
            assert_eq!(value(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn annotated_parameters_go_into_headers_of_their_own() {
        let metadata = Metadata::default();
        let schema = json!({"type": "object", "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "n": {"type": "integer", "x-mcp-header": "N"},
            "deep": {"type": "object", "properties": {"on": {"type": "boolean", "x-mcp-header": "On"}}},
        }});
        let list = json!({"tools": [{"name": "sql", "inputSchema": schema}, {"name": "plain"}]}).to_string();
        assert_eq!(metadata.learn(&list), None, "nothing is left out");
        for (arguments, expected) in [
            (json!({"region": "é", "n": -7, "deep": {"on": true}}), vec!["-7", "true", "=?base64?w6k=?="]),
            (json!({"region": null, "n": 42.0, "deep": 1}), vec!["42"]),
            (json!({"n": 9_007_199_254_740_992_i64}), vec![]),
            (json!({}), vec![]),
        ] {
            let found = headers(&metadata, "tools/call", &json!({"name": "sql", "arguments": arguments}));
            let found: Vec<&str> =
                found.iter().filter(|(name, _)| name.starts_with("mcp-param-")).map(|(_, v)| &**v).collect();
            assert_eq!(found, expected, "{arguments}");
        }
        let again = json!({"tools": [{"name": "sql", "inputSchema": {}}], "why": "x-mcp-header"}).to_string();
        assert_eq!(metadata.learn(&again), None);
        let found = headers(&metadata, "tools/call", &json!({"name": "sql", "arguments": {"region": "a"}}));
        assert_eq!(found.len(), 2, "a changed tool is learnt anew: {found:?}");
    }

    #[test]
    fn a_tool_whose_annotations_cannot_be_used_is_left_out() {
        let property = |property: Value| json!({"properties": {"a": property}});
        for schema in [
            property(json!({"type": "string", "x-mcp-header": ""})),
            property(json!({"type": "string", "x-mcp-header": "a b"})),
            property(json!({"type": "string", "x-mcp-header": "a\r\nb"})),
            property(json!({"type": "number", "x-mcp-header": "A"})),
            property(json!({"type": "string", "x-mcp-header": 1})),
            property(json!({"type": "array", "items": {"type": "string", "x-mcp-header": "A"}})),
            property(json!({"anyOf": [{"type": "string", "x-mcp-header": "A"}]})),
            json!({"x-mcp-header": "A", "type": "string"}),
            json!({"properties": {"a": {"type": "string", "x-mcp-header": "A"}, "b": {"type": "string", "x-mcp-header": "a"}}}),
        ] {
            let list =
                json!({"tools": [{"name": "bad", "inputSchema": schema}, {"name": "good"}], "ttlMs": 1});
            let narrowed = Metadata::default().learn(&list.to_string());
            let narrowed: Value = serde_json::from_str(&narrowed.expect("it is left out")).unwrap();
            assert_eq!(narrowed, json!({"tools": [{"name": "good"}], "ttlMs": 1}), "{schema}");
        }
        let fine = property(json!({"type": "string", "default": {"x-mcp-header": 1}}));
        assert_eq!(read(&fine), Ok(vec![]));
    }
}
