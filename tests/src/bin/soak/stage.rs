//! A broker, two gateways with their servers, and what they hold. One gateway lives through it all, behind a proxy;
//! the other one is restarted and killed.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mcp_mqtt_tests::{
    baseline::Baseline,
    broker::Mosquitto,
    gateway::{Gateway, Options, SERVER_NAME, call, connect, open},
    load::{Load, Work},
    proxy::{Manner, Proxy},
};
use mcp_mqtt_transport::topic::ServerName;
use serde_json::json;
use tokio::time::{sleep, timeout};

/// How long it may take until all is well after a fault: a keep-alive, the longest wait between two connects, and a
/// busy machine.
const HEALS_WITHIN: Duration = Duration::from_secs(90);
/// One attempt to be served.
const TRY: Duration = Duration::from_secs(2);
/// How long the gateways may take to give everything back at the end.
const RESTS_WITHIN: Duration = Duration::from_mins(2);

/// Probes so far, for their client ids.
static PROBES: AtomicU64 = AtomicU64::new(0);

pub(crate) struct Stage {
    pub(crate) broker: Mosquitto,
    /// Before `old`.
    pub(crate) proxy: Proxy,
    /// Lives through it all.
    pub(crate) old: Gateway,
    /// Is restarted and killed.
    pub(crate) young: Gateway,
    before: Baseline,
    own_fds: usize,
}

impl Stage {
    pub(crate) async fn set() -> Result<Self> {
        let broker = Mosquitto::options().line("max_queued_messages 0").start().await?;
        let proxy = Proxy::start(broker.port(), Manner::default()).await?;
        let start = |url| {
            Options::new(url)
                .arg("--keep-alive=5s")
                .arg("--drain-timeout=5s")
                .arg("--timeout-call=20s")
                .arg("--log=warn")
                .start()
        };
        let (old, young) = (start(&proxy.url())?, start(&broker.url())?);
        old.wait_ready().await?;
        young.wait_ready().await?;
        let before = Baseline::of(&old);
        let own_fds = mcp_mqtt_tests::baseline::fds(std::process::id());
        Ok(Self { broker, proxy, old, young, before, own_fds })
    }

    pub(crate) fn load(&self, clients: usize) -> Result<Load> {
        let work = Work {
            quick: vec![
                ("echo", json!({"message": "soak"})),
                ("sleep", json!({"ms": 20})),
                ("big", json!({"bytes": 50_000})),
                ("flood", json!({"count": 20, "bytes": 500})),
                ("change", json!({"kind": "tools"})),
                ("garbage", json!({"kind": "utf8"})),
                ("twice", json!({})),
                ("sleep", json!({"ms": 200})),
            ],
            slow: ("sleep", json!({"ms": 1000})),
            rest: Duration::ZERO,
            dies_in: Some(100),
        };
        Ok(Load::start_with(&self.broker.url(), &ServerName::new(SERVER_NAME)?, clients, &work))
    }

    /// Waits until a new client is served by both gateways; how long after `over` that was.
    pub(crate) async fn healed(&self, over: Instant) -> Result<Duration> {
        loop {
            if matches!(timeout(TRY, self.serves_both()).await, Ok(Ok(()))) {
                return Ok(over.elapsed());
            }
            ensure!(
                over.elapsed() < HEALS_WITHIN,
                "not well again: {:?}\n{:?}\nlogs:\n{}\n{}",
                self.old.status().await,
                self.young.status().await,
                self.old.log(),
                self.young.log()
            );
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn serves_both(&self) -> Result<()> {
        // Not by the random numbers that choose the faults: how often this is tried depends on the machine.
        let id = format!("probe-{}", PROBES.fetch_add(1, Ordering::Relaxed));
        let client = connect(&self.broker.url(), &id).await?;
        for gateway in [&self.old, &self.young] {
            let session = open(&client, &gateway.instance()).await?;
            call(&session, "echo", json!({"message": "well"})).await?;
            session.close();
        }
        Ok(())
    }

    /// All sessions are over; what is held is what was held at the beginning.
    pub(crate) async fn at_rest(&self) -> Result<()> {
        let deadline = Instant::now() + RESTS_WITHIN;
        println!("\nHeld at rest:\n");
        for (name, gateway) in
            [("the gateway that lived", &self.old), ("the gateway of many lives", &self.young)]
        {
            loop {
                let status = gateway.status().await?;
                if status.sessions == 0 {
                    ensure!(status.in_flight == 0, "{name}: in flight without a session: {status:?}");
                    break;
                }
                ensure!(Instant::now() < deadline, "{name}: sessions without clients: {status:?}");
                sleep(Duration::from_millis(50)).await;
            }
            let regained = self.before.regained(gateway).await.context(name);
            let Baseline { memory, fds, shim_fds, processes } = Baseline::of(gateway);
            println!(
                "  {name:<26}  {:.1} MiB (at the start {:.1}), {fds} descriptors ({}), its server {shim_fds} ({}) and \
                 {processes} processes ({})",
                mebibytes(memory),
                mebibytes(self.before.memory),
                self.before.fds,
                self.before.shim_fds,
                self.before.processes,
            );
            regained?;
        }
        let own_fds = mcp_mqtt_tests::baseline::fds(std::process::id());
        println!("  {:<26}  {own_fds} descriptors ({})", "this program", self.own_fds);
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "for a person, with one digit")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
