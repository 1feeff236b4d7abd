//! The other transports beside stdio: a gateway before a real server of each, which is killed now and then.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mcp_mqtt_tests::{
    baseline::Baseline,
    gateway::{Gateway, Options},
    load::{LOST_AFTER, Load, Work},
    ports::Port,
    servers::{self, Eras, Server},
};
use mcp_mqtt_transport::topic::ServerName;
use serde_json::{Value, json};
use tokio::time::sleep;
use url::Url;

/// How long the gateways may take to give everything back at the end.
const RESTS_WITHIN: Duration = Duration::from_mins(2);
/// Their clients rest after each answer: the servers are to share the machine with those of the stdio gateways.
const REST: Duration = Duration::from_millis(10);

/// How a gateway reaches its server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Transport {
    StreamableHttp,
    /// HTTP+SSE, 2024-11-05.
    Sse,
    /// Streamable HTTP of 2026-07-28, and no other.
    Modern,
}

pub(crate) const TRANSPORTS: [Transport; 3] = [Transport::StreamableHttp, Transport::Sse, Transport::Modern];

/// A gateway and its server.
pub(crate) struct Other {
    pub(crate) transport: Transport,
    pub(crate) gateway: Gateway,
    server: Server,
    port: Port,
    before: Baseline,
}

impl Transport {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::StreamableHttp => "Streamable HTTP",
            Self::Sse => "HTTP+SSE",
            Self::Modern => "2026-07-28",
        }
    }

    fn server_name(self) -> &'static str {
        match self {
            Self::StreamableHttp => "tests/streamable-http",
            Self::Sse => "tests/sse",
            Self::Modern => "tests/modern",
        }
    }

    async fn server(self, port: &Port) -> Result<Server> {
        match self {
            Self::StreamableHttp => servers::everything_http_at(port).await,
            Self::Sse => servers::everything_sse_at(port).await,
            Self::Modern => servers::modern_http_at(port, Eras::Modern).await,
        }
    }

    fn work(self) -> Work {
        let echo = ("echo", json!({"message": "soak"}));
        let long = |seconds: f64| -> (&'static str, Value) {
            ("trigger-long-running-operation", json!({"duration": seconds, "steps": 2}))
        };
        let (quick, slow) = match self {
            Self::StreamableHttp | Self::Sse => {
                let sum = ("get-sum", json!({"a": 2, "b": 3}));
                (vec![echo, sum, ("get-tiny-image", json!({})), long(0.2)], long(1.0))
            }
            // What asks for input is called again by the gateway.
            Self::Modern => (
                vec![echo, ("numbers", json!({})), ("steps", json!({"count": 3})), ("log", json!({}))],
                ("retry", json!({})),
            ),
        };
        Work { quick, slow, rest: REST, dies_in: Some(100), lost_after: LOST_AFTER }
    }
}

impl Other {
    pub(crate) async fn start(transport: Transport, options: Options) -> Result<Self> {
        let port = Port::reserve()?;
        let server = transport.server(&port).await?;
        let options = options.server_name(transport.server_name()).backend(server.transport());
        let gateway = options.start_without_server()?;
        gateway.wait_ready().await?;
        let before = Baseline::of(&gateway);
        Ok(Self { transport, gateway, server, port, before })
    }

    pub(crate) fn load(&self, broker: &Url, clients: usize) -> Result<Load> {
        let server_name = ServerName::new(self.transport.server_name())?;
        Ok(Load::start_with(broker, &server_name, clients, &self.transport.work()))
    }

    /// As when the server's container dies and comes again.
    pub(crate) async fn restart_server(&mut self, pause: Duration) -> Result<()> {
        self.server.kill()?;
        sleep(pause).await;
        self.server = self.transport.server(&self.port).await?;
        Ok(())
    }

    pub(crate) async fn at_rest(&self) -> Result<()> {
        at_rest(&format!("the one before {}", self.transport.name()), &self.gateway, &self.before).await
    }
}

/// All sessions of a gateway are over; what it holds is what it held at the beginning.
pub(crate) async fn at_rest(name: &str, gateway: &Gateway, before: &Baseline) -> Result<()> {
    let deadline = Instant::now() + RESTS_WITHIN;
    loop {
        let status = gateway.status().await?;
        if status.sessions == 0 {
            ensure!(status.in_flight == 0, "{name}: in flight without a session: {status:?}");
            break;
        }
        ensure!(Instant::now() < deadline, "{name}: sessions without clients: {status:?}");
        sleep(Duration::from_millis(50)).await;
    }
    let regained = before.regained(gateway).await.with_context(|| name.to_owned());
    let Baseline { memory, fds, shim_fds, processes } = Baseline::of(gateway);
    println!(
        "  {name:<30}  {:.1} MiB (at the start {:.1}), {fds} descriptors ({}), its server {shim_fds} ({}) and \
         {processes} processes ({})",
        mebibytes(memory),
        mebibytes(before.memory),
        before.fds,
        before.shim_fds,
        before.processes,
    );
    regained
}

#[expect(clippy::cast_precision_loss, reason = "for a person, with one digit")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
