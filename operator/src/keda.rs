//! KEDA: where another adapter owns `custom.metrics.k8s.io`, the sessions reach the autoscaler through KEDA. A
//! `ScaledObject` takes the place of the `HorizontalPodAutoscaler`, which KEDA then makes, and asks the leader for the
//! numbers: over gRPC, by KEDA's protocol for external scalers ([`protocol`]).
//!
//! KEDA neither parks a service nor wakes it: whether it is active is what the `McpService` says. What asks must be
//! within the cluster; the numbers are sessions, and no secret.

pub mod answers;
pub mod protocol;
pub mod scaled_object;
pub mod server;
