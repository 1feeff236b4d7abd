//! Spans as OTLP/HTTP wants them in JSON, with the attributes of OpenTelemetry's conventions for MCP.

use serde_json::{Value, json};

use super::span::Finished;
use crate::bridge::request::Outcome;

/// `SPAN_KIND_SERVER`.
const KIND_SERVER: u8 = 2;
/// `STATUS_CODE_ERROR`.
const STATUS_ERROR: u8 = 2;

/// Body of one export.
pub(super) fn body(resource: &[(String, String)], spans: &[Finished]) -> Vec<u8> {
    let resource = resource.iter().map(|(name, value)| text(name, value));
    json!({"resourceSpans": [{
        "resource": {"attributes": resource.collect::<Vec<_>>()},
        "scopeSpans": [{
            "scope": {"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")},
            "spans": spans.iter().map(span).collect::<Vec<_>>(),
        }],
    }]})
    .to_string()
    .into_bytes()
}

fn span(finished: &Finished) -> Value {
    let Finished { span, method, outcome, elapsed, ended } = finished;
    let began = ended.saturating_sub(*elapsed);
    let method = method.as_str();
    let name = span.target.as_ref().map_or(method.to_owned(), |target| format!("{method} {target}"));
    let mut attributes = vec![
        text("mcp.method.name", method),
        text("mcp.session.id", &span.session.0.to_string()),
        text("jsonrpc.request.id", &span.request.to_string()),
        text("messaging.client.id", span.client.as_str()),
        text("network.transport", "mqtt"),
        text("mcp.outcome", outcome.as_str()),
    ];
    let about = match method {
        "tools/call" => "gen_ai.tool.name",
        "prompts/get" => "gen_ai.prompt.name",
        _ => "mcp.resource.uri",
    };
    attributes.extend(span.target.as_ref().map(|target| text(about, target)));
    let failed = *outcome != Outcome::Ok && *outcome != Outcome::Abandoned;
    if failed {
        attributes.push(text("error.type", outcome.as_str()));
    }
    json!({
        "traceId": format!("{:032x}", span.context.trace_id),
        "spanId": format!("{:016x}", span.context.span_id),
        "parentSpanId": span.parent.map(|parent| format!("{parent:016x}")).unwrap_or_default(),
        "traceState": span.state.as_deref().unwrap_or_default(),
        "flags": 1,
        "name": name,
        "kind": KIND_SERVER,
        "startTimeUnixNano": began.as_nanos().to_string(),
        "endTimeUnixNano": ended.as_nanos().to_string(),
        "attributes": attributes,
        "status": if failed { json!({"code": STATUS_ERROR, "message": outcome.as_str()}) } else { json!({}) },
    })
}

fn text(name: &str, value: &str) -> Value {
    json!({"key": name, "value": {"stringValue": value}})
}
