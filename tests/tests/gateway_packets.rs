//! The gateway's MQTT packets, as they go over the wire: what the specification asks of a server's CONNECT, of its
//! subscriptions and publishes, and of their order.

use anyhow::{Context, Result, bail, ensure};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, call, connect, open},
    proxy::{
        Manner, Proxy, body, filters, is,
        kind::{CONNECT, DISCONNECT, PUBLISH, SUBSCRIBE, UNSUBSCRIBE},
    },
};
use mcp_mqtt_transport::user_property::UserProperties;
use serde_json::{Value, json};
use tokio::time::timeout;

async fn stage() -> Result<(Mosquitto, Proxy, Gateway)> {
    let broker = Mosquitto::start().await?;
    let proxy = Proxy::start(broker.port(), Manner::default()).await?;
    let gateway = Options::new(&proxy.url()).start()?;
    gateway.wait_ready().await?;
    Ok((broker, proxy, gateway))
}

/// A part with its length in two bytes, and the rest.
fn part(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes[2..].split_at(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
}

/// User properties; Session Expiry and Will Delay Interval when they are there, in seconds; and the rest.
fn properties(bytes: &[u8]) -> Result<(UserProperties, u32, &[u8])> {
    let length = usize::from(bytes[0]) & 0x7F | usize::from(bytes[1]) << 7;
    let (length, start) = if bytes[0] < 0x80 { (usize::from(bytes[0]), 1) } else { (length, 2) };
    let (mut left, rest) = bytes[start..].split_at(length);
    let (mut users, mut interval) = (Vec::new(), 0);
    while let Some((&kind, value)) = left.split_first() {
        match kind {
            0x26 => {
                let (name, value) = part(value);
                let (value, next) = part(value);
                users.push((String::from_utf8(name.to_vec())?, String::from_utf8(value.to_vec())?));
                left = next;
            }
            0x11 | 0x18 | 0x27 => {
                let number = u32::from_be_bytes(value[..4].try_into()?);
                interval = if kind == 0x27 { interval } else { number };
                left = &value[4..];
            }
            other => bail!("property {other:#x} was not expected"),
        }
    }
    Ok((users, interval, rest))
}

// Items 1 to 3.
#[tokio::test]
async fn connect_is_mqtt_5_with_a_clean_start_its_kind_and_the_will() -> Result<()> {
    let (_broker, proxy, gateway) = stage().await?;
    let sent = proxy.sent();
    let connect = body(sent.iter().find(|packet| packet[0] == CONNECT).context("it connects")?);
    let (name, rest) = part(connect);
    ensure!((name, rest[0]) == (b"MQTT", 5), "MQTT 5");
    let flags = rest[1];
    assert_eq!(flags & 0b0011_1110, 0b0010_1110, "will retained at QoS 1, will, clean start");
    let (users, expiry, rest) = properties(&rest[4..])?;
    assert_eq!(expiry, 0, "the session ends with the connection");
    assert!(users.contains(&("MCP-COMPONENT-TYPE".to_owned(), "mcp-server".to_owned())), "{users:?}");
    let meta = users.iter().find(|(name, _)| name == "MCP-META").context("MCP-META")?;
    assert!(serde_json::from_str::<Value>(&meta.1)?.is_object(), "{meta:?}");
    let (id, rest) = part(rest);
    assert_eq!(id, gateway.server_id().as_str().as_bytes());
    let (users, delay, rest) = properties(rest)?;
    assert_eq!(delay, 0);
    assert_eq!(users, both(&gateway));
    let (topic, rest) = part(rest);
    assert_eq!(topic, format!("$mcp-server/presence/{}/tests/stub", gateway.server_id()).as_bytes());
    assert!(part(rest).0.is_empty(), "the will clears the presence");
    Ok(())
}

fn both(gateway: &Gateway) -> UserProperties {
    vec![
        ("MCP-COMPONENT-TYPE".to_owned(), "mcp-server".to_owned()),
        ("MCP-MQTT-CLIENT-ID".to_owned(), gateway.server_id().to_string()),
    ]
}

// Items 5, 6 and 8.
#[tokio::test]
async fn control_is_subscribed_before_the_one_presence_and_each_publish_says_who_it_is_from() -> Result<()> {
    let (broker, proxy, gateway) = stage().await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    call(&session, "change", json!({"kind": "tools"})).await?;
    proxy.wait_sent(PUBLISH, "notifications/tools/list_changed").await?;
    call(&session, "crash", json!({})).await.expect_err("its process is gone");
    gateway.terminate()?;
    proxy.wait_sent(DISCONNECT, "").await?;
    let sent = proxy.sent();
    let subscribed = proxy.wait_sent(SUBSCRIBE, "$mcp-server/").await?;
    let online = proxy.wait_sent(PUBLISH, "notifications/server/online").await?;
    assert!(subscribed < online);
    let presences = sent.iter().filter(|packet| is(packet, PUBLISH, "notifications/server/online"));
    assert_eq!(presences.count(), 1);
    let publishes: Vec<_> = sent.iter().filter(|packet| packet[0] & 0xF0 == PUBLISH).collect();
    assert!(publishes.len() >= 7, "presence twice, the self-test, answers, an error, a goodbye, a broadcast");
    for packet in publishes {
        let (_topic, rest) = part(body(packet));
        let rest = if packet[0] & 0b110 == 0 { rest } else { &rest[2..] };
        assert_eq!(properties(rest)?.0, both(&gateway), "{}", String::from_utf8_lossy(packet));
    }
    Ok(())
}

/// A broker that never answers the subscription to control never sees a presence.
#[tokio::test]
async fn without_the_suback_of_control_there_is_no_presence() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let manner = Manner { refuses_subscription: Some(("$mcp-server/", 0x80)), ..Manner::default() };
    let proxy = Proxy::start(broker.port(), manner).await?;
    let gateway = Options::new(&proxy.url()).start()?;
    gateway.wait_for("the cause", |status| status.broker.message.contains("$mcp-server/")).await?;
    assert!(proxy.sent().iter().all(|packet| !is(packet, PUBLISH, "notifications/server/online")));
    Ok(())
}

// Items 9 and 13.
#[tokio::test]
async fn a_session_is_three_subscriptions_and_its_end_by_the_server_gives_exactly_these_up() -> Result<()> {
    let (broker, proxy, gateway) = stage().await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    call(&session, "crash", json!({})).await.expect_err("its process is gone");
    timeout(PATIENCE, session.wait_ended()).await?;
    let rpc = format!("$mcp-rpc/c/{}/tests/stub", gateway.server_id());
    let ours = [rpc.as_str(), "$mcp-client/presence/c", "$mcp-client/capability/c"];
    let subscribe = proxy.wait_sent(SUBSCRIBE, &rpc).await?;
    let result = proxy.wait_sent(PUBLISH, "\"serverInfo\"").await?;
    let goodbye = proxy.wait_sent(PUBLISH, "notifications/disconnected").await?;
    let error = proxy.wait_sent(PUBLISH, "backend-ended").await?;
    let given_up = proxy.wait_sent(UNSUBSCRIBE, &rpc).await?;
    let sent = proxy.sent();
    let subscribed = filters(&sent[subscribe])?;
    assert_eq!(subscribed.iter().map(|(filter, _)| filter.as_str()).collect::<Vec<_>>(), ours);
    let no_local: Vec<bool> = subscribed.iter().map(|(_, options)| options & 0b100 != 0).collect();
    assert_eq!(no_local, [true, false, false]);
    assert!(subscribe < result && result < error && error < goodbye);
    assert!(goodbye < given_up, "{given_up} after {goodbye}");
    let unsubscribe = &sent[given_up];
    for filter in ours {
        let found = unsubscribe.windows(filter.len()).any(|window| window == filter.as_bytes());
        assert!(found, "{filter} is given up");
    }
    let all = sent[goodbye..].iter().filter(|packet| packet[0] & 0xF0 == UNSUBSCRIBE).count();
    assert_eq!(all, 1);
    Ok(())
}
