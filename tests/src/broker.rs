//! Mosquitto, the real one, on loopback ports of its own.

use std::{
    fmt::Write as _,
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use url::Url;

use crate::{certificates::Certificates, ports::Port};

/// How long Mosquitto may take to listen; it takes milliseconds on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// What a broker is started with. The default is one plain listener, open to all.
#[derive(Debug, Clone, Default)]
pub struct Options {
    users: Vec<(String, String)>,
    acl: Option<String>,
    tls: Option<Tls>,
    websocket: bool,
    max_packet_size: Option<u32>,
    quiet: bool,
    extra: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tls {
    require_client_certificate: bool,
}

impl Options {
    /// Lets in this user (and from now on nobody without a password).
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.push((name.to_owned(), password.to_owned()));
        self
    }

    /// Text of the ACL file.
    #[must_use]
    pub fn acl(mut self, text: &str) -> Self {
        self.acl = Some(text.to_owned());
        self
    }

    /// Adds a TLS listener, with certificates made for it.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = Some(Tls { require_client_certificate: false });
        self
    }

    /// Logs no packets, as a broker at work does; for measurements.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Adds a TLS listener that wants a client certificate.
    #[must_use]
    pub fn mutual_tls(mut self) -> Self {
        self.tls = Some(Tls { require_client_certificate: true });
        self
    }

    /// Adds a websocket listener (and with TLS another one over TLS).
    #[must_use]
    pub fn websocket(mut self) -> Self {
        self.websocket = true;
        self
    }

    /// Maximum Packet Size, which CONNACK tells.
    #[must_use]
    pub fn max_packet_size(mut self, bytes: u32) -> Self {
        self.max_packet_size = Some(bytes);
        self
    }

    /// Another line of `mosquitto.conf`.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.extra.push(line.to_owned());
        self
    }

    /// Starts the broker.
    ///
    /// # Errors
    /// When Mosquitto is not installed or does not start; its log is in the message.
    pub async fn start(self) -> Result<Mosquitto> {
        let dir = tempfile::tempdir().context("cannot make a directory for the broker")?;
        let ports = Ports::reserve()?;
        let certificates = self.tls.map(|_| Certificates::generate(dir.path())).transpose()?;
        let configuration = configure(&self, &ports, dir.path())?;
        fs::write(dir.path().join("mosquitto.conf"), configuration)?;
        let listening = ports.of(&self);
        let child = spawn(dir.path())?;
        let mut broker = Mosquitto { child, dir, ports, listening, certificates };
        broker.wait_until_listening().await?;
        Ok(broker)
    }
}

/// A running Mosquitto. Dropping it kills it and removes its files.
#[derive(Debug)]
pub struct Mosquitto {
    child: Child,
    dir: TempDir,
    ports: Ports,
    /// Those of `ports` that it listens on.
    listening: Vec<Port>,
    certificates: Option<Certificates>,
}

#[derive(Debug)]
struct Ports {
    plain: Port,
    tls: Port,
    websocket: Port,
    websocket_tls: Port,
}

impl Mosquitto {
    /// One plain listener, open to all.
    ///
    /// # Errors
    /// As [`Options::start`].
    pub async fn start() -> Result<Self> {
        Self::options().start().await
    }

    /// To choose what it is started with.
    pub fn options() -> Options {
        Options::default()
    }

    async fn wait_until_listening(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        let mut waiting = self.listening.clone();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("mosquitto ended at once ({status}); its log:\n{}", self.log());
            }
            // Blocking, but on loopback it is answered or refused at once.
            waiting
                .retain(|port| TcpStream::connect_timeout(&port.address(), Duration::from_secs(1)).is_err());
            if waiting.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "mosquitto does not listen on {waiting:?} after {START_TIMEOUT:?}; its log:\n{}",
                self.log()
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// `mqtt://127.0.0.1:…`
    pub fn url(&self) -> Url {
        url("mqtt", "127.0.0.1", &self.ports.plain)
    }

    /// Port of the plain listener.
    pub fn port(&self) -> u16 {
        self.ports.plain.number()
    }

    /// `mqtts://localhost:…`, when it was started with TLS.
    pub fn tls_url(&self) -> Url {
        url("mqtts", "localhost", &self.ports.tls)
    }

    /// `ws://127.0.0.1:…`, when it was started with websockets.
    pub fn websocket_url(&self) -> Url {
        url("ws", "127.0.0.1", &self.ports.websocket)
    }

    /// `wss://localhost:…`, when it was started with websockets and TLS.
    pub fn websocket_tls_url(&self) -> Url {
        url("wss", "localhost", &self.ports.websocket_tls)
    }

    /// The certificate files, when it was started with TLS.
    pub fn certificates(&self) -> &Certificates {
        self.certificates.as_ref().expect("started with `tls` or `mutual_tls`")
    }

    /// Stops its process where it stands: connections stay open and nothing answers.
    ///
    /// # Errors
    /// When it is gone.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on after [`pause`](Self::pause).
    ///
    /// # Errors
    /// When it is gone.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill mosquitto")?;
        self.child.wait().context("cannot wait for mosquitto")?;
        Ok(())
    }

    /// Kills it, when it still runs, and starts it again on the same ports. Nothing persists.
    ///
    /// # Errors
    /// As [`Options::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.child = spawn(self.dir.path())?;
        self.wait_until_listening().await
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot send {signal:?} to mosquitto"))
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        // Kill works on a stopped process, too. Nothing can be done here about a failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ports {
    fn reserve() -> Result<Self> {
        let port = Port::reserve;
        Ok(Self { plain: port()?, tls: port()?, websocket: port()?, websocket_tls: port()? })
    }

    /// Those that a broker with these options listens on.
    fn of(&self, options: &Options) -> Vec<Port> {
        let tls = options.tls.is_some();
        let ports = [
            (&self.plain, true),
            (&self.tls, tls),
            (&self.websocket, options.websocket),
            (&self.websocket_tls, options.websocket && tls),
        ];
        ports.into_iter().filter(|(_, used)| *used).map(|(port, _)| port.clone()).collect()
    }
}

fn url(scheme: &str, host: &str, port: &Port) -> Url {
    Url::parse(&format!("{scheme}://{host}:{port}")).expect("it is a URL")
}

fn spawn(dir: &Path) -> Result<Child> {
    let log = fs::File::create(dir.join("log"))?;
    Command::new(program("mosquitto"))
        .arg("-c")
        .arg(dir.join("mosquitto.conf"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context(
            "cannot start mosquitto: install the Debian package `mosquitto` (apt-get install mosquitto); \
             `cargo xtask test` does so by itself when it runs as root",
        )
}

/// Debian has the broker in /usr/sbin, which is not in everybody's PATH.
fn program(name: &str) -> PathBuf {
    let in_sbin = Path::new("/usr/sbin").join(name);
    if in_sbin.exists() { in_sbin } else { name.into() }
}

fn configure(options: &Options, ports: &Ports, dir: &Path) -> Result<String> {
    let log_type = if options.quiet { "error" } else { "all" };
    let mut text = format!("persistence false\nset_tcp_nodelay true\nlog_dest stderr\nlog_type {log_type}\n");
    if rustix::process::geteuid().is_root() {
        // It would become the user `mosquitto`, who cannot read our directory.
        text.push_str("user root\n");
    }
    if options.users.is_empty() {
        text.push_str("allow_anonymous true\n");
    } else {
        let path = dir.join("passwords");
        fs::write(&path, password_file(&options.users)?)?;
        writeln!(text, "allow_anonymous false\npassword_file {}", path.display())?;
    }
    if let Some(acl) = &options.acl {
        let path = dir.join("acl");
        fs::write(&path, acl)?;
        writeln!(text, "acl_file {}", path.display())?;
    }
    if let Some(bytes) = options.max_packet_size {
        writeln!(text, "max_packet_size {bytes}")?;
    }
    for line in &options.extra {
        writeln!(text, "{line}")?;
    }
    writeln!(text, "listener {} 127.0.0.1", ports.plain)?;
    if options.websocket {
        writeln!(text, "listener {} 127.0.0.1\nprotocol websockets", ports.websocket)?;
    }
    if let Some(tls) = options.tls {
        let files = format!(
            "cafile {dir}/ca.crt\ncertfile {dir}/server.crt\nkeyfile {dir}/server.key\nrequire_certificate {required}",
            dir = dir.display(),
            required = tls.require_client_certificate,
        );
        writeln!(text, "listener {} 127.0.0.1\n{files}", ports.tls)?;
        if options.websocket {
            writeln!(text, "listener {} 127.0.0.1\nprotocol websockets\n{files}", ports.websocket_tls)?;
        }
    }
    Ok(text)
}

/// The content of Mosquitto's `password_file` that lets in these users with their passwords.
///
/// # Errors
/// When Mosquitto is not installed.
pub fn password_file(users: &[(String, String)]) -> Result<String> {
    let file = tempfile::NamedTempFile::new().context("cannot make a file for the passwords")?;
    for (name, password) in users {
        let status = Command::new("mosquitto_passwd")
            .arg("-b")
            .arg(file.path())
            .args([name, password])
            .status()
            .context("cannot run mosquitto_passwd: it is in the Debian package `mosquitto`")?;
        ensure!(status.success(), "mosquitto_passwd: {status}");
    }
    Ok(fs::read_to_string(file.path())?)
}
