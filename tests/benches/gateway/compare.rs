//! The tables: calls through a gateway beside the echo of the same shape, in turn.

use anyhow::Result;
use mcp_mqtt_transport::mqtt::Qos;

use crate::{
    Plan,
    client::Peer,
    echo::Echo,
    http_server::Manner,
    report::{Bar, Ratios},
    rounds::{self, Measured, Shape},
    stage::{self, Stage, Transport},
};

pub(crate) const SMALL: usize = 256;
const CLIENTS: [usize; 4] = [1, 8, 32, 128];
pub(crate) const PAYLOADS: [usize; 3] = [SMALL, 16 << 10, 256 << 10];
pub(crate) const TRANSPORTS: [Transport; 4] =
    [Transport::Stdio, Transport::Http(Manner::Json), Transport::Http(Manner::Sse), Transport::HttpAndSse];
/// Where one thing is varied: the aims speak of one client and of 32.
const VARIED: [usize; 2] = [1, 32];
/// Calls per second where the load stays the same: a fraction of what the machine can do.
pub(crate) const LOAD: f64 = 1600.0;

/// One row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) transport: Transport,
    pub(crate) shape: Shape,
}

/// Calls one after the other: one thing after the other is varied, or everything.
pub(crate) async fn calls(stage: &Stage, plan: &Plan) -> Result<()> {
    println!(
        "\nCalls: each client sends a request when the answer to the one before is there\n{}",
        Bar::head()
    );
    let rows = if plan.all { every_row() } else { chosen_rows() };
    for group in rows.chunk_by(same_gateway) {
        compare(stage, plan, group).await?;
    }
    Ok(())
}

/// Calls at a load that does not depend on the number of clients.
pub(crate) async fn load(stage: &Stage, plan: &Plan) -> Result<()> {
    println!("\nLoad: {LOAD} calls/s of all clients together\n{}", Bar::head());
    let rows = CLIENTS.map(|clients| {
        let mut row = row(Transport::Stdio, clients, SMALL, Qos::AtLeastOnce);
        row.shape.load = Some(LOAD);
        row
    });
    compare(stage, plan, &rows[1..]).await
}

/// Measures rows of one gateway, and prints each as soon as it is done.
async fn compare(stage: &Stage, plan: &Plan, rows: &[Row]) -> Result<()> {
    let Some(first) = rows.first() else { return Ok(()) };
    let gateway = stage::start(stage.gateway(first.transport, first.shape.qos)?).await?;
    let (broker, peer) = (stage.url(), Peer::Gateway(gateway.instance()));
    for row in rows {
        let mut pairs: Vec<(Measured, Measured)> = Vec::new();
        for _ in 0..plan.rounds {
            let echo =
                rounds::run(&broker, &Peer::Echo(Echo::Plain), row.shape, plan.length(), gateway.pid())
                    .await?;
            let through = rounds::run(&broker, &peer, row.shape, plan.length(), gateway.pid()).await?;
            stage::emptied(&gateway).await?;
            pairs.push((echo, through));
        }
        println!("{}", Bar::of(row.transport.name(), row.shape, &Ratios::of(&pairs)));
    }
    println!("{}", Bar::foot());
    Ok(())
}

fn row(transport: Transport, clients: usize, payload: usize, qos: Qos) -> Row {
    Row { transport, shape: Shape { clients, payload, qos, load: None } }
}

fn chosen_rows() -> Vec<Row> {
    let lossless = Qos::AtLeastOnce;
    let mut rows: Vec<Row> = CLIENTS.map(|clients| row(Transport::Stdio, clients, SMALL, lossless)).into();
    for payload in &PAYLOADS[1..] {
        rows.extend(VARIED.map(|clients| row(Transport::Stdio, clients, *payload, lossless)));
    }
    rows.extend(VARIED.map(|clients| row(Transport::Stdio, clients, SMALL, Qos::AtMostOnce)));
    for transport in &TRANSPORTS[1..] {
        rows.extend(VARIED.map(|clients| row(*transport, clients, SMALL, lossless)));
    }
    rows
}

fn every_row() -> Vec<Row> {
    let mut rows = Vec::new();
    for transport in TRANSPORTS {
        for qos in [Qos::AtLeastOnce, Qos::AtMostOnce] {
            for payload in PAYLOADS {
                rows.extend(CLIENTS.map(|clients| row(transport, clients, payload, qos)));
            }
        }
    }
    rows
}

fn same_gateway(one: &Row, next: &Row) -> bool {
    one.transport == next.transport && one.shape.qos == next.shape.qos
}
