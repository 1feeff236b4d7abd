//! Traces for OpenTelemetry: a span for each request of a client, off unless an endpoint is given. The parent comes
//! from `params._meta` of the request (`traceparent`, `tracestate`), where the server finds our span in its place.
//!
//! - [`span`]: contexts and spans, without IO; what is sampled
//! - [`otlp`]: spans as OTLP's JSON; [`export`]: sends them, off the data path

pub mod export;
mod otlp;
pub mod span;

pub use self::{
    export::{Exporter, Settings, Tracer, TracesError},
    span::{Sampler, Span},
};
