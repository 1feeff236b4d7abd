//! What the clients talk to: the broker, the gateway with its stdio server, and the plain echo, a process each.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mcp_mqtt_tests::{binaries, broker::Mosquitto};
use mcp_mqtt_transport::{
    client::{Client, ClientOptions},
    mqtt::{Connection, Event, Publication, Qos},
    topic::{ClientId, ServerId, ServerName},
};
use tempfile::TempDir;
use url::Url;

use crate::rounds::{self, Peer};

const SERVER_NAME: &str = "bench/stub";

const SERVER_ID: &str = "bench-gateway";

/// How long everything may take to be up.
const UP_LIMIT: Duration = Duration::from_secs(30);

/// The processes under measurement; dropped, they end.
pub(crate) struct Stage {
    /// The broker's address.
    pub(crate) url: Url,
    gateway: Process,
    _shim: Process,
    _echo: Process,
    _broker: Mosquitto,
    _sockets: TempDir,
}

impl Stage {
    /// Starts them all and waits until both sides answer.
    pub(crate) async fn up() -> Result<Self> {
        let broker = Mosquitto::options().quiet().start().await?;
        let url = broker.url();
        let sockets = tempfile::tempdir()?;
        let socket = sockets.path().join("shim.sock");
        let sidecar = binaries::sidecar();
        let shim = Process::start(
            Command::new(sidecar)
                .args(["shim", "run", "--prewarm", "4", "--socket"])
                .arg(&socket)
                .arg("--")
                .arg(binaries::stub_server()),
        )?;
        let admin = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let gateway = Process::start(
            Command::new(sidecar)
                .args(["gateway", "--server-name", SERVER_NAME, "--server-id", SERVER_ID])
                .args(["--broker-url", url.as_str(), "--log", "warn", "--admin-address", &admin.to_string()])
                .arg("--stdio-socket")
                .arg(&socket),
        )?;
        let echo = Process::start(Command::new(std::env::current_exe()?).args(["echo", url.as_str()]))?;
        let mut options = ClientOptions::new(url.clone(), ClientId::new("bench-look")?);
        options.connect_timeout = UP_LIMIT;
        let look = Client::connect(options).await?;
        look.find(&ServerName::new(SERVER_NAME)?, UP_LIMIT).await.context("the gateway did not register")?;
        look.close(UP_LIMIT).await?;
        await_echo(&url).await?;
        Ok(Self { url, gateway, _shim: shim, _echo: echo, _broker: broker, _sockets: sockets })
    }

    /// The gateway, as the rounds address it.
    pub(crate) fn gateway_peer() -> Peer {
        Peer::Gateway {
            server_id: ServerId::new(SERVER_ID).expect("a constant that is valid"),
            server_name: ServerName::new(SERVER_NAME).expect("a constant that is valid"),
        }
    }

    /// Size of the binary and resident memory of the gateway, in words.
    pub(crate) fn footprint(&self) -> Result<String> {
        let binary = fs::metadata(binaries::sidecar())?.len();
        let status = fs::read_to_string(format!("/proc/{}/status", self.gateway.0.id()))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = resident.trim().trim_end_matches(" kB").parse()?;
        #[expect(clippy::cast_precision_loss, reason = "megabytes")]
        let (binary, resident) = (binary as f64 / 1e6, kib as f64 / 1024.0);
        Ok(format!("gateway: binary {binary:.1} MB, resident {resident:.1} MiB"))
    }
}

/// Answers each message on `bench/echo/{client}` with itself on `bench/reply/{client}`.
pub(crate) async fn serve_echo(url: &Url) -> Result<()> {
    let mut connection = Connection::open(&rounds::options(url, "bench-echo")).await?;
    let reasons =
        connection.publisher.subscribe(vec![rounds::filter("bench/echo/+".to_owned())], UP_LIMIT).await?;
    ensure!(!reasons[0].is_error(), "the broker refused the echo's subscription: {}", reasons[0]);
    while let Some(event) = connection.events.recv().await {
        match event {
            Event::Received(received) => {
                let topic = received.topic.replacen("/echo/", "/reply/", 1);
                let user_properties = received.user_properties;
                connection.publisher.try_publish(Publication {
                    topic,
                    payload: received.payload,
                    qos: Qos::AtLeastOnce,
                    retain: false,
                    user_properties,
                })?;
            }
            Event::Refused(_) => {} // only for what has a note
            Event::Closed(reason) => bail!("the echo lost its connection: {reason}"),
        }
    }
    Ok(())
}

/// Waits until the echo answers: its subscription may come after the first message.
async fn await_echo(url: &Url) -> Result<()> {
    let start = Instant::now();
    let mut connection = Connection::open(&rounds::options(url, "bench-wait")).await?;
    connection.publisher.subscribe(vec![rounds::filter("bench/reply/wait".to_owned())], UP_LIMIT).await?;
    while start.elapsed() < UP_LIMIT {
        connection.publisher.try_publish(Publication {
            topic: "bench/echo/wait".to_owned(),
            payload: "?".into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            user_properties: Vec::new(),
        })?;
        if let Ok(Some(Event::Received(_))) =
            tokio::time::timeout(Duration::from_millis(100), connection.events.recv()).await
        {
            return Ok(connection.publisher.disconnect(UP_LIMIT).await?);
        }
    }
    bail!("the echo does not answer")
}

/// A child that ends with its owner.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self(child))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
