//! What the MQTT library costs: the same echo over the project's own driver and over rumqttc's client, whose codec both
//! share, in turn.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use mcp_mqtt_transport::mqtt::Qos;
use rumqttc::{
    NetworkOptions,
    v5::{
        AsyncClient, Event, EventLoop, MqttOptions,
        mqttbytes::{
            QoS,
            v5::{Packet, PublishProperties},
        },
    },
};
use url::Url;

use crate::{
    Plan,
    client::Peer,
    compare::SMALL,
    echo::{self, Echo},
    report::{self, micros},
    rounds::{self, Measured, Shape},
    stage::{Process, Stage, own_program},
};

/// As the project's own: what waits to be sent.
const QUEUE: usize = 1024;
/// Clients: one, where each message travels alone, and many, where they can share packets and wake-ups.
const CLIENTS: [usize; 3] = [1, 32, 128];

/// The echo over rumqttc's client, with what its connection needs to compare: no delay at the socket.
pub(crate) async fn serve(broker: &Url) -> Result<()> {
    let host = broker.host_str().context("a broker without a host")?;
    let mut options = MqttOptions::new("bench-rumqttc", host, broker.port().unwrap_or(1883));
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_clean_start(true).set_max_packet_size(Some(2 << 20)).set_network_options(network);
    let (client, mut events) = AsyncClient::new(options, QUEUE);
    for (qos, level) in [(Qos::AtMostOnce, QoS::AtMostOnce), (Qos::AtLeastOnce, QoS::AtLeastOnce)] {
        client.try_subscribe(Echo::Rumqttc.topics(qos, "+").0, level)?;
    }
    loop {
        answer(&client, &mut events).await?;
    }
}

async fn answer(client: &AsyncClient, events: &mut EventLoop) -> Result<()> {
    let Event::Incoming(Packet::Publish(publish)) = events.poll().await? else { return Ok(()) };
    let topic = std::str::from_utf8(&publish.topic)?;
    let Some((qos, reply)) = Echo::Rumqttc.reply_to(topic) else { bail!("heard on {topic}") };
    let qos = if qos == Qos::AtLeastOnce { QoS::AtLeastOnce } else { QoS::AtMostOnce };
    let user_properties = publish.properties.map(|it| it.user_properties).unwrap_or_default();
    let properties = PublishProperties { user_properties, ..PublishProperties::default() };
    client.try_publish_with_properties(reply, qos, false, publish.payload, properties)?;
    Ok(())
}

/// The table.
pub(crate) async fn echoes(stage: &Stage, plan: &Plan) -> Result<()> {
    let broker = stage.url();
    let start = |kind: Echo| Process::start(own_program()?.args([kind.name(), broker.as_str()]));
    let (own, theirs) = (start(Echo::Second)?, start(Echo::Rumqttc)?);
    for kind in [Echo::Second, Echo::Rumqttc] {
        echo::wait_up(&broker, kind).await?;
    }
    println!(
        "\nThe MQTT library: the same echo over the gateway's driver and over rumqttc's client, in turn"
    );
    println!(
        "{:>4} {:>8} │ {:>8} {:>8} {:>8} │ {:>8} {:>8} {:>8} │ {:>6} {:>8} {:>6}",
        "QoS",
        "clients",
        "p50 µs",
        "calls/s",
        "CPU µs",
        "p50 µs",
        "calls/s",
        "CPU µs",
        "p50 ×",
        "calls ×",
        "CPU ×"
    );
    for qos in [Qos::AtLeastOnce, Qos::AtMostOnce] {
        for clients in CLIENTS {
            let shape = Shape { clients, payload: SMALL, qos, load: None };
            let mut pairs: Vec<(Measured, Measured)> = Vec::new();
            for _ in 0..plan.rounds {
                let ours =
                    rounds::run(&broker, &Peer::Echo(Echo::Second), shape, plan.length(), own.pid()).await?;
                let rumqttc =
                    rounds::run(&broker, &Peer::Echo(Echo::Rumqttc), shape, plan.length(), theirs.pid())
                        .await?;
                pairs.push((ours, rumqttc));
            }
            println!("{}", line(shape, &pairs));
        }
    }
    Ok(())
}

fn line(shape: Shape, pairs: &[(Measured, Measured)]) -> String {
    let side = |of: fn(&(Measured, Measured)) -> Measured| {
        let duration = |which: fn(Measured) -> Duration| {
            micros(report::median(pairs.iter().map(|pair| which(of(pair)))))
        };
        let calls = report::median_of(pairs.iter().map(|pair| of(pair).per_second));
        format!("{:>8.0} {calls:>8.0} {:>8.1}", duration(|it| it.p50), duration(|it| it.cpu))
    };
    let ratio = |of: fn(Measured) -> f64| {
        report::median_of(pairs.iter().map(|(ours, theirs)| of(*theirs) / of(*ours)))
    };
    format!(
        "{:>4} {:>8} │ {} │ {} │ {:>6.2} {:>8.2} {:>6.2}",
        u8::from(shape.qos == Qos::AtLeastOnce),
        shape.clients,
        side(|pair| pair.0),
        side(|pair| pair.1),
        ratio(|it| micros(it.p50)),
        ratio(|it| it.per_second),
        ratio(|it| micros(it.cpu)),
    )
}
