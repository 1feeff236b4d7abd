//! A real Prometheus that scrapes a real gateway (and the operator's counters), asked what the chart's dashboard and
//! alerts ask.

use std::{fs, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use mcp_mqtt_operator::{
    admin::{self, Readiness, Shown},
    metrics::{Metrics, Outcome},
    serving::Pulse,
};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{Options, call, connect, open},
    helm::chart,
    monitoring::{Prometheus, Target, queries},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(30);
/// What nothing goes wrong enough for in this test.
const MAY_BE_SILENT: [&str; 2] = ["messages_dropped", "broker_connect_failures"];

async fn operator() -> Result<std::net::SocketAddr> {
    let metrics = Arc::new(Metrics::new());
    metrics.leads(true);
    metrics.reconciled(Outcome::Accepted, 0.002);
    metrics.wrote("Deployment", "apply");
    metrics.asked_gateway(true);
    metrics.knows("Pod", "*", 1);
    metrics.counted("*", "True", "Ready", 1);
    let shown = Shown { readiness: Readiness::pending("nothing"), pulse: Pulse::default(), metrics };
    Ok(admin::serve(([127, 0, 0, 1], 0).into(), shown).await?)
}

#[tokio::test]
async fn every_query_of_the_dashboard_shows_what_a_gateway_and_an_operator_say() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).arg("--max-sessions=1").start()?;
    gateway.wait_ready().await?;
    let (client, other) = (connect(&broker.url(), "c").await?, connect(&broker.url(), "d").await?);
    // A session that has ended, one that is open, and one that is refused.
    open(&client, &gateway.instance()).await?.close();
    gateway.wait_for("it has ended", |status| status.sessions == 0).await?;
    let session = open(&client, &gateway.instance()).await?;
    call(&session, "echo", json!({"message": "x"})).await?;
    ensure!(open(&other, &gateway.instance()).await.is_err(), "one session is all");
    ensure!(gateway.status().await?.refused_sessions == 1, "{:?}", gateway.status().await?);

    let service = json!({"namespace": "meteo", "pod": "weather-1", "mcp_service": "weather"});
    let prometheus = Prometheus::start(&[
        Target { job: "gateways", address: gateway.admin(), labels: service },
        Target {
            job: "mcp-mqtt-operator",
            address: operator().await?,
            labels: json!({"namespace": "mcp-mqtt"}),
        },
    ])
    .await?;
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(chart().join("files/dashboard.json"))?)?;
    let queries = queries(&dashboard);
    ensure!(queries.len() > 25, "{queries:?}");
    for query in &queries {
        let begun = Instant::now();
        while prometheus.query(query).await?.is_empty() {
            if MAY_BE_SILENT.iter().any(|part| query.contains(part)) {
                break;
            }
            ensure!(begun.elapsed() < PATIENCE, "it shows nothing: {query}");
            sleep(Duration::from_millis(100)).await;
        }
    }
    let sessions = queries.iter().find(|query| query.starts_with("sum by (namespace, mcp_service)"));
    let shown = prometheus.query(sessions.context("sessions by service")?).await?;
    ensure!(shown[0]["metric"] == json!({"namespace": "meteo", "mcp_service": "weather"}), "{shown:?}");
    ensure!(shown[0]["value"][1] == "1", "{shown:?}");
    let full = prometheus.query(r#"mcp_mqtt_gateway_requests_refused_total{reason="max-sessions"}"#).await?;
    ensure!(full[0]["value"][1] == "1", "{full:?}");
    Ok(())
}
