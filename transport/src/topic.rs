//! Names and the six topics (spec: "MQTT topics").
//!
//! | topic | direction |
//! |---|---|
//! | `$mcp-server/{server-id}/{server-name}` | client → server: `initialize` |
//! | `$mcp-server/capability/{server-id}/{server-name}` | server → clients |
//! | `$mcp-server/presence/{server-id}/{server-name}` | server → clients, retained |
//! | `$mcp-client/presence/{mcp-client-id}` | client → servers |
//! | `$mcp-client/capability/{mcp-client-id}` | client → servers |
//! | `$mcp-rpc/{mcp-client-id}/{server-id}/{server-name}` | both ways |
//!
//! A server name has slashes in it, so it is always the tail of its topic.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// Longest server name, server id or client id, in bytes. MQTT allows 65,535 for a whole topic; three of these and
/// the prefixes stay far below, and what is longer than this is no name.
pub const MAX_NAME_BYTES: usize = 512;

/// The rule of the specification that a name breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// Over [`MAX_NAME_BYTES`].
    #[error("is {0} bytes long; at most {MAX_NAME_BYTES} are allowed")]
    TooLong(usize),
    /// `+` or `#`.
    #[error("contains {0:?}, an MQTT wildcard")]
    Wildcard(char),
    /// NUL or another control character; MQTT forbids them in topics.
    #[error("contains the control character {0:?}")]
    ControlCharacter(char),
    /// A server name begins with `/`.
    #[error("begins with '/'")]
    LeadingSlash,
    /// A server name without `/`.
    #[error("has no '/': a server name is hierarchical, as in \"tools/echo\"")]
    NotHierarchical,
    /// An id with `/`.
    #[error("contains '/': an id is one level of a topic")]
    Slash,
    /// A server id that would make its control topic another topic.
    #[error("is \"{0}\", which the specification uses as a topic level of its own")]
    Reserved(&'static str),
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        ///
        /// Cheap to clone; hashes and compares as its `str`.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the rules and takes the name.
            ///
            /// # Errors
            /// The rule that it breaks.
            pub fn new(name: &str) -> Result<Self, NameError> {
                $check(name)?;
                Ok(Self(name.into()))
            }

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A server name: hierarchical (`a/b`), the same for all instances of one service.
    ServerName,
    check_server_name
);
name!(
    /// A server id: the MQTT client id of one instance.
    ServerId,
    check_server_id
);
name!(
    /// The MQTT client id of an MCP client.
    ClientId,
    check_client_id
);

fn check_common(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong(name.len()));
    }
    for c in name.chars() {
        if matches!(c, '+' | '#') {
            return Err(NameError::Wildcard(c));
        }
        if c.is_control() {
            return Err(NameError::ControlCharacter(c));
        }
    }
    Ok(())
}

fn check_server_name(name: &str) -> Result<(), NameError> {
    check_common(name)?;
    if name.starts_with('/') {
        return Err(NameError::LeadingSlash);
    }
    if !name.contains('/') {
        return Err(NameError::NotHierarchical);
    }
    Ok(())
}

fn check_client_id(id: &str) -> Result<(), NameError> {
    check_common(id)?;
    if id.contains('/') {
        return Err(NameError::Slash);
    }
    Ok(())
}

fn check_server_id(id: &str) -> Result<(), NameError> {
    check_client_id(id)?;
    match id {
        "capability" => Err(NameError::Reserved("capability")),
        "presence" => Err(NameError::Reserved("presence")),
        _ => Ok(()),
    }
}

/// One of the six topics, its parts borrowed from the topic's text and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic<'a> {
    /// `$mcp-server/{server-id}/{server-name}`
    Control { server_id: &'a str, server_name: &'a str },
    /// `$mcp-server/capability/{server-id}/{server-name}`
    ServerCapability { server_id: &'a str, server_name: &'a str },
    /// `$mcp-server/presence/{server-id}/{server-name}`
    ServerPresence { server_id: &'a str, server_name: &'a str },
    /// `$mcp-client/presence/{mcp-client-id}`
    ClientPresence { client_id: &'a str },
    /// `$mcp-client/capability/{mcp-client-id}`
    ClientCapability { client_id: &'a str },
    /// `$mcp-rpc/{mcp-client-id}/{server-id}/{server-name}`
    Rpc { client_id: &'a str, server_id: &'a str, server_name: &'a str },
}

/// Why a text is none of the six topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Begins with none of `$mcp-server/`, `$mcp-client/`, `$mcp-rpc/`, or has too few levels.
    #[error("not a topic of MCP over MQTT")]
    NotMcp,
    /// Its server name breaks a rule.
    #[error("the server name {0}")]
    ServerName(NameError),
    /// Its server id breaks a rule.
    #[error("the server id {0}")]
    ServerId(NameError),
    /// Its client id breaks a rule.
    #[error("the client id {0}")]
    ClientId(NameError),
}

impl<'a> Topic<'a> {
    /// Parses a topic without allocating.
    ///
    /// # Errors
    /// [`TopicError`] when it is none of the six or a part of it breaks its rules.
    pub fn parse(topic: &'a str) -> Result<Self, TopicError> {
        if let Some(rest) = topic.strip_prefix("$mcp-rpc/") {
            let (client_id, rest) = rest.split_once('/').ok_or(TopicError::NotMcp)?;
            check_client_id(client_id).map_err(TopicError::ClientId)?;
            let (server_id, server_name) = server(rest)?;
            return Ok(Self::Rpc { client_id, server_id, server_name });
        }
        if let Some(rest) = topic.strip_prefix("$mcp-server/") {
            if let Some(rest) = rest.strip_prefix("capability/") {
                let (server_id, server_name) = server(rest)?;
                return Ok(Self::ServerCapability { server_id, server_name });
            }
            if let Some(rest) = rest.strip_prefix("presence/") {
                let (server_id, server_name) = server(rest)?;
                return Ok(Self::ServerPresence { server_id, server_name });
            }
            let (server_id, server_name) = server(rest)?;
            return Ok(Self::Control { server_id, server_name });
        }
        if let Some(rest) = topic.strip_prefix("$mcp-client/") {
            let (kind, client_id) = rest.split_once('/').ok_or(TopicError::NotMcp)?;
            let topic = match kind {
                "presence" => Self::ClientPresence { client_id },
                "capability" => Self::ClientCapability { client_id },
                _ => return Err(TopicError::NotMcp),
            };
            check_client_id(client_id).map_err(TopicError::ClientId)?;
            return Ok(topic);
        }
        Err(TopicError::NotMcp)
    }
}

fn server(rest: &str) -> Result<(&str, &str), TopicError> {
    let (id, name) = rest.split_once('/').ok_or(TopicError::NotMcp)?;
    check_server_id(id).map_err(TopicError::ServerId)?;
    check_server_name(name).map_err(TopicError::ServerName)?;
    Ok((id, name))
}

impl fmt::Display for Topic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Control { server_id, server_name } => write!(f, "$mcp-server/{server_id}/{server_name}"),
            Self::ServerCapability { server_id, server_name } => {
                write!(f, "$mcp-server/capability/{server_id}/{server_name}")
            }
            Self::ServerPresence { server_id, server_name } => {
                write!(f, "$mcp-server/presence/{server_id}/{server_name}")
            }
            Self::ClientPresence { client_id } => write!(f, "$mcp-client/presence/{client_id}"),
            Self::ClientCapability { client_id } => write!(f, "$mcp-client/capability/{client_id}"),
            Self::Rpc { client_id, server_id, server_name } => {
                write!(f, "$mcp-rpc/{client_id}/{server_id}/{server_name}")
            }
        }
    }
}

/// `$mcp-server/{server-id}/{server-name}`
pub fn control(server_id: &ServerId, server_name: &ServerName) -> String {
    format!("$mcp-server/{server_id}/{server_name}")
}

/// `$mcp-server/capability/{server-id}/{server-name}`
pub fn server_capability(server_id: &ServerId, server_name: &ServerName) -> String {
    format!("$mcp-server/capability/{server_id}/{server_name}")
}

/// `$mcp-server/presence/{server-id}/{server-name}`
pub fn server_presence(server_id: &ServerId, server_name: &ServerName) -> String {
    format!("$mcp-server/presence/{server_id}/{server_name}")
}

/// `$mcp-client/presence/{mcp-client-id}`
pub fn client_presence(client_id: &ClientId) -> String {
    format!("$mcp-client/presence/{client_id}")
}

/// `$mcp-client/capability/{mcp-client-id}`
pub fn client_capability(client_id: &ClientId) -> String {
    format!("$mcp-client/capability/{client_id}")
}

/// `$mcp-rpc/{mcp-client-id}/{server-id}/{server-name}`
pub fn rpc(client_id: &ClientId, server_id: &ServerId, server_name: &ServerName) -> String {
    format!("$mcp-rpc/{client_id}/{server_id}/{server_name}")
}

/// The filter that matches the presence of every instance of the servers that `name_filter` matches
/// (a server name, or one with `+` and `#`).
pub fn server_presence_filter(name_filter: &str) -> String {
    format!("$mcp-server/presence/+/{name_filter}")
}
