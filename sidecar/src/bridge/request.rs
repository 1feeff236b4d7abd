//! A request, as far as it is counted, timed and traced: its method, who asks, and how it ends.

/// A method of MCP; of bounded cardinality, as what a client invents is [`Method::OTHER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Method(&'static str);

/// Methods that are told apart.
const METHODS: [&str; 20] = [
    "initialize",
    "ping",
    "tools/list",
    "tools/call",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "resources/subscribe",
    "resources/unsubscribe",
    "prompts/list",
    "prompts/get",
    "completion/complete",
    "logging/setLevel",
    "sampling/createMessage",
    "elicitation/create",
    "roots/list",
    "tasks/get",
    "tasks/result",
    "tasks/list",
    "tasks/cancel",
];

impl Method {
    /// Any method that is not MCP's.
    pub const OTHER: Self = Self("other");

    /// The method of this name.
    pub fn of(method: &str) -> Self {
        METHODS.iter().find(|known| **known == method).map_or(Self::OTHER, |known| Self(known))
    }

    /// As MCP writes it.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// With a result.
    Ok,
    /// With an error of the other side.
    Error,
    /// With an error of the gateway: nobody answered in time.
    TimedOut,
    /// With an error of the gateway: refused, or its session ended.
    Failed,
    /// The asker cancelled it, or left.
    Abandoned,
}

impl Outcome {
    /// As metrics and traces have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::TimedOut => "timed_out",
            Self::Failed => "failed",
            Self::Abandoned => "abandoned",
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Asker {
    /// The MCP client: `tools/call` and so on.
    Client,
    /// The MCP server: sampling, elicitation, roots, ping.
    Server,
}
