//! A broker that does not allow the operator what it takes: it is named, asked for seldom, and seen once it is allowed.
//! A proxy refuses it in Mosquitto's place, whose ACL would keep messages back without a word.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    cluster::Space,
    operator::Operator,
    proxy::{Manner, Proxy, is, kind},
};
use mcp_mqtt_transport::topic;
use serde_json::json;

use crate::{
    NAME, Scene, asleep, client, echoes, initialize, instances, pod, replicas, server_name, sleepy, standby,
};

const NOT_AUTHORIZED: u8 = 0x87;
/// Asked twice a second, it would be forty times.
const WHILE: Duration = Duration::from_secs(20);
const AT_MOST: usize = 8;

/// A packet of this type that names this text is refused. The condition says so with that reason, and names these.
async fn refused_and_then_allowed(
    space: &str,
    (kind, text): (u8, &'static str),
    reason: &str,
    named: &[&str],
) -> Result<()> {
    let (space, broker) = (Space::new(space).await?, Mosquitto::start().await?);
    let refused = Some((text, NOT_AUTHORIZED));
    let manner = match kind {
        kind::SUBSCRIBE => Manner { refuses_subscription: refused, ..Manner::default() },
        _ => Manner { refuses_publish: refused, ..Manner::default() },
    };
    let proxy = Proxy::start(broker.port(), manner).await?;
    let operator = Operator::start(&space, &[]).await?;
    let mut spec = sleepy(&broker);
    spec["broker"]["url"] = json!(proxy.url().as_str().trim_end_matches('/'));
    space.create(NAME, &spec).await?;
    let said = space.condition(NAME, "Registered", "False", reason).await?;
    ensure!(named.iter().all(|named| said.contains(named)), "{said}");
    let asked = || proxy.sent().iter().filter(|packet| is(packet, kind, text)).count();
    let before = asked();
    tokio::time::sleep(WHILE).await;
    let meanwhile = asked() - before;
    println!("{meanwhile} times in {WHILE:?}: {said}");
    ensure!((1..=AT_MOST).contains(&meanwhile), "{meanwhile} times in {WHILE:?}");
    ensure!(proxy.connections() == 1, "it connected {} times", proxy.connections());
    proxy.behave(Manner::default());
    space.condition(NAME, "Registered", "True", "Asleep").await?;
    asleep(&space, &broker).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_read_the_registry_says_so_and_sees_when_it_may() -> Result<()> {
    let named = ["read $mcp-server/presence/+/# (not authorized (0x87))", "ACL"];
    let packet = (kind::SUBSCRIBE, "$mcp-server/presence/+/#");
    refused_and_then_allowed("unread", packet, "RegistryUnreachable", &named).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_hear_who_wakes_a_service_says_so_and_sees_when_it_may() -> Result<()> {
    let named = ["read $mcp-server/kubernetes.", "_service/", "allow it to read $mcp-server/#", "ACL"];
    let packet = (kind::SUBSCRIBE, "$mcp-server/kubernetes.");
    refused_and_then_allowed("unheard", packet, "BrokerNotAuthorized", &named).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_write_a_presence_says_so_and_sees_when_it_may() -> Result<()> {
    let named = ["write $mcp-server/presence/kubernetes.", "allow it to write $mcp-server/presence/#", "ACL"];
    let packet = (kind::PUBLISH, "$mcp-server/presence/kubernetes.");
    refused_and_then_allowed("unshown", packet, "BrokerNotAuthorized", &named).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_took_the_place_while_the_connection_was_lost_is_listened_to_no_more() -> Result<()> {
    let (Scene { space, broker, operator, instance }, proxy) =
        Scene::asleep_behind_a_proxy("midwake").await?;
    let control = topic::control(&standby(&space)?, &server_name(&space)?);
    let client = client(&broker).await?;
    let wake = async {
        replicas(&space, 1).await?;
        proxy.behave(Manner { refuses: Some(0x89), ..Manner::default() });
        proxy.cut();
        let pod = pod(&space, &broker, "weather-1")?;
        pod.wait_ready().await?;
        proxy.behave(Manner::default());
        anyhow::Ok(pod)
    };
    let (session, pod) = tokio::join!(initialize(&client, &instance), wake);
    let (session, _pod) = (session?, pod?);
    echoes(&session).await?;
    proxy.wait_sent(kind::UNSUBSCRIBE, &control).await.context("the broker has kept the subscription")?;
    // Who comes later goes to the instance alone.
    let passed_on = || proxy.sent().iter().filter(|packet| is(packet, kind::PUBLISH, &control)).count();
    let before = passed_on();
    let awake = instances(&space, &broker, |all| all.len() == 1 && !all[0].online.is_parked()).await?;
    let another = crate::client(&broker).await?;
    echoes(&initialize(&another, &awake[0]).await?).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(passed_on() == before, "the operator has passed it on, too");
    operator.stop().await?;
    space.remove().await
}
