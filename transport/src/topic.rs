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
    Control {
        /// Server id.
        server_id: &'a str,
        /// Server name.
        server_name: &'a str,
    },
    /// `$mcp-server/capability/{server-id}/{server-name}`
    ServerCapability {
        /// Server id.
        server_id: &'a str,
        /// Server name.
        server_name: &'a str,
    },
    /// `$mcp-server/presence/{server-id}/{server-name}`
    ServerPresence {
        /// Server id.
        server_id: &'a str,
        /// Server name.
        server_name: &'a str,
    },
    /// `$mcp-client/presence/{mcp-client-id}`
    ClientPresence {
        /// Client id.
        client_id: &'a str,
    },
    /// `$mcp-client/capability/{mcp-client-id}`
    ClientCapability {
        /// Client id.
        client_id: &'a str,
    },
    /// `$mcp-rpc/{mcp-client-id}/{server-id}/{server-name}`
    Rpc {
        /// Client id.
        client_id: &'a str,
        /// Server id.
        server_id: &'a str,
        /// Server name.
        server_name: &'a str,
    },
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

/// The filter that matches all that servers say to this client alone.
pub fn rpc_filter(client_id: &str) -> String {
    format!("$mcp-rpc/{client_id}/#")
}

/// The filter that matches the presence of every instance of the servers that `name_filter` matches
/// (a server name, or one with `+` and `#`).
pub fn server_presence_filter(name_filter: &str) -> String {
    format!("$mcp-server/presence/+/{name_filter}")
}

/// Whether a server name matches a name filter: levels of a server name, `+` for one and `#` at the end for the rest.
pub fn name_matches(filter: &str, server_name: &str) -> bool {
    let mut levels = server_name.split('/');
    for wanted in filter.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(name: &str) -> Result<(), NameError> {
        ServerName::new(name).map(|_| ())
    }

    #[test]
    fn each_rule_for_server_names_is_named_when_it_is_broken() {
        assert_eq!(name("tools/echo"), Ok(()));
        assert_eq!(name("a/b/c d/ü"), Ok(()));
        assert_eq!(name(""), Err(NameError::Empty));
        assert_eq!(name("echo"), Err(NameError::NotHierarchical));
        assert_eq!(name("/tools/echo"), Err(NameError::LeadingSlash));
        assert_eq!(name("tools/+"), Err(NameError::Wildcard('+')));
        assert_eq!(name("tools/#"), Err(NameError::Wildcard('#')));
        assert_eq!(name("tools/a\0b"), Err(NameError::ControlCharacter('\0')));
        assert_eq!(name(&format!("a/{}", "b".repeat(510))), Ok(()));
        assert_eq!(name(&format!("a/{}", "b".repeat(511))), Err(NameError::TooLong(513)));
        assert_eq!(
            NameError::NotHierarchical.to_string(),
            "has no '/': a server name is hierarchical, as in \"tools/echo\""
        );
    }

    #[test]
    fn ids_are_one_level_and_a_server_id_is_no_level_of_the_specification() {
        assert_eq!(ServerId::new("cluster.ns.pod").map(|id| id.to_string()), Ok("cluster.ns.pod".to_owned()));
        assert_eq!(ServerId::new("a/b"), Err(NameError::Slash));
        assert_eq!(ServerId::new("capability"), Err(NameError::Reserved("capability")));
        assert_eq!(ServerId::new("presence"), Err(NameError::Reserved("presence")));
        assert!(ClientId::new("presence").is_ok());
        assert_eq!(ClientId::new("a+"), Err(NameError::Wildcard('+')));
        assert_eq!(ClientId::new(""), Err(NameError::Empty));
    }

    #[test]
    fn the_six_topics_are_told_apart() {
        let (server_id, server_name, client_id) = ("s", "a/b/c", "c");
        for (text, topic) in [
            ("$mcp-server/s/a/b/c", Topic::Control { server_id, server_name }),
            ("$mcp-server/capability/s/a/b/c", Topic::ServerCapability { server_id, server_name }),
            ("$mcp-server/presence/s/a/b/c", Topic::ServerPresence { server_id, server_name }),
            ("$mcp-client/presence/c", Topic::ClientPresence { client_id }),
            ("$mcp-client/capability/c", Topic::ClientCapability { client_id }),
            ("$mcp-rpc/c/s/a/b/c", Topic::Rpc { client_id, server_id, server_name }),
        ] {
            assert_eq!(Topic::parse(text), Ok(topic));
            assert_eq!(topic.to_string(), text);
        }
    }

    #[test]
    fn what_is_none_of_the_six_says_why() {
        for text in [
            "",
            "$mcp-server",
            "$mcp-server/",
            "$mcp-rpc/c",
            "$mcp-client/other/c",
            "mcp-rpc/c/s/a/b",
            "$SYS/x",
        ] {
            assert_eq!(Topic::parse(text), Err(TopicError::NotMcp), "{text}");
        }
        assert_eq!(Topic::parse("$mcp-server/s/a"), Err(TopicError::ServerName(NameError::NotHierarchical)));
        assert_eq!(Topic::parse("$mcp-server/presence/a"), Err(TopicError::NotMcp));
        assert_eq!(Topic::parse("$mcp-rpc//s/a/b"), Err(TopicError::ClientId(NameError::Empty)));
        assert_eq!(Topic::parse("$mcp-rpc/c//a/b"), Err(TopicError::ServerId(NameError::Empty)));
        assert_eq!(Topic::parse("$mcp-client/presence/a/b"), Err(TopicError::ClientId(NameError::Slash)));
    }

    #[test]
    fn name_filters_match_as_mqtt_does() {
        for (filter, matching, other) in [
            ("tools/echo", "tools/echo", "tools/echo/2"),
            ("tools/+", "tools/echo", "tools/a/b"),
            ("#", "tools/echo/deep", ""),
            ("tools/#", "tools/a/b", "other/a"),
            ("+/echo", "tools/echo", "tools/other"),
        ] {
            assert!(name_matches(filter, matching), "{filter} {matching}");
            assert!(other.is_empty() || !name_matches(filter, other), "{filter} {other}");
        }
    }

    proptest! {
        #[test]
        fn every_formatted_topic_parses_back(
            client in "[a-zA-Z0-9._-]{1,20}", server in "x[a-zA-Z0-9._-]{0,20}", name in "[a-z]{1,5}(/[a-z ]{0,5}){1,4}",
        ) {
            let (client, server, name) = (
                ClientId::new(&client).expect("valid"),
                ServerId::new(&server).expect("valid"),
                ServerName::new(&name).expect("valid"),
            );
            let (client_id, server_id, server_name) = (client.as_str(), server.as_str(), name.as_str());
            for (text, topic) in [
                (control(&server, &name), Topic::Control { server_id, server_name }),
                (server_capability(&server, &name), Topic::ServerCapability { server_id, server_name }),
                (server_presence(&server, &name), Topic::ServerPresence { server_id, server_name }),
                (client_presence(&client), Topic::ClientPresence { client_id }),
                (client_capability(&client), Topic::ClientCapability { client_id }),
                (rpc(&client, &server, &name), Topic::Rpc { client_id, server_id, server_name }),
            ] {
                prop_assert_eq!(Topic::parse(&text), Ok(topic));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic_and_what_parses_formats_back(text in "\\$mcp-(server|client|rpc)/[a-z/+#]{0,30}") {
            if let Ok(topic) = Topic::parse(&text) {
                prop_assert_eq!(topic.to_string(), text);
            }
        }
    }
}
