//! The MQTT user properties that the specification names.

/// What kind of component sends: `mcp-server` or `mcp-client`. On CONNECT and every PUBLISH.
pub const COMPONENT_TYPE: &str = "MCP-COMPONENT-TYPE";
/// MQTT client id of the sender. On every PUBLISH.
pub const MQTT_CLIENT_ID: &str = "MCP-MQTT-CLIENT-ID";
/// A JSON object about the component. On CONNECT.
pub const META: &str = "MCP-META";
/// CONNACK: the server name that the broker wants a server to use.
pub const SERVER_NAME: &str = "MCP-SERVER-NAME";

/// On a retained presence of ours: the owner mark of the operator that looks after it. No other one clears it.
pub const OWNER: &str = "MCP-MQTT-OWNER";
/// On an `initialize` that was held for a sleeping service and is passed on: its client's MQTT client id.
pub const HELD_FOR: &str = "MCP-MQTT-HELD-FOR";

/// User properties as MQTT has them: ordered pairs, names may repeat.
pub type UserProperties = Vec<(String, String)>;

/// The two kinds of components.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// `mcp-server`
    Server,
    /// `mcp-client`
    Client,
}

impl Component {
    /// The value of [`COMPONENT_TYPE`].
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "mcp-server",
            Self::Client => "mcp-client",
        }
    }
}

/// The properties of a CONNECT; `meta` is the text of a JSON object.
pub fn of_connect(component: Component, meta: &str) -> UserProperties {
    vec![(COMPONENT_TYPE.to_owned(), component.as_str().to_owned()), (META.to_owned(), meta.to_owned())]
}

/// The two properties that every PUBLISH carries.
pub fn of_publish(component: Component, client_id: &str) -> UserProperties {
    vec![
        (COMPONENT_TYPE.to_owned(), component.as_str().to_owned()),
        (MQTT_CLIENT_ID.to_owned(), client_id.to_owned()),
    ]
}

/// The first property of that name.
pub fn find<'a>(properties: &'a [(String, String)], name: &str) -> Option<&'a str> {
    properties.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_property_of_a_name_is_found() {
        let mut properties = of_publish(Component::Client, "c-1");
        properties.push((MQTT_CLIENT_ID.to_owned(), "c-2".to_owned()));
        assert_eq!(find(&properties, "MCP-MQTT-CLIENT-ID"), Some("c-1"));
        assert_eq!(find(&properties, "MCP-COMPONENT-TYPE"), Some("mcp-client"));
        assert_eq!(find(&properties, META), None);
    }

    #[test]
    fn a_server_connects_with_its_type_and_meta() {
        assert_eq!(
            of_connect(Component::Server, "{}"),
            [
                ("MCP-COMPONENT-TYPE".to_owned(), "mcp-server".to_owned()),
                ("MCP-META".to_owned(), "{}".to_owned()),
            ]
        );
    }
}
