//! Several brokers at once: a connection for each, and for each of its users, as long as somebody needs it.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use mcp_mqtt_tests::{
    broker::Mosquitto,
    cluster::{PATIENCE, Space, eventually},
    operator::Operator,
};
use serde_json::{Value, json};

use crate::{NAME, asleep, sleepy};

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
    gone.restart().await?;
    space.condition("elsewhere", "Ready", "True", "Asleep").await?;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_shared_by_url_and_credentials_and_closed_with_its_last_service() -> Result<()> {
    let space = Space::new("shared").await?;
    let broker = Mosquitto::options().user("north", "1").user("south", "2").start().await?;
    for (secret, user, password) in
        [("first", "north", "1"), ("second", "north", "1"), ("third", "south", "2")]
    {
        let login = json!({"username": user, "password": password});
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}, "stringData": login,
        });
        space.apply::<Secret>(secret).await?;
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
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
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
