//! The measurements, one after the other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use mcp_mqtt_tests::baseline;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    aims,
    instances::Instances,
    meter::{Meter, Requests},
    report::{Table, mebibytes, median, seconds},
    stage::{Stage, names, spec},
};

/// Services that stand by while one is changed.
const OTHERS: usize = 100;
/// Changes of one, for a median.
pub(crate) const CHANGES: usize = 50;
/// Between two people's changes passes some time.
pub(crate) const BETWEEN: Duration = Duration::from_millis(200);
/// Memory is looked at when what a burst took has been given back, if ever it is.
const PAUSE: Duration = Duration::from_secs(10);
/// A restarted operator is watched this long.
const AFTER_RESTART: Duration = Duration::from_secs(30);
/// How long anything may take.
const LIMIT: Duration = Duration::from_mins(10);
/// What a restarted operator does first.
const RECONCILES: &str = "mcp_mqtt_operator_reconciles_total";

/// Nothing to do.
pub(crate) async fn empty(stage: &mut Stage, table: &mut Table) -> Result<()> {
    eprintln!("the operator with nothing to do");
    sleep(PAUSE).await;
    table.resident("resident with nothing", stage.resident()?, aims::RESIDENT_WITH_NOTHING);
    Ok(())
}

/// One service at a time, among others.
pub(crate) async fn latencies(stage: &mut Stage, table: &mut Table) -> Result<()> {
    let others = names("other", 0..OTHERS);
    eprintln!("creating {OTHERS} McpServices");
    stage.create(&others, &spec(1)).await?;
    stage.look.until_all(OTHERS, "standing by", |name, _| name.starts_with("other-")).await?;
    stage.settled("standing by").await?;
    table.head(format!("one service, beside {OTHERS} others (medians)"));

    let (mut created, mut changed, mut mended, mut remade) = (vec![], vec![], vec![], vec![]);
    let singles = names("single", 0..CHANGES);
    let deployments: Api<Deployment> = stage.space.api();
    for name in &singles {
        let begin = Instant::now();
        stage.space.create(name, &spec(1)).await?;
        created.push(stage.look.until(name, |_| true).await? - begin);
        sleep(BETWEEN).await;
    }
    for name in &singles {
        eprintln!("changing {name}");
        let before = stage.look.get(name).context("its Deployment is gone")?;
        let begin = Instant::now();
        stage.space.patch(name, json!({"spec": {"server": {"image": "registry.example/weather:4"}}})).await?;
        changed.push(stage.look.until(name, |seen| seen.generation > before.generation).await? - begin);
        sleep(BETWEEN).await;
    }
    for name in &singles {
        eprintln!("changing the Deployment {name} by hand");
        let before = stage.look.get(name).context("its Deployment is gone")?;
        let by_hand = PatchParams { field_manager: Some("somebody".to_owned()), ..PatchParams::default() };
        let begin = Instant::now();
        deployments.patch(name, &by_hand, &Patch::Merge(json!({"spec": {"replicas": 3}}))).await?;
        mended.push(stage.look.until(name, |seen| seen.generation > before.generation + 1).await? - begin);
        sleep(BETWEEN).await;
    }
    for name in &singles {
        eprintln!("deleting the Deployment {name}");
        let before = stage.look.get(name).context("its Deployment is gone")?;
        let begin = Instant::now();
        deployments.delete(name, &DeleteParams::background()).await?;
        remade.push(stage.look.until(name, |seen| seen.uid != before.uid).await? - begin);
        sleep(BETWEEN).await;
    }
    table.row("  create → Deployment", median(created), aims::ONE_CREATED);
    table.row("  image change → Deployment", median(changed), aims::ONE_CHANGED);
    table.row("  Deployment edited by hand → mended", median(mended), aims::MENDED);
    table.row("  Deployment deleted → made anew", median(remade), aims::MENDED);
    eprintln!("deleting them all");
    stage.delete(&[others, singles].concat()).await?;
    stage.settled("after them").await?;
    Ok(())
}

/// A thousand at once.
pub(crate) async fn at_once(stage: &mut Stage, table: &mut Table, objects: usize) -> Result<()> {
    table.head(format!("{objects} McpServices created at once"));
    stage.settled("before").await?;
    let all = names("service", 0..objects);
    let meter = Meter::start(stage.parts()?);
    let (begin, begin_time) = (Instant::now(), Timestamp::now());
    let made = stage.look.until_all(objects, "creating", |name, _| name.starts_with("service-"));
    let (created, made) = tokio::try_join!(
        async {
            stage.create(&all, &spec(1)).await?;
            Ok(begin.elapsed())
        },
        made
    )?;
    let requests = stage.settled("settling").await?;
    let last = since(begin_time, &requests)?;
    let cost = meter.until(begin + last).await?;
    let through = stage.look.until_calm().await?;
    table.row("  the API server has taken them", seconds(created), "");
    table.row("  → all Deployments", seconds(made - begin), aims::ALL_DEPLOYMENTS);
    table.row("  → the controllers are through", seconds(through - begin), "");
    table.row("  → the last write", seconds(last), aims::LAST_WRITE);
    table.bounded_requests(&requests, objects);
    table.cost(&cost);
    at_rest(stage, table).await?;
    table.row("  resident, none Ready", mebibytes(stage.resident()?), "");
    Ok(())
}

/// The same, all Ready.
pub(crate) async fn ready(stage: &mut Stage, table: &mut Table, objects: usize) -> Result<()> {
    table.head(format!("{objects} Ready"));
    eprintln!("bringing their instances up");
    stage.settled("before").await?;
    let begin = Instant::now();
    let instances = Instances::bring_up(&stage.space.api::<Pod>()).await?;
    loop {
        let ready = count_ready(stage).await?;
        eprintln!("bringing their instances up: {ready} of {objects} Ready");
        if ready >= objects {
            break;
        }
        ensure!(begin.elapsed() < LIMIT, "they do not become Ready");
        sleep(Duration::from_secs(1)).await;
    }
    let requests = stage.settled("settling").await?;
    table.requests(&requests, objects);
    at_rest(stage, table).await?;
    table.resident("  resident", stage.resident()?, aims::RESIDENT_READY);
    stage.instances = Some(instances);
    Ok(())
}

/// Services of which all conditions hold.
pub(crate) async fn count_ready(stage: &Stage) -> Result<usize> {
    let list = stage.space.services().list(&ListParams::default().match_any()).await?;
    let holds = |condition: &serde_json::Value| condition["status"] == "True";
    let ready = |conditions: &serde_json::Value| {
        conditions.as_array().is_some_and(|all| all.len() == 3 && all.iter().all(holds))
    };
    Ok(list.items.iter().filter(|service| ready(&service.data["status"]["conditions"])).count())
}

/// The operator comes back and finds all as it should be.
pub(crate) async fn restart(stage: &mut Stage, table: &mut Table, objects: usize) -> Result<()> {
    table.head(format!("restart over {objects} Ready"));
    stage.stop().await?;
    stage.settled("restarting").await?;
    let begin = stage.start(&[]).await?;
    let meter = Meter::start(stage.parts()?);
    while stage.operator()?.counter(RECONCILES).await? < objects as u64 {
        ensure!(begin.elapsed() < LIMIT, "they are not all looked at");
        sleep(Duration::from_millis(20)).await;
    }
    let settled = Instant::now();
    table.row("  all looked at", seconds(settled - begin), aims::ALL_LOOKED_AT);
    let cost = meter.until(settled).await?;
    eprintln!("watching the restarted operator");
    sleep(AFTER_RESTART).await;
    let mut requests = Requests::default();
    requests.add(&mut stage.audit)?;
    let what = format!("  writes within {} s", AFTER_RESTART.as_secs());
    at_rest_bound(table, &what, &requests, requests.writes.to_string());
    table.requests(&requests, objects);
    table.cost(&cost);
    table.row("  resident", mebibytes(stage.resident()?), "");
    Ok(())
}

/// A setting of the operator's that reaches every pod.
pub(crate) async fn default_changes(stage: &mut Stage, table: &mut Table, objects: usize) -> Result<()> {
    table.head(format!("another gateway image for all {objects}"));
    stage.stop().await?;
    stage.settled("upgrading").await?;
    let before: Vec<(String, i64)> = names("service", 0..objects)
        .into_iter()
        .filter_map(|name| stage.look.get(&name).map(|seen| (name, seen.generation)))
        .collect();
    let generations: std::collections::HashMap<&str, i64> =
        before.iter().map(|(name, generation)| (name.as_str(), *generation)).collect();
    let begin_time = Timestamp::now();
    let begin = stage.start(&["--sidecar-image", "registry.example/mcp-mqtt-sidecar:2"]).await?;
    let meter = Meter::start(stage.parts()?);
    let changed = stage.look.until_all(objects, "upgrading", |name, seen| {
        generations.get(name).is_some_and(|before| seen.generation > *before)
    });
    let changed = changed.await?;
    let requests = stage.settled("settling").await?;
    let last = since(begin_time, &requests)?;
    let cost = meter.until(begin + last).await?;
    table.row("  → all Deployments", seconds(changed - begin), aims::ALL_DEPLOYMENTS);
    table.row("  → the last write", seconds(last), "");
    table.bounded_requests(&requests, objects);
    table.cost(&cost);
    table.row("  resident", mebibytes(stage.resident()?), "");
    Ok(())
}

/// What memory takes.
pub(crate) async fn many(stage: &mut Stage, table: &mut Table, objects: usize, many: usize) -> Result<()> {
    table.head(format!("{many} in memory, {objects} of them with an instance"));
    stage.settled("before").await?;
    let (begin, begin_time) = (Instant::now(), Timestamp::now());
    let all = names("parked", 0..many - objects);
    let made = stage.look.until_all(many, "creating more", |_, _| true);
    let spec = spec(0);
    tokio::try_join!(stage.create(&all, &spec), made)?;
    let requests = stage.settled("settling").await?;
    table.row(format!("  {} more, → all Deployments", all.len()), seconds(begin.elapsed()), "");
    table.row("  → the last write", seconds(since(begin_time, &requests)?), "");
    table.bounded_requests(&requests, all.len());
    sleep(PAUSE).await;
    table.row("  resident", mebibytes(stage.resident()?), "");
    let used = baseline::cpu(stage.operator()?.process()?);
    sleep(stage.rest).await;
    let used = baseline::cpu(stage.operator()?.process()?).saturating_sub(used);
    table.row("  processor time in a minute at rest", format!("{:.2} s", used.as_secs_f64()), "");
    Ok(())
}

/// A minute in which nothing is to be written.
pub(crate) async fn at_rest(stage: &mut Stage, table: &mut Table) -> Result<()> {
    eprintln!("watching for {} s whether anything is written", stage.rest.as_secs());
    let mut requests = Requests::default();
    requests.add(&mut stage.audit)?;
    let mut requests = Requests::default();
    let used = baseline::cpu(stage.operator()?.process()?);
    sleep(stage.rest).await;
    requests.add(&mut stage.audit)?;
    let used = baseline::cpu(stage.operator()?.process()?).saturating_sub(used);
    let text = format!("{} (processor time: {:.2} s)", requests.writes, used.as_secs_f64());
    at_rest_bound(table, "  writes in the minute after", &requests, text);
    if requests.writes > 0 {
        table.row("  the first of them", requests.first.join(", "), "");
    }
    Ok(())
}

/// What is written where there is nothing to do.
fn at_rest_bound(table: &mut Table, what: &str, requests: &Requests, measured: String) {
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let writes = requests.writes as f64;
    table.bounded(what, measured, writes, aims::WRITES_AT_REST);
}

/// When the last write was answered.
pub(crate) fn since(begin: Timestamp, requests: &Requests) -> Result<Duration> {
    let last = requests.last_write.context("nothing was written")?;
    Ok(last.duration_since(begin).unsigned_abs())
}
