//! Several brokers at once: a connection for each, and for each of its users, as long as somebody needs it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use mcp_mqtt_tests::{
    broker::Mosquitto,
    cluster::{PATIENCE, Space, eventually},
    operator::Operator,
    presences::Presences,
    proxy::{Manner, Proxy},
};
use mcp_mqtt_transport::{
    mqtt::{ConnectOptions, Connection, Event},
    presence::Online,
    topic::{self, ServerId, ServerName},
};
use serde_json::{Value, json};

use crate::{NAME, Scene, asleep, server_name, sleepy};

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_cannot_be_reached_concerns_its_own_services_only() -> Result<()> {
    let (space, broker) = (Space::new("brokers").await?, Mosquitto::start().await?);
    let mut gone = Mosquitto::start().await?;
    gone.kill()?;
    let operator = Operator::start(&space, &[]).await?;
    space.create("elsewhere", &sleepy(&gone)).await?;
    space.create(NAME, &sleepy(&broker)).await?;
    asleep(&space, &broker).await?;
    space.condition(NAME, "Ready", "True", "Asleep").await?;
    let told = |status: &Value| status["conditions"][2]["message"].as_str().unwrap_or_default().to_owned();
    space.status("elsewhere", |status| told(status).contains("cannot reach the broker at 127.0.0.1")).await?;
    // What the alert goes by.
    let trouble =
        format!(r#"mcp_namespace="{}",mcp_service="elsewhere",trouble="CannotWake""#, space.namespace);
    let in_trouble = async || operator.get("/metrics").await.ok().map(|text| text.contains(&trouble));
    let counted = eventually(PATIENCE, async || in_trouble().await.filter(|is| *is)).await;
    counted.context("nobody is told that it cannot be woken")?;
    gone.restart().await?;
    space.condition("elsewhere", "Ready", "True", "Asleep").await?;
    eventually(PATIENCE, async || in_trouble().await.filter(|is| !is))
        .await
        .context("it can be woken again")?;
    operator.stop().await?;
    space.remove().await
}

/// The users behind the operator's connections that the broker has now, by its own log.
fn connected(broker: &Mosquitto) -> Vec<String> {
    let log = broker.log();
    let mut now: Vec<(&str, &str)> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once(" as ")
            && line.contains("New client connected")
            && let Some((id, rest)) = rest.split_once(' ')
            && id.contains("_operator")
        {
            now.push((id, rest.split('\'').nth(1).unwrap_or_default()));
        } else if let Some((_, rest)) = line.split_once("Client ")
            && let Some((id, what)) = rest.split_once(' ')
            && ["disconnected", "closed"].iter().any(|end| what.starts_with(end))
        {
            now.retain(|(known, _)| *known != id);
        }
    }
    let mut users: Vec<String> = now.into_iter().map(|(_, user)| user.to_owned()).collect();
    users.sort();
    users
}

async fn secret(space: &Space, name: &str, user: &str, password: &str) -> Result<()> {
    let login = json!({"username": user, "password": password});
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": login,
    });
    space.apply::<Secret>(secret).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_shared_by_url_and_credentials_and_closed_with_its_last_service() -> Result<()> {
    let space = Space::new("shared").await?;
    let broker = Mosquitto::options().user("north", "1").user("south", "2").start().await?;
    for (secret, user, password) in
        [("first", "north", "1"), ("second", "north", "1"), ("third", "south", "2")]
    {
        self::secret(&space, secret, user, password).await?;
    }
    let operator = Operator::start(&space, &[]).await?;
    let create = async |name: &str, secret: &str| {
        let mut spec = sleepy(&broker);
        spec["broker"]["auth"] = json!({"passwordSecret": secret});
        space.create(name, &spec).await?;
        space.condition(name, "Ready", "True", "Asleep").await
    };
    let connections = async |wanted: &[&str]| {
        let found = eventually(PATIENCE, async || (connected(&broker) == *wanted).then_some(())).await;
        found.with_context(|| format!("the broker has {:?}, and not {wanted:?}", connected(&broker)))?;
        // And it stays at that.
        tokio::time::sleep(Duration::from_secs(1)).await;
        ensure!(connected(&broker) == *wanted, "the broker has {:?}, and not {wanted:?}", connected(&broker));
        anyhow::Ok(())
    };
    let delete = async |name: &str| space.services().delete(name, &DeleteParams::default()).await.map(drop);
    create("tides", "first").await?;
    // The same user by another Secret.
    create("winds", "second").await?;
    connections(&["north"]).await.context("two of one user")?;
    create("clouds", "third").await?;
    connections(&["north", "south"]).await.context("one of another user")?;
    delete("tides").await?;
    connections(&["north", "south"]).await.context("one of two went")?;
    space.condition("winds", "Ready", "True", "Asleep").await?;
    delete("winds").await?;
    connections(&["south"]).await.context("the last of one user went")?;
    delete("clouds").await?;
    connections(&[]).await.context("the last one went")?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_connection_comes_back_by_the_secret_of_whoever_still_uses_it() -> Result<()> {
    let space = Space::new("references").await?;
    let broker = Mosquitto::options().user("north", "1").user("south", "2").start().await?;
    let proxy = Proxy::start(broker.port(), Manner::default()).await?;
    for name in ["first", "second", "third"] {
        secret(&space, name, "north", "1").await?;
    }
    let operator = Operator::start(&space, &[]).await?;
    for (name, secret) in [("tides", "first"), ("winds", "second"), ("clouds", "third")] {
        let mut spec = sleepy(&broker);
        spec["broker"]["url"] = json!(proxy.url().as_str().trim_end_matches('/'));
        spec["broker"]["auth"] = json!({"passwordSecret": secret});
        space.create(name, &spec).await?;
        space.condition(name, "Ready", "True", "Asleep").await?;
    }
    let connects = async |wanted: &[&str]| {
        let found = eventually(PATIENCE, async || (connected(&broker) == *wanted).then_some(())).await;
        found.with_context(|| format!("the broker has {:?}, and not {wanted:?}", connected(&broker)))
    };
    connects(&["north"]).await?;
    // The service whose Secret opened the connection goes, and its Secret.
    space.services().delete("tides", &DeleteParams::default()).await?;
    space.api::<Secret>().delete("first", &DeleteParams::default()).await?;
    proxy.cut();
    connects(&[]).await?;
    connects(&["north"]).await.context("the first one's Secret is gone")?;
    space.condition("winds", "Ready", "True", "Asleep").await?;
    // Another one's Secret changes: its new login is not for the one that stays.
    secret(&space, "second", "south", "2").await?;
    connects(&["north", "south"]).await?;
    proxy.cut();
    connects(&[]).await?;
    connects(&["north", "south"]).await.context("each by its own login")?;
    for name in ["winds", "clouds"] {
        space.condition(name, "Ready", "True", "Asleep").await?;
    }
    operator.stop().await?;
    space.remove().await
}

/// The client id of the operator's connection.
fn operator_id(broker: &Mosquitto) -> Option<String> {
    let log = broker.log();
    let line =
        log.lines().rfind(|line| line.contains("New client connected") && line.contains("_operator"))?;
    Some(line.split_once(" as ")?.1.split(' ').next()?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_of_one_id_do_not_take_each_other_over_without_a_pause() -> Result<()> {
    const WHILE: Duration = Duration::from_secs(8);
    let Scene { space, broker, operator, .. } = Scene::asleep("twins").await?;
    let id = operator_id(&broker).context("the operator has no connection")?;
    let (start, mut connects) = (Instant::now(), 0);
    while start.elapsed() < WHILE {
        connects += 1;
        let mut twin = Connection::open(&ConnectOptions::new(broker.url(), &id)).await?;
        while !matches!(twin.events.recv().await, Some(Event::Closed(_)) | None) {}
    }
    println!("{connects} connects in {WHILE:?}");
    ensure!(connects <= 10, "the operator took its client id back {connects} times in {WHILE:?}");
    asleep(&space, &broker).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_keeps_no_service_from_going_to_sleep() -> Result<()> {
    let (space, broker) = (Space::new("busy").await?, Mosquitto::start().await?);
    let presences = Presences::of(&broker.url(), &server_name(&space)?).await?;
    let online = Online::new("elsewhere/sun", "", None).to_payload();
    let elsewhere = ServerName::new("elsewhere/sun")?;
    let place = topic::server_presence(&ServerId::new("south.elsewhere.sun-1")?, &elsewhere);
    let others = tokio::spawn(async move {
        while presences.write(&place, online.clone(), &Vec::new()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let operator = Operator::start(&space, &[]).await?;
    space.create(NAME, &sleepy(&broker)).await?;
    space.condition(NAME, "Ready", "True", "Asleep").await?;
    ensure!(!others.is_finished(), "nothing changed meanwhile");
    others.abort();
    operator.stop().await?;
    space.remove().await
}
