//! What every request of 2026-07-28 carries in `params._meta`: who asks, in which revision, with which capabilities.
//!
//! It is written once for a session and put into each request's params, which otherwise pass as they came.

use mcp_mqtt_transport::jsonrpc::{Message, RequestId};
use serde_json::{Map, Value, json};

use super::{
    MODERN_REVISION,
    members::{member, members, string},
};

const PROTOCOL_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CLIENT_INFO: &str = "io.modelcontextprotocol/clientInfo";
const CLIENT_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
/// Ours alone to write: a client of an older revision does not know them, and two of one name would be two messages.
const OURS: [&str; 4] = [PROTOCOL_VERSION, CLIENT_INFO, CLIENT_CAPABILITIES, LOG_LEVEL];
/// Likewise, beside `_meta`.
const OURS_IN_PARAMS: [&str; 2] = ["inputResponses", "requestState"];

/// Bytes of what a client says of itself once and each of its requests carries: many small ones are not to become many
/// large ones.
pub(super) const MAX_IN_EACH: usize = 16 << 10;

/// The severities of RFC 5424, as MCP spells them.
const LOG_LEVELS: [&str; 8] =
    ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

/// See the module.
#[derive(Debug)]
pub(super) struct Envelope {
    /// Our members of `_meta`, without the log level.
    fixed: String,
    /// The same with the log level, when the client has set one.
    leveled: Option<String>,
}

impl Envelope {
    /// Of the `params` of an `initialize` request. Who says much of itself (icons, say) goes without a name.
    pub(super) fn of(initialize: &str) -> Self {
        let info = member(initialize, "clientInfo")
            .filter(|info| info.len() <= MAX_IN_EACH && is_implementation(info));
        let capabilities = member(initialize, "capabilities").and_then(|raw| serde_json::from_str(raw).ok());
        let capabilities = Value::Object(modern_capabilities(capabilities.unwrap_or_default()));
        let info = info.map(|info| format!(r#","{CLIENT_INFO}":{info}"#)).unwrap_or_default();
        let fixed = format!(
            r#""{PROTOCOL_VERSION}":"{MODERN_REVISION}"{info},"{CLIENT_CAPABILITIES}":{capabilities}"#
        );
        Self { fixed, leveled: None }
    }

    /// `logging/setLevel`: from now on each request asks for log messages of this level. False for a word that is
    /// none.
    pub(super) fn set_log_level(&mut self, level: &str) -> bool {
        let known = LOG_LEVELS.contains(&level);
        if known {
            self.leveled = Some(format!(r#"{},"{LOG_LEVEL}":"{level}""#, self.fixed));
        }
        known
    }

    /// A request of a client, for the server. `params` are an object, or none; `more`: members to add.
    pub(super) fn request(
        &self,
        id: &RequestId,
        method: &str,
        params: Option<&str>,
        more: &[&str],
    ) -> Message {
        let mut parts = vec![r#"{"_meta":{"#, self.leveled.as_ref().unwrap_or(&self.fixed)];
        let (metas, others): (Vec<_>, Vec<_>) =
            members(params.unwrap_or_default()).partition(|member| member.is("_meta"));
        for meta in metas {
            for theirs in members(meta.value).filter(|meta| !OURS.iter().any(|ours| meta.is(ours))) {
                parts.extend([",", theirs.text]);
            }
        }
        parts.push("}");
        for theirs in others.iter().filter(|member| !OURS_IN_PARAMS.iter().any(|ours| member.is(ours))) {
            parts.extend([",", theirs.text]);
        }
        for more in more {
            parts.extend([",", more]);
        }
        parts.push("}");
        Message::request_of_parts(id, method, &parts)
    }
}

/// `name` and `version` are what the schema wants; without them the whole request would be refused.
fn is_implementation(info: &str) -> bool {
    ["name", "version"].iter().all(|field| member(info, field).and_then(string).is_some())
}

/// A client's capabilities in the words of 2026-07-28.
fn modern_capabilities(mut legacy: Map<String, Value>) -> Map<String, Value> {
    legacy.remove("tasks"); // an experiment of 2025-11-25; the extension of that name is another protocol
    legacy.retain(|_, value| value.is_object());
    if let Some(roots) = legacy.get_mut("roots") {
        *roots = json!({}); // nobody is told that they change
    }
    // Before 2025-11-25 there was only the form, and it had no name.
    if let Some(Value::Object(elicitation)) = legacy.get_mut("elicitation")
        && elicitation.is_empty()
    {
        elicitation.insert("form".to_owned(), json!({}));
    }
    legacy
}

/// What a client lets itself be asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asking {
    /// Of [`QUESTIONS`], the capabilities that it declared.
    declared: Vec<&'static str>,
}

/// The capabilities that let a client be asked, and where they stand.
const QUESTIONS: [(&str, &str); 5] = [
    ("elicitation", "/elicitation/form"),
    ("elicitation.url", "/elicitation/url"),
    ("sampling", "/sampling"),
    ("sampling.tools", "/sampling/tools"),
    ("roots", "/roots"),
];

impl Asking {
    /// Of the `params` of an `initialize` request.
    pub(super) fn of(initialize: &str) -> Self {
        let legacy = member(initialize, "capabilities").and_then(|raw| serde_json::from_str(raw).ok());
        let capabilities = Value::Object(modern_capabilities(legacy.unwrap_or_default()));
        let has = |pointer| capabilities.pointer(pointer).is_some_and(Value::is_object);
        let declared = QUESTIONS.iter().filter(|(_, pointer)| has(pointer)).map(|(name, _)| *name);
        Self { declared: declared.collect() }
    }

    /// The capability that this request would need and the client has not; nothing: it may be asked. `Err`: no
    /// client can be asked that.
    pub(super) fn lacks(&self, method: &str, params: &str) -> Result<Option<&'static str>, ()> {
        let needed: &[&'static str] = match method {
            "elicitation/create" if is_url(params) => &["elicitation.url"],
            "elicitation/create" => &["elicitation"],
            "sampling/createMessage"
                if member(params, "tools").or(member(params, "toolChoice")).is_some() =>
            {
                &["sampling", "sampling.tools"]
            }
            "sampling/createMessage" => &["sampling"],
            "roots/list" => &["roots"],
            _ => return Err(()),
        };
        Ok(needed.iter().find(|needed| !self.declared.contains(needed)).copied())
    }
}

/// Whether an elicitation sends the user to a page.
pub(super) fn is_url(params: &str) -> bool {
    member(params, "mode").and_then(string).is_some_and(|mode| mode == "url")
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITIALIZE: &str = r#"{"protocolVersion":"2025-06-18","capabilities":{"elicitation":{},"roots":{"listChanged":true},"tasks":{},"sampling":null},"clientInfo":{"name":"c","version":"1","title":"C"}}"#;

    fn params(envelope: &Envelope, params: Option<&str>, more: &[&str]) -> String {
        let message = envelope.request(&RequestId::number(1), "tools/call", params, more);
        let read = Message::parse(message.raw().clone(), usize::MAX).unwrap();
        assert_eq!((read.params(), read.kind()), (message.params(), message.kind()), "it is what it says");
        read.params().unwrap().to_owned()
    }

    const META: &str = r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"c","version":"1","title":"C"},"io.modelcontextprotocol/clientCapabilities":{"elicitation":{"form":{}},"roots":{}}"#;

    #[test]
    fn each_request_says_who_asks_and_the_rest_passes_as_it_came() {
        let envelope = Envelope::of(INITIALIZE);
        for (given, expected) in [
            (None, format!(r#"{{"_meta":{{{META}}}}}"#)),
            (Some("{}"), format!(r#"{{"_meta":{{{META}}}}}"#)),
            (
                Some(r#"{"name":"a","arguments":{ "x" : 1.50, "_meta":{} }}"#),
                format!(r#"{{"_meta":{{{META}}},"name":"a","arguments":{{ "x" : 1.50, "_meta":{{}} }}}}"#),
            ),
            (
                Some(r#"{"_meta":{"progressToken":"p","traceparent":"00-1"},"name":"a"}"#),
                format!(r#"{{"_meta":{{{META},"progressToken":"p","traceparent":"00-1"}},"name":"a"}}"#),
            ),
            (Some(r#"{"_meta":null,"name":"a"}"#), format!(r#"{{"_meta":{{{META}}},"name":"a"}}"#)),
        ] {
            assert_eq!(params(&envelope, given, &[]), expected, "{given:?}");
        }
    }

    #[test]
    fn a_client_cannot_write_what_is_ours() {
        let envelope = Envelope::of(INITIALIZE);
        let forged = r#"{"name":"a","_meta":{"io.modelcontextprotocol/protocolVersion":"1","io.modelcontextprotocol\/logLevel":"debug","a":1},"requestState":"s","inputResponses":{},"_meta":{"b":2}}"#;
        assert_eq!(
            params(&envelope, Some(forged), &[r#""requestState":"ours""#]),
            format!(r#"{{"_meta":{{{META},"a":1,"b":2}},"name":"a","requestState":"ours"}}"#)
        );
    }

    #[test]
    fn the_log_level_goes_with_each_request_once_it_is_set() {
        let mut envelope = Envelope::of(INITIALIZE);
        assert!(envelope.set_log_level("debug") && envelope.set_log_level("warning"));
        assert!(!envelope.set_log_level("loud\""));
        let expected = format!(r#"{{"_meta":{{{META},"io.modelcontextprotocol/logLevel":"warning"}}}}"#);
        assert_eq!(params(&envelope, None, &[]), expected);
    }

    #[test]
    fn a_client_that_does_not_say_who_it_is_is_nobody() {
        for initialize in ["{}", r#"{"clientInfo":{"name":1},"capabilities":[]}"#] {
            let expected = r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}"#;
            assert_eq!(params(&Envelope::of(initialize), None, &[]), expected);
            assert_eq!(Asking::of(initialize), Asking::default());
        }
    }

    #[test]
    fn a_client_is_asked_only_what_it_said_it_can() {
        let all =
            r#"{"capabilities":{"elicitation":{"url":{},"form":{}},"sampling":{"tools":{}},"roots":{}}}"#;
        let some = r#"{"capabilities":{"elicitation":{},"sampling":{}}}"#;
        for (method, asked, with_some, with_none) in [
            ("elicitation/create", "{}", None, Some("elicitation")),
            ("elicitation/create", r#"{"mode":"form"}"#, None, Some("elicitation")),
            ("elicitation/create", r#"{"mode":"url"}"#, Some("elicitation.url"), Some("elicitation.url")),
            ("sampling/createMessage", "{}", None, Some("sampling")),
            ("sampling/createMessage", r#"{"tools":[]}"#, Some("sampling.tools"), Some("sampling")),
            ("roots/list", "", Some("roots"), Some("roots")),
        ] {
            assert_eq!(Asking::of(all).lacks(method, asked), Ok(None), "{method} {asked}");
            assert_eq!(Asking::of(some).lacks(method, asked), Ok(with_some), "{method} {asked}");
            assert_eq!(Asking::of("{}").lacks(method, asked), Ok(with_none), "{method} {asked}");
        }
        assert_eq!(Asking::of(all).lacks("tools/call", "{}"), Err(()));
    }
}
