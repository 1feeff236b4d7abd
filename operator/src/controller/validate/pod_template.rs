//! `spec.podTemplate`: parsed strictly, and kept off what is the operator's own.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec, VolumeMount};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    controller::build::{GATEWAY, RESERVED_VOLUMES, SERVER},
    names::RESERVED_PREFIX,
};

/// What is wrong with it; the text goes on from `spec.podTemplate`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PodTemplateError {
    /// Fields that Kubernetes does not know.
    #[error(": unknown field{} {}: a typo, or a field in the wrong place", if .0.len() == 1 { "" } else { "s" }, .0.join(", "))]
    Unknown(Vec<String>),
    /// A value of the wrong type.
    #[error(".{path}: {problem}")]
    Type {
        /// Path below `podTemplate`.
        path: String,
        /// What the parser said.
        problem: String,
    },
    /// Something that is the operator's own.
    #[error(".{path} {problem}")]
    Reserved {
        /// Path below `podTemplate`.
        path: String,
        /// Why, and what to set in its place.
        problem: String,
    },
}

impl PodTemplateError {
    fn reserved(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Reserved { path: path.into(), problem: problem.into() }
    }
}

/// Parses the fragment.
///
/// # Errors
/// The path of the field that is unknown, mistyped or reserved.
pub fn parse(fragment: &Map<String, Value>) -> Result<PodTemplateSpec, PodTemplateError> {
    let mut unknown = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| unknown.push(readable(&path.to_string()));
    let value = Value::Object(fragment.clone());
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(&value, &mut track);
    let parsed = PodTemplateSpec::deserialize(serde_ignored::Deserializer::new(deserializer, &mut note));
    let template = parsed.map_err(|error| PodTemplateError::Type {
        path: readable(&track.path().to_string()),
        problem: error.to_string(),
    })?;
    if !unknown.is_empty() {
        return Err(PodTemplateError::Unknown(unknown));
    }
    check_metadata(&template)?;
    if let Some(spec) = &template.spec {
        check_spec(spec)?;
    }
    Ok(template)
}

/// As people write paths: `serde_ignored` says `a.?.0.b` (with `?` for the `Some` of an optional field) for `a[0].b`.
fn readable(path: &str) -> String {
    let mut readable = String::new();
    for part in path.split('.').filter(|part| *part != "?") {
        if part.parse::<usize>().is_ok() {
            readable.extend(["[", part, "]"]);
        } else {
            let dot = if readable.is_empty() { "" } else { "." };
            readable.extend([dot, part]);
        }
    }
    readable
}

fn check_metadata(template: &PodTemplateSpec) -> Result<(), PodTemplateError> {
    let Some(metadata) = &template.metadata else { return Ok(()) };
    let mut others = metadata.clone();
    others.labels = None;
    others.annotations = None;
    if others != k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta::default() {
        return Err(PodTemplateError::reserved(
            "metadata",
            "may hold labels and annotations only: the rest is Kubernetes' own",
        ));
    }
    let keys = |map: &Option<BTreeMap<String, String>>| {
        map.iter().flatten().map(|(key, _)| key.clone()).collect::<Vec<_>>()
    };
    for (field, keys) in [("labels", keys(&metadata.labels)), ("annotations", keys(&metadata.annotations))] {
        if let Some(key) = keys.iter().find(|key| key.starts_with(RESERVED_PREFIX)) {
            return Err(PodTemplateError::reserved(
                format!("metadata.{field}"),
                format!("must not set {key}: {RESERVED_PREFIX} is the operator's own"),
            ));
        }
    }
    Ok(())
}

fn check_spec(spec: &PodSpec) -> Result<(), PodTemplateError> {
    if spec.share_process_namespace == Some(true) {
        return Err(PodTemplateError::reserved(
            "spec.shareProcessNamespace",
            "must not be true: every container could read the gateway's credentials",
        ));
    }
    if spec.host_pid == Some(true) {
        return Err(PodTemplateError::reserved(
            "spec.hostPID",
            "must not be true: every container could read the gateway's credentials, and the node's processes",
        ));
    }
    if spec.ephemeral_containers.is_some() {
        return Err(PodTemplateError::reserved(
            "spec.ephemeralContainers",
            "must not be set: Kubernetes adds them to pods that run, and to no template",
        ));
    }
    if spec.termination_grace_period_seconds.is_some() {
        return Err(PodTemplateError::reserved(
            "spec.terminationGracePeriodSeconds",
            "must not be set: it follows from spec.drain.timeoutSeconds",
        ));
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        if RESERVED_VOLUMES.contains(&volume.name.as_str()) {
            return Err(PodTemplateError::reserved(
                format!("spec.volumes[{index}]"),
                format!("must not be named {}: that volume is the operator's own", volume.name),
            ));
        }
    }
    for (index, container) in spec.containers.iter().enumerate() {
        let path = format!("spec.containers[{index}]");
        match container.name.as_str() {
            GATEWAY => {
                return Err(PodTemplateError::reserved(
                    path,
                    "must not be named gateway: that one is an init container",
                ));
            }
            SERVER => check_server(&path, container)?,
            _ => {}
        }
        check_mounts(&path, container)?;
    }
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        let path = format!("spec.initContainers[{index}]");
        match container.name.as_str() {
            GATEWAY => check_own(&path, container)?,
            SERVER => {
                return Err(PodTemplateError::reserved(
                    path,
                    "must not be named server: that one is no init container",
                ));
            }
            _ => check_mounts(&path, container)?,
        }
    }
    Ok(())
}

/// The user's own container: all but how it starts and how it ends.
fn check_server(path: &str, container: &Container) -> Result<(), PodTemplateError> {
    if container.command.is_some() {
        return Err(PodTemplateError::reserved(
            format!("{path}.command"),
            "must not be set: use spec.transport.stdio.command or spec.server.command",
        ));
    }
    if container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.pre_stop.is_some()) {
        return Err(PodTemplateError::reserved(
            format!("{path}.lifecycle.preStop"),
            "must not be set: it drains the MCP sessions",
        ));
    }
    Ok(())
}

/// Our own container: nothing but its resources.
fn check_own(path: &str, container: &Container) -> Result<(), PodTemplateError> {
    let rest = Container { resources: None, ..container.clone() };
    if rest == (Container { name: container.name.clone(), ..Container::default() }) {
        return Ok(());
    }
    Err(PodTemplateError::reserved(
        path,
        format!("may set the resources of {} only: the container is the operator's own", container.name),
    ))
}

fn check_mounts(path: &str, container: &Container) -> Result<(), PodTemplateError> {
    match reserved_mount(container.volume_mounts.as_deref()) {
        None => Ok(()),
        Some((index, problem)) => {
            Err(PodTemplateError::reserved(format!("{path}.volumeMounts[{index}]"), problem))
        }
    }
}

/// The first mount of a volume that is the operator's own, by its index, and why it is refused.
pub(super) fn reserved_mount(mounts: Option<&[VolumeMount]>) -> Option<(usize, String)> {
    let mut mounts = mounts.unwrap_or_default().iter().enumerate();
    let (index, mount) = mounts.find(|(_, mount)| RESERVED_VOLUMES.contains(&mount.name.as_str()))?;
    let why = "that volume is the operator's own, and the broker's credentials are for the gateway alone";
    Some((index, format!("must not mount {}: {why}", mount.name)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(fragment: Value) -> String {
        let Value::Object(fragment) = fragment else { panic!("not an object") };
        format!("spec.podTemplate{}", parse(&fragment).unwrap_err())
    }

    #[test]
    fn a_fragment_without_containers_is_enough() {
        let Value::Object(fragment) = json!({"spec": {"nodeSelector": {"disk": "ssd"}}}) else { panic!() };
        assert_eq!(parse(&fragment).unwrap().spec.unwrap().containers, Vec::new());
    }

    #[test]
    fn a_typo_is_named_with_its_path() {
        assert_eq!(
            error(json!({"spec": {"nodeSelectr": {"disk": "ssd"}}})),
            "spec.podTemplate: unknown field spec.nodeSelectr: a typo, or a field in the wrong place"
        );
        assert_eq!(
            error(
                json!({"spec": {"containers": [{"name": "server", "resources": {"limit": {}}, "envv": []}]}})
            ),
            "spec.podTemplate: unknown fields spec.containers[0].envv, spec.containers[0].resources.limit: a typo, or a field in the wrong place"
        );
    }

    #[test]
    fn a_wrong_type_is_named_with_its_path() {
        let error = error(json!({"spec": {"containers": [{"name": "server", "tty": "yes"}]}}));
        assert!(error.starts_with("spec.podTemplate.spec.containers[0].tty: invalid type"), "{error}");
    }

    #[test]
    fn what_is_the_operators_own_is_refused_with_the_reason() {
        for (fragment, says) in [
            (json!({"metadata": {"name": "x"}}), "metadata may hold labels and annotations only"),
            (
                json!({"metadata": {"labels": {"mcp-mqtt.io/service": "x"}}}),
                "metadata.labels must not set mcp-mqtt.io/service",
            ),
            (
                json!({"metadata": {"annotations": {"mcp-mqtt.io/x": "x"}}}),
                "metadata.annotations must not set mcp-mqtt.io/x",
            ),
            (json!({"spec": {"shareProcessNamespace": true}}), "spec.shareProcessNamespace must not be true"),
            (json!({"spec": {"hostPID": true}}), "spec.hostPID must not be true"),
            (
                json!({"spec": {"ephemeralContainers": [{"name": "spy", "volumeMounts": [{"name": "mcp-mqtt-broker", "mountPath": "/x"}]}]}}),
                "spec.ephemeralContainers must not be set",
            ),
            (json!({"spec": {"terminationGracePeriodSeconds": 5}}), "follows from spec.drain.timeoutSeconds"),
            (
                json!({"spec": {"volumes": [{"name": "mcp-mqtt-broker", "emptyDir": {}}]}}),
                "spec.volumes[0] must not be named mcp-mqtt-broker",
            ),
            (
                json!({"spec": {"containers": [{"name": "spy", "volumeMounts": [{"name": "mcp-mqtt-broker", "mountPath": "/x"}]}]}}),
                "spec.containers[0].volumeMounts[0] must not mount mcp-mqtt-broker",
            ),
            (json!({"spec": {"containers": [{"name": "gateway"}]}}), "must not be named gateway"),
            (json!({"spec": {"initContainers": [{"name": "server"}]}}), "must not be named server"),
            (
                json!({"spec": {"initContainers": [{"name": "gateway", "image": "evil"}]}}),
                "may set the resources of gateway only",
            ),
            (
                json!({"spec": {"containers": [{"name": "server", "command": ["x"]}]}}),
                "use spec.transport.stdio.command",
            ),
            (
                json!({"spec": {"containers": [{"name": "server", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}]}}),
                "lifecycle.preStop must not be set",
            ),
        ] {
            let error = error(fragment.clone());
            assert!(error.contains(says), "{fragment}: {error}");
        }
    }

    #[test]
    fn the_gateways_resources_may_be_set() {
        let Value::Object(fragment) = json!({"spec": {"initContainers": [{"name": "gateway", "resources": {"limits": {"memory": "1Gi"}}}]}})
        else {
            panic!()
        };
        assert!(parse(&fragment).is_ok());
    }
}
