//! Traces: a span for each request, between the client's and the server's, at a collector that speaks OTLP.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::{Router, extract::State, http::HeaderMap, routing::post};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{Options, PATIENCE, SERVER_NAME, call, connect, open},
    lock,
};
use mcp_mqtt_transport::client::Session;
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::Instant};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector; it keeps what it gets.
#[derive(Clone, Default)]
struct Collector {
    exports: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    async fn start() -> Result<(Self, String)> {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/base/", listener.local_addr()?);
        let router = Router::new().route("/base/v1/traces", post(take)).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok((collector, url))
    }

    fn exports(&self) -> Vec<Value> {
        lock(&self.exports).clone()
    }

    /// The spans by name, once there are so many.
    async fn spans(&self, number: usize) -> Result<HashMap<String, Value>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let exports = self.exports();
            let spans: HashMap<String, Value> = exports
                .iter()
                .flat_map(|export| export["resourceSpans"].as_array().cloned().unwrap_or_default())
                .flat_map(|resource| resource["scopeSpans"].as_array().cloned().unwrap_or_default())
                .flat_map(|scope| scope["spans"].as_array().cloned().unwrap_or_default())
                .map(|span| (span["name"].as_str().unwrap_or_default().to_owned(), span))
                .collect();
            if spans.len() >= number {
                return Ok(spans);
            }
            ensure!(Instant::now() < deadline, "not {number} spans: {exports:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn take(State(collector): State<Collector>, headers: HeaderMap, body: String) -> &'static str {
    assert_eq!(headers["content-type"], "application/json");
    let export = serde_json::from_str(&body).expect("JSON");
    lock(&collector.exports).push(export);
    "{}"
}

/// Calls `tools/call` of `meta` with this `_meta`; what the server saw there.
async fn seen(session: &Session, meta: Value) -> Result<Value> {
    let params = json!({"name": "meta", "arguments": {}, "_meta": meta});
    let result = session.request("tools/call", Some(&params), PATIENCE).await?;
    let result: Value = serde_json::from_str(result.get())?;
    Ok(serde_json::from_str(result["content"][0]["text"].as_str().context("a text")?)?)
}

fn attribute<'a>(of: &'a Value, name: &str) -> Option<&'a str> {
    let attributes = of["attributes"].as_array()?;
    attributes.iter().find(|one| one["key"] == name)?["value"]["stringValue"].as_str()
}

#[tokio::test]
async fn a_span_stands_between_the_clients_and_the_servers() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let (collector, url) = Collector::start().await?;
    let mut gateway = Options::new(&broker.url()).arg(&format!("--otlp-endpoint={url}")).start()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "traced").await?;
    let session = open(&client, &gateway.instance()).await?;

    let meta = json!({"traceparent": format!("00-{TRACE}-{PARENT}-01"), "tracestate": "a=1", "own": [1.50]});
    let meta = seen(&session, meta).await?;
    let traceparent = meta["traceparent"].as_str().context("there is one")?.to_owned();
    assert_eq!((&meta["tracestate"], &meta["own"]), (&json!("a=1"), &json!([1.5])));
    let refused = call(&session, "no-such-tool", json!({})).await;
    assert!(refused.is_err());
    // One that its client does not want recorded passes as it is.
    let unsampled = json!({"traceparent": format!("00-{TRACE}-{PARENT}-00")});
    assert_eq!(seen(&session, unsampled.clone()).await?, unsampled);

    gateway.terminate()?;
    assert!(gateway.wait_ended().await?.success(), "and what is left is exported before");
    let spans = collector.spans(3).await?;
    assert_eq!(spans.len(), 3, "initialize, the call, the error: {spans:#?}");
    let span = &spans["tools/call meta"];
    assert_eq!((span["traceId"].as_str(), span["parentSpanId"].as_str()), (Some(TRACE), Some(PARENT)));
    let own = span["spanId"].as_str().context("an id")?;
    assert_eq!(traceparent, format!("00-{TRACE}-{own}-01"), "the server's parent is our span");
    assert_eq!(span["traceState"], "a=1");
    for (name, value) in [
        ("mcp.method.name", "tools/call"),
        ("gen_ai.tool.name", "meta"),
        ("messaging.client.id", "traced"),
        ("mcp.outcome", "ok"),
    ] {
        assert_eq!(attribute(span, name), Some(value), "{span:#}");
    }
    let nanos = |name: &str| span[name].as_str().and_then(|nanos| nanos.parse::<u128>().ok());
    assert!(nanos("startTimeUnixNano") < nanos("endTimeUnixNano"), "{span:#}");
    let error = &spans["tools/call no-such-tool"];
    assert_eq!((&error["status"]["code"], attribute(error, "error.type")), (&json!(2), Some("error")));
    assert_eq!(error["parentSpanId"], "", "a trace begins here");
    assert_ne!(error["traceId"], TRACE);
    assert!(spans.contains_key("initialize"));
    let resource = &collector.exports()[0]["resourceSpans"][0]["resource"];
    assert_eq!(attribute(resource, "service.name"), Some(SERVER_NAME));
    Ok(())
}

#[tokio::test]
async fn without_the_flag_a_context_passes_as_it_is_and_without_a_collector_nobody_waits() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let plain = Options::new(&broker.url()).start()?;
    let lost = Options::new(&broker.url()).arg("--otlp-endpoint=http://127.0.0.1:9/?key=SECRET").start()?;
    let client = connect(&broker.url(), "c").await?;
    for gateway in [&plain, &lost] {
        gateway.wait_ready().await?;
    }
    let session = open(&client, &plain.instance()).await?;
    let meta = json!({"traceparent": format!("00-{TRACE}-{PARENT}-01")});
    assert_eq!(seen(&session, meta.clone()).await?, meta);
    let other = connect(&broker.url(), "other").await?;
    let session = open(&other, &lost.instance()).await?;
    assert_ne!(seen(&session, meta.clone()).await?, meta);
    lost.wait_metric("trace_spans_dropped_total", 2).await?;
    let log = lost.log();
    assert!(log.contains("spans cannot be exported") && !log.contains("SECRET"), "{log}");
    assert_eq!(call(&session, "echo", json!({"message": "on"})).await?, "on");
    Ok(())
}
