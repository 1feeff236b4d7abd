//! The account that the fault tests are judged by: what must fail them does.

use std::time::Duration;

use anyhow::{Result, ensure};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{Gateway, Options, SERVER_NAME},
    load::{LOST_AFTER, Load, Work},
};
use mcp_mqtt_transport::topic::ServerName;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::sleep;
use url::Url;

/// One client that calls these tools in turn; it has been answered once.
async fn load(broker: &Url, quick: Vec<(&'static str, Value)>, lost_after: Duration) -> Result<Load> {
    let slow = ("sleep", json!({"ms": 1000}));
    let work = Work { quick, slow, rest: Duration::from_millis(10), dies_in: None, lost_after };
    let load = Load::start_with(broker, &ServerName::new(SERVER_NAME)?, 1, &work);
    load.all_answered().await?;
    Ok(load)
}

fn echo() -> (&'static str, Value) {
    ("echo", json!({"message": "x"}))
}

#[tokio::test]
async fn an_initialize_that_nobody_answers_is_lost() -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let load = load(&broker.url(), vec![echo()], PATIENCE).await?;
    // The call under way is lost, and each `initialize` after it.
    gateway.signal(Signal::STOP)?;
    sleep(4 * PATIENCE).await;
    let account = load.stop().await?;
    gateway.signal(Signal::CONT)?;
    ensure!(account.lost >= 2, "{account:?}");
    ensure!(account.reasons.iter().any(|reason| reason.contains("initialize: no answer")), "{account:?}");
    let error = account.judge().expect_err("requests were lost").to_string();
    ensure!(error.contains("were lost"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_call_that_the_gateway_gives_up_is_lost() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).arg("--timeout-call=1s").start()?;
    gateway.wait_ready().await?;
    // The client begins with the second.
    let load = load(&broker.url(), vec![("silence", json!({})), echo()], LOST_AFTER).await?;
    sleep(Duration::from_secs(3)).await;
    let account = load.stop().await?;
    ensure!(account.lost > 0 && account.cut == 0, "{account:?}");
    ensure!(account.longest_call >= Duration::from_secs(1), "{account:?}");
    ensure!(account.judge().is_err(), "{account:?}");
    Ok(())
}
