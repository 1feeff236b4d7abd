//! A broker, gateways with their servers, and what they hold. Of the two before the stdio server one lives through it
//! all, behind a proxy; the other one has workers, and is restarted and killed.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mcp_mqtt_tests::{
    baseline::{self, Baseline},
    broker::Mosquitto,
    gateway::{Gateway, Options, SERVER_NAME, call, connect, open},
    load::{Account, LOST_AFTER, Load, Work},
    proxy::{Manner, Proxy},
};
use mcp_mqtt_transport::topic::ServerName;
use serde_json::json;
use tokio::time::{sleep, timeout};
use url::Url;

use crate::others::{Other, TRANSPORTS, at_rest};

/// How long it may take until all is well after a fault: a keep-alive, the longest wait between two connects, and a
/// busy machine.
const HEALS_WITHIN: Duration = Duration::from_secs(90);
/// One attempt to be served by all.
const TRY: Duration = Duration::from_secs(4);

/// Probes so far, for their client ids.
static PROBES: AtomicU64 = AtomicU64::new(0);

pub(crate) struct Stage {
    pub(crate) broker: Mosquitto,
    /// Before `old`, and before the others.
    pub(crate) proxy: Proxy,
    /// Lives through it all.
    pub(crate) old: Gateway,
    /// Is restarted and killed.
    pub(crate) young: Gateway,
    pub(crate) others: Vec<Other>,
    before: [Baseline; 2],
    own_fds: usize,
}

/// The clients of all gateways.
pub(crate) struct Loads(Vec<Load>);

impl Stage {
    pub(crate) async fn set() -> Result<Self> {
        let broker = Mosquitto::options().line("max_queued_messages 0").start().await?;
        let proxy = Proxy::start(broker.port(), Manner::default()).await?;
        let options = |url: &Url| {
            Options::new(url)
                .arg("--keep-alive=5s")
                .arg("--drain-timeout=5s")
                .arg("--timeout-call=20s")
                .arg("--log=warn")
        };
        let old = options(&proxy.url()).start()?;
        let young = options(&broker.url()).arg("--workers=2").start()?;
        old.wait_ready().await?;
        young.wait_ready().await?;
        young.wait_metric(r#"broker_connections{role="worker"}"#, 2).await?;
        let mut others = Vec::new();
        for transport in TRANSPORTS {
            others.push(Other::start(transport, options(&proxy.url())).await?);
        }
        let before = [Baseline::of(&old), Baseline::of(&young)];
        let own_fds = baseline::fds(std::process::id());
        Ok(Self { broker, proxy, old, young, others, before, own_fds })
    }

    /// So many clients of the stdio gateways, and a third of it of each other one.
    pub(crate) fn load(&self, clients: usize) -> Result<Loads> {
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
            lost_after: LOST_AFTER,
        };
        let broker = self.broker.url();
        let mut loads = vec![Load::start_with(&broker, &ServerName::new(SERVER_NAME)?, clients, &work)];
        for other in &self.others {
            loads.push(other.load(&broker, clients.div_ceil(3))?);
        }
        Ok(Loads(loads))
    }

    fn gateways(&self) -> impl Iterator<Item = &Gateway> {
        [&self.old, &self.young].into_iter().chain(self.others.iter().map(|other| &other.gateway))
    }

    /// Waits until a new client is served by all gateways; how long after `over` that was.
    pub(crate) async fn healed(&self, over: Instant) -> Result<Duration> {
        loop {
            if matches!(timeout(TRY, self.serve()).await, Ok(Ok(()))) {
                return Ok(over.elapsed());
            }
            if over.elapsed() >= HEALS_WITHIN {
                for gateway in self.gateways() {
                    eprintln!("{:?}\nlog:\n{}", gateway.status().await, gateway.log());
                }
            }
            ensure!(over.elapsed() < HEALS_WITHIN, "not well again");
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn serve(&self) -> Result<()> {
        // Not by the random numbers that choose the faults: how often this is tried depends on the machine.
        let id = format!("probe-{}", PROBES.fetch_add(1, Ordering::Relaxed));
        let client = connect(&self.broker.url(), &id).await?;
        for gateway in self.gateways() {
            let session = open(&client, &gateway.instance()).await?;
            call(&session, "echo", json!({"message": "well"})).await?;
            session.close();
        }
        Ok(())
    }

    pub(crate) async fn at_rest(&self) -> Result<()> {
        println!("\nHeld at rest:\n");
        at_rest("the gateway that lived", &self.old, &self.before[0]).await?;
        at_rest("the gateway of many lives", &self.young, &self.before[1]).await?;
        for other in &self.others {
            other.at_rest().await?;
        }
        let own_fds = baseline::fds(std::process::id());
        println!("  {:<30}  {own_fds} descriptors ({})", "this program", self.own_fds);
        Ok(())
    }
}

impl Loads {
    pub(crate) fn answered(&self) -> u64 {
        self.0.iter().map(Load::answered).sum()
    }

    /// Each gateway's clients have had an answer.
    pub(crate) async fn all_answered(&self) -> Result<()> {
        for load in &self.0 {
            load.all_answered().await?;
        }
        Ok(())
    }

    pub(crate) async fn stop(self) -> Result<Account> {
        let mut total = Account::default();
        for load in self.0 {
            total.add(load.stop().await?);
        }
        Ok(total)
    }
}
