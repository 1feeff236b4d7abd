//! The faults: each begins and ends in its strike, and tells when it was over.

use std::time::{Duration, Instant};

use anyhow::Result;
use mcp_mqtt_tests::{
    baseline::descendants,
    gateway::{call, connect, open},
};
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
    GatewayDrained,
    GatewayKilled,
}

pub(crate) const KINDS: [Kind; 9] = [
    Kind::BrokerKilled,
    Kind::BrokerStopped,
    Kind::ConnectionCut,
    Kind::ConnectionFrozen,
    Kind::ServerKilled,
    Kind::ProcessesKilled,
    Kind::ServerCrashes,
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
