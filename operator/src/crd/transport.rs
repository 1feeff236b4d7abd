//! `spec.transport`: how the MCP server is spoken to inside its pod.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Exactly one transport.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.stdio), has(self.streamableHttp), has(self.sse)].exists_one(given, given)")
        .message("transport needs exactly one of stdio, streamableHttp and sse")
)]
pub struct TransportSpec {
    /// stdio: one process of the server per MCP session, started by the shim in the server's own container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdio: Option<StdioTransport>,

    /// Streamable HTTP: the server's own entrypoint listens in the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streamable_http: Option<StreamableHttpTransport>,

    /// HTTP+SSE of 2024-11-05, for servers that do not speak Streamable HTTP yet: the server's own entrypoint listens
    /// in the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sse: Option<SseTransport>,
}

/// One process per MCP session.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StdioTransport {
    /// The command that serves one MCP session on its stdin and stdout; no shell, so each argument is an item.
    /// The image's own entrypoint is not used.
    #[schemars(length(min = 1, max = 256), inner(length(max = 8192)))]
    #[x_kube(
        validation = Rule::new("size(self) == 0 || size(self[0]) > 0").message("stdio.command must start with a program")
    )]
    pub command: Vec<String>,

    /// Processes that are started ahead and wait for a session: they take a slow start off a client's first call.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub prewarm: i32,
}

/// The server listens on HTTP, at one endpoint.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StreamableHttpTransport {
    /// Port on which it listens; 127.0.0.1 is enough, the gateway is in the same pod.
    #[schemars(range(min = 1, max = 65535))]
    #[x_kube(
        validation = Rule::new("self != 8079").message("streamableHttp.port 8079 is the gateway's own port in the pod: let the server listen on another")
    )]
    pub port: i32,

    /// Path of its MCP endpoint.
    #[serde(default = "mcp_path")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^/[^\\s#]*$')").message("streamableHttp.path must start with '/' and contain no spaces and no '#'")
    )]
    pub path: String,
}

fn mcp_path() -> String {
    "/mcp".to_owned()
}

/// The server listens on HTTP, with an event stream for each session.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SseTransport {
    /// Port on which it listens; 127.0.0.1 is enough, the gateway is in the same pod.
    #[schemars(range(min = 1, max = 65535))]
    #[x_kube(
        validation = Rule::new("self != 8079").message("sse.port 8079 is the gateway's own port in the pod: let the server listen on another")
    )]
    pub port: i32,

    /// Path of its event stream. Where messages go the stream itself says.
    #[serde(default = "sse_path")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^/[^\\s#]*$')").message("sse.path must start with '/' and contain no spaces and no '#'")
    )]
    pub path: String,
}

fn sse_path() -> String {
    "/sse".to_owned()
}
