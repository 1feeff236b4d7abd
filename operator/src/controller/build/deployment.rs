//! The Deployment: how many pods, and how new ones take the place of old ones.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::Secret,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{Surroundings, metadata, pod};
use crate::{controller::validate::ValidService, names};

/// Old `ReplicaSets` kept for `kubectl rollout undo`; the `McpService` itself is the history that counts.
const REVISION_HISTORY: i32 = 3;

pub(super) fn build_deployment(
    service: &ValidService,
    surroundings: Surroundings<'_>,
    broker_secret: Option<&Secret>,
) -> Deployment {
    Deployment {
        metadata: metadata(service, service.child_name()),
        spec: Some(DeploymentSpec {
            replicas: Some(service.replicas),
            revision_history_limit: Some(REVISION_HISTORY),
            selector: LabelSelector {
                match_labels: Some(names::selector(&service.identity.name)),
                ..LabelSelector::default()
            },
            // An instance goes only when its successor is registered: clients always find as many as were wanted.
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::String("25%".to_owned())),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template: pod::build_pod_template(service, surroundings, broker_secret),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}
