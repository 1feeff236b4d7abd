//! How often the gateway asks for memory: the same code, in a process of this program that counts.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Write},
    iter,
    process::{ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use mcp_mqtt_sidecar::cli;
use mcp_mqtt_tests::binaries;
use mcp_mqtt_transport::{
    client::{self, ClientOptions},
    mqtt::Qos,
    topic::{ClientId, ServerName},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tempfile::TempDir;
use url::Url;

use crate::{
    client::{Client, Peer},
    compare::{PAYLOADS, TRANSPORTS},
    report,
    stage::{Process, Stage, Transport, own_program},
};

/// Of this program as a whole; what is measured by the clock is another one.
#[global_allocator]
static COUNTING: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

const SERVER_NAME: &str = "bench/counted";
/// Calls before those that are counted: queues and buffers have their size then.
const WARM_UP: u32 = 100;
const CALLS: u32 = 500;
/// For the gateway to register.
const UP_LIMIT: Duration = Duration::from_secs(20);

/// Runs the gateway, and tells its counts on stdout for each line on stdin.
pub(crate) fn run_counted(arguments: Vec<OsString>) -> Result<()> {
    std::thread::spawn(|| cli::run(iter::once("bench".into()).chain(arguments)));
    let mut stdout = std::io::stdout();
    for line in std::io::stdin().lines() {
        drop(line?);
        let counts = INSTRUMENTED_SYSTEM.stats();
        writeln!(stdout, "{} {}", counts.allocations + counts.reallocations, counts.bytes_allocated)?;
        stdout.flush()?;
    }
    Ok(()) // and with it the gateway ends
}

/// The table.
pub(crate) async fn per_call(stage: &Stage) -> Result<()> {
    println!(
        "\nAllocations of the gateway\n  {:<10} {:>7} │ {:>8} {:>12} │ {:>11}",
        "server", "payload", "per call", "KiB per call", "per session"
    );
    for transport in TRANSPORTS {
        let mut counted = Counted::start(stage, transport)?;
        let peer = Peer::Gateway(counted.found(&stage.url()).await?);
        for payload in PAYLOADS {
            let before_session = counted.look()?;
            let mut client = Client::connect(&stage.url(), &peer, Qos::AtLeastOnce).await?;
            let of_session = counted.look()?.allocations - before_session.allocations;
            for _ in 0..WARM_UP {
                client.call(payload).await?;
            }
            let before = counted.look()?;
            for _ in 0..CALLS {
                client.call(payload).await?;
            }
            let after = counted.look()?;
            client.leave().await?;
            let each = |all: f64| all / f64::from(CALLS);
            println!(
                "  {:<10} {:>7} │ {:>8.1} {:>12.1} │ {:>11.0}",
                transport.name(),
                report::bytes(payload),
                each(after.allocations - before.allocations),
                each(after.bytes - before.bytes) / 1024.0,
                of_session,
            );
        }
    }
    Ok(())
}

/// A gateway that counts.
struct Counted {
    ask: ChildStdin,
    told: BufReader<ChildStdout>,
    _processes: Vec<Process>,
    _sockets: TempDir,
}

/// What was counted since its start.
struct Counts {
    allocations: f64,
    bytes: f64,
}

impl Counted {
    fn start(stage: &Stage, transport: Transport) -> Result<Self> {
        let sockets = tempfile::tempdir()?;
        let socket = sockets.path().join("shim.sock");
        let mut processes = Vec::new();
        let backend = match transport {
            Transport::Stdio => {
                let mut shim = Command::new(binaries::sidecar());
                shim.args(["shim", "run", "--log=warn", "--socket"])
                    .arg(&socket)
                    .arg("--")
                    .arg(binaries::stub_server());
                processes.push(Process::start(&mut shim)?);
                format!("--stdio-socket={}", socket.display())
            }
            Transport::Http(manner) => format!("--http-url={}", stage.http_url(manner)?),
            Transport::HttpAndSse => format!("--sse-url={}", stage.sse_url()?),
        };
        let mut gateway = own_program()?;
        gateway.args(["counted", "gateway", "--log=warn", &backend]);
        gateway.args([format!("--server-name={SERVER_NAME}"), format!("--broker-url={}", stage.url())]);
        gateway.arg(format!("--server-id=counted-{:x}", fastrand::u64(..)));
        let mut gateway = Process::start_with(gateway.stdout(Stdio::piped()), Stdio::piped())?;
        let (ask, told) = gateway.talk()?;
        processes.push(gateway);
        Ok(Self { ask, told, _processes: processes, _sockets: sockets })
    }

    /// Waits until it is registered.
    async fn found(&self, broker: &Url) -> Result<client::Instance> {
        let id = ClientId::new(&format!("bench-look-{:x}", fastrand::u64(..)))?;
        let look = client::Client::connect(ClientOptions::new(broker.clone(), id)).await?;
        let found = look.find(&ServerName::new(SERVER_NAME)?, UP_LIMIT).await;
        look.close(UP_LIMIT).await?;
        found.context("the gateway that counts did not register")
    }

    fn look(&mut self) -> Result<Counts> {
        writeln!(self.ask)?;
        let mut line = String::new();
        self.told.read_line(&mut line)?;
        let (allocations, bytes) = line.trim().split_once(' ').context("the gateway does not count")?;
        Ok(Counts { allocations: allocations.parse()?, bytes: bytes.parse()? })
    }
}
