//! Whether the service sleeps: its presence as a whole stands in the registry, held by whoever wakes it, and this
//! instance is to take it over.

use std::{pin::pin, time::Duration};

use mcp_mqtt_transport::{
    mqtt::{CloseReason, Connection, Event, Filter, Qos},
    presence::Online,
    topic::{self, ServerId, ServerName},
};
use tokio::time::{Instant, sleep_until, timeout};

use super::Failure;
use crate::status::reason;

/// For the SUBACK.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A retained message may come after the SUBACK: some brokers look for it on the side.
const RETAINED_TIMEOUT: Duration = Duration::from_millis(300);
/// For the UNSUBACK: nothing depends on it.
const UNSUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Looks at the presence of the service as a whole: whether it sleeps, and its place is left to this instance.
///
/// # Errors
/// The connection ended meanwhile.
pub(super) async fn is_left_to_us(
    connection: &mut Connection,
    (standby, own): (&ServerId, &ServerId),
    server_name: &ServerName,
) -> Result<bool, Failure> {
    let topic = topic::server_presence(standby, server_name);
    let filter = Filter::new(topic.clone(), Qos::AtMostOnce);
    let publisher = connection.publisher.clone();
    let mut granted = pin!(publisher.subscribe(vec![filter], ANSWER_TIMEOUT));
    let (mut deadline, mut answered) = (Instant::now() + ANSWER_TIMEOUT, false);
    let left_to_us = loop {
        tokio::select! {
            event = connection.events.recv() => match event {
                Some(Event::Received(received)) if received.topic == topic => {
                    break Online::parse(&received.payload).is_ok_and(|online| online.is_left_to(own));
                }
                Some(Event::Received(_) | Event::Refused(_) | Event::Unusable(_)) => {}
                Some(Event::Closed(why)) => return Err(closed(&topic, &why)),
                None => return Err(closed(&topic, &CloseReason::ClosedByBroker)),
            },
            granted = &mut granted, if !answered => {
                answered = true;
                let refused = match granted {
                    Ok(codes) => codes.into_iter().find(|code| code.is_error()).map(|code| code.to_string()),
                    Err(error) => Some(error.to_string()),
                };
                if let Some(refused) = refused {
                    tracing::warn!(
                        topic,
                        "the broker does not let us see whether the service sleeps: {refused}; let the gateway read that topic"
                    );
                    break false;
                }
                deadline = Instant::now() + RETAINED_TIMEOUT;
            }
            () = sleep_until(deadline) => break false,
        }
    };
    if !left_to_us && let Ok(unsubscribed) = publisher.unsubscribe(vec![topic]) {
        let _ = timeout(UNSUBSCRIBE_TIMEOUT, unsubscribed).await;
    }
    Ok(left_to_us)
}

fn closed(topic: &str, why: &CloseReason) -> Failure {
    Failure {
        reason: reason::BROKER_CONNECTION_LOST,
        message: format!("the connection ended while {topic} was looked at: {why}; connecting again"),
    }
}
