//! The pod: our containers and volumes around the server's, and `podTemplate` merged last.

use std::collections::BTreeMap;

use k8s_openapi::{
    DeepMerge,
    api::core::v1::{
        ConfigMapProjection, DownwardAPIProjection, DownwardAPIVolumeFile, EmptyDirVolumeSource, KeyToPath,
        LocalObjectReference, ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec,
        ProjectedVolumeSource, SeccompProfile, Secret, SecretProjection, ServiceAccountTokenProjection,
        TopologySpreadConstraint, Volume, VolumeProjection,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};

use super::{BIN_VOLUME, BROKER_VOLUME, RUN_VOLUME, Surroundings, gateway, server};
use crate::{
    controller::validate::{
        ValidService,
        broker::{BrokerFile, Source},
    },
    names,
};

/// Beside the drain itself: the gateway ends sessions and says goodbye, containers get their SIGTERM.
const GRACE_BEYOND_DRAIN_SECONDS: i64 = 20;

pub(super) fn build_pod_template(
    service: &ValidService,
    surroundings: Surroundings<'_>,
    broker_secret: Option<&Secret>,
) -> PodTemplateSpec {
    let drain_seconds = i64::try_from(service.gateway.drain_timeout.as_secs()).unwrap_or(i64::MAX / 2);
    let mut template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(names::labels(&service.identity.name)),
            annotations: Some(annotations(service, surroundings, broker_secret)),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            // What runs what models ask for gets no key to the cluster.
            automount_service_account_token: Some(false),
            service_account_name: Some(service.child_name()),
            // Service links would put every Service of the namespace into the server's environment.
            enable_service_links: Some(false),
            security_context: Some(PodSecurityContext {
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            image_pull_secrets: image_pull_secrets(surroundings),
            init_containers: Some(vec![gateway::build_gateway(service, surroundings)]),
            containers: vec![server::build_server(service)],
            termination_grace_period_seconds: Some(drain_seconds + GRACE_BEYOND_DRAIN_SECONDS),
            topology_spread_constraints: spread(service),
            volumes: Some(volumes(service)),
            ..PodSpec::default()
        }),
    };
    if let Some(fragment) = &service.pod_template {
        if fragment.spec.as_ref().is_some_and(|spec| spec.service_account.is_some())
            && let Some(spec) = &mut template.spec
        {
            spec.service_account_name = None; // the user's deprecated spelling of the same field wins
        }
        template.merge_from(fragment.clone());
    }
    template
}

fn annotations(
    service: &ValidService,
    surroundings: Surroundings<'_>,
    broker_secret: Option<&Secret>,
) -> BTreeMap<String, String> {
    let mut annotations =
        BTreeMap::from([(names::SERVICE_ANNOTATION.to_owned(), service.identity.name.clone())]);
    let copy =
        broker_secret.and_then(|secret| secret.data.as_ref()).map(|data| surroundings.salt.hash_data(data));
    let read: Vec<&str> = surroundings.references_hash.into_iter().chain(copy.as_deref()).collect();
    if !read.is_empty() {
        annotations.insert(names::REFERENCES_HASH.to_owned(), read.join("-"));
    }
    for file in &service.broker.files {
        if let Source::Text(text) = &file.source {
            annotations.insert(names::BROKER_USERNAME.to_owned(), text.clone());
        }
    }
    annotations
}

fn image_pull_secrets(surroundings: Surroundings<'_>) -> Option<Vec<LocalObjectReference>> {
    let secrets = &surroundings.settings.image_pull_secrets;
    (!secrets.is_empty())
        .then(|| secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect())
}

/// Instances in different zones and on different nodes where that is possible; a small cluster runs them all the same.
/// Whoever has a mind of their own on it (`podTemplate`, an empty list too) is not to find ours among theirs.
fn spread(service: &ValidService) -> Option<Vec<TopologySpreadConstraint>> {
    let spec = service.pod_template.as_ref().and_then(|fragment| fragment.spec.as_ref());
    if spec.is_some_and(|spec| spec.topology_spread_constraints.is_some()) {
        return None;
    }
    let over = |topology_key: &str| TopologySpreadConstraint {
        label_selector: Some(LabelSelector {
            match_labels: Some(names::selector(&service.identity.name)),
            ..LabelSelector::default()
        }),
        // Each revision by itself: in a rollout the old ones are about to go.
        match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
        max_skew: 1,
        topology_key: topology_key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        ..TopologySpreadConstraint::default()
    };
    Some(vec![over("topology.kubernetes.io/zone"), over("kubernetes.io/hostname")])
}

fn volumes(service: &ValidService) -> Vec<Volume> {
    let mut volumes: Vec<Volume> = [BIN_VOLUME, RUN_VOLUME]
        .into_iter()
        .map(|name| Volume {
            name: name.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        })
        .collect();
    if !service.broker.files.is_empty() {
        volumes.push(Volume {
            name: BROKER_VOLUME.to_owned(),
            projected: Some(ProjectedVolumeSource {
                default_mode: Some(0o444),
                sources: Some(service.broker.files.iter().map(projection).collect()),
            }),
            ..Volume::default()
        });
    }
    volumes
}

/// One file of the gateway. The kubelet swaps all of a projected volume at once, so a renewed certificate and its
/// key are never seen apart.
fn projection(file: &BrokerFile) -> VolumeProjection {
    let path = file.name.to_owned();
    let item = |key: &str| Some(vec![KeyToPath { key: key.to_owned(), path: path.clone(), mode: None }]);
    match &file.source {
        Source::Secret { name, key, .. } => VolumeProjection {
            secret: Some(SecretProjection { name: name.clone(), items: item(key), optional: None }),
            ..VolumeProjection::default()
        },
        Source::ConfigMap { name, key } => VolumeProjection {
            config_map: Some(ConfigMapProjection { name: name.clone(), items: item(key), optional: None }),
            ..VolumeProjection::default()
        },
        Source::Token { audience, expiration_seconds } => VolumeProjection {
            service_account_token: Some(ServiceAccountTokenProjection {
                audience: Some(audience.clone()),
                expiration_seconds: Some(*expiration_seconds),
                path,
            }),
            ..VolumeProjection::default()
        },
        Source::Text(_) => VolumeProjection {
            downward_api: Some(DownwardAPIProjection {
                items: Some(vec![DownwardAPIVolumeFile {
                    path,
                    field_ref: Some(ObjectFieldSelector {
                        field_path: format!("metadata.annotations['{}']", names::BROKER_USERNAME),
                        ..ObjectFieldSelector::default()
                    }),
                    ..DownwardAPIVolumeFile::default()
                }]),
            }),
            ..VolumeProjection::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        controller::{
            fetch::Fetched,
            fixtures::{STDIO, built, settings},
        },
        settings::Settings,
    };

    fn pod(template: &str) -> Value {
        let settings = Settings { image_pull_secrets: vec!["ours".to_owned()], ..settings() };
        let spec = format!("{STDIO}\npodTemplate: {{spec: {template}}}");
        let deployment = built(&spec, &settings, &Fetched::default()).deployment;
        serde_json::to_value(deployment).unwrap()["spec"]["template"]["spec"].clone()
    }

    #[test]
    fn instances_spread_over_zones_and_nodes_unless_told_otherwise() {
        let keys = |pod: &Value| -> Vec<String> {
            let all = pod["topologySpreadConstraints"].as_array().cloned().unwrap_or_default();
            all.iter().map(|one| format!("{} {}", one["topologyKey"], one["whenUnsatisfiable"])).collect()
        };
        let ours = [
            r#""topology.kubernetes.io/zone" "ScheduleAnyway""#,
            r#""kubernetes.io/hostname" "ScheduleAnyway""#,
        ];
        assert_eq!(keys(&pod("{}")), ours);
        let theirs = "{topologySpreadConstraints: [{topologyKey: rack, whenUnsatisfiable: DoNotSchedule, maxSkew: 2}]}";
        assert_eq!(keys(&pod(theirs)), [r#""rack" "DoNotSchedule""#]);
        assert_eq!(keys(&pod("{topologySpreadConstraints: []}")), Vec::<String>::new());
    }

    #[test]
    fn a_services_own_pull_secrets_stand_beside_the_gateways_and_its_priority_holds() {
        let pod = pod("{priorityClassName: high, imagePullSecrets: [{name: theirs}]}");
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "ours"}, {"name": "theirs"}]));
        assert_eq!(pod["priorityClassName"], "high");
    }
}
