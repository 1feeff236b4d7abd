//! One session that is slow, and what the others notice of it.

use std::time::Duration;

use anyhow::Result;
use mcp_mqtt_transport::mqtt::Qos;
use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    task::JoinHandle,
};
use url::Url;

use crate::{
    Plan,
    client::{Client, Peer},
    compare::{LOAD, SMALL},
    report::{self, median, median_of},
    rounds::{self, Measured, Shape},
    stage::{self, Stage, Transport},
};

/// The others.
const OTHERS: usize = 32;
/// Rounds for each of the plan's: it is small differences that are looked for.
const MORE: u16 = 2;
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
    /// For comparison: it is as quick as the others, and asks as often as the slow ones.
    Nobody,
    /// Its server reads nothing, and it goes on asking.
    Server,
    /// It reads nothing, and goes on asking.
    Client,
}

impl Slow {
    const ALL: [Self; 3] = [Self::Nobody, Self::Server, Self::Client];

    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody: it is as quick as they are",
            Self::Server => "one whose server reads nothing",
            Self::Client => "one that reads no answer",
        }
    }
}

/// The table.
pub(crate) async fn slow_session(stage: &Stage, plan: &Plan) -> Result<()> {
    println!(
        "\nIsolation: {OTHERS} clients with {LOAD} calls/s, alone and beside one with 100, in turn\n  {:<35} │ {:>8} {:>8} {:>7} │ {:>8} {:>8} {:>7} │ {:>6} {:>6}\n  {:<35} │ {:>8} {:>8} {:>7} │ {:>8} {:>8} {:>7} │ {:>6} {:>6}",
        "",
        "alone",
        "alone",
        "alone",
        "beside",
        "beside",
        "beside",
        "",
        "",
        "who is slow",
        "p50 µs",
        "p99 µs",
        "CPU µs",
        "p50 µs",
        "p99 µs",
        "CPU µs",
        "p50 ×",
        "p99 ×",
    );
    let gateway = stage::start(stage.gateway(Transport::Stdio, Qos::AtLeastOnce)?).await?;
    let (broker, peer) = (stage.url(), Peer::Gateway(gateway.instance()));
    let shape = Shape { clients: OTHERS, payload: SMALL, qos: Qos::AtLeastOnce, load: Some(LOAD) };
    let round = || rounds::run(&broker, &peer, shape, plan.length(), gateway.pid());
    for slow in Slow::ALL {
        let mut pairs = Vec::new();
        for _ in 0..plan.rounds * MORE {
            let alone = round().await?;
            let disturber = slow.start(&broker, &peer).await?;
            let beside = round().await?;
            disturber.leave().await?;
            stage::emptied(&gateway).await?;
            pairs.push((alone, beside));
        }
        let of = |side: fn(&(Measured, Measured)) -> Duration| report::micros(median(pairs.iter().map(side)));
        let ratio = |of: fn(&Measured) -> Duration| {
            median_of(
                pairs.iter().map(|(alone, beside)| report::micros(of(beside)) / report::micros(of(alone))),
            )
        };
        println!(
            "  {:<35} │ {:>8.0} {:>8.0} {:>7.1} │ {:>8.0} {:>8.0} {:>7.1} │ {:>6.2} {:>6.2}",
            slow.name(),
            of(|pair| pair.0.p50),
            of(|pair| pair.0.p99),
            of(|pair| pair.0.cpu),
            of(|pair| pair.1.p50),
            of(|pair| pair.1.p99),
            of(|pair| pair.1.cpu),
            ratio(|it| it.p50),
            ratio(|it| it.p99),
        );
    }
    Ok(())
}

impl Slow {
    /// Opens the slow session and brings it to where nothing moves in it any more; it goes on until it is to leave.
    async fn start(self, broker: &Url, peer: &Peer) -> Result<Disturber> {
        // At QoS 0 its requests need no word of a broker that it does not listen to.
        let mut client = Client::connect(broker, peer, Qos::AtMostOnce).await?;
        let (bytes, calls) = FILL;
        let filling = match self {
            Self::Nobody => ("echo", r#"{"message":"?"}"#.to_owned()),
            Self::Server => {
                let stall = client.request("stall", r#"{"ms":3600000}"#);
                client.say(stall)?;
                ("echo", format!(r#"{{"message":"{}"}}"#, "x".repeat(bytes)))
            }
            Self::Client => ("big", format!(r#"{{"bytes":{bytes}}}"#)),
        };
        let deaf = self == Self::Client;
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
        Ok(Disturber { stop, task })
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
