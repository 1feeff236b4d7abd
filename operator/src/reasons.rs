//! Types and reasons of conditions, and reasons of events. A gateway's own reasons are passed on as they are
//! ([`mcp_mqtt_sidecar::status::reason`]).

use mcp_mqtt_sidecar::status::reason;

/// The spec and what it refers to are usable.
pub const ACCEPTED: &str = "Accepted";
/// `Accepted=True`: the spec is usable, and by an annotation nothing is made of it for now.
pub const PAUSED: &str = "Paused";
/// Enough instances speak MCP and are registered.
pub const READY: &str = "Ready";
/// The broker's registry agrees with the instances.
pub const REGISTERED: &str = "Registered";

/// `Accepted=False`: a field's value cannot be used.
pub const INVALID_SPEC: &str = "InvalidSpec";
/// `Accepted=False`: `podTemplate` is no `PodTemplateSpec`, or sets what is the operator's own.
pub const INVALID_POD_TEMPLATE: &str = "InvalidPodTemplate";
/// `Accepted=False`: a Secret or `ConfigMap`, or a key of one, is missing.
pub const REFERENCE_NOT_FOUND: &str = "ReferenceNotFound";
/// `Accepted=False`: neither the `McpService` nor the operator names a broker.
pub const NO_BROKER: &str = "NoBroker";
/// `Accepted=False`: an object that the operator needs exists and belongs to somebody else.
pub const NAME_TAKEN: &str = "NameTaken";

/// `Ready=False`, `Registered=False`: nothing runs, because of `Accepted`.
pub const NOT_ACCEPTED: &str = "NotAccepted";
/// `Ready=False`, `Registered=False`: `spec.replicas` is 0.
pub const SCALED_TO_ZERO: &str = "ScaledToZero";
/// `Ready=True`, `Registered=True`: nobody uses it, it has no instance, and the first `initialize` wakes it.
pub const ASLEEP: &str = "Asleep";
/// `Registered=False`: an instance calls itself registered, and the broker's registry does not show it.
pub const PRESENCE_MISSING: &str = "PresenceMissing";
/// `Registered=True`: by the gateways' word alone, as the operator itself cannot ask the broker. `Registered=False`:
/// `spec.replicas` is 0, and the operator cannot ask the broker, so that nothing can wake the service.
pub const REGISTRY_UNREACHABLE: &str = "RegistryUnreachable";
/// `Ready=False`, `Registered=False`: instances are on their way.
pub const PROGRESSING: &str = "Progressing";
/// `Ready=False`: pods cannot be made (quota, admission).
pub const PODS_NOT_CREATED: &str = "PodsNotCreated";
/// `Ready=False`: no node takes the pod.
pub const UNSCHEDULABLE: &str = "Unschedulable";
/// `Ready=False`: a container ended and has no other word for it.
pub const CONTAINER_FAILED: &str = "ContainerFailed";
/// `Ready=False`: a gateway does not answer the operator.
pub const GATEWAY_NOT_ANSWERING: &str = "GatewayNotAnswering";
/// `Ready=True` while a new spec is on its way to the pods.
pub const ROLLING_OUT: &str = "RollingOut";
/// `Ready=True` while instances that go down let their sessions finish. Event: they begin to, whatever `Ready` says.
pub const DRAINING_SESSIONS: &str = "DrainingSessions";
/// The pod goes down.
pub const DRAINING: &str = "Draining";

/// Whether a reason is on the way of every start and every end, and no cause of anything.
pub fn passes(reason: &str) -> bool {
    matches!(
        reason,
        PROGRESSING | DRAINING | reason::BACKEND_STARTING | reason::WAITING_FOR_BACKEND | reason::CONNECTING
    )
}

/// Event: an object was applied.
pub const EVENT_APPLIED: &str = "Applied";
/// Event: an object was deleted.
pub const EVENT_DELETED: &str = "Deleted";

/// `Accepted=False`: somebody else keeps changing what the operator applied.
pub const FIELDS_CONTESTED: &str = "FieldsContested";
/// `Accepted=False`: the API server refuses the Deployment.
pub const DEPLOYMENT_REJECTED: &str = "DeploymentRejected";
/// `Accepted=False`: the API server refuses the `ServiceAccount`.
pub const SERVICE_ACCOUNT_REJECTED: &str = "ServiceAccountRejected";
/// `Accepted=False`: the API server refuses the `PodDisruptionBudget`.
pub const DISRUPTION_BUDGET_REJECTED: &str = "PodDisruptionBudgetRejected";
/// `Accepted=False`: the API server refuses the `HorizontalPodAutoscaler`.
pub const AUTOSCALER_REJECTED: &str = "HorizontalPodAutoscalerRejected";
/// `Accepted=False`: the API server (or KEDA's webhook) refuses the `ScaledObject`.
pub const SCALED_OBJECT_REJECTED: &str = "ScaledObjectRejected";
/// `Accepted=False`: the API server refuses the `NetworkPolicy`.
pub const NETWORK_POLICY_REJECTED: &str = "NetworkPolicyRejected";
/// `Accepted=False`: the API server refuses the copy of the default broker's Secret.
pub const SECRET_REJECTED: &str = "SecretRejected";
