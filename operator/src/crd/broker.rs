//! `spec.broker`: where the instances register, and as whom.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// An MQTT 5 broker.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.tls) || self.url.startsWith('mqtts://') || self.url.startsWith('wss://')")
        .message("broker.tls needs a broker.url with mqtts:// or wss://")
)]
pub struct BrokerSpec {
    /// `mqtt://`, `mqtts://`, `ws://` or `wss://`, host and port; without a port 1883, 8883, 80 or 443.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(
        validation = Rule::new("self.startsWith('mqtt://') || self.startsWith('mqtts://') || self.startsWith('ws://') || self.startsWith('wss://')")
            .message("broker.url must start with mqtt://, mqtts://, ws:// or wss://"),
        validation = Rule::new("!self.contains('@')").message("broker.url must not contain credentials: they belong in broker.auth"),
        validation = Rule::new(r"self.contains('@') || self.matches('^[a-z]*://([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?(/[^\\s]*)?$')")
            .message("broker.url must be a URL such as mqtts://broker.example:8883"),
        validation = Rule::new(r"!self.matches('^[a-z]*://[^/]*:(0{1,4}|[0-9]{5})(/[^\\s]*)?$') || self.matches('^[a-z]*://[^/]*:([1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])(/[^\\s]*)?$')")
            .message("broker.url must have a port from 1 to 65535")
    )]
    pub url: String,

    /// TLS; without it `mqtts://` and `wss://` trust the public roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,

    /// Credentials; without it none (but a client certificate).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthSpec>,
}

/// TLS towards the broker.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TlsSpec {
    /// The certificates to trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<CaSpec>,

    /// Name of a Secret with `tls.crt` and `tls.key`: the client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub client_certificate_secret: Option<String>,
}

/// Where the certificates to trust stand: exactly one of the fields.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.secretKeyRef) != has(self.configMapKeyRef)")
        .message("broker.tls.ca needs exactly one of secretKeyRef and configMapKeyRef")
)]
pub struct CaSpec {
    /// A key of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,

    /// A key of a `ConfigMap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,
}

/// A key of an object in the same namespace.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key.
    #[serde(default = "ca_crt")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// As whom the instances connect: exactly one of the fields.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.passwordSecret) != has(self.serviceAccountToken)")
        .message("broker.auth needs exactly one of passwordSecret and serviceAccountToken")
)]
pub struct AuthSpec {
    /// Name of a Secret with `username` and `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub password_secret: Option<String>,

    /// The pod's own `ServiceAccount` token is the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_token: Option<ServiceAccountTokenSpec>,
}

/// A projected `ServiceAccount` token; the kubelet renews it, the gateway reads it at each connect.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountTokenSpec {
    /// For whom it is: what the broker checks.
    #[schemars(length(min = 1, max = 1024))]
    pub audience: String,

    /// Its life in seconds.
    #[serde(default = "an_hour")]
    #[schemars(range(min = 600, max = 4_294_967_296_i64))]
    pub expiration_seconds: i64,

    /// The user name that goes with it; without it the broker sees none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub username: Option<String>,
}

fn ca_crt() -> String {
    "ca.crt".to_owned()
}

fn an_hour() -> i64 {
    3600
}
