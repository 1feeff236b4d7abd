//! The processes under measurement: the broker, the echo, a server over HTTP, and one gateway at a time.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use mcp_mqtt_sidecar::config::BackendConfig;
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{Gateway, Options},
};
use mcp_mqtt_transport::mqtt::Qos;
use url::Url;

use crate::{
    Plan,
    echo::{self, Echo},
    http_server::{HTTP_AND_SSE, Manner},
};

/// For the sessions of a round to end before the next begins.
const CALM: Duration = Duration::from_millis(50);

/// How a gateway reaches its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Stdio,
    Http(Manner),
    HttpAndSse,
}

impl Transport {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdio => "stdio",
            Self::Http(Manner::Json) => "HTTP, JSON",
            Self::Http(Manner::Sse) => "HTTP, SSE",
            Self::Http(Manner::Standing) => "HTTP, standing",
            Self::HttpAndSse => "HTTP+SSE",
        }
    }
}

/// What stands throughout. Dropped, it ends.
pub(crate) struct Stage {
    http_server: Url,
    /// Before the broker, without which they would complain.
    _processes: [Process; 2],
    broker: Broker,
    /// Of each gateway, but where the number of workers is what is measured.
    workers: usize,
}

/// The broker that gateways and clients meet at.
enum Broker {
    Own(Mosquitto),
    /// Somebody else's.
    Given(Url),
}

impl Stage {
    /// Starts the broker, unless one is given, the echo and the server over HTTP, and waits until they answer.
    pub(crate) async fn set(plan: &Plan) -> Result<Self> {
        let broker = match &plan.broker {
            Some(url) => Broker::Given(url.clone()),
            None => Broker::Own(Mosquitto::options().quiet().start().await?),
        };
        let url = broker.url();
        let echo = Process::start(own_program()?.args([Echo::Plain.name(), url.as_str()]))?;
        let mut server = Process::start(own_program()?.arg("http-server").stdout(Stdio::piped()))?;
        let http_server = server.first_line()?.parse()?;
        echo::wait_up(&url, Echo::Plain).await?;
        Ok(Self { http_server, _processes: [echo, server], broker, workers: plan.workers })
    }

    /// The broker's address.
    pub(crate) fn url(&self) -> Url {
        self.broker.url()
    }

    /// A gateway with room for a bench, not yet started.
    pub(crate) fn gateway(&self, transport: Transport, qos: Qos) -> Result<Options> {
        self.gateway_with(transport, qos, self.workers)
    }

    /// And with so many workers.
    pub(crate) fn gateway_with(&self, transport: Transport, qos: Qos, workers: usize) -> Result<Options> {
        let options = self.gateway_at(&self.url(), transport)?.arg(&format!("--workers={workers}"));
        Ok(options.arg(if qos == Qos::AtLeastOnce { "--qos=1" } else { "--qos=0" }))
    }

    /// And at another broker.
    pub(crate) fn gateway_at(&self, broker: &Url, transport: Transport) -> Result<Options> {
        let options = Options::new(broker).arg("--log=warn").arg("--max-sessions=20000");
        Ok(match transport {
            Transport::Stdio => options,
            Transport::Http(manner) => options.http(&self.http_url(manner)?),
            Transport::HttpAndSse => options.backend(&BackendConfig::sse(self.sse_url()?)),
        })
    }

    /// The server over HTTP with these manners.
    pub(crate) fn http_url(&self, manner: Manner) -> Result<Url> {
        Ok(self.http_server.join(manner.path())?)
    }

    /// The server over HTTP+SSE.
    pub(crate) fn sse_url(&self) -> Result<Url> {
        Ok(self.http_server.join(HTTP_AND_SSE)?)
    }
}

impl Broker {
    fn url(&self) -> Url {
        match self {
            Self::Own(broker) => broker.url(),
            Self::Given(url) => url.clone(),
        }
    }
}

/// Starts a gateway and waits until it is ready.
pub(crate) async fn start(options: Options) -> Result<Gateway> {
    let gateway = options.start()?;
    gateway.wait_ready().await?;
    Ok(gateway)
}

/// Waits until the gateway has no session left.
pub(crate) async fn emptied(gateway: &Gateway) -> Result<()> {
    gateway.wait_for("end of all sessions", |status| status.sessions == 0).await?;
    tokio::time::sleep(CALM).await; // processes end, connections close
    Ok(())
}

/// This very program, for its other faces.
pub(crate) fn own_program() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("this program has no path")?))
}

/// A child that ends with its owner.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        Self::start_with(command, Stdio::null())
    }

    pub(crate) fn start_with(command: &mut Command, stdin: Stdio) -> Result<Self> {
        let child = command
            .stdin(stdin)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self(child))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// What it says first, on its stdout.
    fn first_line(&mut self) -> Result<String> {
        let stdout = self.0.stdout.take().context("its output is not ours")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// To ask it on its stdin, and hear it on its stdout.
    pub(crate) fn talk(&mut self) -> Result<(ChildStdin, BufReader<ChildStdout>)> {
        let stdin = self.0.stdin.take().context("its input is not ours")?;
        let stdout = self.0.stdout.take().context("its output is not ours")?;
        Ok((stdin, BufReader::new(stdout)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
