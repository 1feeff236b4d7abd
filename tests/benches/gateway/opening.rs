//! How long a session takes to open on stdio, where a process has to be there for it.

use std::time::Duration;

use anyhow::Result;
use mcp_mqtt_tests::{
    gateway::{Gateway, Options},
    servers,
};
use mcp_mqtt_transport::mqtt::Qos;

use crate::{
    client::{Client, Peer},
    report,
    rounds::share,
    stage::{self, Stage, Transport},
};

/// Sessions, one after the other.
const SESSIONS: usize = 100;
/// For the next process to be there, where it is to be; the stub is up in two milliseconds.
const PAUSE: Duration = Duration::from_millis(30);
/// Sessions with the server that runs on Node.
const SLOW_SESSIONS: usize = 6;
/// It takes most of a second.
const SLOW_PAUSE: Duration = Duration::from_millis(2500);

/// The table: the stub, then the reference server, each without and with a process kept ready.
pub(crate) async fn sessions(stage: &Stage) -> Result<()> {
    println!(
        "\nOpening a session on stdio: initialize to its answer\n  {:<18} {:>7} {:>8} │ {:>9} {:>9}",
        "server", "prewarm", "sessions", "median ms", "p90 ms"
    );
    let stub = || stage.gateway(Transport::Stdio, Qos::AtLeastOnce);
    let command = servers::everything_command().await?;
    for prewarm in [0, 1] {
        let stub = stub()?.shim_arg(&format!("--prewarm={prewarm}"));
        open("stub", prewarm, stage, stub, (SESSIONS, PAUSE)).await?;
    }
    for prewarm in [0, 1] {
        let everything = stub()?.arg(&format!("--prewarm={prewarm}")).alone(&command);
        open("server-everything", prewarm, stage, everything, (SLOW_SESSIONS, SLOW_PAUSE)).await?;
    }
    Ok(())
}

async fn open(
    name: &str,
    prewarm: u8,
    stage: &Stage,
    gateway: Options,
    (sessions, pause): (usize, Duration),
) -> Result<()> {
    let gateway: Gateway = stage::start(gateway).await?;
    let peer = Peer::Gateway(gateway.instance());
    let mut took = Vec::with_capacity(sessions);
    for _ in 0..sessions {
        tokio::time::sleep(pause).await;
        let mut client = Client::attach(&stage.url(), &peer, Qos::AtLeastOnce).await?;
        took.push(client.initialize().await?);
        client.leave().await?;
        stage::emptied(&gateway).await?;
    }
    took.sort_unstable();
    println!(
        "  {name:<18} {prewarm:>7} {sessions:>8} │ {:>9.2} {:>9.2}",
        report::micros(share(&took, 0.5)) / 1e3,
        report::micros(share(&took, 0.9)) / 1e3,
    );
    Ok(())
}
