//! The least that a gateway before stdio servers can cost: an echo that hands each message to a process of its client's
//! own, line by line, and reads nothing of it. What it loses against the plain echo no gateway can win back.

use std::{collections::HashMap, path::Path, process::Stdio};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use mcp_mqtt_tests::binaries;
use mcp_mqtt_transport::mqtt::{Connection, Event, Filter, Publication, Publisher, Qos};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
};
use url::Url;

use crate::{
    Plan,
    client::{self, Peer, REPLY_TIMEOUT},
    compare::SMALL,
    echo::{self, Echo},
    report::{self, Bar, Ratios},
    rounds::{self, Measured, Shape},
    stage::{self, Process, Stage, Transport, own_program},
};

/// Where the aims are.
const CLIENTS: [usize; 2] = [1, 32];

/// A client's server. Dropped, it ends.
struct Server {
    stdin: ChildStdin,
    _process: Child,
}

/// Serves until the connection ends, with this program for a server.
pub(crate) async fn serve(broker: &Url, server: &Path) -> Result<()> {
    let mut connection = Connection::open(&client::options(broker, "bench-floor")).await?;
    let filter = Filter::new(Echo::Floor.topics(Qos::AtLeastOnce, "+").0, Qos::AtLeastOnce);
    let reasons = connection.publisher.subscribe(vec![filter], REPLY_TIMEOUT).await?;
    ensure!(!reasons.iter().any(|it| it.is_error()), "the broker refused the subscription");
    let mut servers: HashMap<String, Server> = HashMap::new();
    while let Some(event) = connection.events.recv().await {
        match event {
            Event::Received(received) => {
                let Some((_, reply)) = Echo::Floor.reply_to(&received.topic) else { continue };
                if !servers.contains_key(&reply) {
                    servers.insert(reply.clone(), start(server, &connection.publisher, &reply)?);
                }
                let server = servers.get_mut(&reply).context("it was started")?;
                let mut line = Vec::with_capacity(received.payload.len() + 1);
                line.extend_from_slice(&received.payload);
                line.push(b'\n');
                server.stdin.write_all(&line).await?;
            }
            Event::Refused(_) | Event::Unusable(_) => {} // none has a note, and all are well-formed
            Event::Closed(reason) => bail!("the floor lost its connection: {reason}"),
        }
    }
    Ok(())
}

fn start(server: &Path, publisher: &Publisher, reply: &str) -> Result<Server> {
    let mut command = Command::new(server);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let stdin = process.stdin.take().context("its input is ours")?;
    let stdout = process.stdout.take().context("its output is ours")?;
    tokio::spawn(say(stdout, publisher.clone(), reply.to_owned()));
    Ok(Server { stdin, _process: process })
}

async fn say(stdout: ChildStdout, publisher: Publisher, topic: String) -> Result<()> {
    let mut lines = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        line.pop();
        publisher.try_publish(Publication::new(topic.as_str(), Bytes::from(line), Qos::AtLeastOnce))?;
    }
}

/// The table: the plain echo, the floor and the gateway, in turn.
pub(crate) async fn calls(stage: &Stage, plan: &Plan) -> Result<()> {
    let broker = stage.url();
    let mut command = own_program()?;
    command.args([Echo::Floor.name(), broker.as_str()]).arg(binaries::stub_server());
    let floor = Process::start(&mut command)?;
    echo::wait_up(&broker, Echo::Floor).await?;
    let gateway = stage::start(stage.gateway(Transport::Stdio, Qos::AtLeastOnce)?).await?;
    let through = Peer::Gateway(gateway.instance());
    println!(
        "\nThe floor: an echo that does no more than hand each line to a process of its client's own\n{}",
        Bar::head()
    );
    for clients in CLIENTS {
        let shape = Shape { clients, payload: SMALL, qos: Qos::AtLeastOnce, load: None };
        let [mut of_floor, mut of_gateway]: [Vec<(Measured, Measured)>; 2] = Default::default();
        for _ in 0..plan.rounds {
            let run = |peer, watched| rounds::run(&broker, peer, shape, plan.length(), watched);
            let echo = run(&Peer::Echo(Echo::Plain), floor.pid()).await?;
            of_floor.push((echo, run(&Peer::Echo(Echo::Floor), floor.pid()).await?));
            of_gateway.push((echo, run(&through, gateway.pid()).await?));
            stage::emptied(&gateway).await?;
        }
        let both = of_floor.iter().zip(&of_gateway);
        let to_floor =
            report::median_of(both.map(|((_, floor), (_, ours))| ours.per_second / floor.per_second));
        println!("{}", Bar::of("the floor", shape, &Ratios::of(&of_floor)));
        let ours = Bar::of("stdio", shape, &Ratios::of(&of_gateway));
        println!("{ours}   calls × {to_floor:.2} of the floor's");
    }
    println!("{}", Bar::foot());
    Ok(())
}
