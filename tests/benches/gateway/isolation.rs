//! One session that is slow, and what the others notice of it.
//!
//! It is a small difference that is looked for, on a machine that may have other work. So:
//! - The others keep their sessions throughout, and nothing is measured while the slow one is filled or goes.
//! - Rounds come in blocks of alone, beside, beside, alone: what drifts evenly is the same on both sides.
//! - A block in which somebody else used the processors is measured anew.
//! - Shares are those of all calls of all rounds together, since a p99 of one round hangs on a dozen calls.
//! - Each ratio comes with the range in which nine tenths of the ratios lie that blocks drawn at random from those
//!   measured would have given, and the first line has nobody beside the others at all: it shows what noise is.

use std::time::Duration;

use anyhow::Result;
use mcp_mqtt_tests::gateway::Gateway;
use mcp_mqtt_transport::mqtt::Qos;
use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    task::JoinHandle,
    time::sleep,
};
use url::Url;

use crate::{
    Plan,
    client::{Client, Peer},
    compare::{LOAD, SMALL},
    echo::Echo,
    meter::Others,
    report,
    rounds::{self, Seen, Shape, count, share},
    stage::{self, Stage, Transport},
};

/// The others.
const OTHERS: usize = 32;
/// Blocks for each of the plan's rounds: it is small differences that are looked for.
const MORE: u16 = 2;
/// Between what was done and a round: memory is given back, processes end, queues run empty.
const CALM: Duration = Duration::from_millis(700);
/// Processors that somebody else may use in a block that counts. An idle machine has some hundredths.
const DISTURBED: f64 = 0.15;
/// Ratios that are drawn, to see how far they are apart.
const DRAWN: usize = 400;
/// Between two calls of the slow one.
const TICK: Duration = Duration::from_millis(10);
/// What fills the queues before the rounds begin, its own side and the sockets among them: so many bytes in each of so
/// many calls. During the rounds its calls are as small as anybody's, since a large message is a load by itself.
const FILL: (usize, usize) = (64 << 10, 400);
/// And between two of these.
const POUR: Duration = Duration::from_millis(2);

/// What the one beside them is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slow {
    /// For comparison: there is none.
    Absent,
    /// For comparison: it is as quick as the others, and asks as often as the slow ones.
    Nobody,
    /// Its server reads nothing, and it goes on asking.
    Server,
    /// It reads nothing, and goes on asking.
    Client,
    /// The same, of all others too, at the plain echo: what the broker has to do with it.
    ClientOfEcho,
}

impl Slow {
    const ALL: [Self; 5] = [Self::Absent, Self::Nobody, Self::Server, Self::Client, Self::ClientOfEcho];

    fn name(self) -> &'static str {
        match self {
            Self::Absent => "there is nobody beside them",
            Self::Nobody => "nobody: it is as quick as they are",
            Self::Server => "one whose server reads nothing",
            Self::Client => "one that reads no answer",
            Self::ClientOfEcho => "the same at the echo, no gateway",
        }
    }
}

/// The rounds between one coming and going of the slow session.
struct Block {
    alone: [Seen; 2],
    beside: [Seen; 2],
}

/// The table.
pub(crate) async fn slow_session(stage: &Stage, plan: &Plan) -> Result<()> {
    println!(
        "\nIsolation: {OTHERS} clients with {LOAD} calls/s, alone and beside one with 100, in turn\n  {:<35} │ {:>7} {:>7} {:>7} │ {:>7} {:>7} {:>7} │ {:>6} {:>11} {:>6} {:>11} {:>6} │ {:>6}\n  {:<35} │ {:>7} {:>7} {:>7} │ {:>7} {:>7} {:>7} │ {:>6} {:>11} {:>6} {:>11} {:>6} │ {:>6}",
        "",
        "alone",
        "alone",
        "alone",
        "beside",
        "beside",
        "beside",
        "",
        "9 in 10",
        "",
        "9 in 10",
        "",
        "left",
        "who is slow",
        "p50 µs",
        "p99 µs",
        "CPU µs",
        "p50 µs",
        "p99 µs",
        "CPU µs",
        "p50 ×",
        "within",
        "p99 ×",
        "within",
        "CPU ×",
        "out",
    );
    let gateway = stage::start(stage.gateway(Transport::Stdio, Qos::AtLeastOnce)?).await?;
    let (broker, peer) = (stage.url(), Peer::Gateway(gateway.instance()));
    let shape = Shape { clients: OTHERS, payload: SMALL, qos: Qos::AtLeastOnce, load: Some(LOAD) };
    let mut rig = Rig { others: rounds::gather(&broker, &peer, shape).await?, gateway, broker, peer, shape };
    for slow in Slow::ALL {
        if slow == Slow::ClientOfEcho {
            rig.move_to_echo().await?;
        }
        let wanted = usize::from(plan.rounds * MORE);
        let (mut blocks, mut left_out) = (Vec::new(), 0);
        while blocks.len() < wanted {
            let watch = Others::watch();
            let block = rig.block(slow, plan.length()).await?;
            // On a machine that is never quiet there is a table, too; it says so in its last column.
            if watch.processors() > DISTURBED && left_out < wanted {
                left_out += 1;
            } else {
                blocks.push(block);
            }
        }
        println!("{}", line(slow, &blocks, left_out));
    }
    Ok(())
}

/// What stands throughout.
struct Rig {
    others: Vec<Client>,
    gateway: Gateway,
    broker: Url,
    peer: Peer,
    shape: Shape,
}

impl Rig {
    async fn block(&mut self, slow: Slow, length: Duration) -> Result<Block> {
        let before = self.round(length).await?;
        let disturber = slow.start(&self.broker, &self.peer).await?;
        let beside = [self.round(length).await?, self.round(length).await?];
        if let Some(disturber) = disturber {
            disturber.leave().await?;
        }
        if matches!(self.peer, Peer::Gateway(_)) {
            let ended = "the end of the slow session";
            self.gateway.wait_for(ended, |status| status.sessions as usize == OTHERS).await?;
        }
        Ok(Block { alone: [before, self.round(length).await?], beside })
    }

    async fn move_to_echo(&mut self) -> Result<()> {
        for client in self.others.drain(..) {
            client.leave().await?;
        }
        stage::emptied(&self.gateway).await?;
        self.peer = Peer::Echo(Echo::Plain);
        self.others = rounds::gather(&self.broker, &self.peer, self.shape).await?;
        Ok(())
    }

    async fn round(&mut self, length: Duration) -> Result<Seen> {
        sleep(CALM).await;
        rounds::observe(&mut self.others, self.shape, length, self.gateway.pid()).await
    }
}

fn line(slow: Slow, blocks: &[Block], left_out: usize) -> String {
    let all: Vec<&Block> = blocks.iter().collect();
    let (alone, beside) = (Pooled::of(&all, |block| &block.alone), Pooled::of(&all, |block| &block.beside));
    let drawn: Vec<(f64, f64)> = (0..DRAWN)
        .map(|_| {
            let some: Vec<&Block> = blocks.iter().map(|_| &blocks[fastrand::usize(..blocks.len())]).collect();
            let (alone, beside) =
                (Pooled::of(&some, |block| &block.alone), Pooled::of(&some, |block| &block.beside));
            (beside.p50 / alone.p50, beside.p99 / alone.p99)
        })
        .collect();
    // At the echo the gateway has no part.
    let more_cpu =
        if slow == Slow::ClientOfEcho { "-".to_owned() } else { format!("{:.2}", beside.cpu / alone.cpu) };
    format!(
        "  {:<35} │ {:>7.0} {:>7.0} {:>7.1} │ {:>7.0} {:>7.0} {:>7.1} │ {:>6.2} {:>11} {:>6.2} {:>11} {more_cpu:>6} │ {left_out:>6}",
        slow.name(),
        alone.p50,
        alone.p99,
        alone.cpu,
        beside.p50,
        beside.p99,
        beside.cpu,
        beside.p50 / alone.p50,
        within(drawn.iter().map(|it| it.0)),
        beside.p99 / alone.p99,
        within(drawn.iter().map(|it| it.1)),
    )
}

/// From where to where nine tenths of them are.
fn within(ratios: impl Iterator<Item = f64>) -> String {
    let mut ratios: Vec<f64> = ratios.collect();
    ratios.sort_by(f64::total_cmp);
    let twentieth = ratios.len() / 20;
    format!("{:.2} - {:.2}", ratios[twentieth], ratios[ratios.len() - 1 - twentieth])
}

/// One side of blocks, in microseconds.
struct Pooled {
    p50: f64,
    p99: f64,
    /// Processor time of the gateway for each call of the others.
    cpu: f64,
}

impl Pooled {
    fn of(blocks: &[&Block], side: fn(&Block) -> &[Seen; 2]) -> Self {
        let rounds = || blocks.iter().flat_map(|block| side(block));
        let mut latencies: Vec<Duration> = rounds().flat_map(|seen| &seen.latencies).copied().collect();
        latencies.sort_unstable();
        let used: Duration = rounds().map(|seen| seen.used).sum();
        Self {
            p50: report::micros(share(&latencies, 0.5)),
            p99: report::micros(share(&latencies, 0.99)),
            cpu: report::micros(used.div_f64(count(&latencies))),
        }
    }
}

impl Slow {
    /// Opens the slow session and brings it to where nothing moves in it any more; it goes on until it is to leave.
    async fn start(self, broker: &Url, peer: &Peer) -> Result<Option<Disturber>> {
        if self == Self::Absent {
            return Ok(None);
        }
        // At QoS 0 its requests need no word of a broker that it does not listen to.
        let mut client = Client::connect(broker, peer, Qos::AtMostOnce).await?;
        let (bytes, calls) = FILL;
        let filling = match self {
            Self::Absent | Self::Nobody => ("echo", r#"{"message":"?"}"#.to_owned()),
            Self::Server => {
                let stall = client.request("stall", r#"{"ms":3600000}"#);
                client.say(stall)?;
                ("echo", format!(r#"{{"message":"{}"}}"#, "x".repeat(bytes)))
            }
            Self::Client => ("big", format!(r#"{{"bytes":{bytes}}}"#)),
            Self::ClientOfEcho => ("echo", format!(r#"{{"message":"{}"}}"#, "x".repeat(bytes))),
        };
        let deaf = matches!(self, Self::Client | Self::ClientOfEcho);
        for _ in 0..calls {
            let request = client.request(filling.0, &filling.1);
            client.say(request)?;
            tokio::time::sleep(POUR).await;
            while !deaf && client.connection.events.try_recv().is_some() {}
        }
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(TICK);
            while let Err(TryRecvError::Empty) = stopped.try_recv() {
                tick.tick().await;
                let request = client.request("echo", r#"{"message":"?"}"#);
                client.say(request)?;
                while !deaf && client.connection.events.try_recv().is_some() {}
            }
            client.leave().await
        });
        Ok(Some(Disturber { stop, task }))
    }
}

/// The slow session, at work.
struct Disturber {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
}

impl Disturber {
    async fn leave(self) -> Result<()> {
        let _ = self.stop.send(()); // it has failed: the task says how
        self.task.await?
    }
}
