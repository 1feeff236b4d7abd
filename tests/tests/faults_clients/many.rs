//! Sessions that are opened and abandoned.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use mcp_mqtt_tests::{
    baseline::{self, Baseline, childless},
    broker::Mosquitto,
    gateway::{Gateway, Options, connect, open},
    raw::{Raw, initialize},
};
use mcp_mqtt_transport::{
    jsonrpc::Message,
    mqtt::Qos,
    topic::{self, ClientId, Topic},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Each in its own process: clients that die without a word. Their wills end the sessions.
#[tokio::test]
async fn clients_that_die_leave_no_session_and_no_process() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    childless(gateway.server_pid().expect("the shim runs")).await?;
    let before = Baseline::of(&gateway);
    for round in 1..=2 {
        let clients = try_join_all((0..30).map(|n| {
            let (broker, gateway) = (&broker, &gateway);
            async move {
                let client = connect(&broker.url(), &format!("c{n}")).await?;
                let session = open(&client, &gateway.instance()).await?;
                anyhow::Ok((client, session))
            }
        }))
        .await?;
        let held = Baseline::of(&gateway);
        ensure!(held.processes == before.processes + 30, "{held:?}");
        drop(clients); // no goodbye: the connections are cut
        gateway.wait_metric(r#"sessions_ended_total{reason="client-left"}"#, round * 30).await?;
        before.regained(&gateway).await?;
    }
    Ok(())
}

/// A thousand clients (one connection in all their names) that initialize and say no more, not even `initialized`.
/// They count against the limit, the one beyond is refused with its reason, and when their wills come nothing is left.
#[tokio::test]
async fn a_thousand_abandoned_sessions_are_bounded_and_given_back() -> Result<()> {
    const SESSIONS: u32 = 1000;
    const ROUNDS: u32 = 5;
    /// Less than half of what so many sessions hold: a leak of one round is seen.
    const KEPT: u64 = 2 << 20;
    let broker =
        Mosquitto::options().line("max_queued_messages 0").line("max_inflight_messages 0").start().await?;
    let server = serve().await?;
    let gateway =
        Options::new(&broker.url()).http(&server).arg(&format!("--max-sessions={SESSIONS}")).start()?;
    gateway.wait_ready().await?;
    let mut crowd = Raw::connect_deaf(&broker.url(), "crowd", &gateway).await?;
    let all = crowd.rpc.replace("crowd", "+");
    crowd.subscribe(&all, Qos::AtLeastOnce).await?;
    let clients = (0..=SESSIONS).map(|n| ClientId::new(&format!("crowd-{n}")));
    let clients = clients.collect::<Result<Vec<_>, _>>()?;
    let within_limit = usize::try_from(SESSIONS)?;
    // At first the allocator takes what so many need; the last time that has to be enough.
    let crowds_of = |round: u32| u64::from(round * SESSIONS);
    let mut before = Baseline::of(&gateway);
    for round in 1..=ROUNDS {
        let opening = clients[..within_limit]
            .iter()
            .map(|client| crowd.publication(&crowd.control, Some(client.as_str()), initialize(1)));
        let poured = crowd.pour(opening.collect());
        let mut opened = HashSet::new();
        while opened.len() < within_limit {
            let received = crowd.receive().await.with_context(|| format!("{} are open", opened.len()))?;
            let Ok(Topic::Rpc { client_id, .. }) = Topic::parse(&received.topic) else { continue };
            let answer: Value = serde_json::from_slice(&received.payload)?;
            ensure!(answer.get("result").is_some(), "{answer}");
            ensure!(opened.insert(client_id.to_owned()), "{client_id} was answered twice");
        }
        assert_eq!(gateway.status().await?.sessions, SESSIONS);
        poured.await??;
        crowd.send(&crowd.control, Some(clients[within_limit].as_str()), initialize(1)).await?;
        let refused = crowd.answer().await?;
        assert_eq!(refused["error"]["data"]["reason"], "max-sessions", "{refused}");
        let wills = clients[..within_limit].iter().map(|client| {
            let presence = topic::client_presence(client);
            crowd.publication(&presence, Some(client.as_str()), Message::disconnected().into_raw())
        });
        crowd.pour(wills.collect()).await??;
        gateway.wait_for("the end of all", |status| status.sessions == 0).await?;
        assert_eq!(gateway.metric("sessions_started_total").await?, crowds_of(round));
        assert_eq!(gateway.metric(r#"sessions_ended_total{reason="client-left"}"#).await?, crowds_of(round));
        if round < ROUNDS {
            before = Baseline { memory: Baseline::of(&gateway).memory, ..before };
        }
        before.regained_within(&gateway, if round == ROUNDS { KEPT } else { baseline::KEPT }).await?;
    }
    Ok(())
}

/// The least that passes for a Streamable HTTP server: a thousand processes would measure this machine.
async fn serve() -> Result<url::Url> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/mcp", listener.local_addr()?).parse()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(timeout(Duration::from_mins(2), converse(stream)));
        }
    });
    Ok(url)
}

async fn converse(stream: TcpStream) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while stream.read_line(&mut head).await? > 0 {
        if !head.ends_with("\r\n\r\n") {
            continue;
        }
        let length =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).await?;
        let message: Value = serde_json::from_slice(&body).unwrap_or_default();
        let answer = if message["method"] == "initialize" {
            let result = serde_json::json!({
                "protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "stub", "version": "1"},
            });
            let answer =
                serde_json::json!({"jsonrpc": "2.0", "id": message["id"], "result": result}).to_string();
            let length = answer.len();
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{answer}"
            )
        } else {
            "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n".to_owned()
        };
        stream.write_all(answer.as_bytes()).await?;
        head.clear();
    }
    Ok(())
}
