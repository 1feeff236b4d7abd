//! Services that sleep: what so many of them take of the operator, which stands in the broker's registry for all of them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use mcp_mqtt_tests::broker;
use mcp_mqtt_transport::{
    client::{Client, ClientOptions, Instance, Unhandled, Watch},
    topic::ClientId,
};
use serde_json::{json, value::RawValue};
use tokio::time::timeout;

use crate::{
    aims,
    report::{Table, median, seconds},
    rounds::{at_rest, since},
    stage::{Stage, names, spec},
};

/// How long anything may take.
const LIMIT: Duration = Duration::from_mins(5);
/// Services that are woken, one after the other, for a median.
const WAKES: usize = 20;

/// So many that sleep, at a broker of their own.
pub(crate) async fn parked(stage: &mut Stage, table: &mut Table, objects: usize) -> Result<()> {
    table.head(format!("{objects} McpServices that sleep, at a Mosquitto"));
    stage.stop().await?;
    let broker = broker::Options::default().quiet().start().await?;
    let url = broker.url();
    stage.start(&["--default-broker-url", url.as_str().trim_end_matches('/')]).await?;
    stage.settled("before").await?;
    let client = Client::connect(ClientOptions::new(url, ClientId::new("bench")?)).await?;
    let mut watch = client.watch(&format!("{}/#", stage.space.namespace)).await?;

    let all = names("asleep", 0..objects);
    let mut sleepy = spec(0);
    sleepy["autoscaling"] = json!({"minReplicas": 0, "maxReplicas": 3});
    let (begin, begin_time) = (Instant::now(), Timestamp::now());
    let (created, (stand, found)) = tokio::try_join!(
        async {
            stage.create(&all, &sleepy).await?;
            anyhow::Ok(begin.elapsed())
        },
        async {
            let instances = until_all_sleep(&mut watch, objects).await?;
            anyhow::Ok((begin.elapsed(), instances))
        }
    )?;
    let requests = stage.settled("falling asleep").await?;
    table.row("  the API server has taken them", seconds(created), "");
    table.row("  → all in the broker's registry", seconds(stand), "");
    table.row("  → the last write", seconds(since(begin_time, &requests)?), "");
    table.requests(&requests, objects);
    at_rest(stage, table).await?;
    table.resident("  resident", stage.resident()?, aims::RESIDENT_ASLEEP);

    // No gateway will come: what is seen is how long the operator takes.
    let capabilities = RawValue::from_string("{}".to_owned())?;
    let mut woken = Vec::new();
    for instance in found.iter().take(WAKES) {
        let name = instance.server_name.as_str().rsplit('/').next().context("a server name has a slash")?;
        eprintln!("waking {name}");
        let before = stage.look.get(name).context("its Deployment is gone")?;
        let begin = Instant::now();
        let asking = client.open_session(instance, &capabilities, Arc::new(Unhandled), LIMIT);
        let scaled = stage.look.until(name, |seen| seen.generation > before.generation);
        let scaled = tokio::select! {
            answer = asking => anyhow::bail!("nobody can answer, and there is {:?}", answer.map(drop)),
            scaled = scaled => scaled?,
        };
        woken.push(scaled - begin);
    }
    table.row("  initialize → its Deployment is to have an instance", median(woken), "");
    client.close(LIMIT).await?;
    stage.settled("woken").await?;

    eprintln!("starting the operator anew");
    stage.stop().await?;
    stage.settled("restarting").await?;
    stage.start(&["--default-broker-url", broker.url().as_str().trim_end_matches('/')]).await?;
    // Nobody waits any more for those that were woken: within a minute they go back to sleep.
    at_rest(stage, table).await?;
    table.resident("  resident after a restart", stage.resident()?, aims::RESIDENT_ASLEEP);

    eprintln!("deleting them all");
    stage.delete(&all).await?;
    stage.settled("after them").await?;
    stage.stop().await?;
    stage.start(&[]).await?;
    Ok(())
}

/// The instances, once so many stand in the registry, each in the operator's care.
async fn until_all_sleep(watch: &mut Watch, objects: usize) -> Result<Vec<Instance>> {
    let all = |instances: &[Instance]| {
        instances.len() == objects && instances.iter().all(|instance| instance.online.is_parked())
    };
    let found = timeout(LIMIT, watch.until(all)).await;
    let found =
        found.with_context(|| format!("there are {} of {objects} presences", watch.instances().len()))?;
    found.context("the connection to the broker is over")
}
