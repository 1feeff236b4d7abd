//! The memory limit of the gateway's container (128 MiB by default). The kernel kills what goes over it, which is
//! SIGKILL; so what counts is not to go over it, whatever clients and servers do.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::join_all;
use mcp_mqtt_tests::{
    baseline::Baseline,
    broker::Mosquitto,
    gateway::{Gateway, Options, call, connect, open, reason},
    raw::Raw,
};
use mcp_mqtt_transport::{
    client::{Client, Session},
    mqtt::MAX_PROPERTY_BYTES,
};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;
use tokio::time::sleep;

/// As the operator sets it for the gateway's container.
const LIMIT: u64 = 128 << 20;
/// A message nearly as large as the gateway takes by default.
const LARGE: usize = 1_000_000;
/// Megabytes through a busy machine, byte by byte in a debug build.
const LONG: Duration = Duration::from_secs(55);

/// Bounds its data as a container would bound all of it. Who asks for more gets none, and aborts.
fn limit(gateway: &Gateway) -> Result<()> {
    let pid = i32::try_from(gateway.pid()).ok().and_then(Pid::from_raw).context("a process id")?;
    let limit = Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) };
    prlimit(Some(pid), Resource::Data, limit).context("cannot limit the gateway's memory")?;
    Ok(())
}

async fn sessions(broker: &Mosquitto, gateway: &Gateway, count: usize) -> Result<Vec<Session>> {
    let mut sessions = Vec::new();
    for n in 0..count {
        let client = connect(&broker.url(), &format!("c{n}")).await?;
        sessions.push(open(&client, &gateway.instance()).await?);
    }
    Ok(sessions)
}

/// What it holds once it takes no more.
async fn settled(gateway: &Gateway) -> u64 {
    const STILL: u32 = 10;
    let (mut highest, mut still) = (0, 0);
    while still < STILL {
        sleep(Duration::from_millis(200)).await;
        let now = Baseline::of(gateway).memory;
        still = if now > highest { 0 } else { still + 1 };
        highest = highest.max(now);
    }
    highest
}

#[tokio::test]
async fn large_messages_of_many_clients_at_once_fit_into_the_containers_memory() -> Result<()> {
    let broker = Mosquitto::options().line("max_queued_messages 0").start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    limit(&gateway)?;
    let before = Baseline::of(&gateway);
    let sessions = sessions(&broker, &gateway, 6).await?;
    // Both ways at once, each nearly as large as may be.
    let params = json!({"name": "echo", "arguments": {"message": "x".repeat(LARGE)}});
    let calls = sessions
        .iter()
        .flat_map(|session| [(); 2].map(|()| session.request("tools/call", Some(&params), LONG)));
    for answer in join_all(calls).await {
        assert!(answer?.get().len() > LARGE);
    }
    for session in sessions {
        session.close();
    }
    gateway.wait_for("the end of all", |status| status.sessions == 0).await?;
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 0);
    before.regained_within(&gateway, 48 << 20).await
}

/// A broker that takes nothing while all servers talk: what cannot go waits in the servers.
#[tokio::test]
async fn floods_of_many_servers_before_a_broker_that_stands_still_fit_into_the_containers_memory()
-> Result<()> {
    let broker = Mosquitto::options().line("max_queued_messages 0").start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    limit(&gateway)?;
    let sessions = sessions(&broker, &gateway, 8).await?;
    let floods: Vec<_> = sessions
        .iter()
        .map(|session| {
            let session = session.clone();
            tokio::spawn(async move {
                let params = json!({"name": "flood", "arguments": {"count": 30, "bytes": LARGE}});
                session.request("tools/call", Some(&params), LONG).await
            })
        })
        .collect();
    gateway.wait_for("all of them talk", |status| status.in_flight == 8).await?;
    broker.pause()?;
    assert!(settled(&gateway).await < LIMIT);
    broker.resume()?;
    for flood in floods {
        assert!(flood.await??.get().contains("flooded"));
    }
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 0);
    Ok(())
}

/// Servers that read nothing while all clients talk: what there is no room for is an error to who sent it.
#[tokio::test]
async fn floods_of_many_clients_before_servers_that_stand_still_fit_into_the_containers_memory() -> Result<()>
{
    const CALLS: usize = 30;
    let broker = Mosquitto::options().line("max_queued_messages 0").start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    limit(&gateway)?;
    let before = Baseline::of(&gateway);
    let sessions = sessions(&broker, &gateway, 8).await?;
    let stall = json!({"name": "stall", "arguments": {"ms": 5000}});
    let stalls = sessions.iter().map(|session| session.request("tools/call", Some(&stall), LONG));
    let params = json!({"name": "echo", "arguments": {"message": "x".repeat(LARGE)}});
    let flood = async {
        gateway.wait_for("all of them stand still", |status| status.in_flight == 8).await?;
        let calls = sessions
            .iter()
            .flat_map(|session| [(); CALLS].map(|()| session.request("tools/call", Some(&params), LONG)));
        anyhow::Ok(join_all(calls).await)
    };
    let (stalled, flooded) = tokio::join!(join_all(stalls), flood);
    for answer in stalled {
        assert!(answer?.get().contains("stalled"));
    }
    let mut busy = 0;
    for answer in flooded? {
        match answer {
            Ok(answer) => assert!(answer.get().len() > LARGE),
            Err(error) if reason(&error) == Some("backend-busy") => busy += 1,
            Err(error) => return Err(error.into()),
        }
    }
    assert!(busy > 0, "{} MB had room", sessions.len() * CALLS);
    for session in sessions {
        session.close();
    }
    gateway.wait_for("the end of all", |status| status.sessions == 0).await?;
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 0);
    before.regained_within(&gateway, 48 << 20).await
}

/// Servers of 2026-07-28 that take everything and answer nothing: what may have to be said to them once more is kept.
#[tokio::test]
async fn requests_that_servers_of_the_new_era_do_not_answer_fit_into_the_containers_memory() -> Result<()> {
    const CALLS: usize = 30;
    let broker = Mosquitto::options().line("max_queued_messages 0").start().await?;
    let gateway = Options::new(&broker.url()).server_arg("--modern").start()?;
    gateway.wait_ready().await?;
    limit(&gateway)?;
    let before = Baseline::of(&gateway);
    let sessions = sessions(&broker, &gateway, 8).await?;
    let silence = json!({"name": "silence", "arguments": {"message": "x".repeat(LARGE)}});
    let mut unanswered = Vec::new();
    for _ in 0..CALLS {
        for session in &sessions {
            let (session, params) = (session.clone(), silence.clone());
            unanswered.push(tokio::spawn(async move {
                session.request("tools/call", Some(&params), LONG).await.map(|_| ())
            }));
        }
        tokio::task::yield_now().await;
        // Behind it: the server has read it.
        for session in &sessions {
            assert_eq!(call(session, "echo", json!({"message": "x"})).await?, "x");
        }
    }
    assert!(settled(&gateway).await < LIMIT);
    let in_flight = usize::try_from(gateway.status().await?.in_flight)?;
    for session in &sessions {
        session.close();
    }
    let mut busy = 0;
    for answer in unanswered {
        busy += usize::from(answer.await?.is_err_and(|error| reason(&error) == Some("backend-busy")));
    }
    assert_eq!(busy + in_flight, sessions.len() * CALLS);
    gateway.wait_for("the end of all", |status| status.sessions == 0).await?;
    before.regained_within(&gateway, 48 << 20).await
}

/// A gateway within its limit, somebody who has a session there, and a stranger who has none.
struct Scene {
    gateway: Gateway,
    before: Baseline,
    session: Session,
    stranger: Raw,
    _client: Client,
    _broker: Mosquitto,
}

impl Scene {
    async fn set() -> Result<Self> {
        let broker = Mosquitto::options().line("max_queued_messages 0").start().await?;
        let gateway = Gateway::ready_at(&broker.url()).await?;
        limit(&gateway)?;
        let before = Baseline::of(&gateway);
        let client = connect(&broker.url(), "bystander").await?;
        let session = open(&client, &gateway.instance()).await?;
        let stranger = Raw::connect_deaf(&broker.url(), "stranger", &gateway).await?;
        Ok(Self { gateway, before, session, stranger, _client: client, _broker: broker })
    }
}

/// Batches that a packet has room for, of somebody without a session.
#[tokio::test]
async fn a_strangers_batches_of_a_million_parts_fit_into_the_containers_memory_and_harm_nobody() -> Result<()>
{
    const PACKET: usize = 4_000_000;
    let Scene { gateway, before, session, stranger, .. } = &Scene::set().await?;
    let refused = r#"{"jsonrpc":"2.0","id":1,"method":""},"#;
    for part in ["1,", refused, "1,", refused] {
        let batch = format!("[{}1]", part.repeat(PACKET / part.len()));
        stranger.send(&stranger.control, Some("stranger"), batch).await?;
        assert_eq!(call(session, "echo", json!({"message": "x"})).await?, "x");
    }
    gateway.wait_metric(r#"messages_dropped_total{reason="batch"}"#, 4).await?;
    assert_eq!(call(session, "echo", json!({"message": "x"})).await?, "x");
    assert_eq!(gateway.metric(r#"messages_dropped_total{reason="outbox-full"}"#).await?, 0);
    let warnings = gateway.log().lines().filter(|line| line.contains(" WARN ")).count();
    assert_eq!(warnings, 0);
    session.close();
    before.regained_within(gateway, 32 << 20).await
}

/// User properties without a name and a value: five bytes each on the wire, and ten times as much once they are read.
#[tokio::test]
async fn a_strangers_messages_of_a_million_properties_fit_into_the_containers_memory_and_harm_nobody()
-> Result<()> {
    const PROPERTIES: usize = 800_000;
    const MESSAGES: usize = 12;
    let Scene { gateway, before, session, stranger, .. } = &Scene::set().await?;
    let mut large = stranger.publication(&stranger.control, None, "x");
    large.user_properties = vec![(String::new(), String::new()); PROPERTIES];
    // As many as are taken, and as often: these wait for each other, by what they are in memory.
    let mut allowed = large.clone();
    allowed.user_properties.truncate(MAX_PROPERTY_BYTES / 5);
    let mut flood = vec![large; MESSAGES];
    flood.extend(vec![allowed; 20 * MESSAGES]);
    let sent = flood.len();
    let poured = stranger.pour(flood);
    for _ in 0..50 {
        assert_eq!(call(session, "echo", json!({"message": "x"})).await?, "x");
    }
    poured.await??;
    let too_large = r#"messages_dropped_total{reason="properties-too-large"}"#;
    gateway.wait_metric(too_large, u64::try_from(MESSAGES)?).await?;
    let of_nobody = r#"messages_dropped_total{reason="no-client-id"}"#;
    gateway.wait_metric(of_nobody, u64::try_from(sent - MESSAGES)?).await?;
    assert_eq!(call(session, "echo", json!({"message": "x"})).await?, "x");
    assert_eq!(gateway.metric("broker_reconnects_total").await?, 0);
    session.close();
    before.regained_within(gateway, 48 << 20).await
}
