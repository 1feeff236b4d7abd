//! The registry is true: what nobody stands behind goes, and what somebody stands behind comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use mcp_mqtt_sidecar::config::ADMIN_PORT;
use mcp_mqtt_tests::{
    node,
    platform::{PATIENCE, Platform, call, everything_over_stdio, text},
};
use mcp_mqtt_transport::{
    client::Instance,
    mqtt::{ConnectOptions, Connection, Event, Filter, Publication, Qos, Received},
    presence::Online,
    topic::{self, ServerId},
    user_property::{self, Component, UserProperties},
};

use crate::faults::container_status;

/// A connection that registers nothing and may write anywhere.
async fn meddler(platform: &Platform) -> Result<Connection> {
    let id = format!("meddler-{:08x}", fastrand::u32(..));
    Ok(Connection::open(&ConnectOptions::new(platform.broker.clone(), &id)).await?)
}

/// A connection that hears what becomes of a presence, from behind the one that stands there.
async fn listening(platform: &Platform, presence: &str) -> Result<Connection> {
    let mut listening = meddler(platform).await?;
    listening.publisher.subscribe(vec![Filter::new(presence, Qos::AtLeastOnce)], PATIENCE).await?;
    next(&mut listening).await?;
    Ok(listening)
}

/// The next message.
async fn next(connection: &mut Connection) -> Result<Received> {
    match tokio::time::timeout(PATIENCE, connection.events.recv()).await? {
        Some(Event::Received(received)) => Ok(received),
        other => anyhow::bail!("no message but {other:?}"),
    }
}

/// The user properties of the retained presence of an instance.
async fn properties(connection: &mut Connection, topic: &str) -> Result<UserProperties> {
    let filter = Filter::new(topic, Qos::AtLeastOnce);
    connection.publisher.subscribe(vec![filter], PATIENCE).await?;
    let presence = next(connection).await?;
    connection.publisher.unsubscribe(vec![topic.to_owned()])?.await?;
    Ok(presence.user_properties)
}

async fn retain(
    connection: &Connection,
    topic: String,
    payload: Bytes,
    user_properties: UserProperties,
) -> Result<()> {
    let publication =
        Publication { retain: true, user_properties, ..Publication::new(topic, payload, Qos::AtLeastOnce) };
    Ok(connection.publisher.publish_confirmed(publication, PATIENCE).await?)
}

/// A server id of the same cluster and namespace.
fn sibling(id: &ServerId, pod: &str) -> Result<ServerId> {
    let mut parts = id.as_str().splitn(3, '.');
    let (cluster, namespace) = parts.next().zip(parts.next()).context("cluster and namespace")?;
    Ok(ServerId::new(&format!("{cluster}.{namespace}.{pod}"))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_presence_that_nobody_stands_behind_is_cleared_and_a_strangers_is_left_alone() -> Result<()> {
    let platform = Platform::get().await?;
    let service = platform.deploy("haunted", everything_over_stdio()).await?;
    let live = service.registered(1).await?.pop().context("an instance")?;
    let mut meddler = meddler(&platform).await?;
    let name = service.server_name();
    let ours = properties(&mut meddler, &topic::server_presence(&live.server_id, &name)).await?;
    let online = Online::new(name.as_str(), "", None).to_payload();
    let strangers = user_property::of_publish(Component::Server, "stranger");
    let stranger = topic::server_presence(&sibling(&live.server_id, "stranger-1")?, &name);
    retain(&meddler, stranger.clone(), online.clone(), strangers.clone()).await?;
    let watching = platform.client().await?;
    let mut watch = watching.watch(name.as_str()).await?;
    for ghost in ["ghost-1", "ghost_service"] {
        let ghost = topic::server_presence(&sibling(&live.server_id, ghost)?, &name);
        retain(&meddler, ghost, online.clone(), ours.clone()).await?;
    }
    service.until(&mut watch, |all| all.len() == 4).await?;
    let start = Instant::now();
    service.until(&mut watch, |all| all.len() == 2).await?;
    let cleared = start.elapsed();
    println!("what nobody stands behind is cleared after {cleared:?}");
    ensure!(cleared < Duration::from_secs(5), "only after {cleared:?}");
    let left = watch.instances();
    watching.close(PATIENCE).await?;
    ensure!(left.iter().any(|instance| instance.server_id == live.server_id), "{left:?}");
    retain(&meddler, stranger, Bytes::new(), strangers).await?;
    service.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_presence_that_was_cleared_by_mistake_comes_back() -> Result<()> {
    let platform = Platform::get().await?;
    let service = platform.deploy("erased", everything_over_stdio()).await?;
    let live = service.registered(1).await?.pop().context("an instance")?;
    let meddler = meddler(&platform).await?;
    let topic = topic::server_presence(&live.server_id, &service.server_name());
    let properties = user_property::of_publish(Component::Server, "somebody");
    // Not a watch of the registry, which may find it back before it has told that it was away.
    let mut listening = listening(&platform, &topic).await?;
    let mut back = Vec::new();
    for _ in 0..3 {
        retain(&meddler, topic.clone(), Bytes::new(), properties.clone()).await?;
        let start = Instant::now();
        ensure!(next(&mut listening).await?.payload.is_empty(), "it is not cleared");
        ensure!(!next(&mut listening).await?.payload.is_empty(), "it is cleared once more");
        back.push(start.elapsed());
    }
    println!("a cleared presence is back after {back:?}");
    service.status(|status| status["registered"] == 1 && status["instances"][0].is_string()).await?;
    service.remove().await
}

/// Neither the API server nor the broker knows of it yet: Kubernetes counts the pod among the living for minutes, and the
/// broker's keep-alive is over after 22.5 s.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_on_a_lost_node_leaves_the_registry_and_comes_back_with_it() -> Result<()> {
    let platform = Platform::get().await?;
    let service = platform.deploy("lost", everything_over_stdio()).await?;
    let live = service.registered(1).await?.pop().context("an instance")?;
    let pod = service.live_pods().await?.pop().context("no pod")?;
    let before = container_status(&service, &pod, "gateway").await?;
    let gateway = node::first_process(before.container_id.as_deref().context("the gateway does not run")?)?;
    let watching = platform.client().await?;
    let mut watch = watching.watch(service.server_name().as_str()).await?;
    service.until(&mut watch, |all| all.len() == 1).await?;

    // That the operator alone cannot reach it is no reason. A watch might see nothing of it: whose presence is cleared
    // publishes it again at once.
    let presence = topic::server_presence(&live.server_id, &service.server_name());
    let mut listening = listening(&platform, &presence).await?;
    let blackhole = node::Blackhole::of_own_port(gateway, ADMIN_PORT)?;
    let heard = tokio::time::timeout(Duration::from_secs(8), listening.events.recv()).await;
    ensure!(heard.is_err(), "it is heard of by the broker, and yet there is {heard:?}");
    blackhole.close()?;
    tokio::time::sleep(Duration::from_secs(3)).await; // the operator reaches it again

    let blackhole = node::Blackhole::of_all(gateway)?;
    let lost = Instant::now();
    service.until(&mut watch, <[Instance]>::is_empty).await?;
    let cleared = lost.elapsed();
    println!("an instance on a lost node: its presence is cleared after {cleared:?}");
    ensure!(cleared < Duration::from_secs(10), "only after {cleared:?}: by the broker");
    blackhole.close()?;
    let found = Instant::now();
    service.until(&mut watch, |all| all.iter().any(|one| one.server_id == live.server_id)).await?;
    println!("it is back {:?} after its node", found.elapsed());

    let session = service.plain_session(&watching).await?;
    assert_eq!(text(&call(&session, "echo", serde_json::json!({ "message": "back" })).await?)?, "Echo: back");
    session.close();
    watching.close(PATIENCE).await?;
    let after = container_status(&service, &pod, "gateway").await?;
    ensure!(after.container_id == before.container_id, "the gateway was restarted");
    service.remove().await
}
