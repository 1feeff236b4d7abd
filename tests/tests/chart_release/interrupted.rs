//! A demo that is killed while helm works: the next one installs all the same, by the same steps (`cargo xtask release`).

use std::{env, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use mcp_mqtt_tests::{
    binaries, cluster,
    helm::{chart, helm_ok, start},
};
use serde_json::Value;
use tokio::{process::Command, time::timeout};

use crate::{
    ONE_AT_A_TIME,
    site::{DEV_IMAGES, namespace, uninstall_all, until},
};

const RELEASE: &str = "mcp-mqtt";
const NAMESPACE: &str = "mcp-mqtt";

/// What `cargo xtask release` may take: to clear up, and to wait for the operator and the broker.
const INSTALLS_WITHIN: Duration = Duration::from_mins(4);

#[tokio::test]
async fn a_release_whose_helm_was_killed_is_installed_all_the_same() -> Result<()> {
    let _guard = ONE_AT_A_TIME.lock().await;
    let client = cluster::client().await?;
    uninstall_all().await?;
    namespace(&client, NAMESPACE).await?;

    kill_when("pending-install", &["mosquitto.enabled=true"]).await?;
    let said = release().await?;
    ensure!(said.contains("interrupted (pending-install) is uninstalled"), "{said}");
    ensure!(status().await?.as_deref() == Some("deployed"), "{said}");

    // Something has to change, or helm has nothing to wait for.
    kill_when("pending-upgrade", &["mosquitto.enabled=true", "podAnnotations.changed=yes"]).await?;
    let said = release().await?;
    ensure!(said.contains("interrupted (pending-upgrade) is rolled back"), "{said}");
    ensure!(status().await?.as_deref() == Some("deployed"), "{said}");

    // What is whole is left as it is.
    let said = release().await?;
    ensure!(!said.contains("interrupted"), "{said}");
    uninstall_all().await
}

/// Starts an installation, and kills its helm as soon as the release has this status.
async fn kill_when(wanted: &str, sets: &[&str]) -> Result<()> {
    let directory = chart().to_string_lossy().into_owned();
    let mut arguments = vec![
        "upgrade",
        "--install",
        RELEASE,
        &directory,
        "--namespace",
        NAMESPACE,
        "--wait",
        "--timeout",
        "3m",
    ];
    arguments.extend([DEV_IMAGES].iter().chain(sets).flat_map(|set| ["--set", *set]));
    let mut helm = start(&arguments)?;
    until(&format!("the release is {wanted}"), Duration::from_mins(1), || async {
        let status = status().await?;
        Ok(if status.as_deref() == Some(wanted) { Ok(()) } else { Err(status) })
    })
    .await?;
    helm.kill().await.context("helm cannot be killed: it had ended")?;
    ensure!(status().await?.as_deref() == Some(wanted), "{:?}", status().await?);
    Ok(())
}

async fn status() -> Result<Option<String>> {
    let list = helm_ok(&["list", "--namespace", NAMESPACE, "--output", "json"]).await?;
    let list: Value = serde_json::from_str(&list)?;
    let ours = list.as_array().into_iter().flatten().find(|release| release["name"] == RELEASE);
    Ok(ours.and_then(|release| Some(release["status"].as_str()?.to_owned())))
}

/// What the demo does at this point; all that it said.
async fn release() -> Result<String> {
    let name = env::var("MCP_MQTT_CLUSTER").context("the cluster's name")?;
    let mut xtask = Command::new(binaries::xtask());
    xtask.args(["release", "--cluster", &name]).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(INSTALLS_WITHIN, xtask.output()).await.context("it does not end")??;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    ensure!(output.status.success(), "{}", said.concat());
    Ok(said.concat())
}
