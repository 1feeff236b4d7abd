//! The retained message by which a server instance is found: `notifications/server/online`.
//! An empty payload on the same topic means offline.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::topic::ServerId;

/// Method of the presence message.
pub const METHOD: &str = "notifications/server/online";

/// Method of a notification on control by which whoever looks after the registry asks a server to register anew.
pub const REGISTER: &str = "notifications/server/register";

/// Key and value in `meta` of a service without instances: whoever calls it wakes it. Its `initialize` is held
/// until an instance has taken the presence over.
const INSTANCE: &str = "instance";
const PARKED: &str = "parked";

/// Key in `meta` of such a service: the server id of the one instance that is to take the presence over, where several
/// start.
const SUCCESSOR: &str = "successor";

/// `params` of the presence message. Always all three are written, and `meta` is never null:
/// a null ends the MQTT thread of one client in the field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Online {
    /// Server name.
    pub server_name: String,
    /// What the server is for.
    pub description: String,
    /// Metadata; `rbac` is the one key that the specification defines, see [`Online::rbac`].
    pub meta: Map<String, Value>,
}

/// `meta.rbac`: hints for clients on who may do what. The broker does not enforce them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rbac {
    /// The roles.
    pub roles: Vec<Role>,
}

/// One role. All five fields are required: one client in the field drops a server that leaves one out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// Name of the role.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// MCP methods that it may use.
    pub allowed_methods: Allowed,
    /// Tools that it may call.
    pub allowed_tools: Allowed,
    /// Resources that it may read, as URIs.
    pub allowed_resources: Allowed,
}

/// `"all"` or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// Everything.
    All,
    /// These.
    Only(Vec<String>),
}

/// Why a payload is no presence message.
#[derive(Debug, thiserror::Error)]
pub enum PresenceError {
    /// Not JSON, or a field has the wrong type.
    #[error("not a presence message: {0}")]
    Json(#[from] serde_json::Error),
    /// Another method.
    #[error("not a presence message: its method is {0:?}, not \"{METHOD}\"")]
    Method(String),
}

impl Online {
    /// The presence of a server.
    pub fn new(server_name: &str, description: &str, rbac: Option<&Rbac>) -> Self {
        let mut meta = Map::new();
        if let Some(rbac) = rbac {
            let rbac = serde_json::to_value(rbac).expect("strings and lists are JSON");
            meta.insert("rbac".to_owned(), rbac);
        }
        Self { server_name: server_name.to_owned(), description: description.to_owned(), meta }
    }

    /// The same, of a service that has no instance now: `meta.instance` is `parked`.
    #[must_use]
    pub fn parked(mut self) -> Self {
        self.meta.insert(INSTANCE.to_owned(), PARKED.into());
        self
    }

    /// Whether no instance stands behind it now.
    pub fn is_parked(&self) -> bool {
        self.meta.get(INSTANCE).and_then(Value::as_str) == Some(PARKED)
    }

    /// The same, to be taken over by this instance alone: `meta.successor`.
    #[must_use]
    pub fn left_to(mut self, successor: &ServerId) -> Self {
        self.meta.insert(SUCCESSOR.to_owned(), successor.as_str().into());
        self
    }

    /// The instance that it is left to, if one is named.
    pub fn successor(&self) -> Option<&str> {
        self.meta.get(SUCCESSOR).and_then(Value::as_str)
    }

    /// Whether this instance may take it over: no instance stands behind it, and no other one is to.
    pub fn is_left_to(&self, instance: &ServerId) -> bool {
        self.is_parked() && self.successor().is_none_or(|successor| successor == instance.as_str())
    }

    /// `meta.rbac`, when there is one.
    ///
    /// # Errors
    /// The field that is missing or wrong.
    pub fn rbac(&self) -> Result<Option<Rbac>, serde_json::Error> {
        self.meta.get("rbac").map(Rbac::deserialize).transpose()
    }

    /// The payload to retain.
    pub fn to_payload(&self) -> Bytes {
        #[derive(Serialize)]
        struct Wire<'a> {
            jsonrpc: &'static str,
            method: &'static str,
            params: WireParams<'a>,
        }
        #[derive(Serialize)]
        struct WireParams<'a> {
            server_name: &'a str,
            description: &'a str,
            meta: &'a Map<String, Value>,
        }
        let wire = Wire {
            jsonrpc: "2.0",
            method: METHOD,
            params: WireParams {
                server_name: &self.server_name,
                description: &self.description,
                meta: &self.meta,
            },
        };
        serde_json::to_vec(&wire).expect("strings and a map are JSON").into()
    }

    /// Reads a payload; what a foreign server left out of `description` and `meta` is taken as empty.
    ///
    /// # Errors
    /// [`PresenceError`]. An empty payload is no error of its sender: ask for that first.
    pub fn parse(payload: &[u8]) -> Result<Self, PresenceError> {
        #[derive(Deserialize)]
        struct Wire {
            method: String,
            params: WireParams,
        }
        #[derive(Deserialize)]
        struct WireParams {
            server_name: String,
            #[serde(default)]
            description: Option<String>,
            #[serde(default)]
            meta: Option<Map<String, Value>>,
        }
        let wire: Wire = serde_json::from_slice(payload)?;
        if wire.method != METHOD {
            return Err(PresenceError::Method(wire.method));
        }
        Ok(Self {
            server_name: wire.params.server_name,
            description: wire.params.description.unwrap_or_default(),
            meta: wire.params.meta.unwrap_or_default(),
        })
    }
}

impl Serialize for Allowed {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::Only(list) => list.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Allowed {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected \"all\" or a list of strings")]
        enum Wire {
            Word(String),
            List(Vec<String>),
        }
        match Wire::deserialize(deserializer)? {
            Wire::Word(word) if word == "all" => Ok(Self::All),
            Wire::Word(word) => Err(serde::de::Error::custom(format!(
                "expected \"all\" or a list of strings, found {word:?}"
            ))),
            Wire::List(list) => Ok(Self::Only(list)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role() -> Role {
        Role {
            name: "reader".to_owned(),
            description: "may look".to_owned(),
            allowed_methods: Allowed::Only(vec!["initialize".to_owned(), "tools/list".to_owned()]),
            allowed_tools: Allowed::All,
            allowed_resources: Allowed::Only(vec![]),
        }
    }

    #[test]
    fn a_presence_without_roles_still_has_all_three_params_and_an_object_for_meta() {
        let payload = Online::new("tools/echo", "", None).to_payload();
        assert_eq!(
            payload,
            r#"{"jsonrpc":"2.0","method":"notifications/server/online","params":{"server_name":"tools/echo","description":"","meta":{}}}"#
        );
    }

    #[test]
    fn a_role_is_written_with_all_five_fields() {
        let online = Online::new("tools/echo", "Echoes", Some(&Rbac { roles: vec![role()] }));
        let value: Value = serde_json::from_slice(&online.to_payload()).expect("JSON");
        assert_eq!(
            value["params"]["meta"],
            serde_json::json!({"rbac": {"roles": [{
                "name": "reader", "description": "may look",
                "allowed_methods": ["initialize", "tools/list"], "allowed_tools": "all", "allowed_resources": [],
            }]}})
        );
    }

    #[test]
    fn what_is_written_reads_back() {
        let online = Online::new("a/b/c", "Ünïcode \"quoted\"", Some(&Rbac { roles: vec![role()] }));
        let read = Online::parse(&online.to_payload()).expect("our own");
        assert_eq!(read, online);
        assert_eq!(read.rbac().expect("our own"), Some(Rbac { roles: vec![role()] }));
    }

    #[test]
    fn a_parked_service_says_so_in_its_meta_and_keeps_the_rest() {
        let online = Online::new("a/b", "d", Some(&Rbac { roles: vec![role()] }));
        let parked = Online::parse(&online.clone().parked().to_payload()).expect("our own");
        assert!(parked.is_parked() && !online.is_parked());
        assert_eq!(
            (parked.rbac().expect("our own"), parked.meta["instance"].as_str()),
            (online.rbac().expect("our own"), Some("parked"))
        );
    }

    #[test]
    fn a_parked_service_is_left_to_anybody_or_to_one_and_one_that_is_not_parked_to_nobody() {
        let (one, other) = (ServerId::new("x-1").expect("an id"), ServerId::new("x-2").expect("an id"));
        let online = Online::new("a/b", "", None);
        let read = |online: &Online| Online::parse(&online.to_payload()).expect("our own");
        let parked = read(&online.clone().parked());
        assert!(parked.is_left_to(&one) && parked.is_left_to(&other));
        let left = read(&parked.left_to(&one));
        assert!(left.is_parked() && left.is_left_to(&one) && !left.is_left_to(&other));
        assert!(!online.is_left_to(&one));
    }

    #[test]
    fn a_foreign_presence_with_null_or_missing_parts_is_read() {
        let null = br#"{"jsonrpc":"2.0","method":"notifications/server/online","params":{"server_name":"a/b","meta":null}}"#;
        let read = Online::parse(null).expect("lenient");
        assert_eq!(read, Online::new("a/b", "", None));
    }

    #[test]
    fn a_role_that_lacks_a_field_or_misspells_all_is_refused_by_name() {
        let lacking =
            r#"{"roles":[{"name":"r","description":"","allowed_methods":"all","allowed_tools":"all"}]}"#;
        let error = serde_json::from_str::<Rbac>(lacking).expect_err("four fields");
        assert!(error.to_string().contains("allowed_resources"), "{error}");
        let misspelt = r#"{"roles":[{"name":"r","description":"","allowed_methods":"any","allowed_tools":"all","allowed_resources":"all"}]}"#;
        let error = serde_json::from_str::<Rbac>(misspelt).expect_err("any");
        assert!(error.to_string().contains("\"all\" or a list"), "{error}");
    }

    #[test]
    fn another_notification_is_no_presence() {
        let other =
            br#"{"jsonrpc":"2.0","method":"notifications/disconnected","params":{"server_name":"a/b"}}"#;
        assert!(
            matches!(Online::parse(other), Err(PresenceError::Method(method)) if method == "notifications/disconnected")
        );
        assert!(matches!(Online::parse(b""), Err(PresenceError::Json(_))));
    }
}
