//! The protocol of KEDA's external scalers: `pkg/scalers/externalscaler/externalscaler.proto` of KEDA 2.21, message by
//! message. Fields that KEDA calls deprecated are left out: whoever speaks protobuf skips what it does not know.

use std::collections::HashMap;

/// Name of the service, as it stands in paths.
pub const SERVICE: &str = "externalscaler.ExternalScaler";

/// Which trigger of which `ScaledObject` is meant.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ScaledObjectRef {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// What the trigger says, but for the address.
    #[prost(map = "string, string", tag = "3")]
    pub scaler_metadata: HashMap<String, String>,
}

/// Whether there is to be any instance.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct IsActiveResponse {
    /// There is.
    #[prost(bool, tag = "1")]
    pub result: bool,
}

/// What is measured.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetMetricSpecResponse {
    /// One for each.
    #[prost(message, repeated, tag = "1")]
    pub metric_specs: Vec<MetricSpec>,
}

/// What is measured, and how much of it one instance should have.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MetricSpec {
    /// Its name.
    #[prost(string, tag = "1")]
    pub metric_name: String,
    /// So much, on average.
    #[prost(double, tag = "3")]
    pub target_size_float: f64,
}

/// Asks for a number.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GetMetricsRequest {
    /// Of which trigger.
    #[prost(message, optional, tag = "1")]
    pub scaled_object_ref: Option<ScaledObjectRef>,
    /// Of what.
    #[prost(string, tag = "2")]
    pub metric_name: String,
}

/// The numbers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetMetricsResponse {
    /// One for each metric.
    #[prost(message, repeated, tag = "1")]
    pub metric_values: Vec<MetricValue>,
}

/// A number.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MetricValue {
    /// Of what.
    #[prost(string, tag = "1")]
    pub metric_name: String,
    /// How much.
    #[prost(double, tag = "3")]
    pub metric_value_float: f64,
}
