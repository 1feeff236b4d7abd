//! Secrets and `ConfigMaps` that the pods read: a change of their content must reach the pods, and one that is
//! missing must be told by name.

use std::{collections::BTreeSet, fmt};

use k8s_openapi::api::core::v1::{
    Container, EnvFromSource, EnvVar, PodSpec, PodTemplateSpec, Volume, VolumeProjection,
};

use super::{
    ValidateError,
    broker::{Source, ValidBroker, file},
    pod_template::PodTemplateError,
};
use crate::crd::{GatewaySpec, ServerSpec};

/// Kind of a referenced object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `ConfigMap`.
    ConfigMap,
    /// `Secret`.
    Secret,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        })
    }
}

/// An object of the service's namespace that its pods read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Keys that it must have.
    pub keys: BTreeSet<String>,
    /// Whether pods start without it.
    pub optional: bool,
    /// The field that names it, for people.
    pub field: String,
}

/// Every reference, each object once: in the order of kind and name, so that hashes of them agree.
pub(super) fn collect(
    broker: &ValidBroker,
    server: &ServerSpec,
    gateway: &GatewaySpec,
    template: Option<&PodTemplateSpec>,
) -> Vec<Reference> {
    let mut found = Collector::default();
    found.broker(broker);
    found.env("spec.gateway", gateway.env.as_deref(), None);
    found.containers(server, template);
    merged(found.0)
}

/// Keeps the broker's credentials in the gateway: no other container may read the Secrets, or the keys of them, that hold
/// them. Certificates to trust are no secret.
pub(super) fn check(
    broker: &ValidBroker,
    server: &ServerSpec,
    template: Option<&PodTemplateSpec>,
) -> Result<(), ValidateError> {
    let mut found = Collector::default();
    found.containers(server, template);
    let holds = |reference: &Reference| {
        let mut secret = broker.files.iter().filter(|file| file.name != file::CA);
        secret.any(|file| match &file.source {
            Source::Secret { name, key, .. } => {
                *name == reference.name && (reference.keys.is_empty() || reference.keys.contains(key))
            }
            Source::ConfigMap { .. } | Source::Token { .. } | Source::Text(_) => false,
        })
    };
    let Some(found) = found.0.iter().find(|reference| reference.kind == Kind::Secret && holds(reference))
    else {
        return Ok(());
    };
    let problem = format!(
        "must not read the broker's credentials from the Secret {}: only the gateway has them; \
         give the server a Secret of its own",
        found.name
    );
    Err(match found.field.strip_prefix("spec.podTemplate.") {
        Some(path) => PodTemplateError::Reserved { path: path.to_owned(), problem }.into(),
        None => ValidateError::field(found.field.trim_start_matches("spec."), problem),
    })
}

/// Each object once.
fn merged(all: Vec<Reference>) -> Vec<Reference> {
    let mut merged: Vec<Reference> = Vec::new();
    for mut next in all {
        if next.optional {
            next.keys.clear(); // it asks for none: without them the pod starts as well
        }
        let place = (next.kind, next.name.as_str());
        match merged.binary_search_by(|known| (known.kind, known.name.as_str()).cmp(&place)) {
            Ok(index) => {
                let known = &mut merged[index];
                if known.optional && !next.optional {
                    known.field = next.field; // the one that is in the way when the object is missing
                }
                known.optional &= next.optional;
                known.keys.append(&mut next.keys);
            }
            Err(index) => merged.insert(index, next),
        }
    }
    merged
}

/// Every reference as it was found: with the keys that it names, or with none where it is to the whole object.
#[derive(Default)]
struct Collector(Vec<Reference>);

impl Collector {
    fn broker(&mut self, broker: &ValidBroker) {
        for file in &broker.files {
            match &file.source {
                Source::Secret { name, key, field: Some(field) } => {
                    self.key(Kind::Secret, name, key, None, (*field).to_owned());
                }
                Source::ConfigMap { name, key } => {
                    self.key(
                        Kind::ConfigMap,
                        name,
                        key,
                        None,
                        "spec.broker.tls.ca.configMapKeyRef".to_owned(),
                    );
                }
                Source::Secret { field: None, .. } | Source::Token { .. } | Source::Text(_) => {}
            }
        }
    }

    /// What is not the gateway's.
    fn containers(&mut self, server: &ServerSpec, template: Option<&PodTemplateSpec>) {
        self.env("spec.server", server.env.as_deref(), server.env_from.as_deref());
        if let Some(spec) = template.and_then(|template| template.spec.as_ref()) {
            self.pod("spec.podTemplate.spec", spec);
        }
    }

    fn add(
        &mut self,
        kind: Kind,
        name: &str,
        keys: impl IntoIterator<Item = String>,
        optional: Option<bool>,
        field: String,
    ) {
        let (keys, optional) = (keys.into_iter().collect(), optional == Some(true));
        self.0.push(Reference { kind, name: name.to_owned(), keys, optional, field });
    }

    fn key(&mut self, kind: Kind, name: &str, key: &str, optional: Option<bool>, field: String) {
        self.add(kind, name, [key.to_owned()], optional, field);
    }

    fn env(&mut self, path: &str, env: Option<&[EnvVar]>, from: Option<&[EnvFromSource]>) {
        for (index, variable) in env.unwrap_or_default().iter().enumerate() {
            let Some(source) = &variable.value_from else { continue };
            let field = format!("{path}.env[{index}]");
            if let Some(secret) = &source.secret_key_ref {
                self.key(Kind::Secret, &secret.name, &secret.key, secret.optional, field);
            } else if let Some(map) = &source.config_map_key_ref {
                self.key(Kind::ConfigMap, &map.name, &map.key, map.optional, field);
            }
        }
        for (index, source) in from.unwrap_or_default().iter().enumerate() {
            let field = format!("{path}.envFrom[{index}]");
            if let Some(secret) = &source.secret_ref {
                self.add(Kind::Secret, &secret.name, [], secret.optional, field.clone());
            }
            if let Some(map) = &source.config_map_ref {
                self.add(Kind::ConfigMap, &map.name, [], map.optional, field);
            }
        }
    }

    fn pod(&mut self, path: &str, spec: &PodSpec) {
        for (index, volume) in spec.volumes.iter().flatten().enumerate() {
            self.volume(format!("{path}.volumes[{index}]"), volume);
        }
        let mut containers = |field: &str, containers: &[Container]| {
            for (index, container) in containers.iter().enumerate() {
                self.env(
                    &format!("{path}.{field}[{index}]"),
                    container.env.as_deref(),
                    container.env_from.as_deref(),
                );
            }
        };
        containers("initContainers", spec.init_containers.as_deref().unwrap_or_default());
        containers("containers", &spec.containers);
    }

    fn volume(&mut self, field: String, volume: &Volume) {
        if let Some(secret) = &volume.secret
            && let Some(name) = &secret.secret_name
        {
            let keys = secret.items.iter().flatten().map(|item| item.key.clone());
            self.add(Kind::Secret, name, keys, secret.optional, field);
        } else if let Some(map) = &volume.config_map {
            let keys = map.items.iter().flatten().map(|item| item.key.clone());
            self.add(Kind::ConfigMap, &map.name, keys, map.optional, field);
        } else if let Some(projected) = &volume.projected {
            for (index, source) in projected.sources.iter().flatten().enumerate() {
                self.projection(format!("{field}.projected.sources[{index}]"), source);
            }
        }
    }

    fn projection(&mut self, field: String, source: &VolumeProjection) {
        if let Some(secret) = &source.secret {
            let keys = secret.items.iter().flatten().map(|item| item.key.clone());
            self.add(Kind::Secret, &secret.name, keys, secret.optional, field);
        } else if let Some(map) = &source.config_map {
            let keys = map.items.iter().flatten().map(|item| item.key.clone());
            self.add(Kind::ConfigMap, &map.name, keys, map.optional, field);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};
    use url::Url;

    use super::*;

    fn broker() -> ValidBroker {
        ValidBroker {
            url: Url::parse("mqtt://broker").unwrap(),
            files: Vec::new(),
            is_default: true,
            copies_default_secret: false,
        }
    }

    fn names(references: &[Reference]) -> Vec<String> {
        references
            .iter()
            .map(|reference| format!("{} {} at {}", reference.kind, reference.name, reference.field))
            .collect()
    }

    #[test]
    fn every_place_that_can_name_one_is_looked_at() {
        let server: ServerSpec = from_value(json!({
            "image": "i",
            "env": [
                {"name": "A", "value": "plain"},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s-env", "key": "k"}}},
                {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c-env", "key": "k"}}},
            ],
            "envFrom": [{"secretRef": {"name": "s-from"}}, {"configMapRef": {"name": "c-from"}}],
        }))
        .unwrap();
        let gateway: GatewaySpec = from_value(json!({
            "env": [{"name": "OTEL_X", "valueFrom": {"secretKeyRef": {"name": "s-gateway", "key": "k"}}}],
        }))
        .unwrap();
        let template: PodTemplateSpec = from_value(json!({"spec": {
            "containers": [{"name": "more", "envFrom": [{"secretRef": {"name": "s-more"}}]}],
            "initContainers": [{"name": "first", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s-init", "key": "k"}}}]}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "s-volume"}},
                {"name": "b", "configMap": {"name": "c-volume"}},
                {"name": "c", "projected": {"sources": [{"secret": {"name": "s-projected"}}, {"configMap": {"name": "c-projected"}}]}},
            ],
        }}))
        .unwrap();
        assert_eq!(
            names(&collect(&broker(), &server, &gateway, Some(&template))),
            [
                "ConfigMap c-env at spec.server.env[2]",
                "ConfigMap c-from at spec.server.envFrom[1]",
                "ConfigMap c-projected at spec.podTemplate.spec.volumes[2].projected.sources[1]",
                "ConfigMap c-volume at spec.podTemplate.spec.volumes[1]",
                "Secret s-env at spec.server.env[1]",
                "Secret s-from at spec.server.envFrom[0]",
                "Secret s-gateway at spec.gateway.env[0]",
                "Secret s-init at spec.podTemplate.spec.initContainers[0].env[0]",
                "Secret s-more at spec.podTemplate.spec.containers[0].envFrom[0]",
                "Secret s-projected at spec.podTemplate.spec.volumes[2].projected.sources[0]",
                "Secret s-volume at spec.podTemplate.spec.volumes[0]",
            ]
        );
    }

    #[test]
    fn an_object_named_twice_is_one_reference_and_wanted_if_one_place_wants_it() {
        let server: ServerSpec = from_value(json!({
            "image": "i",
            "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "may", "optional": true}}},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "must"}}},
            ],
        }))
        .unwrap();
        let references = collect(&broker(), &server, &GatewaySpec::default(), None);
        assert_eq!(
            references,
            [Reference {
                kind: Kind::Secret,
                name: "s".to_owned(),
                keys: BTreeSet::from(["must".to_owned()]),
                optional: false,
                field: "spec.server.env[1]".to_owned(),
            }]
        );
    }
}
