//! The faults: each begins and ends in its strike, and tells when it was over.

use std::time::{Duration, Instant};

use anyhow::Result;
use mcp_mqtt_tests::{
    baseline::descendants,
    gateway::{call, connect, open},
    raw::{Raw, echo, initialize},
};
use mcp_mqtt_transport::topic;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::time::sleep;

use crate::stage::Stage;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    BrokerKilled,
    BrokerStopped,
    ConnectionCut,
    ConnectionFrozen,
    ServerKilled,
    ProcessesKilled,
    ServerCrashes,
    HttpServerKilled,
    WorkerTaken,
    ClientsMisbehave,
    ClientsVanish,
    GatewayDrained,
    GatewayKilled,
}

pub(crate) const KINDS: [Kind; 13] = [
    Kind::BrokerKilled,
    Kind::BrokerStopped,
    Kind::ConnectionCut,
    Kind::ConnectionFrozen,
    Kind::ServerKilled,
    Kind::ProcessesKilled,
    Kind::ServerCrashes,
    Kind::HttpServerKilled,
    Kind::WorkerTaken,
    Kind::ClientsMisbehave,
    Kind::ClientsVanish,
    Kind::GatewayDrained,
    Kind::GatewayKilled,
];

/// One that happened.
pub(crate) struct Fault {
    /// In words.
    pub(crate) told: String,
    /// From then on things can heal.
    pub(crate) over: Instant,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BrokerKilled => "broker killed and restarted",
            Self::BrokerStopped => "broker stood still",
            Self::ConnectionCut => "gateway's connection cut",
            Self::ConnectionFrozen => "gateway's connection stood still",
            Self::ServerKilled => "server's container killed",
            Self::ProcessesKilled => "a session's process killed",
            Self::ServerCrashes => "a session's process crashed",
            Self::HttpServerKilled => "server over HTTP killed",
            Self::WorkerTaken => "worker's client id taken over",
            Self::ClientsMisbehave => "client misbehaved",
            Self::ClientsVanish => "clients left without a word",
            Self::GatewayDrained => "gateway drained and restarted",
            Self::GatewayKilled => "gateway killed and restarted",
        }
    }
}

/// Up to so many seconds.
fn a_while(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds * fastrand::f64())
}

pub(crate) async fn strike(kind: Kind, stage: &mut Stage) -> Result<Fault> {
    let details = match kind {
        Kind::BrokerKilled => {
            let pause = a_while(3.0);
            stage.broker.kill()?;
            sleep(pause).await;
            stage.broker.restart().await?;
            format!(" {:.1} s later", pause.as_secs_f64())
        }
        Kind::BrokerStopped => {
            let pause = a_while(12.0);
            stage.broker.pause()?;
            sleep(pause).await;
            stage.broker.resume()?;
            format!(" for {:.1} s", pause.as_secs_f64())
        }
        Kind::ConnectionCut => {
            let times = fastrand::u32(1..4);
            for _ in 0..times {
                stage.proxy.cut();
                sleep(a_while(0.5)).await;
            }
            format!(" {times} times")
        }
        Kind::ConnectionFrozen => {
            let pause = a_while(12.0);
            stage.proxy.freeze();
            sleep(pause).await;
            stage.proxy.thaw();
            format!(" for {:.1} s", pause.as_secs_f64())
        }
        Kind::ServerKilled => {
            let pause = a_while(3.0);
            let gateway = if fastrand::bool() { &mut stage.old } else { &mut stage.young };
            gateway.kill_server()?;
            sleep(pause).await;
            gateway.start_server()?;
            format!(" and restarted {:.1} s later", pause.as_secs_f64())
        }
        Kind::ProcessesKilled => {
            let processes = stage.old.server_pid().map(descendants).unwrap_or_default();
            if let Some(victim) = fastrand::choice(processes)
                && let Some(victim) = i32::try_from(victim).ok().and_then(Pid::from_raw)
            {
                // It may have ended by itself meanwhile.
                let _gone = kill_process(victim, Signal::KILL);
            }
            String::new()
        }
        Kind::ServerCrashes => {
            // Not one of the load's clients: these count each refusal.
            let client = connect(&stage.broker.url(), &format!("crash-{:x}", fastrand::u64(..))).await?;
            let session = open(&client, &stage.young.instance()).await?;
            let crashed = call(&session, "crash", json!({"code": 9})).await;
            format!(": {}", crashed.err().map(|error| error.to_string()).unwrap_or_default())
        }
        Kind::HttpServerKilled => {
            let pause = a_while(3.0);
            let other = fastrand::usize(..stage.others.len());
            let other = &mut stage.others[other];
            other.restart_server(pause).await?;
            format!(" ({}) and restarted {:.1} s later", other.transport.name(), pause.as_secs_f64())
        }
        Kind::WorkerTaken => {
            let worker = format!("{}_w{}", stage.young.server_id(), fastrand::u8(1..=2));
            let thief = connect(&stage.broker.url(), &worker).await?;
            sleep(a_while(1.0)).await;
            drop(thief);
            format!(" ({worker})")
        }
        Kind::ClientsMisbehave => format!(": {}", misbehave(stage).await?),
        Kind::ClientsVanish => {
            let count = vanish(stage).await?;
            format!(", {count} with a session each")
        }
        Kind::GatewayDrained => {
            stage.young.terminate()?;
            let ended = stage.young.wait_ended().await?;
            stage.young.start_again()?;
            format!(" ({ended})")
        }
        Kind::GatewayKilled => {
            let pause = a_while(2.0);
            stage.young.kill()?;
            sleep(pause).await;
            stage.young.start_again()?;
            format!(" {:.1} s later", pause.as_secs_f64())
        }
    };
    Ok(Fault { told: format!("{}{details}", kind.name()), over: Instant::now() })
}

/// One of many ways not to speak the protocol, at a gateway of any transport. Nobody else is to notice.
async fn misbehave(stage: &Stage) -> Result<&'static str> {
    let gateway = match fastrand::usize(..=stage.others.len()) {
        0 => &stage.old,
        other => &stage.others[other - 1].gateway,
    };
    let id = format!("villain-{:x}", fastrand::u64(..));
    let raw = Raw::connect(&stage.broker.url(), &id, gateway).await?;
    let (told, publications) = match fastrand::u8(..5) {
        0 => {
            let storm = (1..=50).map(|n| raw.publication(&raw.control, Some(&id), initialize(n)));
            ("initialize again and again", storm.collect())
        }
        1 => {
            let garbage = (0..500).map(|n| {
                let topic = if n % 2 == 0 { &raw.rpc } else { &raw.control };
                raw.publication(topic, Some(&id), format!("garbage {n}"))
            });
            ("no JSON", garbage.collect())
        }
        2 => {
            let forged = (0..500).map(|n| raw.publication(&raw.rpc, Some("another"), echo(&json!(n), "x")));
            ("another's client id", forged.collect())
        }
        3 => {
            let homeless = (0..500).map(|n| raw.publication(&raw.rpc, Some(&id), echo(&json!(n), "x")));
            ("requests without a session", homeless.collect())
        }
        _ => {
            let deep = "[".repeat(100_000);
            ("deep JSON", vec![raw.publication(&raw.rpc, Some(&id), deep)])
        }
    };
    raw.pour(publications).await??;
    raw.send(&topic::client_presence(&id.parse()?), Some(&id), "").await?;
    Ok(told)
}

/// Many clients with a session each whose connections end all at once, calls under way: the broker tells of it by
/// their wills.
async fn vanish(stage: &Stage) -> Result<usize> {
    const CLIENTS: usize = 20;
    let mut calls = Vec::new();
    for n in 0..CLIENTS {
        let gateway = match n % (stage.others.len() + 1) {
            0 => &stage.young,
            other => &stage.others[other - 1].gateway,
        };
        let client = connect(&stage.broker.url(), &format!("vanishing-{:x}", fastrand::u64(..))).await?;
        let session = open(&client, &gateway.instance()).await?;
        let calling = session.clone();
        let call = tokio::spawn(async move { call(&calling, "echo", json!({"message": "unheard"})).await });
        calls.push((client, session, call));
    }
    for (client, _session, call) in calls {
        call.abort();
        drop(client);
    }
    Ok(CLIENTS)
}
