//! A gateway's place in the registry: it stands in for a service that sleeps, is relieved, and keeps its presence.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use mcp_mqtt_sidecar::status::{GatewayStatus, reason};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    cluster::eventually,
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME, until},
    proxy::{Manner, Proxy, kind},
    raw::{Raw, initialize},
};
use mcp_mqtt_transport::{
    mqtt::{Filter, Publication, Qos},
    presence::{Online, REGISTER},
    topic::{self, ServerId, ServerName},
    user_property::{self, Component},
};
use url::Url;

const STANDBY: &str = "north.meteo.weather_service";

fn name() -> ServerName {
    ServerName::new(SERVER_NAME).expect("a name")
}

fn place() -> String {
    topic::server_presence(&ServerId::new(STANDBY).expect("an id"), &name())
}

fn control() -> String {
    topic::control(&ServerId::new(STANDBY).expect("an id"), &name())
}

fn parked() -> Bytes {
    Online::new(SERVER_NAME, "", None).parked().to_payload()
}

fn pod(broker: &Url, id: &str) -> Options {
    Options::new(broker).server_id(id).arg(&format!("--standby-id={STANDBY}")).arg("--owner-mark=mark")
}

/// Publishes as whoever holds the place of a service.
async fn say(holder: &Raw, topic: &str, payload: Bytes, retain: bool, held_for: Option<&str>) -> Result<()> {
    let mut user_properties = user_property::of_publish(Component::Server, &holder.id);
    user_properties.extend(held_for.map(|client| (user_property::HELD_FOR.to_owned(), client.to_owned())));
    let publication =
        Publication { retain, user_properties, ..Publication::new(topic, payload, Qos::AtLeastOnce) };
    Ok(holder.connection.publisher.publish_confirmed(publication, PATIENCE).await?)
}

/// What stands in the service's place, as often as it changes.
async fn watch(holder: &Raw) -> Result<()> {
    let filter = Filter::no_local(place(), Qos::AtLeastOnce);
    holder.connection.publisher.subscribe(vec![filter], PATIENCE).await?;
    Ok(())
}

/// A client of the service's place.
async fn client(broker: &Mosquitto, id: &str, gateway: &Gateway) -> Result<Raw> {
    let mut raw = Raw::connect_deaf(&broker.url(), id, gateway).await?;
    raw.rpc = topic::rpc(&id.parse()?, &ServerId::new(STANDBY)?, &name());
    raw.control = control();
    raw.subscribe(&raw.rpc, Qos::AtLeastOnce).await?;
    Ok(raw)
}

/// A gateway that found the service asleep when it started, and whoever holds the place; its server does not run yet.
async fn waking(broker: &Mosquitto) -> Result<(Gateway, Raw)> {
    waking_by(&broker.url(), broker).await
}

/// The same; the gateway reaches the broker this way.
async fn waking_by(way: &Url, broker: &Mosquitto) -> Result<(Gateway, Raw)> {
    let mut gateway = pod(way, "north.meteo.weather-1").start_without_server()?;
    let holder = Raw::connect_deaf(&broker.url(), "holder", &gateway).await?;
    // While none runs: one that took the place and was killed would clear it, by its will.
    gateway.kill()?;
    say(&holder, &place(), parked(), true, None).await?;
    gateway.start_again()?;
    Ok((gateway, holder))
}

#[tokio::test]
async fn who_stands_in_answers_what_was_held_once_and_shows_itself_without_a_gap() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let (mut gateway, mut holder) = waking(&broker).await?;
    gateway.wait_for("the service's id", |status| status.server_id == STANDBY).await?;
    watch(&holder).await?;
    ensure!(Online::parse(&holder.receive().await?.payload)?.is_parked());
    // The server does not answer yet: this one is for whoever holds the place.
    let mut early = client(&broker, "early", &gateway).await?;
    early.control(initialize(1)).await?;
    gateway.start_server()?;
    gateway.wait_ready().await?;
    let taken = holder.receive().await?;
    ensure!(!Online::parse(&taken.payload)?.is_parked(), "a gap, or the parked one again");
    ensure!(user_property::find(&taken.user_properties, user_property::OWNER) == Some("mark"));
    say(&holder, &control(), initialize(1).into(), false, Some("early")).await?;
    ensure!(early.answer().await?["id"] == 1);
    // This one it has heard itself.
    let mut late = client(&broker, "late", &gateway).await?;
    late.control(initialize(2)).await?;
    ensure!(late.answer().await?["id"] == 2);
    say(&holder, &control(), initialize(2).into(), false, Some("late")).await?;
    gateway.wait_metric(r#"messages_dropped_total{reason="held-twice"}"#, 1).await?;
    late.echo(3).await
}

#[tokio::test]
async fn a_place_that_is_left_to_another_is_left_alone_and_taken_once_it_is_ours() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let (mut gateway, mut holder) = waking(&broker).await?;
    let left_to = |successor: &str| -> Result<Bytes> {
        Ok(Online::new(SERVER_NAME, "", None).parked().left_to(&ServerId::new(successor)?).to_payload())
    };
    gateway.kill()?;
    say(&holder, &place(), left_to("north.meteo.weather-2")?, true, None).await?;
    gateway.start_again()?;
    gateway.start_server()?;
    gateway.wait_ready().await?;
    ensure!(gateway.status().await?.server_id == "north.meteo.weather-1");
    watch(&holder).await?;
    ensure!(Online::parse(&holder.receive().await?.payload)?.is_parked());
    // The other one does not come. It is asked again, as operators do: a moment after its start it does not listen.
    say(&holder, &place(), left_to("north.meteo.weather-1")?, true, None).await?;
    let own = topic::control(&ServerId::new("north.meteo.weather-1")?, &name());
    let register = format!(r#"{{"jsonrpc":"2.0","method":"{REGISTER}"}}"#);
    eventually(PATIENCE, async || {
        say(&holder, &own, register.clone().into(), false, None).await.ok()?;
        gateway.status().await.ok().filter(|status| status.server_id == STANDBY && status.ready())
    })
    .await
    .context("it does not take the place")?;
    ensure!(!Online::parse(&holder.receive().await?.payload)?.is_parked());
    Ok(())
}

#[tokio::test]
async fn an_attempt_to_stand_in_that_comes_to_nothing_leaves_the_place_as_it_is() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let forbids = Manner { refuses_publish: Some((STANDBY, 0x87)), ..Manner::default() };
    let proxy = Proxy::start(broker.port(), forbids).await?;
    let (mut gateway, mut holder) = waking_by(&proxy.url(), &broker).await?;
    watch(&holder).await?;
    ensure!(Online::parse(&holder.receive().await?.payload)?.is_parked());
    let refused = |status: &GatewayStatus| status.broker.reason == reason::BROKER_NOT_AUTHORIZED;
    gateway.wait_for("the refusal", refused).await?;
    let attempts = |proxy: &Proxy| {
        let is_in_its_name = |packet: &&Vec<u8>| {
            packet[0] & 0xF0 == kind::CONNECT
                && packet.windows(STANDBY.len()).any(|part| part == STANDBY.as_bytes())
        };
        proxy.sent().iter().filter(is_in_its_name).count()
    };
    let before = attempts(&proxy);
    until("another attempt", || attempts(&proxy) > before).await?;
    // A drain in the middle of one.
    proxy.behave(Manner { swallows: Some(STANDBY), ..Manner::default() });
    let before = attempts(&proxy);
    until("one that nobody answers", || attempts(&proxy) > before).await?;
    gateway.terminate()?;
    gateway.wait_ended().await?;
    let mut after = Raw::connect_deaf(&broker.url(), "after", &gateway).await?;
    watch(&after).await?;
    ensure!(Online::parse(&after.receive().await?.payload)?.is_parked(), "the place is empty");
    let touched = tokio::time::timeout(Duration::from_millis(200), holder.receive()).await;
    ensure!(touched.is_err(), "the place was not left alone: {touched:?}");
    Ok(())
}

#[tokio::test]
async fn who_is_relieved_leaves_the_place_and_who_has_sessions_keeps_it() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let (mut gateway, mut holder) = waking(&broker).await?;
    gateway.start_server()?;
    gateway
        .wait_for("the service's id, ready", |status| status.server_id == STANDBY && status.ready())
        .await?;
    let mut busy = client(&broker, "busy", &gateway).await?;
    busy.open(1).await?;
    watch(&holder).await?;
    ensure!(!Online::parse(&holder.receive().await?.payload)?.is_parked());
    say(&holder, &place(), parked(), true, None).await?;
    ensure!(!Online::parse(&holder.receive().await?.payload)?.is_parked(), "it has a session");
    busy.rpc(r#"{"jsonrpc":"2.0","method":"notifications/disconnected"}"#).await?;
    gateway.wait_for("no session", |status| status.sessions == 0).await?;
    say(&holder, &place(), parked(), true, None).await?;
    gateway.wait_for("relieved", |status| status.broker.reason == "Relieved").await?;
    gateway.terminate()?;
    gateway.wait_ended().await?;
    let again = Raw::connect_deaf(&broker.url(), "again", &gateway).await?;
    watch(&again).await?;
    let mut again = again;
    ensure!(Online::parse(&again.receive().await?.payload)?.is_parked(), "it cleared what was not its own");
    Ok(())
}

#[tokio::test]
async fn a_presence_that_somebody_clears_comes_back_and_anybody_may_ask_for_it_again() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let instance = gateway.instance();
    let mut holder = Raw::connect_deaf(&broker.url(), "holder", &gateway).await?;
    let own = topic::server_presence(&instance.server_id, &instance.server_name);
    holder
        .connection
        .publisher
        .subscribe(vec![Filter::no_local(own.clone(), Qos::AtLeastOnce)], PATIENCE)
        .await?;
    let first = holder.receive().await?;
    say(&holder, &own, Bytes::new(), true, None).await?;
    ensure!(holder.receive().await?.payload == first.payload, "the same again");
    let asking = format!(r#"{{"jsonrpc":"2.0","method":"{REGISTER}"}}"#);
    let control = topic::control(&instance.server_id, &instance.server_name);
    // It does so at most every five seconds: somebody asks until it does.
    for _ in 0..14 {
        say(&holder, &control, asking.clone().into(), false, None).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let renewed = holder.receive().await.context("it was asked")?;
    ensure!(renewed.payload == first.payload);
    Ok(())
}

/// The connection is given up for a new one, and until the broker has the empty presence clients ask for sessions.
#[tokio::test]
async fn initialize_to_one_that_registers_anew_is_refused() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let proxy = Proxy::start(broker.port(), Manner::default()).await?;
    let gateway = Options::new(&proxy.url()).arg(&format!("--standby-id={STANDBY}")).start()?;
    gateway.wait_ready().await?;
    let mut late = Raw::connect(&broker.url(), "late", &gateway).await?;
    proxy.behave(Manner { swallows: Some("$mcp-server/presence/"), ..Manner::default() });
    eventually(PATIENCE, async || {
        late.control(format!(r#"{{"jsonrpc":"2.0","method":"{REGISTER}"}}"#)).await.ok()?;
        gateway.log().contains("registering anew").then_some(())
    })
    .await
    .context("it does not begin anew")?;
    late.control(initialize(1)).await?;
    let refused = late.answer().await?;
    ensure!(refused["id"] == 1 && refused["error"]["data"]["reason"] == "draining", "{refused}");
    proxy.behave(Manner::default());
    gateway.wait_metric("broker_reconnects_total", 1).await?;
    gateway.wait_ready().await?;
    late.control(initialize(2)).await?;
    ensure!(late.answer().await?["result"]["serverInfo"]["name"] == "stub");
    Ok(())
}
