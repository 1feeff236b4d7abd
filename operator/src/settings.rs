//! The operator's own settings, checked once at start.

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use url::Url;

use crate::cli::{PullPolicy, RunArgs};

/// What the builders need to know of the operator.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// First part of every MQTT client id.
    pub cluster_name: String,
    /// Image of gateway, shim and installer.
    pub sidecar_image: String,
    /// When it is pulled.
    pub sidecar_image_pull_policy: PullPolicy,
    /// Image pull Secrets of every pod.
    pub image_pull_secrets: Vec<String>,
    /// The broker of services that name none.
    pub default_broker: Option<DefaultBroker>,
    /// Whom a service's `NetworkPolicy` lets through to its gateways; none: services have no such policy.
    pub network_policy_from: Option<Vec<NetworkPolicyPeer>>,
    /// Whether Kubernetes' autoscaler can ask for the services' sessions.
    pub serves_sessions: bool,
    /// Where KEDA finds its external scaler; none: services are scaled without KEDA.
    pub keda_scaler: Option<String>,
}

/// The broker of services that name none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultBroker {
    /// Its URL.
    pub url: Url,
    /// Secret of the operator's namespace with its credentials.
    pub secret: Option<String>,
    /// A `ServiceAccount` token as password.
    pub token: Option<Token>,
}

/// A projected `ServiceAccount` token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// For whom it is.
    pub audience: String,
    /// Its life in seconds.
    pub expiration_seconds: i64,
    /// The user name beside it.
    pub username: Option<String>,
}

/// The command line cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The default broker's URL is none.
    #[error("--default-broker-url is not a URL: {0}; it looks like mqtts://broker.example:8883")]
    BrokerUrl(url::ParseError),
    /// The default broker's URL is not one that gateways take.
    #[error("--default-broker-url: {0}")]
    Broker(String),
    /// Both a Secret with a password and a token.
    #[error("--default-broker-token-… need --default-broker-url")]
    TokenWithoutBroker,
    /// The peers of network policies.
    #[error("--network-policy-from is no JSON list of NetworkPolicyPeer: {0}")]
    NetworkPolicyFrom(serde_json::Error),
}

impl Settings {
    /// Reads the command line.
    ///
    /// # Errors
    /// Names the flag that cannot be used.
    pub fn new(args: &RunArgs) -> Result<Self, SettingsError> {
        let broker = &args.default_broker;
        let token = broker.default_broker_token_audience.clone().map(|audience| Token {
            audience,
            expiration_seconds: broker.default_broker_token_expiration_seconds,
            username: broker.default_broker_token_username.clone(),
        });
        let default_broker = match &broker.default_broker_url {
            None if token.is_some() => return Err(SettingsError::TokenWithoutBroker),
            None => None,
            Some(url) => {
                let url = Url::parse(url).map_err(SettingsError::BrokerUrl)?;
                check_broker_url(&url).map_err(SettingsError::Broker)?;
                Some(DefaultBroker { url, secret: broker.default_broker_secret.clone(), token })
            }
        };
        Ok(Self {
            cluster_name: args.cluster_name.clone(),
            sidecar_image: args.sidecar_image.clone(),
            sidecar_image_pull_policy: args.sidecar_image_pull_policy,
            image_pull_secrets: args.image_pull_secrets.clone(),
            default_broker,
            network_policy_from: args
                .network_policy_from
                .as_deref()
                .map(serde_json::from_str)
                .transpose()
                .map_err(SettingsError::NetworkPolicyFrom)?
                .flatten(),
            serves_sessions: args.session_metrics.session_metrics_service.is_some(),
            keda_scaler: args
                .keda
                .keda_scaler_service
                .as_ref()
                .map(|service| format!("{service}.{}.svc:{}", args.namespace, args.keda.keda_scaler_port)),
        })
    }
}

/// What the schema's rules say of `spec.broker.url`, for URLs that did not pass through them.
///
/// # Errors
/// What is wrong with it, in a sentence without the URL (which might hold a password).
pub fn check_broker_url(url: &Url) -> Result<(), String> {
    if !matches!(url.scheme(), "mqtt" | "mqtts" | "ws" | "wss") {
        return Err("must start with mqtt://, mqtts://, ws:// or wss://".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain credentials: they belong in a Secret".to_owned());
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("must name a host, as in mqtts://broker.example:8883".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn settings(args: &[&str]) -> Result<Settings, SettingsError> {
        let all = ["mcp-mqtt-operator", "run", "--sidecar-image", "example/sidecar:1"].iter().chain(args);
        let Command::Run(run) = Cli::try_parse_from(all).unwrap().command else { panic!("not `run`") };
        Settings::new(&run.without_blanks())
    }

    #[test]
    fn the_default_broker_is_read_once_at_start() {
        let settings =
            settings(&["--default-broker-url", "mqtt://broker:1883", "--default-broker-secret", "creds"])
                .unwrap();
        let broker = settings.default_broker.unwrap();
        assert_eq!((broker.url.as_str(), broker.secret.as_deref()), ("mqtt://broker:1883", Some("creds")));
    }

    #[test]
    fn sessions_are_served_where_there_is_a_service_for_them() {
        let serves = |service: &str| {
            let args = ["--session-metrics-service", service, "--pod-ip", "10.0.0.1"];
            settings(&args).unwrap().serves_sessions
        };
        assert!(serves("metrics") && !serves(""));
    }

    #[test]
    fn peers_of_network_policies_are_read_as_kubernetes_writes_them() {
        let peer = r#"[{"podSelector": {"matchLabels": {"app": "asker"}}}]"#;
        let peers = settings(&["--network-policy-from", peer]).unwrap().network_policy_from.unwrap();
        let labels = peers[0].pod_selector.as_ref().unwrap().match_labels.as_ref().unwrap();
        assert_eq!(labels["app"], "asker");
        assert_eq!(settings(&["--network-policy-from", ""]).unwrap().network_policy_from, None);
        assert_eq!(settings(&["--network-policy-from", "null"]).unwrap().network_policy_from, None);
        let error = settings(&["--network-policy-from", "everybody"]).unwrap_err().to_string();
        assert!(error.contains("--network-policy-from is no JSON list"), "{error}");
    }

    #[test]
    fn a_default_broker_that_no_gateway_takes_is_refused_without_showing_its_url() {
        for (url, says) in [
            ("http://broker", "must start with"),
            ("mqtt://me:secret@broker", "credentials"),
            ("mqtt:", "must name a host"),
            ("broker:1883", "must start with"),
            ("//broker", "is not a URL"),
        ] {
            let error = settings(&["--default-broker-url", url]).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("secret@"), "{url}: {error}");
        }
    }
}
