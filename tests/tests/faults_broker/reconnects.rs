//! Connections lost one after the other, and a broker that forgets what it had. (Ten thousand connections in a row are
//! the transport's to stand.)

use anyhow::Result;
use mcp_mqtt_tests::{
    baseline::Baseline,
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME, call, connect, open},
    proxy::{Manner, Proxy},
};
use mcp_mqtt_transport::{client::SessionEnd, topic::ServerName};
use serde_json::json;
use tokio::time::timeout;

#[tokio::test]
async fn connections_cut_again_and_again_leave_nothing_behind() -> Result<()> {
    const CUTS: u64 = 6;
    let broker = Mosquitto::start().await?;
    let proxy = Proxy::start(broker.port(), Manner::default()).await?;
    let gateway = Options::new(&proxy.url()).start()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let before = Baseline::of(&gateway);
    for n in 1..=CUTS {
        let session = open(&client, &gateway.instance()).await?;
        assert_eq!(call(&session, "echo", json!({"message": "x"})).await?, "x");
        proxy.cut();
        assert_eq!(timeout(PATIENCE, session.wait_ended()).await?, SessionEnd::Offline);
        gateway.wait_metric("broker_reconnects_total", n).await?;
        gateway.wait_ready().await?;
    }
    assert_eq!(gateway.metric(r#"sessions_ended_total{reason="broker-lost"}"#).await?, CUTS);
    before.regained(&gateway).await
}

/// Mosquitto without persistence forgets the retained presences when it ends: each gateway brings its own back.
#[tokio::test]
async fn a_retained_store_that_is_lost_is_filled_again_by_who_is_there() -> Result<()> {
    let mut broker = Mosquitto::start().await?;
    let gateways = [Gateway::ready_at(&broker.url()).await?, Gateway::ready_at(&broker.url()).await?];
    let gone = Gateway::ready_at(&broker.url()).await?;
    let before = gateways.each_ref().map(Baseline::of);
    broker.kill()?;
    drop(gone);
    broker.restart().await?;
    for gateway in &gateways {
        gateway.wait_ready().await?;
    }
    let client = connect(&broker.url(), "c").await?;
    let mut watch = client.watch(SERVER_NAME).await?;
    let found = timeout(PATIENCE, watch.until(|instances| instances.len() == 2)).await?;
    let found = found.unwrap_or_default();
    for (gateway, before) in gateways.iter().zip(before) {
        assert!(found.iter().any(|instance| instance.server_id == gateway.server_id()), "{found:?}");
        assert_eq!(gateway.metric("broker_reconnects_total").await?, 1);
        before.regained(gateway).await?;
    }
    let instance = client.find(&ServerName::new(SERVER_NAME)?, PATIENCE).await?;
    let session = open(&client, &instance).await?;
    assert_eq!(call(&session, "echo", json!({"message": "back"})).await?, "back");
    Ok(())
}
