//! A gateway beside its stdio server, as in a pod: the project's own processes on loopback.

mod readings;

pub use readings::metric_at;

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mcp_mqtt_sidecar::config::BackendConfig;
use mcp_mqtt_transport::{
    client::{Client, ClientOptions, Instance, RequestError, Session, SessionHandler, Unhandled},
    topic::{ClientId, ServerId, ServerName},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json, value::RawValue};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use url::Url;

use crate::{binaries, ports::Port, servers::NODE_OPTIONS};

/// The server name that the rig's gateway registers.
pub const SERVER_NAME: &str = "tests/stub";
/// How long anything may take that takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a rig is started with.
#[derive(Debug, Clone)]
pub struct Options {
    broker: Url,
    server_id: String,
    server_name: String,
    /// How a server that was started elsewhere is reached.
    backend: Option<String>,
    gateway: Vec<String>,
    server: Vec<String>,
    shim: Vec<String>,
    alone: Option<Vec<String>>,
}

/// A gateway and its shim. Dropping it kills both.
#[derive(Debug)]
pub struct Gateway {
    options: Options,
    dir: TempDir,
    admin: Port,
    process: Child,
    shim: Option<Child>,
}

impl Options {
    /// A gateway at this broker.
    pub fn new(broker: &Url) -> Self {
        Self {
            broker: broker.clone(),
            server_id: format!("gateway-{:08x}", fastrand::u32(..)),
            server_name: SERVER_NAME.to_owned(),
            backend: None,
            gateway: Vec::new(),
            server: Vec::new(),
            shim: Vec::new(),
            alone: None,
        }
    }

    /// A server that was started elsewhere, in place of the stub: [`Options::start_without_server`] then.
    #[must_use]
    pub fn backend(mut self, backend: &BackendConfig) -> Self {
        let socket = backend.stdio_socket.as_ref().map(|path| format!("--stdio-socket={}", path.display()));
        let http = backend.http_url.as_ref().map(|url| format!("--http-url={url}"));
        let sse = backend.sse_url.as_ref().map(|url| format!("--sse-url={url}"));
        self.backend = socket.or(http).or(sse);
        self
    }

    /// Another argument of the gateway: `--name=value`.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.gateway.push(arg.to_owned());
        self
    }

    /// An argument with a file's path, its content given here.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn file(self, arg: &str, dir: &Path, content: &str) -> Result<Self> {
        let path = dir.join(arg.trim_start_matches('-'));
        fs::write(&path, content)?;
        let arg = format!("{arg}={}", path.display());
        Ok(self.arg(&arg))
    }

    /// The MQTT client id, in place of a random one.
    #[must_use]
    pub fn server_id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.server_id);
        self
    }

    /// The server name, in place of [`SERVER_NAME`].
    #[must_use]
    pub fn server_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.server_name);
        self
    }

    /// Another argument of the stub server.
    #[must_use]
    pub fn server_arg(mut self, arg: &str) -> Self {
        self.server.push(arg.to_owned());
        self
    }

    /// Another argument of the stub server's shim: `--name=value`.
    #[must_use]
    pub fn shim_arg(mut self, arg: &str) -> Self {
        self.shim.push(arg.to_owned());
        self
    }

    /// The gateway is to reach a server by itself: by a URL among its arguments, or by this command.
    #[must_use]
    pub fn alone(mut self, command: &[String]) -> Self {
        self.alone = Some(command.to_vec());
        self
    }

    /// A server over Streamable HTTP in place of the stub behind its shim.
    #[must_use]
    pub fn http(mut self, url: &Url) -> Self {
        self.backend = Some(format!("--http-url={url}"));
        self
    }

    /// Starts both processes.
    ///
    /// # Errors
    /// They cannot be started.
    pub fn start(self) -> Result<Gateway> {
        let has_shim = self.backend.is_none() && self.alone.is_none();
        let mut gateway = self.start_without_server()?;
        if has_shim {
            gateway.start_server()?;
        }
        Ok(gateway)
    }

    /// Starts the gateway alone.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_without_server(self) -> Result<Gateway> {
        let dir = tempfile::tempdir()?;
        let admin = Port::reserve()?;
        let process = self.launch(dir.path(), admin.address())?;
        Ok(Gateway { options: self, dir, admin, process, shim: None })
    }

    fn launch(&self, dir: &Path, admin: SocketAddr) -> Result<Child> {
        let socket = |name: &str| dir.join(name).display().to_string();
        let mut command = Command::new(binaries::sidecar());
        command
            .args(["gateway", "--log-format=text"])
            .arg(format!("--server-name={}", self.server_name))
            .arg(format!("--server-id={}", self.server_id))
            .arg(format!("--broker-url={}", self.broker))
            .arg(format!("--drain-socket={}", socket("gateway.sock")))
            .arg(format!("--admin-address={admin}"))
            .args(&self.gateway);
        if !self.gateway.iter().any(|arg| arg.starts_with("--log=")) {
            command.arg("--log=info,mcp_mqtt_sidecar=debug");
        }
        match &self.alone {
            None => command.arg(
                self.backend.clone().unwrap_or_else(|| format!("--stdio-socket={}", socket("shim.sock"))),
            ),
            Some(words) if words.is_empty() => &mut command,
            Some(words) => command.env(NODE_OPTIONS.0, NODE_OPTIONS.1).arg("--").args(words),
        };
        spawn(command, &dir.join("gateway.log"))
    }
}

impl Gateway {
    /// A gateway and its server with no special wishes, ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn ready_at(broker: &Url) -> Result<Self> {
        let gateway = Options::new(broker).start()?;
        gateway.wait_ready().await?;
        Ok(gateway)
    }

    /// Starts the server's shim (again).
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_server(&mut self) -> Result<()> {
        let mut command = Command::new(binaries::sidecar());
        command.args(["shim", "run", "--stop-grace=500ms"]).args(&self.options.shim);
        command.arg(format!("--socket={}", self.dir.path().join("shim.sock").display()));
        command.arg("--").arg(binaries::stub_server()).args(&self.options.server);
        self.shim = Some(spawn(command, &self.dir.path().join("shim.log"))?);
        Ok(())
    }

    /// Kills the shim, as when the server's container dies.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill_server(&mut self) -> Result<()> {
        let mut shim = self.shim.take().context("there is no server")?;
        shim.kill()?;
        shim.wait()?;
        Ok(())
    }

    /// The MQTT client id.
    pub fn server_id(&self) -> ServerId {
        ServerId::new(&self.options.server_id).expect("the tests' ids are valid")
    }

    /// Whom a client opens a session with, without a look at the presences.
    pub fn instance(&self) -> Instance {
        let name = &self.options.server_name;
        Instance {
            server_id: self.server_id(),
            server_name: ServerName::new(name).expect("the tests' names are valid"),
            online: mcp_mqtt_transport::presence::Online::new(name, "", None),
        }
    }

    /// SIGTERM.
    ///
    /// # Errors
    /// It is gone.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// A signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot send {signal:?} to the gateway"))
    }

    /// SIGKILL, as the kernel does with a container over its memory limit; and waits until it is gone.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().context("cannot kill the gateway")?;
        self.process.wait().context("cannot wait for the gateway")?;
        Ok(())
    }

    /// Starts it again as it was started, after its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = self.options.launch(self.dir.path(), self.admin.address())?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub async fn wait_ended(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "the gateway does not end\n{}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// `shim drain`, as the server container's preStop runs it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn drain(&self) -> Result<Child> {
        let socket = self.dir.path().join("gateway.sock");
        let mut command = Command::new(binaries::sidecar());
        command.args(["shim", "drain"]).arg(format!("--socket={}", socket.display()));
        spawn(command, &self.dir.path().join("drain.log"))
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("gateway.log")).unwrap_or_default()
    }

    /// Where it serves `/metrics` and the rest.
    pub fn admin(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The shim's process id.
    pub fn server_pid(&self) -> Option<u32> {
        self.shim.as_ref().map(Child::id)
    }

    /// Its directory, for files of a test.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Nothing can be done here about a failure.
        for child in std::iter::once(&mut self.process).chain(&mut self.shim) {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the gateway's log:\n{}", self.log());
        }
    }
}

fn spawn(mut command: Command, log: &Path) -> Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))
}

/// The children of a process, by `/proc`.
pub fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// Whether a process runs, and is not merely waiting to be reaped.
pub fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with(['Z', 'X']));
    state == Some(false)
}

/// Waits until something is so.
///
/// # Errors
/// It does not come to be so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        ensure!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Connects an MCP client.
///
/// # Errors
/// As [`Client::connect`].
pub async fn connect(broker: &Url, client_id: &str) -> Result<Client> {
    Ok(Client::connect(ClientOptions::new(broker.clone(), ClientId::new(client_id)?)).await?)
}

/// Opens a session that hears nothing.
///
/// # Errors
/// As [`Client::open_session`].
pub async fn open(client: &Client, instance: &Instance) -> Result<Session> {
    open_with(client, instance, Arc::new(Unhandled)).await
}

/// Opens a session.
///
/// # Errors
/// As [`Client::open_session`].
pub async fn open_with(
    client: &Client,
    instance: &Instance,
    handler: Arc<dyn SessionHandler>,
) -> Result<Session> {
    let capabilities = RawValue::from_string(r#"{"sampling":{},"roots":{"listChanged":true}}"#.to_owned())?;
    Ok(client.open_session(instance, &capabilities, handler, PATIENCE).await?)
}

/// `tools/call`; the text of the answer.
///
/// # Errors
/// As [`Session::request`].
pub async fn call(session: &Session, tool: &str, arguments: Value) -> Result<String, RequestError> {
    let params = json!({"name": tool, "arguments": arguments});
    let result = session.request("tools/call", Some(&params), PATIENCE).await?;
    let result: Value =
        serde_json::from_str(result.get()).map_err(|error| RequestError::Json(error.to_string()))?;
    Ok(result["content"][0]["text"].as_str().unwrap_or_default().to_owned())
}

/// The `data.reason` of an error that the gateway answered.
pub fn reason(error: &RequestError) -> Option<&str> {
    match error {
        RequestError::Rpc(error) => error.reason(),
        _ => None,
    }
}
