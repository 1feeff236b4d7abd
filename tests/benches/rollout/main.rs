//! `cargo xtask bench rollout`: what clients notice of everything that takes instances away on purpose: a new template,
//! a scale-in, a node that is drained, a new release of the product; and of a service that sleeps. On the cluster, with
//! the chart installed, a real MCP server and clients that call it throughout.
//!
//! The table goes to stdout; stderr tells how far it is, a line each, for whoever shows it.

mod changes;
mod picture;
mod report;
mod stages;
mod wakes;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Parser;
use mcp_mqtt_tests::{
    load::{LOST_AFTER, Load, Work},
    platform::{Platform, everything_over_http, with},
};
use serde_json::json;

use self::{
    changes::{CHANGES, Change},
    picture::Recorder,
    report::Row,
    wakes::Wakes,
};

/// Instances under load.
const REPLICAS: usize = 4;
/// Seconds that every fourth client's calls take.
const SLOW_SECONDS: u32 = 3;
/// Seconds that a drain waits for calls in flight: well above the slow ones. (A server that heeds no SIGTERM, as Node does
/// as the first process of a container, stays for as long after it.)
const DRAIN_SECONDS: u32 = 10;
/// Between an answer and the next call of a client: what is measured is the change, not the machine's limit.
const REST: Duration = Duration::from_millis(200);
/// So soon a client whose session ended is to have its next one.
const MOVE_AIM: Duration = Duration::from_secs(2);
/// How long the clients run before a change and after it.
const AROUND: Duration = Duration::from_secs(5);

#[derive(Debug, Parser)]
struct Args {
    /// Clients at one time; every fourth calls a tool that takes three seconds.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Wakes of a service that sleeps; 0 leaves them out.
    #[arg(long, default_value_t = 10)]
    wakes: usize,
    /// Only these, and no change.
    #[arg(long, conflicts_with = "picture")]
    only_wakes: bool,
    /// Fail where a wake or a client's move took longer than its aim; on a machine that has nothing else to do.
    #[arg(long)]
    strict: bool,
    /// Where the chart's dashboard is drawn, as Prometheus saw the changes.
    #[arg(long)]
    picture: Option<PathBuf>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(&args))
}

async fn measure(args: &Args) -> Result<()> {
    let mut recorder = None;
    if args.picture.is_some() {
        // What it looks at has to be there.
        let platform = Platform::get().await?;
        recorder = Some(Recorder::start(&platform).await?);
    }
    let mut rows = Vec::new();
    let changes: &[Change] = if args.only_wakes { &[] } else { &CHANGES };
    for &change in changes {
        let row = under_load(change, args.clients, recorder.as_mut()).await?;
        eprintln!("{row}");
        rows.push(row);
    }
    if !rows.is_empty() {
        println!("{}", report::table(args.clients, &rows));
    }
    if args.wakes > 0 {
        let wakes = Wakes::measure(args.wakes).await?;
        println!("{wakes}");
        if args.strict {
            wakes.check()?;
        }
    }
    if let (Some(recorder), Some(path)) = (recorder, &args.picture) {
        recorder.draw(path).await?;
    }
    let (lost, cut) = rows.iter().fold((0, 0), |(lost, cut), row| (lost + row.seen.lost, cut + row.seen.cut));
    ensure!(lost == 0 && cut == 0, "{lost} calls were never answered, {cut} were cut off");
    let longest = rows.iter().map(|row| row.seen.longest_move).max().unwrap_or_default();
    ensure!(!args.strict || longest <= MOVE_AIM, "a client's move took {longest:?} (aim: {MOVE_AIM:?})");
    Ok(())
}

/// The clients, the change among them, and what they saw.
async fn under_load(change: Change, clients: usize, recorder: Option<&mut Recorder>) -> Result<Row> {
    let platform = Platform::get().await?;
    let spec = json!({ "replicas": REPLICAS, "drain": { "timeoutSeconds": DRAIN_SECONDS } });
    eprintln!("{change}: {REPLICAS} instances");
    let service = platform.deploy("rollout", with(everything_over_http(), spec)).await?;
    let work = Work {
        quick: vec![("echo", json!({ "message": "hello" }))],
        slow: ("trigger-long-running-operation", json!({ "duration": SLOW_SECONDS, "steps": SLOW_SECONDS })),
        rest: REST,
        dies_in: None,
        lost_after: LOST_AFTER,
    };
    eprintln!("{change}: {clients} clients");
    let load = Load::start_with(&platform.broker, &service.server_name(), clients, &work);
    load.all_answered().await?;
    tokio::time::sleep(AROUND).await;
    eprintln!("{change}: under way");
    if let Some(recorder) = recorder {
        recorder.mark(&change.to_string())?;
    }
    let begin = Instant::now();
    change.make(&service).await?;
    let took = begin.elapsed();
    load.all_answered().await?;
    tokio::time::sleep(AROUND).await;
    let seen = load.stop().await?;
    service.remove().await?;
    Ok(Row { change, took, seen })
}
