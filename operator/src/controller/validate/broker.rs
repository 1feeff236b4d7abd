//! Which broker, and where the gateway's credentials come from.

use std::path::PathBuf;

use mcp_mqtt_sidecar::config::BrokerConfig;
use url::Url;

use super::{Identity, ValidateError, duration, small};
use crate::{
    controller::fetch::Fetched,
    crd::{
        broker::{AuthSpec, BrokerSpec, TlsSpec},
        gateway::GatewaySpec,
    },
    names,
    settings::{DefaultBroker, Settings, Token, check_broker_url},
};

/// Where the gateway finds its credentials; no other container mounts it.
pub const BROKER_DIR: &str = "/mcp-mqtt/broker";

/// Keys of the default broker's Secret, and names of the files below [`BROKER_DIR`].
pub mod file {
    /// User name.
    pub const USERNAME: &str = "username";
    /// Password.
    pub const PASSWORD: &str = "password";
    /// Projected `ServiceAccount` token; a file only.
    pub const TOKEN: &str = "token";
    /// Certificates to trust.
    pub const CA: &str = "ca.crt";
    /// Client certificate chain.
    pub const CERTIFICATE: &str = "tls.crt";
    /// Client private key.
    pub const KEY: &str = "tls.key";
    /// The keys that the default broker's Secret may have.
    pub const KEYS: [&str; 5] = [USERNAME, PASSWORD, CA, CERTIFICATE, KEY];
}

/// A broker, and what becomes a file for its gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidBroker {
    /// Its URL.
    pub url: Url,
    /// Files of the gateway, by name below [`BROKER_DIR`].
    pub files: Vec<BrokerFile>,
    /// Whether it is the operator's own default.
    pub is_default: bool,
    /// Whether the default broker's Secret is copied beside the service.
    pub copies_default_secret: bool,
}

/// One file of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerFile {
    /// One of [`file`].
    pub name: &'static str,
    /// Where it comes from.
    pub source: Source,
}

/// Where a file comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A key of a Secret.
    Secret {
        /// Its name.
        name: String,
        /// The key.
        key: String,
        /// The field that names it; none: it is the operator's own copy.
        field: Option<&'static str>,
    },
    /// A key of a `ConfigMap`.
    ConfigMap {
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// The pod's own token.
    Token {
        /// For whom.
        audience: String,
        /// Life in seconds.
        expiration_seconds: i64,
    },
    /// A text of the spec, by way of a pod annotation.
    Text(String),
}

/// The service's own broker, or the default one.
pub(super) fn validate(
    spec: Option<&BrokerSpec>,
    identity: &Identity,
    fetched: &Fetched,
    settings: &Settings,
) -> Result<ValidBroker, ValidateError> {
    match (spec, &settings.default_broker) {
        (Some(spec), _) => own(spec),
        (None, Some(default)) => of_operator(default, identity, fetched),
        (None, None) => Err(ValidateError::NoBroker),
    }
}

fn own(spec: &BrokerSpec) -> Result<ValidBroker, ValidateError> {
    let url = Url::parse(&spec.url)
        .map_err(|error| ValidateError::field("broker.url", format!("is not a URL: {error}")))?;
    check_broker_url(&url).map_err(|problem| ValidateError::field("broker.url", problem))?;
    let mut files = Vec::new();
    if let Some(tls) = &spec.tls {
        tls_files(tls, &mut files)?;
    }
    if let Some(auth) = &spec.auth {
        auth_files(auth, &mut files)?;
    }
    Ok(ValidBroker { url, files, is_default: false, copies_default_secret: false })
}

fn tls_files(spec: &TlsSpec, files: &mut Vec<BrokerFile>) -> Result<(), ValidateError> {
    if let Some(ca) = &spec.ca {
        let source = match (&ca.secret_key_ref, &ca.config_map_key_ref) {
            (Some(secret), None) => {
                Source::secret(&secret.name, &secret.key, "spec.broker.tls.ca.secretKeyRef")
            }
            (None, Some(map)) => Source::ConfigMap { name: map.name.clone(), key: map.key.clone() },
            _ => {
                return Err(ValidateError::field(
                    "broker.tls.ca",
                    "needs exactly one of secretKeyRef and configMapKeyRef",
                ));
            }
        };
        files.push(BrokerFile { name: file::CA, source });
    }
    if let Some(secret) = &spec.client_certificate_secret {
        for name in [file::CERTIFICATE, file::KEY] {
            let source = Source::secret(secret, name, "spec.broker.tls.clientCertificateSecret");
            files.push(BrokerFile { name, source });
        }
    }
    Ok(())
}

fn auth_files(spec: &AuthSpec, files: &mut Vec<BrokerFile>) -> Result<(), ValidateError> {
    match (&spec.password_secret, &spec.service_account_token) {
        (Some(secret), None) => {
            for name in [file::USERNAME, file::PASSWORD] {
                files.push(BrokerFile {
                    name,
                    source: Source::secret(secret, name, "spec.broker.auth.passwordSecret"),
                });
            }
        }
        (None, Some(token)) => token_files(
            &Token {
                audience: token.audience.clone(),
                expiration_seconds: token.expiration_seconds,
                username: token.username.clone(),
            },
            files,
        ),
        _ => {
            return Err(ValidateError::field(
                "broker.auth",
                "needs exactly one of passwordSecret and serviceAccountToken",
            ));
        }
    }
    Ok(())
}

fn token_files(token: &Token, files: &mut Vec<BrokerFile>) {
    let source =
        Source::Token { audience: token.audience.clone(), expiration_seconds: token.expiration_seconds };
    files.push(BrokerFile { name: file::TOKEN, source });
    if let Some(username) = &token.username {
        files.push(BrokerFile { name: file::USERNAME, source: Source::Text(username.clone()) });
    }
}

fn of_operator(
    default: &DefaultBroker,
    identity: &Identity,
    fetched: &Fetched,
) -> Result<ValidBroker, ValidateError> {
    let mut files = Vec::new();
    if let Some(secret) = &default.secret {
        let data = fetched
            .default_broker_secret
            .as_ref()
            .ok_or_else(|| ValidateError::DefaultBrokerSecret(secret.clone()))?;
        let copy = names::broker_secret(&identity.name);
        for name in file::KEYS.into_iter().filter(|key| data.contains_key(*key)) {
            // With a token the Secret serves for TLS alone.
            if default.token.is_some() && matches!(name, file::USERNAME | file::PASSWORD) {
                continue;
            }
            files.push(BrokerFile {
                name,
                source: Source::Secret { name: copy.clone(), key: name.to_owned(), field: None },
            });
        }
    }
    let copies_default_secret = !files.is_empty();
    if let Some(token) = &default.token {
        token_files(token, &mut files);
    }
    Ok(ValidBroker { url: default.url.clone(), files, is_default: true, copies_default_secret })
}

impl Source {
    fn secret(name: &str, key: &str, field: &'static str) -> Self {
        Self::Secret { name: name.to_owned(), key: key.to_owned(), field: Some(field) }
    }
}

impl ValidBroker {
    /// The gateway's side of it, with what `spec.gateway` says of the connections.
    pub(super) fn config(&self, gateway: &GatewaySpec) -> Result<BrokerConfig, ValidateError> {
        let path = |name: &str| {
            self.files
                .iter()
                .any(|file| file.name == name)
                .then(|| PathBuf::from(format!("{BROKER_DIR}/{name}")))
        };
        Ok(BrokerConfig {
            broker_url: self.url.clone(),
            broker_username_file: path(file::USERNAME),
            broker_password_file: path(file::PASSWORD).or_else(|| path(file::TOKEN)),
            broker_ca_file: path(file::CA),
            broker_cert_file: path(file::CERTIFICATE),
            broker_key_file: path(file::KEY),
            keep_alive: duration("gateway.keepAlive", &gateway.keep_alive)?,
            qos: small("gateway.qos", gateway.qos, 1)?,
            workers: small("gateway.workers", gateway.workers, 16)?,
        })
    }
}
