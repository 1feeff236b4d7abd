//! `cargo xtask bench operator`: the operator at scale, on a real API server, etcd and controller manager without a
//! kubelet: how long a thousand `McpServices` take, what they cost, and what is written when there is nothing to do.
//!
//! The table goes to stdout; stderr tells how far it is, a line each, for whoever shows it.

mod instances;
mod look;
mod meter;
mod report;
mod rounds;
mod stage;

use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use self::{report::Table, stage::Stage};

/// How long the operator must leave everything alone to be called settled.
const CALM: Duration = Duration::from_secs(5);
/// How long it is watched at rest.
const REST: Duration = Duration::from_mins(1);

#[derive(Debug, Parser)]
struct Args {
    /// `McpServices` created at once.
    #[arg(long, default_value_t = 1000)]
    objects: usize,
    /// `McpServices` in memory at the end; 0: this part is left out.
    #[arg(long, default_value_t = 10_000)]
    many: usize,
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
    let mut table = Table::default();
    let mut stage = Stage::set().await?;
    table.machine(&stage);
    rounds::empty(&mut stage, &mut table).await?;
    rounds::latencies(&mut stage, &mut table).await?;
    rounds::at_once(&mut stage, &mut table, args.objects).await?;
    rounds::ready(&mut stage, &mut table, args.objects).await?;
    rounds::restart(&mut stage, &mut table, args.objects).await?;
    rounds::default_changes(&mut stage, &mut table, args.objects).await?;
    if args.many > args.objects {
        rounds::many(&mut stage, &mut table, args.objects, args.many).await?;
    }
    stage.strike().await?;
    println!("{table}");
    Ok(())
}
