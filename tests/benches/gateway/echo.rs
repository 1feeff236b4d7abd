//! The plain echo: client → broker → echo → broker → client, and nothing but MQTT.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use mcp_mqtt_transport::mqtt::{Connection, Event, Filter, Publication, Qos};
use url::Url;

use crate::client;

/// How long it may take to answer first.
const UP_LIMIT: Duration = Duration::from_secs(20);

/// The topics by which it is asked, and answers, at this QoS.
pub(crate) fn topics(qos: Qos, client_id: &str) -> (String, String) {
    let qos = level(qos);
    (format!("bench/echo/{qos}/{client_id}"), format!("bench/reply/{qos}/{client_id}"))
}

fn level(qos: Qos) -> u8 {
    u8::from(qos == Qos::AtLeastOnce)
}

/// Answers each message with itself, at the QoS that its topic names.
pub(crate) async fn serve(broker: &Url) -> Result<()> {
    let mut connection = Connection::open(&client::options(broker, "bench-echo")).await?;
    let filters = [Qos::AtMostOnce, Qos::AtLeastOnce].map(|qos| Filter::new(topics(qos, "+").0, qos));
    let reasons = connection.publisher.subscribe(filters.into(), UP_LIMIT).await?;
    ensure!(!reasons.iter().any(|it| it.is_error()), "the broker refused the echo's subscriptions");
    let lossless = format!("/{}/", level(Qos::AtLeastOnce));
    while let Some(event) = connection.events.recv().await {
        match event {
            Event::Received(received) => {
                let qos = if received.topic.contains(&lossless) { Qos::AtLeastOnce } else { Qos::AtMostOnce };
                connection.publisher.try_publish(Publication {
                    topic: received.topic.replacen("/echo/", "/reply/", 1),
                    payload: received.payload,
                    qos,
                    retain: false,
                    user_properties: received.user_properties,
                })?;
            }
            Event::Refused(_) => {} // only for what has a note
            Event::Closed(reason) => bail!("the echo lost its connection: {reason}"),
        }
    }
    Ok(())
}

/// Waits until the echo answers: its subscription may come after the first message.
pub(crate) async fn wait_up(broker: &Url) -> Result<()> {
    let start = Instant::now();
    let mut connection = Connection::open(&client::options(broker, "bench-wait")).await?;
    let (asks, answers) = topics(Qos::AtLeastOnce, "wait");
    connection.publisher.subscribe(vec![Filter::new(answers, Qos::AtLeastOnce)], UP_LIMIT).await?;
    while start.elapsed() < UP_LIMIT {
        connection.publisher.try_publish(Publication::new(asks.as_str(), "?", Qos::AtLeastOnce))?;
        if let Ok(Some(Event::Received(_))) =
            tokio::time::timeout(Duration::from_millis(100), connection.events.recv()).await
        {
            return Ok(connection.publisher.disconnect(UP_LIMIT).await?);
        }
    }
    bail!("the echo does not answer")
}
