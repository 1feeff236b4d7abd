//! `custom.metrics.k8s.io`: the sessions of an `McpService`, as Kubernetes' own autoscaler asks for them.
//!
//! The API server proxies that API to the leader ([`endpoint`] leads it there), over TLS with a certificate that the
//! leader makes for itself ([`certificate`]); who asks, and whether they may, is told by the API server
//! ([`requester`]). The numbers are what the gateways said last ([`counts`]).

pub mod answers;
pub mod certificate;
pub mod counts;
pub mod endpoint;
pub mod requester;
pub mod server;

/// Group of the API.
pub const GROUP: &str = "custom.metrics.k8s.io";
/// Its version.
pub const VERSION: &str = "v1beta2";

/// What can be asked of an `McpService`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// MCP sessions open now.
    Sessions,
    /// Client requests that wait for an answer now.
    InFlight,
    /// Sessions refused within the last minute, as all were taken.
    Refused,
    /// Sessions open now and those refused within the last minute: what would be open if there were room.
    Wanted,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sessions, Self::InFlight, Self::Refused, Self::Wanted];

    /// As it is called in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sessions => "mcp_sessions",
            Self::InFlight => "mcp_requests_in_flight",
            Self::Refused => "mcp_sessions_refused",
            Self::Wanted => "mcp_sessions_wanted",
        }
    }

    /// The metric of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.name() == name)
    }
}
