//! Services with real pods: everything runs, the kubelet and what is in the pods too, on the same machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::{api::core::v1::Node, jiff::Timestamp};
use kube::{Api, api::ListParams};
use mcp_mqtt_tests::{broker, ports::Port};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    meter::Meter,
    report::{Table, mebibytes, seconds},
    rounds::{at_rest, count_ready, since},
    stage::{Stage, names},
};

/// How long anything may take.
const LIMIT: Duration = Duration::from_mins(15);

/// A real MCP server, as small as they come; its image is on the node.
fn spec() -> Value {
    json!({
        "transport": {"stdio": {"command": ["mcp-server-time", "--local-timezone", "UTC"]}},
        "server": {"image": "mcp-servers:dev", "imagePullPolicy": "Never"},
        "drain": {"timeoutSeconds": 1},
    })
}

/// The node's address: pods reach there what listens on it.
async fn node(stage: &Stage) -> Result<String> {
    let nodes = Api::<Node>::all(stage.space.kube.clone()).list(&ListParams::default()).await?;
    let addresses = nodes.items.into_iter().filter_map(|node| node.status?.addresses).flatten();
    let address = addresses.into_iter().find(|address| address.type_ == "InternalIP");
    Ok(address.context("a node's address")?.address)
}

/// So many at once, each with a pod.
pub(crate) async fn pods(stage: &mut Stage, table: &mut Table, objects: usize) -> Result<()> {
    table.head(format!("{objects} McpServices created at once, with real pods"));
    stage.go_on()?;
    stage.stop().await?;
    let port = Port::reserve()?;
    let _broker =
        broker::Options::default().quiet().line(&format!("listener {port} 0.0.0.0")).start().await?;
    let url = format!("mqtt://{}:{port}", node(stage).await?);
    let arguments = ["--default-broker-url", &url, "--sidecar-image", "mcp-mqtt-sidecar:dev"];
    stage.start(&[&arguments[..], &["--sidecar-image-pull-policy", "Never"]].concat()).await?;
    stage.settled("before").await?;

    let all = names("real", 0..objects);
    let meter = Meter::start(stage.parts()?);
    let (begin, begin_time) = (Instant::now(), Timestamp::now());
    let spec = spec();
    let made = stage.look.until_all(objects, "creating", |name, _| name.starts_with("real-"));
    let ready = async {
        loop {
            let ready = count_ready(stage).await?;
            eprintln!("starting: {ready} of {objects} Ready");
            if ready >= objects {
                return anyhow::Ok(begin.elapsed());
            }
            ensure!(begin.elapsed() < LIMIT, "they do not become Ready");
            sleep(Duration::from_millis(500)).await;
        }
    };
    let ((), made, ready) = tokio::try_join!(stage.create(&all, &spec), made, ready)?;
    let requests = stage.settled("settling").await?;
    let cost = meter.until(begin + ready).await?;
    table.row("  → all Deployments", seconds(made - begin), "");
    table.row("  → all Ready, and registered", seconds(ready), "");
    table.row("  → the last write", seconds(since(begin_time, &requests)?), "");
    table.requests(&requests, objects);
    table.cost(&cost);
    at_rest(stage, table).await?;
    table.row("  resident", mebibytes(stage.resident()?), "");
    eprintln!("deleting them all");
    stage.delete(&all).await?;
    stage.settled("after them").await?;
    stage.halt()?;
    stage.stop().await?;
    stage.start(&[]).await?;
    Ok(())
}
