//! `spec.server`: the container that runs the MCP server, in Kubernetes' own types.

use k8s_openapi::api::core::v1::{
    ContainerPort, EnvFromSource, EnvVar, Probe, ResourceRequirements, SecurityContext, VolumeMount,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The server's container. `lifecycle` is not here: its `preStop` is the drain.
// What is large and seldom there is boxed: a thousand of these are in memory.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServerSpec {
    /// The image, by tag or digest.
    #[schemars(length(min = 1, max = 1024))]
    pub image: String,

    /// When it is pulled; by default `Always` for the tag `latest`, else `IfNotPresent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,

    /// With `transport.streamableHttp` and `transport.sse`: replaces the image's entrypoint. With `transport.stdio` it
    /// must not be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), inner(length(max = 8192)))]
    pub command: Option<Vec<String>>,

    /// Arguments: of the image's entrypoint, or behind `transport.stdio.command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(max = 65536)))]
    pub args: Option<Vec<String>>,

    /// Environment variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<EnvVar>>,

    /// `Secrets` and `ConfigMaps` whose keys become environment variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_from: Option<Vec<EnvFromSource>>,

    /// Directory in which the server starts; by default the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,

    /// Ports, for documentation and probes by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<ContainerPort>>,

    /// CPU and memory. With stdio all processes of one instance share them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// Mounts of volumes that `podTemplate.spec.volumes` defines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    #[x_kube(
        validation = Rule::new("self.all(mount, !(mount.name in ['mcp-mqtt-bin', 'mcp-mqtt-run', 'mcp-mqtt-broker']))")
            .message("server.volumeMounts must not name mcp-mqtt-bin, mcp-mqtt-run or mcp-mqtt-broker: these volumes are the operator's own")
    )]
    pub volume_mounts: Option<Vec<VolumeMount>>,

    /// Liveness of the container. Readiness needs none: the gateway asks the server by MCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness_probe: Option<Box<Probe>>,

    /// Readiness of the container, beside the gateway's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<Box<Probe>>,

    /// Start of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup_probe: Option<Box<Probe>>,

    /// Security of the container. By default it has no capabilities and no way to more privileges; the user is
    /// the image's own. A namespace with restricted Pod Security wants `runAsNonRoot: true` here, and an image
    /// that can live with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_context: Option<Box<SecurityContext>>,
}

/// When an image is pulled.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePullPolicy {
    /// At each start.
    Always,
    /// When the node has none.
    IfNotPresent,
    /// Never.
    Never,
}

impl ImagePullPolicy {
    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}
