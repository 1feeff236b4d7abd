//! The plain echo: client → broker → echo → broker → client, and nothing but MQTT.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use futures::FutureExt;
use mcp_mqtt_transport::mqtt::{Connection, Event, Filter, Publication, Publisher, Qos};
use url::Url;

use crate::client;

/// How long it may take to answer first.
const UP_LIMIT: Duration = Duration::from_secs(20);

/// What every one of them answers, by whatever it is answered.
const PING: &str = r#"{"jsonrpc":"2.0","id":0,"method":"ping"}"#;

/// Which of the echoes: each has topics, and a process, of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Echo {
    /// What gateways are compared with.
    Plain,
    /// The same, while another one is compared with it.
    Second,
    /// Over rumqttc's client.
    Rumqttc,
    /// By way of a process.
    Floor,
}

impl Echo {
    /// This program's face of it, and the name in its topics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "echo",
            Self::Second => "second-echo",
            Self::Rumqttc => "rumqttc-echo",
            Self::Floor => "floor-echo",
        }
    }

    /// The topics by which it is asked, and answers, at this QoS.
    pub(crate) fn topics(self, qos: Qos, client_id: &str) -> (String, String) {
        let (name, qos) = (self.name(), u8::from(qos == Qos::AtLeastOnce));
        (format!("bench/{name}/{qos}/{client_id}"), format!("bench/{name}-reply/{qos}/{client_id}"))
    }

    /// Where, and at which QoS, to answer what came by this topic.
    pub(crate) fn reply_to(self, topic: &str) -> Option<(Qos, String)> {
        let (qos, client_id) =
            topic.strip_prefix("bench/")?.strip_prefix(self.name())?.strip_prefix('/')?.split_once('/')?;
        let qos = if qos == "1" { Qos::AtLeastOnce } else { Qos::AtMostOnce };
        Some((qos, self.topics(qos, client_id).1))
    }
}

/// Answers each message with itself, at the QoS that its topic names.
pub(crate) async fn serve(broker: &Url, kind: Echo) -> Result<()> {
    let connection = Connection::open(&client::options(broker, &format!("bench-{}", kind.name()))).await?;
    let filters = [Qos::AtMostOnce, Qos::AtLeastOnce].map(|qos| Filter::new(kind.topics(qos, "+").0, qos));
    let reasons = connection.publisher.subscribe(filters.into(), UP_LIMIT).await?;
    ensure!(!reasons.iter().any(|it| it.is_error()), "the broker refused the echo's subscriptions");
    let Connection { publisher, mut events, .. } = connection;
    // Many large ones do not fit into the queue at once; and reading has to go on, or nothing is acknowledged.
    let mut waiting: VecDeque<Publication> = VecDeque::new();
    loop {
        let next = waiting.front().map_or(0, Publisher::packet_size);
        let event = tokio::select! {
            biased;
            () = publisher.ready(next), if !waiting.is_empty() => {
                if let Some(publication) = waiting.pop_front() {
                    publisher.try_publish(publication)?;
                }
                continue;
            }
            event = events.recv() => event,
        };
        match event {
            Some(Event::Received(received)) => {
                let Some((qos, topic)) = kind.reply_to(&received.topic) else { continue };
                let publication = Publication {
                    topic,
                    payload: received.payload,
                    qos,
                    retain: false,
                    user_properties: received.user_properties,
                };
                let size = Publisher::packet_size(&publication);
                if waiting.is_empty() && publisher.ready(size).now_or_never().is_some() {
                    publisher.try_publish(publication)?;
                } else {
                    waiting.push_back(publication);
                }
            }
            Some(Event::Refused(_) | Event::Unusable(_)) => {} // none has a note, and all are well-formed
            Some(Event::Closed(reason)) => bail!("the echo lost its connection: {reason}"),
            None => return Ok(()),
        }
    }
}

/// Waits until the echo answers: its subscription may come after the first message.
pub(crate) async fn wait_up(broker: &Url, kind: Echo) -> Result<()> {
    let start = Instant::now();
    let mut connection = Connection::open(&client::options(broker, "bench-wait")).await?;
    let (asks, answers) = kind.topics(Qos::AtLeastOnce, "wait");
    connection.publisher.subscribe(vec![Filter::new(answers, Qos::AtLeastOnce)], UP_LIMIT).await?;
    while start.elapsed() < UP_LIMIT {
        connection.publisher.try_publish(Publication::new(asks.as_str(), PING, Qos::AtLeastOnce))?;
        if let Ok(Some(Event::Received(_))) =
            tokio::time::timeout(Duration::from_millis(100), connection.events.recv()).await
        {
            return Ok(connection.publisher.disconnect(UP_LIMIT).await?);
        }
    }
    bail!("the {} does not answer", kind.name())
}
