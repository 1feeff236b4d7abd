//! What unit tests begin with: a small manifest, and surroundings whose names differ from all product names.

use mcp_mqtt_sidecar::config::GatewayConfig;
use serde_json::Value;
use url::Url;

use super::{
    build::{Prepared, Resources, Surroundings, build},
    fetch::Fetched,
    validate::{ValidService, ValidateError, validate},
};
use crate::{
    cli::PullPolicy,
    crd::McpService,
    salt::Salt,
    settings::{DefaultBroker, Settings},
};

/// The smallest manifest: a stdio server at the default broker.
pub(crate) const STDIO: &str = "
transport: {stdio: {command: [node, server.js]}}
server: {image: registry.example/weather:3}
";

/// The smallest manifest of a server that listens.
pub(crate) const HTTP: &str = "
transport: {streamableHttp: {port: 3001}}
server: {image: 'registry.example/weather@sha256:0123456789abcdef'}
";

/// The smallest manifest of a server that listens as in 2024.
pub(crate) const SSE: &str = "
transport: {sse: {port: 3002}}
server: {image: registry.example/weather:2}
";

/// An `McpService` named `meteo/weather` with this spec.
pub(crate) fn service(spec: &str) -> McpService {
    let spec: Value = serde_yaml::from_str(spec).unwrap();
    serde_json::from_value(serde_json::json!({
        "apiVersion": "mcp-mqtt.io/v1alpha1",
        "kind": "McpService",
        "metadata": {"name": "weather", "namespace": "meteo", "uid": "uid-of-weather", "generation": 7},
        "spec": spec,
    }))
    .unwrap()
}

/// An operator with a default broker that needs no credentials.
pub(crate) fn settings() -> Settings {
    Settings {
        cluster_name: "north".to_owned(),
        sidecar_image: "registry.example/bridge:9".to_owned(),
        sidecar_image_pull_policy: PullPolicy::Never,
        image_pull_secrets: Vec::new(),
        default_broker: Some(DefaultBroker {
            url: Url::parse("mqtt://hub.example:1883").unwrap(),
            secret: None,
            token: None,
        }),
        network_policy_from: None,
        serves_sessions: true,
        keda_scaler: None,
    }
}

pub(crate) fn salt() -> Salt {
    Salt::new([7; 32])
}

pub(crate) fn validated(spec: &str) -> Result<ValidService, ValidateError> {
    validate(&service(spec), &Fetched::default(), &settings())
}

/// Validates and builds with the settings and the default broker's Secret given.
pub(crate) fn built(spec: &str, settings: &Settings, fetched: &Fetched) -> Resources<Prepared> {
    let service = validate(&service(spec), fetched, settings).unwrap();
    build(
        &service,
        Surroundings {
            settings,
            default_broker_secret: fetched.default_broker_secret.as_ref(),
            references_hash: None,
            salt: &salt(),
        },
    )
}

/// Parses a built gateway container's args by the gateway's own command line.
pub(crate) fn parse_gateway_args(args: &[String]) -> GatewayConfig {
    use clap::Parser;
    use mcp_mqtt_sidecar::cli::{Cli, Face};
    let line = std::iter::once(mcp_mqtt_sidecar::config::BINARY.to_owned()).chain(args.iter().cloned());
    match Cli::try_parse_from(line).unwrap().face {
        Face::Gateway(face) => face.config,
        other => panic!("not the gateway: {other:?}"),
    }
}
