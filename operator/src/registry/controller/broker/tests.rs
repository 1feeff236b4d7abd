use mcp_mqtt_transport::mqtt::{ConnectOptions, Connection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::registry::{
    controller::tests::{controller, wanted},
    presences::SETTLE,
};

/// The broker of a service, which nobody has answered for a while.
fn broker() -> Broker {
    let mut broker = Broker::open(&controller().setting, &wanted().broker, mpsc::channel(1).0);
    let before = Instant::now().checked_sub(WORTH_TELLING);
    broker.down_since = before.expect("a clock that began earlier");
    broker
}

/// The broker lets us read what we asked for.
fn grant(broker: &mut Broker) {
    broker.watching(broker.connection(), Ok(vec![ReasonCode::SUCCESS; 3]));
}

#[tokio::test]
async fn a_registry_without_end_is_told_of_until_it_has_told_all() {
    let (mut broker, now) = (broker(), Instant::now());
    grant(&mut broker);
    assert_eq!(broker.unreachable(), None);
    let down_since = broker.down_since;
    for _ in 0..2 {
        broker.overflowed(TooMuch::Alone);
        broker.down_since = down_since; // a while ago
        assert!(broker.unreachable().is_some());
        // It is asked anew.
        broker.presences.unlinked();
        grant(&mut broker);
        assert!(broker.unreachable().is_some(), "there may be as many again");
    }
    broker.overflowed(TooMuch::Alone);
    assert!(broker.unreachable().is_some(), "it is no news");
    broker.presences.unlinked();
    grant(&mut broker);
    assert!(broker.settle(now + SETTLE + SETTLE));
    assert_eq!(broker.unreachable(), None);
    broker.down("no route".to_owned());
    assert_eq!(broker.unreachable(), None, "it may be back in a moment");
}

/// A connection to a broker that says no more than that it takes it.
async fn connection() -> Connection {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        client.read_buf(&mut Vec::new()).await.unwrap();
        client.write_all(&[0x20, 3, 0, 0, 0]).await.unwrap();
        client.read_to_end(&mut Vec::new()).await
    });
    Connection::open(&ConnectOptions::new(url, "north")).await.unwrap()
}

#[tokio::test]
async fn a_broker_that_nobody_uses_stays_for_its_last_words_and_no_longer() {
    let (mut broker, connection, now) = (broker(), connection().await, Instant::now());
    broker.publisher = Some(connection.publisher.clone());
    assert!(broker.stays(true, now) && !broker.stays(false, now), "nothing is to be said");
    broker.refusals = 1;
    assert!(broker.stays(false, now + UNUSED / 2) && !broker.stays(false, now + UNUSED));
    assert!(broker.stays(true, now + UNUSED), "a service uses it again");
    assert!(broker.stays(false, now + UNUSED) && !broker.stays(false, now + UNUSED * 2));
    broker.down("no route".to_owned());
    broker.unused = None;
    assert!(!broker.stays(false, now), "it cannot be told anything");
}
