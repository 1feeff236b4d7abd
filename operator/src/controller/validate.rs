//! Validate (pure): a raw `McpService` becomes a [`ValidService`], and nothing behind it sees the raw one.

pub mod broker;
pub mod pod_template;
pub mod references;

#[cfg(test)]
mod tests;

use std::time::Duration;

use k8s_openapi::{
    api::{
        autoscaling::v2::{HorizontalPodAutoscalerBehavior, ResourceMetricSource},
        core::v1::{EnvVar, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Resource, ResourceExt};
use mcp_mqtt_sidecar::config::{
    ADMIN_PORT, BackendConfig, BackendOptions, GATEWAY_SOCKET, GatewayConfig, Limits, LogFormat, SHIM_SOCKET,
    Timeouts,
};
use mcp_mqtt_transport::{
    presence::{Allowed, Rbac, Role},
    topic::ServerName,
};
use url::Url;

use self::{broker::ValidBroker, pod_template::PodTemplateError, references::Reference};
use super::{build::autoscaler::Target, fetch::Fetched};
use crate::{
    crd::{
        AutoscalingSpec, DrainSpec, GatewaySpec, McpService, McpServiceSpec, RbacSpec, ServerSpec,
        TransportSpec, duration::DurationText, gateway, transport::StdioTransport,
    },
    names, reasons,
    session_metrics::Metric,
    settings::Settings,
};

/// Stands in [`ValidService::gateway`] where the pod's own client id will: only the pod knows its name.
pub const SERVER_ID_OF_THE_POD: &str = "<pod>";

/// An `McpService` that can be built.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidService {
    /// Who it is.
    pub identity: Identity,
    /// The name by which clients find it.
    pub server_name: String,
    /// How many instances are wanted.
    pub replicas: i32,
    /// What decides on that, where it is not a person.
    pub autoscaling: Option<ValidAutoscaling>,
    /// How the server is started, and what the container needs for it.
    pub backend: Backend,
    /// The server's container.
    pub server: ServerSpec,
    /// The gateway's configuration, but for [`SERVER_ID_OF_THE_POD`].
    pub gateway: GatewayConfig,
    /// Environment variables of the gateway's container, beside its own.
    pub gateway_env: Option<Vec<EnvVar>>,
    /// Resources of the gateway's container, where they are not the default.
    pub gateway_resources: Option<k8s_openapi::api::core::v1::ResourceRequirements>,
    /// Where the gateway's credentials come from.
    pub broker: ValidBroker,
    /// What is merged last into the pod template.
    pub pod_template: Option<PodTemplateSpec>,
    /// What the pods read, so that a change of it must reach them.
    pub references: Vec<Reference>,
}

/// What the autoscaler goes by.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidAutoscaling {
    /// The fewest instances while there are any; at least one.
    pub min_replicas: i32,
    /// The most.
    pub max_replicas: i32,
    /// When it goes to sleep, if ever.
    pub sleep: Option<Sleep>,
    /// What the operator itself measures.
    pub targets: Vec<Target>,
    /// What Kubernetes measures.
    pub resources: Vec<ResourceMetricSource>,
    /// How fast it goes.
    pub behavior: Option<HorizontalPodAutoscalerBehavior>,
}

/// When a service goes to sleep, and how long it may take to wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sleep {
    /// For so long nobody had a session.
    pub idle: Duration,
    /// For so long an `initialize` waits for an instance.
    pub wake_timeout: Duration,
}

/// Which object of the API server it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The owner of all that is built.
    pub owner: OwnerReference,
}

/// How the server is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// By the shim, one process a session.
    Stdio {
        /// The command of one process.
        command: Vec<String>,
        /// Idle processes.
        prewarm: i32,
    },
    /// By its own entrypoint.
    Listens,
}

/// Why an `McpService` cannot be built. The text is what a person reads in the condition `Accepted`.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ValidateError {
    /// A field's value cannot be used.
    #[error("spec.{field} {problem}")]
    Field {
        /// Path of the field below `spec`.
        field: String,
        /// What is wrong, as the rest of a sentence.
        problem: String,
    },
    /// The object itself could not be read.
    #[error("the object cannot be read as an McpService: {0}")]
    Unreadable(String),
    /// `podTemplate`.
    #[error("spec.podTemplate{0}")]
    PodTemplate(#[from] PodTemplateError),
    /// No broker.
    #[error(
        "no broker: set spec.broker.url, or ask whoever runs the operator to give it a default broker (chart value broker.url)"
    )]
    NoBroker,
    /// The default broker's Secret is not there.
    #[error("the operator's default broker needs the Secret {0}, which does not exist: create it")]
    DefaultBrokerSecret(String),
    /// What the gateway itself says of its configuration.
    #[error("the gateway would refuse its configuration: {0}")]
    Gateway(String),
}

impl ValidateError {
    /// Reason of the condition `Accepted`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Field { .. } | Self::Unreadable(_) | Self::Gateway(_) => reasons::INVALID_SPEC,
            Self::PodTemplate(_) => reasons::INVALID_POD_TEMPLATE,
            Self::NoBroker => reasons::NO_BROKER,
            Self::DefaultBrokerSecret(_) => reasons::REFERENCE_NOT_FOUND,
        }
    }

    fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { field: field.into(), problem: problem.into() }
    }
}

/// The name by which clients find the service.
pub fn server_name(service: &McpService) -> String {
    service
        .spec
        .server_name
        .clone()
        .unwrap_or_else(|| format!("{}/{}", service.namespace().unwrap_or_default(), service.name_any()))
}

/// Judges everything that can be judged without a look at the cluster.
///
/// # Errors
/// The first field that cannot be used.
pub fn validate(
    service: &McpService,
    fetched: &Fetched,
    settings: &Settings,
) -> Result<ValidService, ValidateError> {
    let spec = &service.spec;
    let identity = identity(service)?;
    let server_name = server_name(service);
    ServerName::new(&server_name)
        .map_err(|error| ValidateError::field("serverName", format!("cannot be used: {error}")))?;
    let rbac = spec.rbac.as_deref().map(rbac).transpose()?;
    let broker = broker::validate(spec.broker.as_deref(), &identity, fetched, settings)?;
    let (backend, backend_config) = transport(&spec.transport)?;
    let drain_timeout =
        Duration::from_secs(unsigned("drain.timeoutSeconds", spec.drain.timeout_seconds)?.into());
    if let Some((index, problem)) = pod_template::reserved_mount(spec.server.volume_mounts.as_deref()) {
        return Err(ValidateError::field(format!("server.volumeMounts[{index}]"), problem));
    }
    check_env(spec.gateway.env.as_deref())?;
    let pod_template = spec.pod_template.as_ref().map(pod_template::parse).transpose()?;
    let gateway = GatewayConfig {
        server_name: server_name.clone(),
        server_id: SERVER_ID_OF_THE_POD.to_owned(),
        standby_id: sleeps(spec.autoscaling.as_deref())
            .then(|| names::standby_id(&settings.cluster_name, &identity.namespace, &identity.name)),
        owner_mark: None, // only the builder knows it
        description: spec.description.clone(),
        rbac: rbac.map(|rbac| serde_json::to_string(&rbac).expect("roles are plain data")),
        backend: backend_config,
        backend_options: BackendOptions::default(), // the shim has its own
        broker: broker.config(&spec.gateway)?,
        limits: limits(&spec.gateway)?,
        timeouts: timeouts(&spec.gateway)?,
        drain_timeout,
        drain_socket: Some(GATEWAY_SOCKET.into()),
        admin_address: Some(([0, 0, 0, 0], ADMIN_PORT).into()),
        otlp_endpoint: spec.gateway.otlp_endpoint.as_deref().map(otlp_endpoint).transpose()?,
        log_format: match spec.gateway.log.format {
            gateway::LogFormat::Json => LogFormat::Json,
            gateway::LogFormat::Text => LogFormat::Text,
        },
        log: spec.gateway.log.level.clone(),
    };
    gateway.check().map_err(|error| ValidateError::Gateway(error.problems.join("; ")))?;
    references::check(&broker, &spec.server, pod_template.as_ref())?;
    let references = references::collect(&broker, &spec.server, &spec.gateway, pod_template.as_ref());
    Ok(ValidService {
        identity,
        server_name,
        replicas: spec.replicas,
        autoscaling: spec
            .autoscaling
            .as_ref()
            .map(|autoscaling| self::autoscaling(autoscaling, spec.gateway.max_sessions))
            .transpose()?,
        backend,
        server: spec.server.clone(),
        gateway,
        gateway_env: spec.gateway.env.clone(),
        gateway_resources: spec.gateway.resources.clone(),
        broker,
        pod_template,
        references,
    })
}

/// The same service with nothing in it but what concerns the registry, which may be usable where the rest is not.
pub fn for_registry(service: &McpService) -> McpService {
    let spec = &service.spec;
    let sleep = spec.autoscaling.as_deref().map(|autoscaling| AutoscalingSpec {
        sessions: None,
        in_flight: None,
        resources: Vec::new(),
        behavior: None,
        ..autoscaling.clone()
    });
    // Any that is valid: no pod is made of it.
    let stdio = StdioTransport { command: vec![String::from("true")], prewarm: 0 };
    McpService {
        metadata: service.metadata.clone(),
        spec: McpServiceSpec {
            server_name: spec.server_name.clone(),
            description: spec.description.clone(),
            rbac: spec.rbac.clone().filter(|spec| rbac(spec).is_ok()),
            replicas: spec.replicas,
            autoscaling: sleep.map(Box::new),
            transport: TransportSpec { stdio: Some(stdio), ..TransportSpec::default() },
            server: ServerSpec::default(),
            pod_template: None,
            gateway: GatewaySpec::default(),
            drain: DrainSpec::default(),
            broker: spec.broker.clone(),
        },
        status: None,
    }
}

/// The share of `gateway.maxSessions`, in percent, that is aimed at when no metric is named.
const DEFAULT_UTILIZATION: i32 = 80;
/// After so many seconds without a session a service sleeps, where it does.
const DEFAULT_IDLE: i32 = 300;
/// So many seconds it may take to wake.
const DEFAULT_WAKE_TIMEOUT: i32 = 60;

/// Whether it may have no instance at all.
fn sleeps(autoscaling: Option<&AutoscalingSpec>) -> bool {
    autoscaling.is_some_and(|autoscaling| autoscaling.min_replicas == 0)
}

fn sleep(spec: &AutoscalingSpec) -> Result<Option<Sleep>, ValidateError> {
    let seconds = |field: &str, value: Option<i32>, default: i32| {
        let seconds = unsigned(field, value.unwrap_or(default))?;
        Ok::<_, ValidateError>(Duration::from_secs(seconds.into()))
    };
    if !sleeps(Some(spec)) {
        return Ok(None);
    }
    Ok(Some(Sleep {
        idle: seconds("autoscaling.idleSeconds", spec.idle_seconds, DEFAULT_IDLE)?,
        wake_timeout: seconds(
            "autoscaling.wakeTimeoutSeconds",
            spec.wake_timeout_seconds,
            DEFAULT_WAKE_TIMEOUT,
        )?,
    }))
}

fn autoscaling(spec: &AutoscalingSpec, max_sessions: i32) -> Result<ValidAutoscaling, ValidateError> {
    // At least one: Kubernetes takes no target of nothing.
    let share = |percent: i32| (max_sessions.saturating_mul(percent) / 100).max(1);
    let sessions =
        match spec.sessions.as_ref().map(|target| (target.target_per_replica, target.target_utilization)) {
            Some((Some(sessions), None)) => Some(sessions),
            Some((None, Some(percent))) => Some(share(percent)),
            Some(_) => {
                return Err(ValidateError::field(
                    "autoscaling.sessions",
                    "needs exactly one of targetPerReplica and targetUtilization",
                ));
            }
            None if spec.in_flight.is_none() && spec.resources.is_empty() => Some(share(DEFAULT_UTILIZATION)),
            None => None,
        };
    let in_flight = spec.in_flight.as_ref().map(|target| target.target_per_replica);
    let refused_count = spec.sessions.as_ref().is_some_and(|target| target.include_refused);
    let of_sessions = if refused_count { Metric::Wanted } else { Metric::Sessions };
    let targets = [(of_sessions, sessions), (Metric::InFlight, in_flight)];
    Ok(ValidAutoscaling {
        min_replicas: spec.min_replicas.max(1), // at none the autoscaler rests by itself
        sleep: sleep(spec)?,
        max_replicas: spec.max_replicas,
        targets: targets
            .into_iter()
            .filter_map(|(metric, per_replica)| Some(Target { metric, per_replica: per_replica? }))
            .collect(),
        resources: spec.resources.clone(),
        behavior: spec.behavior.clone(),
    })
}

fn identity(service: &McpService) -> Result<Identity, ValidateError> {
    let missing = |field: &str| ValidateError::Unreadable(format!("metadata.{field} is missing"));
    Ok(Identity {
        namespace: service.namespace().ok_or_else(|| missing("namespace"))?,
        name: service.name_any(),
        owner: OwnerReference {
            block_owner_deletion: Some(true),
            ..service.controller_owner_ref(&()).ok_or_else(|| missing("uid"))?
        },
    })
}

fn rbac(spec: &RbacSpec) -> Result<Rbac, ValidateError> {
    let mut roles = Vec::with_capacity(spec.roles.len());
    for (index, role) in spec.roles.iter().enumerate() {
        let allowed = |field: &str, value: &serde_json::Value| {
            serde_json::from_value::<Allowed>(value.clone()).map_err(|_| {
                ValidateError::field(
                    format!("rbac.roles[{index}].{field}"),
                    "must be \"all\" or a list of texts",
                )
            })
        };
        roles.push(Role {
            name: role.name.clone(),
            description: role.description.clone(),
            allowed_methods: allowed("allowedMethods", &role.allowed_methods)?,
            allowed_tools: allowed("allowedTools", &role.allowed_tools)?,
            allowed_resources: allowed("allowedResources", &role.allowed_resources)?,
        });
    }
    Ok(Rbac { roles })
}

fn transport(spec: &TransportSpec) -> Result<(Backend, BackendConfig), ValidateError> {
    let url = |field: &str, port: i32, path: &str| {
        Url::parse(&format!("http://127.0.0.1:{port}{path}"))
            .map_err(|error| ValidateError::field(field, format!("is not a URL: {error}")))
    };
    match (&spec.stdio, &spec.streamable_http, &spec.sse) {
        (Some(stdio), None, None) => Ok((
            Backend::Stdio { command: stdio.command.clone(), prewarm: stdio.prewarm },
            BackendConfig::stdio(SHIM_SOCKET),
        )),
        (None, Some(http), None) => {
            let url = url("transport.streamableHttp", http.port, &http.path)?;
            Ok((Backend::Listens, BackendConfig::http(url)))
        }
        (None, None, Some(sse)) => {
            Ok((Backend::Listens, BackendConfig::sse(url("transport.sse", sse.port, &sse.path)?)))
        }
        _ => Err(ValidateError::field("transport", "needs exactly one of stdio, streamableHttp and sse")),
    }
}

fn otlp_endpoint(text: &str) -> Result<Url, ValidateError> {
    const FIELD: &str = "gateway.otlpEndpoint";
    let url =
        Url::parse(text).map_err(|error| ValidateError::field(FIELD, format!("is not a URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(ValidateError::field(FIELD, "must be an http:// or https:// URL"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let problem =
            "must not contain credentials: they belong in gateway.env as OTEL_EXPORTER_OTLP_HEADERS";
        return Err(ValidateError::field(FIELD, problem));
    }
    Ok(url)
}

fn check_env(env: Option<&[EnvVar]>) -> Result<(), ValidateError> {
    let mut env = env.unwrap_or_default().iter().enumerate();
    match env.find(|(_, variable)| !variable.name.starts_with(gateway::ENV_PREFIX)) {
        None => Ok(()),
        Some((index, variable)) => Err(ValidateError::field(
            format!("gateway.env[{index}]"),
            format!(
                "must not set {}: it takes OpenTelemetry's variables only, whose names begin with {}",
                variable.name,
                gateway::ENV_PREFIX
            ),
        )),
    }
}

fn limits(spec: &GatewaySpec) -> Result<Limits, ValidateError> {
    Ok(Limits {
        max_sessions: unsigned("gateway.maxSessions", spec.max_sessions)?,
        max_message_bytes: unsigned("gateway.maxMessageBytes", spec.max_message_bytes)?,
        max_in_flight: unsigned("gateway.maxInFlight", spec.max_in_flight)?,
        idle_timeout: spec
            .idle_timeout
            .as_ref()
            .map(|timeout| duration("gateway.idleTimeout", timeout))
            .transpose()?,
    })
}

fn timeouts(spec: &GatewaySpec) -> Result<Timeouts, ValidateError> {
    Ok(Timeouts {
        timeout_ping: duration("gateway.timeouts.ping", &spec.timeouts.ping)?,
        timeout_call: duration("gateway.timeouts.call", &spec.timeouts.call)?,
        timeout_default: duration("gateway.timeouts.default", &spec.timeouts.default)?,
        timeout_max: duration("gateway.timeouts.max", &spec.timeouts.max)?,
    })
}

fn small(field: &str, value: i32, most: u8) -> Result<u8, ValidateError> {
    let value = u8::try_from(value).ok().filter(|value| *value <= most);
    value.ok_or_else(|| ValidateError::field(field, format!("must be from 0 to {most}")))
}

fn duration(field: &str, text: &DurationText) -> Result<Duration, ValidateError> {
    text.parse()
        .map_err(|error| ValidateError::field(field, format!("must be a duration such as 30s: {error}")))
}

fn unsigned(field: &str, value: i32) -> Result<u32, ValidateError> {
    u32::try_from(value).map_err(|_| ValidateError::field(field, "must not be negative"))
}

impl ValidService {
    /// Name of the Deployment and its companions.
    pub fn child_name(&self) -> String {
        names::child(&self.identity.name)
    }
}
