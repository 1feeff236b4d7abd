//! The operator as a process on this machine, against a cluster's real API server.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    sync::watch,
    time::timeout,
};

use crate::{api_link::ApiLink, binaries, cluster::Space};

/// From its start to its first answer, on a machine that has other things to do.
const START: Duration = Duration::from_mins(1);
/// From SIGTERM to its end; its own deadline is 10 s.
const STOP: Duration = Duration::from_secs(20);
/// Between two looks whether it is ready.
const LOOK: Duration = Duration::from_millis(20);

/// Image of the sidecar that no node has: API suites need no pod that runs.
pub const SIDECAR_IMAGE: &str = "localhost/no-such-sidecar:1";
/// The default broker of the operator under test.
pub const BROKER: &str = "mqtt://127.0.0.1:1";

/// How soon a follower takes over from a leader that is gone.
pub const TAKEOVER: Duration = Duration::from_secs(15);

/// What becomes of its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// It stands on the test's stderr.
    Told,
    /// It is read, as a container runtime does, and dropped.
    Dropped,
}

/// A running operator. It is killed when it is dropped.
pub struct Operator {
    child: Child,
    address: String,
    leads: watch::Receiver<bool>,
}

impl Operator {
    /// Starts it and waits until it leads and watches.
    ///
    /// # Errors
    /// When it does not within a minute; its log is on the test's stderr.
    pub async fn start(space: &Space, arguments: &[&str]) -> Result<Self> {
        Self::spawn(space, arguments).await?.ready().await
    }

    /// Starts it and waits for its admin port only: it may have to wait for the Lease.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn spawn(space: &Space, arguments: &[&str]) -> Result<Self> {
        Self::launch(command(space, arguments), Log::Told).await
    }

    /// As [`spawn`](Self::spawn), with a link between it and the API server.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn spawn_behind(link: &ApiLink, space: &Space, arguments: &[&str]) -> Result<Self> {
        let mut command = command(space, arguments);
        command.env("KUBECONFIG", link.kubeconfig());
        Self::launch(command, Log::Told).await
    }

    /// Starts it by a command of one's own and waits for its admin port.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn launch(mut command: Command, log: Log) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("the operator does not start")?;
        let mut lines = BufReader::new(child.stderr.take().context("its stderr is piped")?).lines();
        let (lead, leads) = watch::channel(false);
        let (bound, mut address) = watch::channel(None);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if log == Log::Told {
                    eprintln!("operator: {line}");
                }
                if *lead.borrow() {
                    continue;
                }
                let line: Value = serde_json::from_str(&line).unwrap_or_default();
                match line["message"].as_str() {
                    Some("starting") => drop(bound.send(line["address"].as_str().map(str::to_owned))),
                    Some("leading") => drop(lead.send(true)),
                    _ => {}
                }
            }
        });
        let address =
            timeout(START, address.wait_for(Option::is_some)).await.context("the operator says nothing")?;
        let address = address.context("the operator ended at once")?.clone().unwrap_or_default();
        Ok(Self { child, address, leads })
    }

    /// Waits until it leads and watches.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn ready(mut self) -> Result<Self> {
        timeout(START, self.leading()).await.context("the operator does not lead")??;
        let ready = async {
            while !self.get("/readyz").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                tokio::time::sleep(LOOK).await;
            }
        };
        timeout(START, ready).await.context("the operator is not ready")?;
        Ok(self)
    }

    /// Its process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn process(&self) -> Result<u32> {
        self.child.id().context("the operator has ended")
    }

    /// Waits until it leads.
    ///
    /// # Errors
    /// When it ends.
    pub async fn leading(&mut self) -> Result<()> {
        self.leads.wait_for(|leads| *leads).await.map(|_| ()).context("the operator ended")
    }

    /// Whether it leads by now.
    pub fn leads(&self) -> bool {
        *self.leads.borrow()
    }

    /// How many writes to the API server it counts, by its own metrics.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn writes(&self) -> Result<u64> {
        self.counter("mcp_mqtt_operator_writes_total").await
    }

    /// One of its counters, all labels together.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn counter(&self, name: &str) -> Result<u64> {
        let metrics = self.get("/metrics").await?;
        let lines = metrics
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
        lines
            .map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<u64>().context("odd metric"))
            .sum()
    }

    /// An answer of its admin port, with its head.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn get(&self, path: &str) -> Result<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = TcpStream::connect(&self.address).await?;
        stream
            .write_all(
                format!("GET {path} HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n").as_bytes(),
            )
            .await?;
        let mut answer = String::new();
        timeout(START, stream.read_to_string(&mut answer)).await.context("no answer")??;
        Ok(answer)
    }

    /// Ends it as Kubernetes does, and waits until it has.
    ///
    /// # Errors
    /// When it does not end in time, or with an error.
    pub async fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = timeout(STOP, self.child.wait()).await.context("the operator does not end")??;
        ensure!(status.success(), "the operator ended with {status}");
        Ok(())
    }

    /// Ends it as a node does that goes down.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn kill(mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.child.wait().await?;
        Ok(())
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn ended(mut self) -> Result<()> {
        timeout(START, self.child.wait()).await.context("the operator does not end")??;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        kill_process(id.context("the operator has ended")?, signal).context("no signal reaches the operator")
    }
}

/// An operator that watches one namespace, and those that the arguments add.
pub fn command(space: &Space, arguments: &[&str]) -> Command {
    let mut command = Command::new(binaries::operator());
    command
        .args(["run", "--sidecar-image", SIDECAR_IMAGE, "--sidecar-image-pull-policy", "Never"])
        .args(["--watch-namespaces", &space.namespace, "--namespace", &space.namespace])
        .args(["--admin-address", "127.0.0.1:0"])
        .env("MCP_MQTT_DEFAULT_BROKER_URL", BROKER) // an argument names another one
        .args(["--log", "info,mcp_mqtt_operator=debug"])
        .args(arguments);
    command
}
