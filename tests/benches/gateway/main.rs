//! `cargo xtask bench gateway`: what a gateway costs, beside the same broker's plain echo.
//!
//! - [`compare`]: `tools/call` by transport, clients, payload and QoS, and at a load that stays the same
//! - [`workers`]: the same calls with more connections to the broker
//! - [`rounds`]: one round of it; [`client`]: the client of both sides, so that the ratio is what gateway and server cost
//! - [`idle`]: sessions that are held; [`opening`]: how long one takes to open
//! - [`floor`]: the least that any gateway could cost; [`library`]: the echo over our own driver and over rumqttc's client
//! - [`restart`]: the broker ends under a thousand clients; [`isolation`]: what one slow session does to the others
//! - [`allocations`]: how often a call asks for memory
//! - [`stage`]: the processes: broker, gateway and server, [`echo`]; [`http_server`]: a server over HTTP
//! - [`meter`]: processor time and memory of a process; [`report`]: what people read

mod allocations;
mod client;
mod compare;
mod echo;
mod floor;
mod http_server;
mod idle;
mod isolation;
mod library;
mod meter;
mod opening;
mod report;
mod restart;
mod rounds;
mod stage;
mod workers;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use url::Url;

use self::{echo::Echo, stage::Stage};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench gateway", about = "What a gateway costs, beside the broker's plain echo")]
struct Cli {
    #[command(flatten)]
    plan: Plan,
    /// What the bench starts as processes of their own.
    #[command(subcommand)]
    helper: Option<Helper>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured, and for how long.
#[derive(Debug, Args)]
struct Plan {
    /// These parts alone.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Calls in every combination of transport, clients, payload and QoS (twenty minutes).
    #[arg(long)]
    all: bool,
    /// Rounds of each side per row; their median is shown.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Length of one round, in seconds.
    #[arg(long, default_value_t = 1.2)]
    seconds: f64,
    /// Sessions that are held, and clients that come back; with --all also 10000 held.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=15000))]
    sessions: u16,
    /// Connections of each gateway beside the registering one.
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// Fail where a gateway without a session holds more memory than its aim.
    #[arg(long)]
    strict: bool,
    /// A broker that runs already, open to all and asked for nothing else, in place of a Mosquitto.
    #[arg(long, value_name = "URL")]
    broker: Option<Url>,
}

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Calls one after the other, by transport, clients, payload and QoS.
    Calls,
    /// Calls at a load that does not depend on the number of clients.
    Load,
    /// Calls through gateways with 0, 1, 2 and 4 workers.
    Workers,
    /// Memory and descriptors: with nothing to do, and of idle sessions.
    Idle,
    /// How long a session takes to open on stdio.
    Opening,
    /// How long clients are without answers when the broker is started anew.
    Restart,
    /// What the others notice of one slow session.
    Isolation,
    /// How often a call asks for memory.
    Allocations,
    /// The least that any gateway could cost before stdio servers.
    Floor,
    /// What the MQTT library costs, beside rumqttc's own client.
    Library,
}

#[derive(Debug, Subcommand)]
#[command(hide = true)]
enum Helper {
    #[command(hide = true)]
    Echo { broker: Url },
    #[command(hide = true)]
    SecondEcho { broker: Url },
    #[command(hide = true)]
    RumqttcEcho { broker: Url },
    #[command(hide = true)]
    FloorEcho { broker: Url, server: PathBuf },
    #[command(hide = true)]
    HttpServer,
    #[command(hide = true)]
    Counted {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        gateway: Vec<OsString>,
    },
}

impl Plan {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn idle_counts(&self) -> Vec<usize> {
        let many = self.all.then_some(10_000);
        [usize::from(self.sessions)].into_iter().chain(many).collect()
    }

    fn length(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match cli.helper {
            Some(Helper::Counted { gateway }) => allocations::run_counted(gateway),
            Some(Helper::Echo { broker }) => echo::serve(&broker, Echo::Plain).await,
            Some(Helper::SecondEcho { broker }) => echo::serve(&broker, Echo::Second).await,
            Some(Helper::RumqttcEcho { broker }) => library::serve(&broker).await,
            Some(Helper::FloorEcho { broker, server }) => floor::serve(&broker, &server).await,
            Some(Helper::HttpServer) => http_server::serve().await,
            None => measure(&cli.plan).await,
        }
    })
}

async fn measure(plan: &Plan) -> Result<()> {
    let stage = Stage::set(plan).await?;
    println!("{}", report::machine());
    println!("{}", report::binary()?);
    if plan.wants(Part::Calls) {
        compare::calls(&stage, plan).await?;
    }
    if plan.wants(Part::Load) {
        compare::load(&stage, plan).await?;
    }
    if plan.wants(Part::Workers) {
        workers::calls(&stage, plan).await?;
    }
    if plan.wants(Part::Isolation) {
        isolation::slow_session(&stage, plan).await?;
    }
    if plan.wants(Part::Idle) {
        idle::sessions(&stage, plan).await?;
    }
    if plan.wants(Part::Opening) {
        opening::sessions(&stage).await?;
    }
    if plan.wants(Part::Allocations) {
        allocations::per_call(&stage).await?;
    }
    if plan.wants(Part::Floor) {
        floor::calls(&stage, plan).await?;
    }
    if plan.wants(Part::Library) {
        library::echoes(&stage, plan).await?;
    }
    if plan.wants(Part::Restart) {
        restart::broker(&stage, plan.sessions.into()).await?;
    }
    Ok(())
}
