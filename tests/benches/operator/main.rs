//! `cargo xtask bench operator`: the operator at scale, on a real API server, etcd and controller manager without a
//! kubelet (but for those with real pods): how long a thousand `McpServices` take, what they cost, and what is written
//! when there is nothing to do.
//!
//! The table goes to stdout; stderr tells how far it is, a line each, for whoever shows it.

mod aims;
mod floor;
mod instances;
mod look;
mod meter;
mod parked;
mod pods;
mod report;
mod rounds;
mod stage;

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use self::{report::Table, stage::Stage};

/// How long the operator must leave everything alone to be called settled.
const CALM: Duration = Duration::from_secs(5);
#[derive(Debug, Parser)]
struct Args {
    /// `McpServices` created at once.
    #[arg(long, default_value_t = 1000)]
    objects: usize,
    /// `McpServices` in memory at the end; 0: this part is left out.
    #[arg(long, default_value_t = 10_000)]
    many: usize,
    /// `McpServices` with real pods, whose images have to be on the node; 0: this part is left out.
    #[arg(long, default_value_t = 0)]
    pods: usize,
    /// Only these parts; those from `ready` on need `at-once`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Seconds that the operator is watched at rest.
    #[arg(long, default_value_t = 60)]
    rest: u64,
    /// Fail where more is written, held in memory or linked into the binary than is aimed at for the default numbers.
    #[arg(long)]
    strict: bool,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Latencies,
    Pods,
    Floor,
    Parked,
    AtOnce,
    Ready,
    Restart,
    Upgrade,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(&args))
}

async fn measure(args: &Args) -> Result<()> {
    let mut table = Table::default();
    let mut stage = Stage::set(Duration::from_secs(args.rest)).await?;
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    table.machine(&stage);
    rounds::empty(&mut stage, &mut table).await?;
    if wanted(Part::Latencies) {
        rounds::latencies(&mut stage, &mut table).await?;
    }
    if wanted(Part::Pods) && args.pods > 0 {
        pods::pods(&mut stage, &mut table, args.pods).await?;
    }
    if wanted(Part::Floor) {
        floor::floor(&mut stage, &mut table, args.objects).await?;
    }
    if wanted(Part::Parked) {
        parked::parked(&mut stage, &mut table, args.objects).await?;
    }
    if wanted(Part::AtOnce) {
        rounds::at_once(&mut stage, &mut table, args.objects).await?;
    }
    if wanted(Part::Ready) {
        rounds::ready(&mut stage, &mut table, args.objects).await?;
    }
    if wanted(Part::Restart) {
        rounds::restart(&mut stage, &mut table, args.objects).await?;
    }
    if wanted(Part::Upgrade) {
        rounds::default_changes(&mut stage, &mut table, args.objects).await?;
    }
    if args.many > args.objects {
        rounds::many(&mut stage, &mut table, args.objects, args.many).await?;
    }
    stage.strike().await?;
    println!("{table}");
    if args.strict { table.missed.check() } else { Ok(()) }
}
