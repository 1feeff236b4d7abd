//! `cargo xtask soak`: gateways under load for a while, with one fault after the other. At the end no request is
//! without an answer or an explicit end, and nothing is held that was not held at the beginning.

mod faults;
mod others;
mod stage;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Parser;
use mcp_mqtt_tests::load::Account;

use crate::{
    faults::{Fault, KINDS},
    stage::Stage,
};

/// Load without a fault at the beginning and at the end, and between two faults at most.
const CALM: Duration = Duration::from_secs(5);

#[derive(Debug, Parser)]
#[command(name = "soak", about = "Gateways under load, with random faults")]
struct Arguments {
    /// For how long.
    #[arg(long, default_value_t = 15.0)]
    minutes: f64,
    /// Of the order of the faults, to see the same again.
    #[arg(long)]
    seed: Option<u64>,
    /// Closed-loop clients of the stdio server; a third of it for each other transport.
    #[arg(long, default_value_t = 12)]
    clients: usize,
}

/// What became of the faults of one kind.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    times: u32,
    longest: Duration,
    total: Duration,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(1..1_000_000));
    match run(&arguments, seed).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nFAILED (again with --seed {seed}): {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments, seed: u64) -> Result<()> {
    fastrand::seed(seed);
    let length = Duration::from_secs_f64(arguments.minutes * 60.0);
    println!(
        "Soak: {} clients of two gateways before the stdio server and {} of each other transport, {:.0} minutes of \
         faults. Seed {seed}.\n",
        arguments.clients,
        arguments.clients.div_ceil(3),
        arguments.minutes
    );
    let mut stage = Stage::set().await?;
    let load = stage.load(arguments.clients)?;
    load.all_answered().await?;
    let start = Instant::now();
    tokio::time::sleep(CALM).await;
    let mut tallies = [Tally::default(); KINDS.len()];
    let mut last = usize::MAX;
    while start.elapsed() + CALM < length {
        let answered = load.answered();
        let kind = loop {
            let kind = fastrand::usize(..KINDS.len());
            if kind != last {
                break kind;
            }
        };
        last = kind;
        let at = start.elapsed();
        let Fault { told, over } = faults::strike(KINDS[kind], &mut stage).await?;
        let healed = stage.healed(over).await?;
        let tally = &mut tallies[kind];
        tally.times += 1;
        tally.longest = tally.longest.max(healed);
        tally.total += healed;
        println!(
            "  {}  {told}; well again after {}, {} calls answered meanwhile",
            clock(at),
            human(healed),
            load.answered() - answered
        );
        tokio::time::sleep(CALM.mul_f64(fastrand::f64())).await;
    }
    load.all_answered().await?;
    let account = load.stop().await?;
    report(&tallies, start.elapsed());
    tell(&account);
    stage.at_rest().await?;
    account.judge()?;
    println!("\nNo request was left without an answer or an explicit end. Seed {seed}.");
    Ok(())
}

fn report(tallies: &[Tally], elapsed: Duration) {
    println!("\nFaults in {}:\n", clock(elapsed));
    println!("  {:<34}{:>6}{:>12}{:>12}", "", "times", "well after", "at most");
    for (kind, tally) in KINDS.iter().zip(tallies) {
        let Tally { times, longest, total } = *tally;
        let mean = total.checked_div(times).unwrap_or_default();
        println!("  {:<34}{times:>6}{:>12}{:>12}", kind.name(), human(mean), human(longest));
    }
}

fn tell(account: &Account) {
    let Account { answered, refused, lost, sessions, deaths, longest_gap, reasons, .. } = account;
    println!("\nRequests:\n");
    println!("  {answered:>9}  answered");
    println!("  {refused:>9}  refused or ended, and told so");
    println!("  {lost:>9}  without any answer");
    println!("  {sessions:>9}  sessions opened, {deaths} clients died in the middle of a call");
    println!("  {:>9}  the longest that a call waited", human(account.longest_call));
    println!("  {:>9}  the longest that an initialize waited", human(account.longest_opening));
    println!("  {:>9}  the longest that one client went without a result", human(*longest_gap));
    println!("\nWhat clients were told (each kind once):\n");
    for reason in reasons {
        println!("  {reason}");
    }
}

fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    format!("{:02}:{:02}", seconds / 60, seconds % 60)
}

fn human(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
