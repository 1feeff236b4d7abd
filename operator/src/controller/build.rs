//! Build (pure): a [`ValidService`] becomes the objects of Kubernetes that make it run. One file a kind; none of
//! them sees the raw `McpService`.

pub mod autoscaler;
mod broker_secret;
mod deployment;
mod disruption_budget;
mod gateway;
mod network_policy;
mod pod;
mod scaled_object;
mod server;
mod service_account;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, marker::PhantomData};

use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{Secret, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::validate::ValidService;
use crate::{keda::scaled_object::ScaledObject, names, salt::Salt, settings::Settings};

/// Name of the native sidecar.
pub const GATEWAY: &str = "gateway";
/// Name of the server's container.
pub const SERVER: &str = "server";

/// Volume of the binary.
const BIN_VOLUME: &str = "mcp-mqtt-bin";
/// Volume of the Unix sockets.
const RUN_VOLUME: &str = "mcp-mqtt-run";
/// Volume of the broker's credentials: mounted by the gateway alone.
const BROKER_VOLUME: &str = "mcp-mqtt-broker";
/// What no container of the user may mount.
pub const RESERVED_VOLUMES: [&str; 3] = [BIN_VOLUME, RUN_VOLUME, BROKER_VOLUME];

/// User and group of our own containers: distroless' `nonroot`.
const NONROOT: i64 = 65532;

/// Built, and not yet at the API server.
#[derive(Debug)]
pub enum Prepared {}

/// At the API server as it was built.
#[derive(Debug)]
pub enum Applied {}

/// All objects of one service. `None`: such an object must not exist.
#[derive(Debug)]
pub struct Resources<State> {
    /// The pods' identity, without API token; `None` where `podTemplate` names another.
    pub service_account: Option<ServiceAccount>,
    /// Copy of the default broker's credentials.
    pub broker_secret: Option<Secret>,
    /// The pods.
    pub deployment: Deployment,
    /// With several replicas.
    pub disruption_budget: Option<PodDisruptionBudget>,
    /// With `spec.autoscaling`.
    pub autoscaler: Option<HorizontalPodAutoscaler>,
    /// In its place, with KEDA.
    pub scaled_object: Option<ScaledObject>,
    /// Where the operator is told who may ask gateways.
    pub network_policy: Option<NetworkPolicy>,
    /// How far they are.
    pub state: PhantomData<State>,
}

/// What builders know beside the service itself.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The operator's settings.
    pub settings: &'a Settings,
    /// Content of the default broker's Secret, where the service uses it.
    pub default_broker_secret: Option<&'a BTreeMap<String, ByteString>>,
    /// Hash of what the pods read; none: they read nothing.
    pub references_hash: Option<&'a str>,
    /// Salts hashes of Secrets.
    pub salt: &'a Salt,
}

/// Builds all objects of a service.
pub fn build(service: &ValidService, surroundings: Surroundings<'_>) -> Resources<Prepared> {
    let broker_secret = service
        .broker
        .copies_default_secret
        .then_some(surroundings.default_broker_secret)
        .flatten()
        .map(|data| broker_secret::build_broker_secret(service, data));
    let keda = surroundings.settings.keda_scaler.as_deref();
    Resources {
        service_account: service_account::build_service_account(service),
        deployment: deployment::build_deployment(service, surroundings, broker_secret.as_ref()),
        disruption_budget: disruption_budget::build_disruption_budget(service),
        autoscaler: keda.is_none().then(|| autoscaler::build_autoscaler(service)).flatten(),
        scaled_object: keda.and_then(|scaler| scaled_object::build_scaled_object(service, scaler)),
        network_policy: network_policy::build_network_policy(
            service,
            surroundings.settings.network_policy_from.as_deref(),
        ),
        broker_secret,
        state: PhantomData,
    }
}

/// Metadata of everything that belongs to a service.
fn metadata(service: &ValidService, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(service.identity.namespace.clone()),
        labels: Some(names::labels(&service.identity.name)),
        owner_references: Some(vec![service.identity.owner.clone()]),
        ..ObjectMeta::default()
    }
}
