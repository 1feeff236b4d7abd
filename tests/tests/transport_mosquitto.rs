//! The connection against a real Mosquitto: what it promises about delivery, wills, retained messages and limits.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use mcp_mqtt_tests::broker::Mosquitto;
use mcp_mqtt_transport::mqtt::{
    CloseReason, ConnectError, ConnectOptions, Connection, Event, Events, Filter, Publication, PublishError,
    Qos, ReasonCode, Received,
};
use tokio::time::{Instant, timeout};
use url::Url;

/// More than anything here takes.
const LONG: Duration = Duration::from_secs(10);
/// To be sure that nothing comes.
const QUIET: Duration = Duration::from_millis(300);

const PRESENCE: &str = "$mcp-server/presence/cluster.ns.pod/tools/echo";

fn options(url: &Url, client_id: &str) -> ConnectOptions {
    ConnectOptions {
        keep_alive: Duration::from_secs(15),
        connect_timeout: LONG,
        user_properties: vec![("MCP-COMPONENT-TYPE".to_owned(), "mcp-server".to_owned())],
        max_packet_size: 8 << 20,
        ..ConnectOptions::new(url.clone(), client_id)
    }
}

fn presence(payload: &str) -> Publication {
    Publication {
        retain: true,
        user_properties: vec![
            ("MCP-COMPONENT-TYPE".to_owned(), "mcp-server".to_owned()),
            ("MCP-MQTT-CLIENT-ID".to_owned(), "cluster.ns.pod".to_owned()),
        ],
        ..Publication::new(PRESENCE, payload.to_owned(), Qos::AtLeastOnce)
    }
}

async fn received(events: &mut Events) -> Result<Received> {
    match timeout(LONG, events.recv()).await.context("nothing arrived")? {
        Some(Event::Received(received)) => Ok(received),
        Some(Event::Closed(reason)) => bail!("the connection closed: {reason}"),
        Some(Event::Refused(refused)) => bail!("refused: {refused:?}"),
        Some(Event::Unusable(why)) => bail!("unusable: {why:?}"),
        None => bail!("no more events"),
    }
}

async fn closed(events: &mut Events) -> Result<CloseReason> {
    loop {
        match timeout(LONG, events.recv()).await.context("it did not close")? {
            Some(Event::Received(_) | Event::Refused(_) | Event::Unusable(_)) => {}
            Some(Event::Closed(reason)) => return Ok(reason),
            None => bail!("no more events"),
        }
    }
}

async fn subscribed(url: &Url, client_id: &str, filter: &str) -> Result<Connection> {
    let connection = Connection::open(&options(url, client_id)).await?;
    let granted = connection.publisher.subscribe(vec![Filter::new(filter, Qos::AtLeastOnce)], LONG).await?;
    ensure!(granted == [ReasonCode::GRANTED_QOS_1], "granted {granted:?}");
    Ok(connection)
}

#[tokio::test]
async fn a_message_arrives_with_its_user_properties_and_not_at_its_no_local_sender() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let topic = "$mcp-rpc/client/cluster.ns.pod/tools/echo";
    let mut client = Connection::open(&options(&broker.url(), "client")).await?;
    let mut server = Connection::open(&options(&broker.url(), "cluster.ns.pod")).await?;
    for connection in [&client, &server] {
        connection.publisher.subscribe(vec![Filter::no_local(topic, Qos::AtLeastOnce)], LONG).await?;
    }
    let mut request = Publication::new(topic, "ping", Qos::AtLeastOnce);
    request.user_properties = vec![("MCP-MQTT-CLIENT-ID".to_owned(), "client".to_owned())];
    client.publisher.try_publish(request)?;
    let got = received(&mut server.events).await?;
    assert_eq!((got.topic.as_str(), &got.payload[..], got.retain), (topic, &b"ping"[..], false));
    assert_eq!(got.user_properties, [("MCP-MQTT-CLIENT-ID".to_owned(), "client".to_owned())]);
    assert!(timeout(QUIET, client.events.recv()).await.is_err(), "our own message came back");
    Ok(())
}

#[tokio::test]
async fn a_dropped_connection_publishes_the_will_which_clears_the_presence() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let will = presence("");
    let server =
        Connection::open(&ConnectOptions { will: Some(will), ..options(&broker.url(), "cluster.ns.pod") })
            .await?;
    server.publisher.publish_confirmed(presence("online"), LONG).await?;

    let mut watcher = subscribed(&broker.url(), "watcher", "$mcp-server/presence/+/#").await?;
    let online = received(&mut watcher.events).await?;
    assert!(online.retain && online.payload == "online");

    drop(server);
    let offline = received(&mut watcher.events).await?;
    assert!(offline.payload.is_empty(), "{:?}", offline.payload);
    assert_eq!(offline.user_properties, presence("").user_properties, "the will has its user properties");

    let mut late = subscribed(&broker.url(), "late", "$mcp-server/presence/+/#").await?;
    assert!(timeout(QUIET, late.events.recv()).await.is_err(), "the retained presence is gone");
    Ok(())
}

#[tokio::test]
async fn a_disconnect_publishes_no_will_and_loses_nothing_40_times_of_40() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut watcher = subscribed(&broker.url(), "watcher", "#").await?;
    for round in 0..40 {
        let will = Publication::new("will", "fired", Qos::AtLeastOnce);
        let server =
            Connection::open(&ConnectOptions { will: Some(will), ..options(&broker.url(), "server") })
                .await?;
        // Unread messages on the socket are what resets it when it is closed too early.
        server.publisher.subscribe(vec![Filter::new("a/#", Qos::AtLeastOnce)], LONG).await?;
        for n in 0..20 {
            server.publisher.try_publish(Publication::new(
                "a/b",
                format!("{round}-{n}"),
                Qos::AtLeastOnce,
            ))?;
        }
        server.publisher.disconnect(LONG).await?;
        let mut events = server.events;
        assert_eq!(closed(&mut events).await?, CloseReason::Wanted);
        for n in 0..20 {
            let got = received(&mut watcher.events).await?;
            assert_eq!((got.topic.as_str(), &got.payload[..]), ("a/b", format!("{round}-{n}").as_bytes()));
        }
    }
    assert!(timeout(QUIET, watcher.events.recv()).await.is_err(), "a will fired, or something came twice");
    Ok(())
}

#[tokio::test]
async fn a_disconnect_takes_milliseconds_not_the_whole_second_that_it_may() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let connection = Connection::open(&options(&broker.url(), "server")).await?;
    let start = Instant::now();
    connection.publisher.disconnect(LONG).await?;
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_round_trip_waits_for_no_delayed_acknowledgement_of_tcp() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut connection = subscribed(&broker.url(), "client", "echo").await?;
    let mut took = Vec::new();
    for _ in 0..31 {
        let start = Instant::now();
        connection.publisher.try_publish(Publication::new("echo", "x", Qos::AtLeastOnce))?;
        received(&mut connection.events).await?;
        took.push(start.elapsed());
    }
    took.sort();
    // Without TCP_NODELAY on our side half of them take 40 ms and more.
    assert!(took[15] < Duration::from_millis(20), "{took:?}");
    Ok(())
}

#[tokio::test]
async fn a_mebibyte_goes_through_in_both_directions() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut connection = subscribed(&broker.url(), "client", "big/#").await?;
    let payload: Bytes = (0..1_048_576_u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<_>>().into();
    for _ in 0..8 {
        connection.publisher.try_publish(Publication::new("big/one", payload.clone(), Qos::AtLeastOnce))?;
    }
    for _ in 0..8 {
        assert!(received(&mut connection.events).await?.payload == payload);
    }
    Ok(())
}

#[tokio::test]
async fn a_flood_of_ten_thousand_messages_arrives_whole_and_in_order() -> Result<()> {
    let broker = Mosquitto::options().line("max_queued_messages 0").start().await?;
    let mut receiver = subscribed(&broker.url(), "receiver", "flood/#").await?;
    let sender = Connection::open(&options(&broker.url(), "sender")).await?;
    let publisher = sender.publisher.clone();
    let sending = tokio::spawn(async move {
        for n in 0..10_000_u32 {
            let publication = Publication::new("flood/it", n.to_string(), Qos::AtLeastOnce);
            while let Err(error) = publisher.try_publish(publication.clone()) {
                ensure!(error == PublishError::Full, "{error}");
                timeout(LONG, publisher.ready(1)).await?;
            }
        }
        Ok(())
    });
    for n in 0..10_000_u32 {
        let got = received(&mut receiver.events).await?;
        assert_eq!(&got.payload[..], n.to_string().as_bytes());
    }
    sending.await?
}

#[tokio::test]
async fn a_packet_over_the_brokers_limit_is_refused_here_and_costs_nothing() -> Result<()> {
    let broker = Mosquitto::options().max_packet_size(10_000).start().await?;
    let mut connection = subscribed(&broker.url(), "client", "a/#").await?;
    assert_eq!(connection.accepted.maximum_packet_size, Some(10_000));
    let sized = |size: usize| {
        let empty = Publication::new("a/b", "", Qos::AtLeastOnce);
        // The length of the packet takes one byte more than in the empty one.
        let overhead = mcp_mqtt_transport::mqtt::Publisher::packet_size(&empty) + 1;
        Publication::new("a/b", vec![b'x'; size - overhead], Qos::AtLeastOnce)
    };
    let refused = connection.publisher.try_publish(sized(10_001));
    assert_eq!(refused, Err(PublishError::TooLarge { limit: 10_000, size: 10_001 }));
    connection.publisher.publish_confirmed(sized(10_000), LONG).await?;
    assert_eq!(received(&mut connection.events).await?.payload, sized(10_000).payload);
    Ok(())
}

#[tokio::test]
async fn a_taken_over_client_id_ends_the_first_connection() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut first = Connection::open(&options(&broker.url(), "same")).await?;
    let _second = Connection::open(&options(&broker.url(), "same")).await?;
    let reason = closed(&mut first.events).await?;
    // Mosquitto 2.0 just closes the socket; later ones say so.
    assert!(matches!(reason, CloseReason::SessionTakenOver | CloseReason::ClosedByBroker), "{reason}");
    assert_eq!(first.publisher.try_publish(presence("late")), Err(PublishError::Closed));
    assert_eq!(first.publisher.disconnect(LONG).await, Err(PublishError::Closed));
    Ok(())
}

#[tokio::test]
async fn a_killed_broker_ends_the_connection_and_every_wait() -> Result<()> {
    let mut broker = Mosquitto::start().await?;
    let mut connection = Connection::open(&options(&broker.url(), "client")).await?;
    broker.pause()?;
    let reply = connection.publisher.publish_start(Publication::new("a", "b", Qos::AtLeastOnce))?;
    broker.kill()?;
    let reason = closed(&mut connection.events).await?;
    assert!(matches!(reason, CloseReason::ClosedByBroker | CloseReason::Lost(_)), "{reason}");
    assert_eq!(timeout(LONG, reply).await?, Err(PublishError::Closed));
    let error = Connection::open(&options(&broker.url(), "client")).await.expect_err("nobody listens");
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    broker.restart().await?;
    Connection::open(&options(&broker.url(), "client")).await?;
    Ok(())
}

#[tokio::test]
async fn a_stopped_broker_ends_a_connect_and_a_disconnect_by_their_deadlines() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut connection = Connection::open(&options(&broker.url(), "client")).await?;
    broker.pause()?;
    let short = Duration::from_millis(300);
    let late = ConnectOptions { connect_timeout: short, ..options(&broker.url(), "late") };
    let error = Connection::open(&late).await.expect_err("nobody answers");
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");

    let wave = || connection.publisher.try_publish(Publication::new("a", "b", Qos::AtLeastOnce));
    for _ in 0..100 {
        wave()?;
    }
    let start = Instant::now();
    assert_eq!(connection.publisher.disconnect(short).await, Err(PublishError::Timeout(short)));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(closed(&mut connection.events).await?, CloseReason::DisconnectTimedOut);
    Ok(())
}

#[tokio::test]
async fn a_broker_keeps_for_a_session_with_an_expiry_what_comes_while_nobody_is_there() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let options = ConnectOptions {
        session_expiry: Some(Duration::from_mins(1)),
        ..ConnectOptions::new(broker.url(), "sleeper")
    };
    let first = Connection::open(&options).await?;
    first.publisher.subscribe(vec![Filter::new("kept/#", Qos::AtLeastOnce)], LONG).await?;
    drop(first);
    let other = Connection::open(&ConnectOptions::new(broker.url(), "other")).await?;
    let message = Publication::new("kept/a", "while away", Qos::AtLeastOnce);
    other.publisher.publish_confirmed(message, LONG).await?;
    let mut second = Connection::open(&options).await?;
    let event = timeout(LONG, second.events.recv()).await?;
    assert!(matches!(event, Some(Event::Received(received)) if received.payload == "while away"));
    Ok(())
}
