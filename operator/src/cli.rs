//! The operator's command line. Every flag has an environment variable, which is what the Helm chart sets;
//! an empty variable counts as not given.

use std::{net::SocketAddr, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};

use crate::check::CheckArgs;

/// Port of `/healthz`, `/readyz` and `/metrics`.
pub const ADMIN_PORT: u16 = 8080;

/// Runs MCP servers on Kubernetes and registers them with an MQTT broker: `McpService` to Deployment.
#[derive(Debug, Clone, Parser)]
#[command(name = "mcp-mqtt-operator", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the binary can do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Watch `McpServices` and keep their Deployments.
    Run(Box<RunArgs>),
    /// Print the `CustomResourceDefinition` as YAML.
    Crds,
    /// See whether an installed operator works: it is ready, and `McpServices` can be read. For `helm test`.
    Check(CheckArgs),
}

/// Everything `run` needs to know.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct RunArgs {
    /// Namespaces to watch, separated by commas; none: all of them.
    #[arg(long, env = "MCP_MQTT_WATCH_NAMESPACES", value_delimiter = ',', value_name = "NAMESPACE")]
    pub watch_namespaces: Vec<String>,

    /// Name of this cluster: the first part of every MQTT client id (`<cluster>.<namespace>.<pod>`), so it must
    /// differ between clusters that share a broker.
    #[arg(long, env = "MCP_MQTT_CLUSTER_NAME", default_value = "kubernetes", value_parser = cluster_name, value_name = "NAME")]
    pub cluster_name: String,

    /// Image that holds the gateway, the shim and the installer.
    #[arg(long, env = "MCP_MQTT_SIDECAR_IMAGE", value_name = "IMAGE")]
    pub sidecar_image: String,

    /// When the kubelet pulls that image.
    #[arg(long, env = "MCP_MQTT_SIDECAR_IMAGE_PULL_POLICY", value_enum, default_value_t = PullPolicy::IfNotPresent, value_name = "POLICY")]
    pub sidecar_image_pull_policy: PullPolicy,

    /// Names of image pull Secrets that each pod refers to, separated by commas; they must exist in the
    /// namespaces of the `McpServices`.
    #[arg(long, env = "MCP_MQTT_IMAGE_PULL_SECRETS", value_delimiter = ',', value_name = "SECRET")]
    pub image_pull_secrets: Vec<String>,

    /// The broker of every `McpService` that names none of its own.
    #[command(flatten)]
    pub default_broker: DefaultBrokerArgs,

    /// Namespace of the operator itself: its Lease and the default broker's Secret live there.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default", value_name = "NAMESPACE")]
    pub namespace: String,

    /// Name of this instance among the candidates for leadership; by default the host's name.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub identity: Option<String>,

    /// Whether only one of several operators works at a time.
    #[arg(long, env = "MCP_MQTT_LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub leader_election: bool,

    /// Name of the Lease, and (with `-salt` behind it) of the Secret that salts the hashes of Secrets.
    #[arg(long, env = "MCP_MQTT_LEASE_NAME", default_value = "mcp-mqtt-operator", value_name = "NAME")]
    pub lease_name: String,

    /// How many `McpServices` are reconciled at one time.
    #[arg(long, env = "MCP_MQTT_CONCURRENCY", default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=64), value_name = "N")]
    pub concurrency: u16,

    /// How often the gateways of a settled `McpService` are asked for their status (an unsettled one: each second).
    #[arg(long, env = "MCP_MQTT_STATUS_INTERVAL", default_value = "5s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub status_interval: Duration,

    /// Address of `/healthz`, `/readyz` and `/metrics`.
    #[arg(long, env = "MCP_MQTT_ADMIN_ADDRESS", default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    pub admin_address: SocketAddr,

    /// The autoscaler's way to the session metrics.
    #[command(flatten)]
    pub session_metrics: SessionMetricsArgs,

    /// KEDA in the autoscaler's place.
    #[command(flatten)]
    pub keda: KedaArgs,

    /// Keep a `NetworkPolicy` for each `McpService`, which lets only these through to its pods, and only to the
    /// gateway's port: a JSON list of Kubernetes' `NetworkPolicyPeer`, the operator's own pods among them. `null`: keep
    /// none, and take away those that were made before.
    #[arg(long, env = "MCP_MQTT_NETWORK_POLICY_FROM", value_name = "JSON")]
    pub network_policy_from: Option<String>,

    /// Log format.
    #[arg(long, env = "MCP_MQTT_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json, value_name = "FORMAT")]
    pub log_format: LogFormat,

    /// Log filter: a level (`info`) or directives (`info,mcp_mqtt_operator::observe=debug`).
    #[arg(long, env = "MCP_MQTT_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

/// The default broker. Its credentials, where it has any, stand in one Secret of the operator's own namespace;
/// the operator copies the keys it finds there into a Secret `<name>-broker` beside each `McpService` that uses it.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct DefaultBrokerArgs {
    /// `mqtt://`, `mqtts://`, `ws://` or `wss://` URL; without it each `McpService` must name its own broker.
    #[arg(long, env = "MCP_MQTT_DEFAULT_BROKER_URL", value_name = "URL")]
    pub default_broker_url: Option<String>,

    /// Secret of the operator's namespace with any of the keys `username` and `password`, `ca.crt`, `tls.crt`
    /// and `tls.key`.
    #[arg(long, env = "MCP_MQTT_DEFAULT_BROKER_SECRET", value_name = "SECRET")]
    pub default_broker_secret: Option<String>,

    /// Audience of a projected `ServiceAccount` token that serves as the password.
    #[arg(long, env = "MCP_MQTT_DEFAULT_BROKER_TOKEN_AUDIENCE", value_name = "AUDIENCE")]
    pub default_broker_token_audience: Option<String>,

    /// Life of that token, in seconds.
    #[arg(long, env = "MCP_MQTT_DEFAULT_BROKER_TOKEN_EXPIRATION_SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(i64).range(600..), value_name = "SECONDS")]
    pub default_broker_token_expiration_seconds: i64,

    /// User name that goes with that token; without it the broker sees none.
    #[arg(long, env = "MCP_MQTT_DEFAULT_BROKER_TOKEN_USERNAME", value_name = "NAME")]
    pub default_broker_token_username: Option<String>,
}

/// `custom.metrics.k8s.io`: what the autoscaler of an `McpService` goes by.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct SessionMetricsArgs {
    /// The Service, in the operator's namespace, to which the API server sends requests for `custom.metrics.k8s.io`;
    /// none: the operator does not serve them.
    #[arg(long, env = "MCP_MQTT_SESSION_METRICS_SERVICE", requires = "pod_ip", value_name = "SERVICE")]
    pub session_metrics_service: Option<String>,

    /// Port on which they are served.
    #[arg(long, env = "MCP_MQTT_SESSION_METRICS_PORT", default_value_t = 6443, value_name = "PORT")]
    pub session_metrics_port: u16,

    /// How long its certificate is good. The operator makes it itself, and a new one when a third of that has passed.
    #[arg(long, env = "MCP_MQTT_SESSION_METRICS_CERTIFICATE_LIFETIME", default_value = "30d", value_parser = certificate_lifetime, value_name = "DURATION")]
    pub session_metrics_certificate_lifetime: Duration,

    /// Address of the operator itself, as the API server reaches it.
    #[arg(long, env = "POD_IP", value_name = "ADDRESS")]
    pub pod_ip: Option<std::net::IpAddr>,
}

/// KEDA: where another adapter owns `custom.metrics.k8s.io`.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct KedaArgs {
    /// Make a `ScaledObject` of each `McpService`'s `spec.autoscaling` in place of a `HorizontalPodAutoscaler`, and answer
    /// KEDA behind this Service of the operator's namespace.
    #[arg(long, env = "MCP_MQTT_KEDA_SCALER_SERVICE", requires = "pod_ip", value_name = "SERVICE")]
    pub keda_scaler_service: Option<String>,

    /// Port of that Service and of the operator behind it.
    #[arg(long, env = "MCP_MQTT_KEDA_SCALER_PORT", default_value_t = 9091, value_name = "PORT")]
    pub keda_scaler_port: u16,
}

/// When the kubelet pulls an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// At each start.
    Always,
    /// When the node has none.
    IfNotPresent,
    /// Never.
    Never,
}

impl PullPolicy {
    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Log format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// A DNS label: it becomes a part of MQTT client ids, which take no `/ + #` and no dots of their own.
fn cluster_name(text: &str) -> Result<String, String> {
    let label = text.len() <= 63
        && !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if label {
        Ok(text.to_owned())
    } else {
        Err("at most 63 lower-case letters, digits and inner hyphens".to_owned())
    }
}

/// Long enough to be told to the API server in time, and not so long that a clock cannot hold it.
fn certificate_lifetime(text: &str) -> Result<Duration, String> {
    const RANGE: std::ops::RangeInclusive<Duration> =
        Duration::from_secs(10)..=Duration::from_hours(3650 * 24);
    let lifetime = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if RANGE.contains(&lifetime) { Ok(lifetime) } else { Err("between 10s and ten years".to_owned()) }
}

impl RunArgs {
    /// Empty strings are what an unset Helm value leaves in an environment variable: they count as not given.
    #[must_use]
    pub fn without_blanks(mut self) -> Self {
        let blank = |value: &mut Option<String>| {
            if value.as_deref().is_some_and(|text| text.trim().is_empty()) {
                *value = None;
            }
        };
        let broker = &mut self.default_broker;
        blank(&mut broker.default_broker_url);
        blank(&mut broker.default_broker_secret);
        blank(&mut broker.default_broker_token_audience);
        blank(&mut broker.default_broker_token_username);
        blank(&mut self.session_metrics.session_metrics_service);
        blank(&mut self.identity);
        blank(&mut self.network_policy_from);
        blank(&mut self.keda.keda_scaler_service);
        for list in [&mut self.watch_namespaces, &mut self.image_pull_secrets] {
            for item in list.iter_mut() {
                *item = item.trim().to_owned();
            }
            list.retain(|item| !item.is_empty());
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    fn run_args(args: &[&str]) -> RunArgs {
        let all = ["mcp-mqtt-operator", "run", "--sidecar-image", "example/sidecar:1"].iter().chain(args);
        let Command::Run(run) = Cli::try_parse_from(all).unwrap().command else { panic!("not `run`") };
        run.without_blanks()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn blanks_count_as_not_given() {
        let args =
            run_args(&["--watch-namespaces", "", "--default-broker-url", "", "--image-pull-secrets", "a, b"]);
        assert_eq!(args.watch_namespaces, Vec::<String>::new());
        assert_eq!(args.default_broker.default_broker_url, None);
        assert_eq!(args.image_pull_secrets, ["a", "b"]);
    }

    #[test]
    fn the_admin_port_is_the_default_of_its_address() {
        assert_eq!(run_args(&[]).admin_address.port(), ADMIN_PORT);
    }

    #[test]
    fn a_certificate_lives_as_long_as_it_takes_to_tell_of_it() {
        assert_eq!(certificate_lifetime("30d"), Ok(Duration::from_hours(30 * 24)));
        for bad in ["0s", "9s", "4000d", "soon"] {
            assert!(certificate_lifetime(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cluster_name_is_a_dns_label() {
        for good in ["kubernetes", "prod-1"] {
            assert!(cluster_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a.b", "Prod", "-a", "a/b"] {
            assert!(cluster_name(bad).is_err(), "{bad}");
        }
    }
}
