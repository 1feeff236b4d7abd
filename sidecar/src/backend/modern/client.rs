//! What a client said in `initialize`, and what it hears of the server in return.

use mcp_mqtt_transport::jsonrpc::{Message, RequestId};

use super::{
    MODERN_REVISION,
    envelope::{Asking, Envelope},
    members::{items, member, string},
};
use crate::backend::NEWEST_REVISION;

/// The revisions that are spoken to clients; the last one is offered to a client that wants another.
const LEGACY_REVISIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", NEWEST_REVISION];
/// What stands for a server that does not say who it is; `initialize` has to tell a name.
const UNNAMED: &str = r#"{"name":"unnamed","version":"unknown"}"#;

/// See the module.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) envelope: Envelope,
    pub(super) asking: Asking,
    pub(super) opening: Opening,
    /// The revision that is spoken to it.
    revision: &'static str,
    /// The server writes to the log.
    pub(super) can_log: bool,
    /// The server tells when a resource changes.
    pub(super) can_subscribe: bool,
}

/// How far it is.
#[derive(Debug)]
pub(super) enum Opening {
    /// Nothing was said, or nothing came of it.
    Not,
    /// The id of `initialize`, and of `server/discover`.
    Discovering(RequestId),
    /// It has its `initialize` result.
    Open,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            envelope: Envelope::of("{}"),
            asking: Asking::default(),
            opening: Opening::Not,
            revision: NEWEST_REVISION,
            can_log: false,
            can_subscribe: false,
        }
    }
}

impl Client {
    /// Of the id and `params` of its `initialize`.
    pub(super) fn begin(id: &RequestId, params: &str) -> Self {
        let wanted = member(params, "protocolVersion").and_then(string);
        let revision = LEGACY_REVISIONS.iter().find(|revision| Some(**revision) == wanted.as_deref());
        Self {
            envelope: Envelope::of(params),
            asking: Asking::of(params),
            opening: Opening::Discovering(id.clone()),
            revision: revision.unwrap_or(&NEWEST_REVISION),
            ..Self::default()
        }
    }

    /// Whether the request of this id is the `server/discover` that `initialize` waits for.
    pub(super) fn is_discovering(&self, id: &RequestId) -> bool {
        matches!(&self.opening, Opening::Discovering(discover) if discover == id)
    }

    /// The server answered `server/discover`. Of tools, prompts and resources: whether it tells when their list changes.
    ///
    /// # Errors
    /// It does not speak the revision: what it speaks.
    pub(super) fn discovered<'a>(&mut self, result: &'a str) -> Result<[bool; 3], &'a str> {
        let versions = member(result, "supportedVersions").unwrap_or("[]");
        if !items(versions).any(|version| string(version).is_some_and(|version| version == MODERN_REVISION)) {
            self.opening = Opening::Not;
            return Err(versions);
        }
        let feature = |name| member(capabilities(result), name);
        let tells = |name, what| feature(name).and_then(|feature| member(feature, what)) == Some("true");
        self.can_log = feature("logging").is_some();
        self.can_subscribe = tells("resources", "subscribe");
        self.opening = Opening::Open;
        Ok(["tools", "prompts", "resources"].map(|name| tells(name, "listChanged")))
    }

    /// The answer to `initialize` of this result of `server/discover`.
    pub(super) fn initialize_result(&self, id: &RequestId, result: &str) -> Message {
        let info =
            member(result, "_meta").and_then(|meta| member(meta, "io.modelcontextprotocol/serverInfo"));
        let mut parts = vec![
            r#"{"protocolVersion":""#,
            self.revision,
            r#"","capabilities":"#,
            capabilities(result),
            r#","serverInfo":"#,
            info.filter(|info| info.starts_with('{')).unwrap_or(UNNAMED),
        ];
        if let Some(instructions) = member(result, "instructions").filter(|text| text.starts_with('"')) {
            parts.extend([r#","instructions":"#, instructions]);
        }
        parts.push("}");
        Message::result_of_parts(id, &parts)
    }
}

/// They are called the same in both eras.
fn capabilities(result: &str) -> &str {
    member(result, "capabilities").filter(|raw| raw.starts_with('{')).unwrap_or("{}")
}
