//! The demo's second half, inside the cluster's network: services applied, found, called, scaled, and replaced.

mod figures;
mod kubectl;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mcp_mqtt_transport::{
    client::{Client, Instance, Watch},
    topic::ServerName,
};
use serde_json::json;
use url::Url;

use crate::{
    cluster::Cluster,
    mcp::{self, PATIENCE},
    progress::{Step, heading, human},
};
use kubectl::kubectl;

/// The services of the tour stand in these files of `examples/`.
const MANIFESTS: [&str; 2] = ["examples/everything.yaml", "examples/time.yaml"];

/// Their server names.
const EVERYTHING: &str = "tools/everything";
const TIME: &str = "tools/time";

/// Instances of each.
const REPLICAS: usize = 2;

/// How long one change may take to show in the registry.
const CHANGE_LIMIT: Duration = Duration::from_mins(2);

/// Calls whose median is shown.
const CALLS: usize = 200;

/// Walks through it.
pub(crate) async fn run(broker: &Url, cluster: &Cluster) -> Result<()> {
    let client = connect(broker).await?;
    let mut registry = client.watch("#").await?;
    clear_away(&mut registry).await?;

    println!("\n{}", heading("Two MCP servers from the public registries, unchanged, two instances each"));
    let mut figures = apply(&client, &mut registry).await?;
    kubectl(&["get", "mcps", "--namespace", "tools"])?;

    println!("\n{}", heading("The broker's registry: retained messages that live and die with their pods"));
    mcp::print_instances(&registry.instances());

    println!("\n{}", heading("Tools, called over MQTT"));
    call_tools(&client, &mut figures).await?;

    println!("\n{}", heading("A third instance"));
    let before = registry.instances();
    kubectl(&["scale", "mcps/everything", "--namespace", "tools", "--replicas=3"])?;
    let step = Step::start("Waiting for it in the registry");
    let now = settle(&mut registry, |all| count(all, EVERYTHING) == 3).await?;
    for instance in now.iter().filter(|instance| !before.contains(instance)) {
        step.detail(instance.server_id.as_str());
    }
    step.done("Registered, and only after it had answered initialize");

    println!("\n{}", heading("A pod is deleted"));
    replace(&mut registry).await?;
    kubectl(&["get", "mcps", "--namespace", "tools"])?;

    figures.gateway_memory = kubectl::gateway_memory()?;
    println!("\n{}", heading("Figures"));
    println!("{figures}");
    epilogue(cluster);
    client.close(PATIENCE).await?;
    Ok(())
}

/// Connects; the address of a Service that was made a moment ago may be refused for another moment.
async fn connect(broker: &Url) -> Result<Client> {
    let start = Instant::now();
    loop {
        match mcp::connect(broker).await {
            Err(_) if start.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(200)).await,
            result => return result,
        }
    }
}

/// Removes what an earlier or interrupted run has left.
async fn clear_away(registry: &mut Watch) -> Result<()> {
    kubectl::quiet(&["apply", "--filename", "examples/namespace.yaml"])?;
    let step = Step::start("Looking for what an earlier run has left");
    for manifest in MANIFESTS {
        kubectl::quiet(&["delete", "--filename", manifest, "--ignore-not-found"])?;
    }
    kubectl::quiet(&[
        "wait",
        "deployments",
        "--all",
        "--namespace",
        "tools",
        "--for=delete",
        "--timeout=60s",
    ])?;
    settle(registry, |all| count(all, EVERYTHING) + count(all, TIME) == 0).await?;
    step.done("Nothing is registered");
    Ok(())
}

/// Applies both services and makes a first call as soon as an instance is there.
async fn apply(client: &Client, registry: &mut Watch) -> Result<figures::Figures> {
    let start = Instant::now();
    for manifest in MANIFESTS {
        kubectl(&["apply", "--filename", manifest])?;
    }
    let step = Step::start("Waiting for the first instance in the registry");
    let all = settle(registry, |all| count(all, EVERYTHING) > 0).await?;
    let instance =
        all.iter().find(|i| i.server_name.as_str() == EVERYTHING).context("it was there a moment ago")?;
    let registered = start.elapsed();
    let session = mcp::open_with(client, instance).await?;
    let first_call = Instant::now();
    mcp::call_tool(&session, "echo", &json!({ "message": "first" })).await?;
    let figures = figures::Figures {
        apply_to_registered: registered,
        apply_to_answer: start.elapsed(),
        first_call: first_call.elapsed(),
        ..figures::Figures::default()
    };
    step.done(format!(
        "{} answered {} after `kubectl apply`",
        instance.server_id,
        human(figures.apply_to_answer)
    ));
    let step = Step::start("Waiting for all four");
    settle(registry, |all| count(all, EVERYTHING) == REPLICAS && count(all, TIME) == REPLICAS).await?;
    kubectl::services_ready()?;
    step.done("All four instances are registered");
    Ok(figures)
}

async fn call_tools(client: &Client, figures: &mut figures::Figures) -> Result<()> {
    let everything = mcp::open(client, &ServerName::new(EVERYTHING)?).await?;
    let time = mcp::open(client, &ServerName::new(TIME)?).await?;
    for (name, session) in [(EVERYTHING, &everything), (TIME, &time)] {
        let names: Vec<String> = mcp::list_tools(session).await?.into_iter().map(|tool| tool.name).collect();
        println!(
            "{name} ({} {}): {}",
            session.server().server_info.name,
            session.server().server_info.version,
            names.join(", ")
        );
    }
    println!();
    let calls = [
        (&everything, EVERYTHING, "echo", json!({ "message": "hello over MQTT" })),
        (&everything, EVERYTHING, "get-sum", json!({ "a": 19, "b": 23 })),
        (&time, TIME, "get_current_time", json!({ "timezone": "Asia/Tokyo" })),
        (
            &time,
            TIME,
            "convert_time",
            json!({ "source_timezone": "Europe/Berlin", "time": "09:00", "target_timezone": "America/New_York" }),
        ),
    ];
    for (session, server, tool, arguments) in calls {
        let (text, _) = mcp::call_tool(session, tool, &arguments).await?;
        println!(
            "{server} {tool} {arguments}\n  → {}",
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        );
    }
    let mut latencies = Vec::with_capacity(CALLS);
    for n in 0..CALLS {
        let start = Instant::now();
        mcp::call_tool(&everything, "echo", &json!({ "message": n.to_string() })).await?;
        latencies.push(start.elapsed());
    }
    latencies.sort_unstable();
    figures.median_call = latencies[latencies.len() / 2];
    Ok(())
}

/// Deletes a pod and watches its presence go and its successor's come.
async fn replace(registry: &mut Watch) -> Result<()> {
    let before = registry.instances();
    let victim =
        before.iter().find(|i| i.server_name.as_str() == TIME).context("tools/time has instances")?.clone();
    // A server id is <cluster>.<namespace>.<pod>, and a pod's name may hold dots itself.
    let pod = victim.server_id.as_str().splitn(3, '.').nth(2).context("a server id has three parts")?;
    let start = Instant::now();
    kubectl(&["delete", "pod", pod, "--namespace", "tools", "--wait=false"])?;
    let step = Step::start("Watching the registry");
    settle(registry, |all| !all.contains(&victim)).await?;
    let gone = start.elapsed();
    let now = settle(registry, |all| count(all, TIME) == REPLICAS && !all.contains(&victim)).await?;
    let successor = now.iter().find(|i| i.server_name.as_str() == TIME && !before.contains(i));
    step.done(format!(
        "Its presence was gone after {}; {} took its place after {}",
        human(gone),
        successor.map_or("another", |i| i.server_id.as_str()),
        human(start.elapsed())
    ));
    kubectl::services_ready()
}

/// Waits for the registry to be as it should.
async fn settle(registry: &mut Watch, condition: impl FnMut(&[Instance]) -> bool) -> Result<Vec<Instance>> {
    tokio::time::timeout(CHANGE_LIMIT, registry.until(condition))
        .await
        .with_context(|| format!("the registry did not change within {}", human(CHANGE_LIMIT)))?
        .context("the connection to the broker was lost")
}

fn count(instances: &[Instance], name: &str) -> usize {
    instances.iter().filter(|instance| instance.server_name.as_str() == name).count()
}

fn epilogue(cluster: &Cluster) {
    let flag = cluster.flag();
    println!("\n{}", heading("Look around"));
    println!("cargo xtask mcp{flag} list");
    println!("cargo xtask mcp{flag} call tools/everything echo '{{\"message\":\"hi\"}}'");
    println!("cargo xtask kubectl{flag} -- describe mcps -n tools");
    println!("cargo xtask kubectl{flag} -- get pods -n tools");
    println!(
        "\nand when you have seen enough:\n\ncargo xtask cluster down{}",
        flag.replace("--cluster", "--name")
    );
}
