//! Our own container: the gateway, which brings the binary to the server's.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, ExecAction, HTTPGetAction, Lifecycle,
        LifecycleHandler, ObjectFieldSelector, Probe, ResourceRequirements, SecurityContext, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use mcp_mqtt_sidecar::config::{ADMIN_PORT, BIN_DIR, GatewayConfig, IMAGE_BINARY, RUN_DIR};

use super::{BIN_VOLUME, BROKER_VOLUME, GATEWAY, NONROOT, RUN_VOLUME, Surroundings};
use crate::{
    controller::validate::{SERVER_ID_OF_THE_POD, ValidService, broker::BROKER_DIR},
    names,
};

/// The native sidecar: it starts before the server and ends after it.
pub(super) fn build_gateway(service: &ValidService, surroundings: Surroundings<'_>) -> Container {
    let settings = surroundings.settings;
    let mut mounts = vec![mount(BIN_VOLUME, BIN_DIR, false), mount(RUN_VOLUME, RUN_DIR, false)];
    if !service.broker.files.is_empty() {
        mounts.push(mount(BROKER_VOLUME, BROKER_DIR, true));
    }
    Container {
        name: GATEWAY.to_owned(),
        image: Some(settings.sidecar_image.clone()),
        image_pull_policy: Some(settings.sidecar_image_pull_policy.as_str().to_owned()),
        args: Some(args(service, surroundings)),
        env: Some(env(service)),
        restart_policy: Some("Always".to_owned()),
        lifecycle: Some(Lifecycle { post_start: Some(install()), ..Lifecycle::default() }),
        ports: Some(vec![ContainerPort {
            name: Some("mcp-mqtt-admin".to_owned()),
            container_port: ADMIN_PORT.into(),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        // Each second: a rollout goes on, and a client finds the instance, as soon as it is registered.
        readiness_probe: Some(Probe {
            period_seconds: Some(1),
            failure_threshold: Some(2),
            ..probe("/readyz")
        }),
        liveness_probe: Some(Probe {
            period_seconds: Some(10),
            failure_threshold: Some(3),
            ..probe("/healthz")
        }),
        volume_mounts: Some(mounts),
        resources: Some(service.gateway_resources.clone().unwrap_or_else(default_resources)),
        security_context: Some(security_context()),
        ..Container::default()
    }
}

/// Ours first: a variable may name those before it, as in `OTEL_RESOURCE_ATTRIBUTES=k8s.pod.name=$(POD_NAME)`.
fn env(service: &ValidService) -> Vec<EnvVar> {
    let own = [field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace")];
    own.into_iter().chain(service.gateway_env.iter().flatten().cloned()).collect()
}

/// Restricted Pod Security, and then some.
fn security_context() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(true),
        run_as_group: Some(NONROOT),
        run_as_non_root: Some(true),
        run_as_user: Some(NONROOT),
        ..SecurityContext::default()
    }
}

/// Copies the static binary to where the server's container finds it. The kubelet starts no other container before
/// this has ended; one of its own would cost each start another second, as the kubelet looks that often whether an init
/// container has ended.
fn install() -> LifecycleHandler {
    let command = [IMAGE_BINARY, "install", "--to", BIN_DIR].map(str::to_owned).to_vec();
    LifecycleHandler { exec: Some(ExecAction { command: Some(command) }), ..LifecycleHandler::default() }
}

/// The gateway's whole configuration. The kubelet expands `$(NAME)` in arguments: that is how the client id gets the
/// pod's name, and why every other `$` is doubled.
fn args(service: &ValidService, surroundings: Surroundings<'_>) -> Vec<String> {
    let server_id = names::pod_id(&surroundings.settings.cluster_name, "$(POD_NAMESPACE)", "$(POD_NAME)");
    let gateway =
        GatewayConfig { owner_mark: Some(surroundings.salt.owner_mark()), ..service.gateway.clone() };
    let arguments =
        gateway.to_args().into_iter().map(|argument| match argument.strip_suffix(SERVER_ID_OF_THE_POD) {
            Some("--server-id=") => format!("--server-id={server_id}"),
            _ => argument.replace('$', "$$"),
        });
    std::iter::once("gateway".to_owned()).chain(arguments).collect()
}

/// An idle gateway has a few MiB; the limit leaves room for the largest messages of a hundred sessions.
fn default_resources() -> ResourceRequirements {
    let quantities = |pairs: &[(&str, &str)]| {
        Some(
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned())))
                .collect::<BTreeMap<_, _>>(),
        )
    };
    ResourceRequirements {
        requests: quantities(&[("cpu", "10m"), ("memory", "16Mi")]),
        limits: quantities(&[("memory", "128Mi")]),
        ..ResourceRequirements::default()
    }
}

fn probe(path: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(ADMIN_PORT.into()),
            ..HTTPGetAction::default()
        }),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

pub(super) fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}
