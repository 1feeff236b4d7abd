//! One round: so many clients in closed loops against one peer, for so long.

use std::time::{Duration, Instant};

use anyhow::Result;
use mcp_mqtt_transport::mqtt::Qos;
use url::Url;

use crate::{
    client::{Client, Peer},
    meter,
};

/// What the clients do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) clients: usize,
    /// Length of a request.
    pub(crate) payload: usize,
    pub(crate) qos: Qos,
    /// Calls per second of all together; none: a request is sent when the answer to the one before is there.
    pub(crate) load: Option<f64>,
}

/// What one round measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) per_second: f64,
    /// Processor time per call of the process that was watched.
    pub(crate) cpu: Duration,
}

/// What was seen in one round.
#[derive(Debug)]
pub(crate) struct Seen {
    /// In no order.
    pub(crate) latencies: Vec<Duration>,
    elapsed: Duration,
    /// Processor time of the process that was watched.
    pub(crate) used: Duration,
}

/// Runs one round; `watched`: the process whose time is measured.
pub(crate) async fn run(
    broker: &Url,
    peer: &Peer,
    shape: Shape,
    length: Duration,
    watched: u32,
) -> Result<Measured> {
    let mut clients = gather(broker, peer, shape).await?;
    let Seen { mut latencies, elapsed, used } = observe(&mut clients, shape, length, watched).await?;
    for client in clients {
        client.leave().await?;
    }
    latencies.sort_unstable();
    let calls = count(&latencies);
    Ok(Measured {
        p50: share(&latencies, 0.5),
        p99: share(&latencies, 0.99),
        per_second: calls / elapsed.as_secs_f64(),
        cpu: used.div_f64(calls),
    })
}

/// The clients of a round, each with a session.
pub(crate) async fn gather(broker: &Url, peer: &Peer, shape: Shape) -> Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(shape.clients);
    for _ in 0..shape.clients {
        clients.push(Client::connect(broker, peer, shape.qos).await?);
    }
    Ok(clients)
}

/// Lets them call, and watches.
pub(crate) async fn observe(
    clients: &mut Vec<Client>,
    shape: Shape,
    length: Duration,
    watched: u32,
) -> Result<Seen> {
    let used_before = meter::processor_time(watched);
    let start = Instant::now();
    let tasks: Vec<_> =
        clients.drain(..).map(|client| tokio::spawn(call_until(client, shape, start + length))).collect();
    let mut latencies = Vec::new();
    for task in tasks {
        let (client, own) = task.await??;
        clients.push(client);
        latencies.extend(own);
    }
    let elapsed = start.elapsed();
    let used = meter::processor_time(watched).saturating_sub(used_before);
    Ok(Seen { latencies, elapsed, used })
}

/// How many, to divide by.
pub(crate) fn count(latencies: &[Duration]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 calls")]
    let count = latencies.len() as f64;
    count
}

async fn call_until(mut client: Client, shape: Shape, until: Instant) -> Result<(Client, Vec<Duration>)> {
    let mut latencies = Vec::with_capacity(1 << 12);
    #[expect(clippy::cast_precision_loss, reason = "some hundred clients")]
    let every = shape.load.map(|load| Duration::from_secs_f64(shape.clients as f64 / load));
    // Not all at the same moment.
    let mut due = every.map(|every| tokio::time::Instant::now() + every.mul_f64(fastrand::f64()));
    while Instant::now() < until {
        if let (Some(at), Some(every)) = (due, every) {
            tokio::time::sleep_until(at).await;
            due = Some(at + every);
        }
        latencies.push(client.call(shape.payload).await?);
    }
    Ok((client, latencies))
}

/// That share of sorted values is not above it.
pub(crate) fn share(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}
