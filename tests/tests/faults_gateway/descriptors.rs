//! The limit of open files: a gateway that has reached it refuses what is new, and goes on.

use std::time::Duration;

use anyhow::{Context, Result};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{Gateway, call, connect, open},
};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;
use tokio::{net::TcpStream, time::sleep};

#[tokio::test]
async fn out_of_descriptors_the_admin_port_waits_and_answers_once_there_are_some() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let pid = i32::try_from(gateway.pid()).ok().and_then(Pid::from_raw).context("a process id")?;
    let hard = getrlimit(Resource::Nofile).maximum; // it has inherited ours
    let limit = |current| prlimit(Some(pid), Resource::Nofile, Rlimit { current, maximum: hard });
    limit(Some(3)).context("cannot limit the gateway's descriptors")?;
    let waiting = TcpStream::connect(gateway.admin()).await?; // the kernel takes it, the gateway cannot
    sleep(Duration::from_millis(500)).await;
    assert_eq!(call(&session, "echo", json!({"message": "still here"})).await?, "still here");
    limit(hard)?;
    let (code, _) = gateway.get("/healthz").await?;
    assert_eq!(code, 200);
    drop(waiting);
    Ok(())
}
