//! Real MCP servers from the public registries, as `tests/servers` pins them, each started as in a pod: on a
//! loopback port, or behind the shim.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mcp_mqtt_sidecar::{
    backend::Backend,
    config::{BackendConfig, BackendOptions, Limits},
};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};

use crate::{
    binaries::{sidecar, workspace},
    ports::Port,
};

/// How long a server may take to start on a busy machine.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// Debian 12's Node 18 has Web Crypto, which servers and clients use, behind this option; later ones take it too.
pub const NODE_OPTIONS: (&str, &str) = ("NODE_OPTIONS", "--experimental-global-webcrypto");
/// The entry point of `@modelcontextprotocol/server-everything`.
const EVERYTHING: &str = "node_modules/@modelcontextprotocol/server-everything/dist/index.js";
/// Where it is installed, of `target`; and the server on the SDK's second line, which has an installation of its own
/// since the images have no use for it.
const SERVERS: Installation =
    Installation { source: "tests/servers", target: "target/mcp-servers", script: None };
const MODERN: Installation = Installation {
    source: "tests/servers/modern",
    target: "target/mcp-modern-server",
    script: Some("server.mjs"),
};
/// What npm writes last of an installation.
const INSTALLED: &str = "node_modules/.package-lock.json";

/// Packages of a directory with a lock file, installed elsewhere.
#[derive(Debug, Clone, Copy)]
struct Installation {
    source: &'static str,
    target: &'static str,
    /// What stands beside them and goes with them.
    script: Option<&'static str>,
}

/// Which eras of MCP the server on the SDK's second line speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eras {
    /// 2026-07-28 alone: it refuses `initialize`.
    Modern,
    /// That and the ones before.
    Both,
}

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Server {
    process: Child,
    dir: TempDir,
    transport: BackendConfig,
    port: Option<Port>,
}

/// `@modelcontextprotocol/server-everything` over Streamable HTTP, ready to take connections.
///
/// # Errors
/// It cannot be installed or does not start.
pub async fn everything_http() -> Result<Server> {
    everything_http_at(&Port::reserve()?).await
}

/// [`everything_http`] at a port: again where one was before.
///
/// # Errors
/// It cannot be installed or does not start.
pub async fn everything_http_at(port: &Port) -> Result<Server> {
    let mut command = node(installed(SERVERS).await?.join(EVERYTHING));
    command.arg("streamableHttp").env("PORT", port.to_string());
    http(command, port).await
}

/// `tests/servers/growing.js`, made with the official SDK, over Streamable HTTP: its list of tools changes in a session.
///
/// # Errors
/// The SDK cannot be installed, or it does not start.
pub async fn growing_http() -> Result<Server> {
    let port = Port::reserve()?;
    let modules = installed(SERVERS).await?.join("node_modules");
    let mut command = node(workspace().join("tests/servers/growing.js"));
    command.arg(port.to_string()).env("NODE_PATH", modules);
    http(command, &port).await
}

/// `@modelcontextprotocol/server-everything` over HTTP+SSE, ready to take connections.
///
/// # Errors
/// It cannot be installed or does not start.
pub async fn everything_sse() -> Result<Server> {
    everything_sse_at(&Port::reserve()?).await
}

/// [`everything_sse`] at a port: again where one was before.
///
/// # Errors
/// It cannot be installed or does not start.
pub async fn everything_sse_at(port: &Port) -> Result<Server> {
    let mut command = node(installed(SERVERS).await?.join(EVERYTHING));
    command.arg("sse").env("PORT", port.to_string());
    listening(command, port, BackendConfig::sse(format!("http://127.0.0.1:{port}/sse").parse()?)).await
}

/// `@modelcontextprotocol/server-everything` over stdio, behind a shim with these options.
///
/// # Errors
/// It cannot be installed or the shim does not start.
pub async fn everything_stdio(options: &[&str]) -> Result<Server> {
    let script = installed(SERVERS).await?.join(EVERYTHING);
    stdio(&["node".into(), script.into(), "stdio".into()], options).await
}

/// `tests/servers/modern` over Streamable HTTP, ready to take connections.
///
/// # Errors
/// It cannot be installed or does not start.
pub async fn modern_http(eras: Eras) -> Result<Server> {
    modern_http_at(&Port::reserve()?, eras).await
}

/// [`modern_http`] at a port: again where one was before.
///
/// # Errors
/// It cannot be installed or does not start.
pub async fn modern_http_at(port: &Port, eras: Eras) -> Result<Server> {
    let mut command = node(installed(MODERN).await?.join("server.mjs"));
    command.arg("http").arg(format!("--port={port}")).args(eras.option());
    http(command, port).await
}

/// `tests/servers/modern` over stdio, behind a shim.
///
/// # Errors
/// It cannot be installed or the shim does not start.
pub async fn modern_stdio(eras: Eras) -> Result<Server> {
    let script = installed(MODERN).await?.join("server.mjs");
    let mut command: Vec<OsString> = vec!["node".into(), script.into(), "stdio".into()];
    command.extend(eras.option().map(OsString::from));
    stdio(&command, &[]).await
}

impl Eras {
    fn option(self) -> Option<&'static str> {
        (self == Self::Both).then_some("--dual")
    }
}

fn node(script: PathBuf) -> Command {
    let mut command = Command::new("node");
    command.env(NODE_OPTIONS.0, NODE_OPTIONS.1).arg(script);
    command
}

async fn http(command: Command, port: &Port) -> Result<Server> {
    listening(command, port, BackendConfig::http(format!("http://127.0.0.1:{port}/mcp").parse()?)).await
}

async fn listening(command: Command, port: &Port, transport: BackendConfig) -> Result<Server> {
    let dir = tempfile::tempdir()?;
    let mut server =
        Server { process: spawn(command, dir.path())?, dir, transport, port: Some(port.clone()) };
    let deadline = Instant::now() + START_TIMEOUT;
    while TcpStream::connect(port.address()).await.is_err() {
        let exit = server.process.try_wait()?;
        ensure!(
            exit.is_none() && Instant::now() < deadline,
            "it does not listen ({exit:?})\n{}",
            server.log()
        );
        sleep(Duration::from_millis(20)).await;
    }
    Ok(server)
}

/// The command of `@modelcontextprotocol/server-everything` over stdio.
///
/// # Errors
/// It cannot be installed.
pub async fn everything_command() -> Result<Vec<String>> {
    let script = installed(SERVERS).await?.join(EVERYTHING);
    Ok(vec!["node".to_owned(), script.display().to_string(), "stdio".to_owned()])
}

/// The command of `tests/servers/cancellable.js`, made with the official SDK; it tells in a file what it does.
///
/// # Errors
/// The SDK cannot be installed.
pub async fn cancellable_command(journal: &Path) -> Result<Vec<String>> {
    let modules = installed(SERVERS).await?.join("node_modules");
    let script = workspace().join("tests/servers/cancellable.js");
    let node_path = format!("NODE_PATH={}", modules.display());
    let words =
        ["env".into(), node_path, "node".into(), script.display().to_string(), journal.display().to_string()];
    Ok(words.into())
}

/// Behind a shim with these options.
async fn stdio(server: &[OsString], options: &[&str]) -> Result<Server> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("shim.sock");
    let mut command = Command::new(sidecar());
    command.env(NODE_OPTIONS.0, NODE_OPTIONS.1);
    command.args(["shim", "run", "--socket"]).arg(&socket).args(options);
    command.arg("--").args(server);
    let transport = BackendConfig::stdio(&socket);
    let server = Server { process: spawn(command, dir.path())?, dir, transport, port: None };
    let deadline = Instant::now() + START_TIMEOUT;
    while !socket.exists() {
        ensure!(Instant::now() < deadline, "the shim does not listen\n{}", server.log());
        sleep(Duration::from_millis(5)).await;
    }
    Ok(server)
}

impl Server {
    /// How a gateway reaches it.
    pub fn transport(&self) -> &BackendConfig {
        &self.transport
    }

    /// A backend that reaches it.
    ///
    /// # Errors
    /// None: it is one of the transports.
    pub fn backend(&self) -> Result<Backend> {
        Ok(Backend::from_config(&self.transport, &BackendOptions::default(), &Limits::default())?)
    }

    /// Its port, if it has one.
    pub fn port(&self) -> Option<Port> {
        self.port.clone()
    }

    /// Its process id; over stdio the shim's.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it has written to stdout (not over stdio) and stderr so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The sessions of `server-everything` over Streamable HTTP, in the order in which they began.
    pub fn session_ids(&self) -> Vec<String> {
        let ids = self.log();
        let ids = ids.split("initialized with ID: ").skip(1).filter_map(|rest| rest.lines().next());
        ids.map(|id| id.trim().to_owned()).collect()
    }

    /// Ends a session over Streamable HTTP behind its client's back.
    ///
    /// # Errors
    /// The server does not do it.
    pub async fn delete_session(&self, id: &str) -> Result<()> {
        let port = self.port().context("it does not listen")?;
        let mut stream = TcpStream::connect(port.address()).await?;
        let request = format!(
            "DELETE /mcp HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nMcp-Session-Id: {id}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        Ok(())
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.kill()?;
        self.process.wait().map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill(); // gone already: good
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
    }
}

fn spawn(mut command: Command, dir: &Path) -> Result<Child> {
    let log = File::create(dir.join("log"))?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {} (Debian package nodejs)", command.get_program().display()))
}

/// Where an installation is; made on first use.
async fn installed(installation: Installation) -> Result<PathBuf> {
    tokio::task::spawn_blocking(move || installation.ensure()).await.context("the installation panicked")?
}

impl Installation {
    /// `npm ci`, unless it was done for the same lock file. One process at a time, for all test binaries.
    fn ensure(self) -> Result<PathBuf> {
        let source = workspace().join(self.source);
        let target = workspace().join(self.target);
        fs::create_dir_all(&target)?;
        let guard = File::create(target.join(".lock"))?;
        flock(&guard, FlockOperation::LockExclusive)?;
        let wanted = fs::read(source.join("package-lock.json"))?;
        let stands = target.join(INSTALLED).exists()
            && fs::read(target.join("package-lock.json")).is_ok_and(|stands| stands == wanted);
        if !stands {
            eprintln!("installing the MCP servers of {} into {} (once)", self.source, self.target);
            for name in ["package.json", "package-lock.json"] {
                fs::copy(source.join(name), target.join(name))?;
            }
            let npm = Command::new("npm")
                .args(["ci", "--no-audit", "--no-fund", "--loglevel=error"])
                .current_dir(&target)
                .stdin(Stdio::null())
                .status()
                .context("npm cannot be started (Debian package npm)")?;
            ensure!(
                npm.success(),
                "`npm ci` in {} failed ({npm}): is the npm registry within reach?",
                self.target
            );
        }
        if let Some(script) = self.script {
            let wanted = fs::read(source.join(script))?;
            if fs::read(target.join(script)).ok().as_ref() != Some(&wanted) {
                fs::write(target.join(script), wanted)?;
            }
        }
        Ok(target)
    }
}
