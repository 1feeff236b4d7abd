//! Topics: against the specification's table, read level by level; and name filters against MQTT's own rule.

use mcp_mqtt_transport::topic::{self, ClientId, MAX_NAME_BYTES, ServerId, ServerName, Topic};

/// A topic, or a filter and a name with a NUL between.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.split_once('\0') {
        Some((filter, name)) => matches(filter, name),
        None => parse(text),
    }
}

fn parse(text: &str) {
    let levels: Vec<&str> = text.split('/').collect();
    match Topic::parse(text) {
        Ok(topic) => {
            assert!(is_topic(&levels), "{text:?} is no topic, and is read as {topic:?}");
            assert_eq!(topic.to_string(), text, "{topic:?}");
            assert_eq!(rebuilt(topic), text, "{topic:?}");
        }
        Err(error) => assert!(!is_topic(&levels), "{text:?} is a topic, and is refused: {error}"),
    }
}

/// The table of the specification.
fn is_topic(levels: &[&str]) -> bool {
    match levels {
        ["$mcp-client", "presence" | "capability", client] => is_id(client),
        ["$mcp-server", "presence" | "capability", server, name @ ..]
        | ["$mcp-server", server, name @ ..] => is_server(server) && is_name(name),
        ["$mcp-rpc", client, server, name @ ..] => is_id(client) && is_server(server) && is_name(name),
        _ => false,
    }
}

fn is_plain(text: &str) -> bool {
    let is_plain = |c: char| c != '+' && c != '#' && !c.is_control();
    !text.is_empty() && text.len() <= MAX_NAME_BYTES && text.chars().all(is_plain)
}

fn is_id(level: &str) -> bool {
    is_plain(level)
}

fn is_server(level: &str) -> bool {
    is_id(level) && level != "presence" && level != "capability"
}

fn is_name(levels: &[&str]) -> bool {
    levels.len() >= 2 && !levels[0].is_empty() && is_plain(&levels.join("/"))
}

fn rebuilt(topic: Topic<'_>) -> String {
    let server = |id: &str| ServerId::new(id).expect("a parsed id is one");
    let name = |name: &str| ServerName::new(name).expect("a parsed name is one");
    let client = |id: &str| ClientId::new(id).expect("a parsed id is one");
    match topic {
        Topic::Control { server_id, server_name } => topic::control(&server(server_id), &name(server_name)),
        Topic::ServerCapability { server_id, server_name } => {
            topic::server_capability(&server(server_id), &name(server_name))
        }
        Topic::ServerPresence { server_id, server_name } => {
            topic::server_presence(&server(server_id), &name(server_name))
        }
        Topic::ClientPresence { client_id } => topic::client_presence(&client(client_id)),
        Topic::ClientCapability { client_id } => topic::client_capability(&client(client_id)),
        Topic::Rpc { client_id, server_id, server_name } => {
            topic::rpc(&client(client_id), &server(server_id), &name(server_name))
        }
    }
}

fn matches(filter: &str, name: &str) {
    let levels = |text: &str| text.split('/').map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        topic::name_matches(filter, name),
        level_by_level(&levels(filter), &levels(name)),
        "{filter:?} and {name:?}"
    );
    if ServerName::new(name).is_ok() {
        assert!(topic::name_matches(name, name) && topic::name_matches("#", name));
    }
}

fn level_by_level(filter: &[String], name: &[String]) -> bool {
    match (filter, name) {
        ([wanted, ..], _) if wanted == "#" => true,
        ([], []) => true,
        ([wanted, filter @ ..], [level, name @ ..]) => {
            (wanted == "+" || wanted == level) && level_by_level(filter, name)
        }
        _ => false,
    }
}
