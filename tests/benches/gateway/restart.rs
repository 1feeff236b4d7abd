//! The broker is started anew under many clients: how long until each of them has been answered again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{self, SERVER_NAME},
};
use mcp_mqtt_transport::{
    client::{Client, ClientOptions, Session},
    topic::{ClientId, ServerName},
};
use serde_json::json;
use tokio::{task::JoinSet, time::timeout};
use url::Url;

use crate::{
    http_server::Manner,
    report,
    rounds::share,
    stage::{self, Stage, Transport},
};

/// Clients that open their sessions at one time.
const AT_ONCE: usize = 32;
/// What a client waits at the least, and at the most, before it tries again.
const PAUSES: (u64, u64) = (50, 150);
/// For a gateway to be found, before the client looks anew.
const FIND: Duration = Duration::from_secs(10);
/// For all of them to be back.
const PATIENCE: Duration = Duration::from_mins(2);

/// The line, for so many clients with a session each.
pub(crate) async fn broker(stage: &Stage, count: usize) -> Result<()> {
    println!("\nThe broker is started anew under {count} clients, each with a session over HTTP");
    let mut broker = Mosquitto::options().quiet().start().await?;
    let url = broker.url();
    let options = stage.gateway_at(&url, Transport::Http(Manner::Json))?;
    let gateway = stage::start(options).await?;
    let sessions = stream::iter(0..count).map(|_| arrive(&url)).buffer_unordered(AT_ONCE);
    let sessions: Vec<(Client, Session)> = sessions.try_collect().await?;
    let killed = Instant::now();
    let mut returning = JoinSet::new();
    for (client, session) in sessions {
        let url = url.clone();
        returning.spawn(async move {
            client.closed().await;
            drop(session);
            come_back(&url).await
        });
    }
    broker.restart().await?;
    let listening = Instant::now();
    let mut back = Vec::with_capacity(count);
    let all = async {
        while let Some(returned) = returning.join_next().await {
            let (at, client) = returned?;
            back.push((at.saturating_duration_since(listening), client));
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, all).await.context("not all clients came back")??;
    let status = gateway.status().await?;
    ensure!(status.sessions as usize == count, "{} sessions, not {count}", status.sessions);
    let mut took: Vec<Duration> = back.iter().map(|(took, _)| *took).collect();
    took.sort_unstable();
    let seconds = |at: f64| report::micros(share(&took, at)) / 1e6;
    println!("  the broker listens again {:.2} s after its end", (listening - killed).as_secs_f64());
    println!(
        "  answered again after that: first {:.2} s, median {:.2} s, last {:.2} s",
        seconds(0.0),
        seconds(0.5),
        seconds(1.0)
    );
    Ok(())
}

/// A client with a session in which a call was answered.
async fn arrive(broker: &Url) -> Result<(Client, Session)> {
    let id = ClientId::new(&format!("bench-{:x}", fastrand::u64(..)))?;
    let client = Client::connect(ClientOptions::new(broker.clone(), id)).await?;
    let instance = client.find(&ServerName::new(SERVER_NAME)?, FIND).await?;
    let session = gateway::open(&client, &instance).await?;
    gateway::call(&session, "echo", json!({"message": "?"})).await?;
    Ok((client, session))
}

/// Tries until it is there; when, and the client, since it is to stay.
async fn come_back(broker: &Url) -> (Instant, (Client, Session)) {
    loop {
        if let Ok(there) = arrive(broker).await {
            return (Instant::now(), there);
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(PAUSES.0..PAUSES.1))).await;
    }
}
