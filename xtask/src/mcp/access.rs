//! The way to a broker: its URL, and the credentials and TLS files that it asks for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use mcp_mqtt_transport::{
    client::{Client, ClientOptions},
    mqtt::{ConnectError, TlsFiles},
    topic::ClientId,
};
use url::Url;

/// The password, where no file has it. There is no argument for it: the process list shows arguments to everybody.
pub(super) const PASSWORD: &str = "MCP_MQTT_BROKER_PASSWORD";

/// Schemes of a broker with TLS.
const TLS_SCHEMES: [&str; 2] = ["mqtts", "wss"];

/// A broker, and how it is entered. The gateway's flags are taken, too, by their own names.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Access {
    /// The broker, `mqtt://`, `mqtts://`, `ws://` or `wss://`; by default that of the demo's cluster.
    #[arg(long, visible_alias = "broker-url", value_name = "URL")]
    pub(super) broker: Option<Url>,
    /// User name at the broker.
    #[arg(long, value_name = "NAME", requires = "broker")]
    username: Option<String>,
    /// File with the user name.
    #[arg(
        long,
        visible_alias = "broker-username-file",
        value_name = "PATH",
        requires = "broker",
        conflicts_with = "username"
    )]
    username_file: Option<PathBuf>,
    /// File with the password or token; without it the environment variable `MCP_MQTT_BROKER_PASSWORD`.
    #[arg(long, visible_alias = "broker-password-file", value_name = "PATH", requires = "broker")]
    password_file: Option<PathBuf>,
    /// PEM file of the certificates to trust; without it the public roots.
    #[arg(long, visible_alias = "broker-ca-file", value_name = "PATH", requires = "broker")]
    ca_file: Option<PathBuf>,
    /// PEM file of the client certificate chain.
    #[arg(long, visible_alias = "broker-cert-file", value_name = "PATH", requires_all = ["broker", "key_file"])]
    cert_file: Option<PathBuf>,
    /// PEM file of the client private key.
    #[arg(long, visible_alias = "broker-key-file", value_name = "PATH", requires_all = ["broker", "cert_file"])]
    key_file: Option<PathBuf>,
}

/// Connects under a client id of its own to a broker that is open to all.
pub(crate) async fn connect(broker: &Url) -> Result<Client> {
    Access { broker: Some(broker.clone()), ..Access::default() }.connect(None).await
}

impl Access {
    /// Connects under a client id of its own; `password` is the environment's.
    pub(super) async fn connect(&self, password: Option<String>) -> Result<Client> {
        let options = self.options(password)?;
        let url = options.url.clone();
        let connected = Client::connect(options).await;
        connected.map_err(|error| anyhow!("cannot connect to {url}: {error}{}", self.next_step(&error)))
    }

    fn options(&self, password: Option<String>) -> Result<ClientOptions> {
        let broker = self.broker.as_ref().context("--broker is missing")?;
        // The URL is not shown: it holds a password.
        if !broker.username().is_empty() || broker.password().is_some() {
            bail!("--broker holds credentials: give them by --username and --password-file or {PASSWORD}");
        }
        let tls_files =
            [("--ca-file", &self.ca_file), ("--cert-file", &self.cert_file), ("--key-file", &self.key_file)];
        for (flag, _) in tls_files.iter().filter(|(_, file)| file.is_some()) {
            if !TLS_SCHEMES.contains(&broker.scheme()) {
                bail!("{flag} is for mqtts:// and wss://, and --broker is {}://", broker.scheme());
            }
        }
        let password = match &self.password_file {
            None => password.map(String::into_bytes),
            Some(path) => Some(read("password", path, "--password-file")?),
        };
        let username = match &self.username_file {
            None => self.username.clone(),
            Some(path) => {
                let content = read("user name", path, "--username-file")?;
                Some(String::from_utf8(content).context("the user name in --username-file is not UTF-8")?)
            }
        };
        let id = ClientId::new(&format!("xtask-{:x}", fastrand::u64(..)))?;
        let mut options = ClientOptions::new(broker.clone(), id);
        "cargo xtask".clone_into(&mut options.name);
        options.username = username;
        options.password = password.map(Into::into);
        options.tls =
            TlsFiles { ca: self.ca_file.clone(), cert: self.cert_file.clone(), key: self.key_file.clone() };
        Ok(options)
    }

    /// The argument that mends it.
    fn next_step(&self, error: &ConnectError) -> String {
        match error {
            ConnectError::Options(_) => String::new(),
            ConnectError::Unreachable { .. }
            | ConnectError::Protocol { .. }
            | ConnectError::Timeout { .. } => {
                ": check --broker, and that this machine's network reaches it".to_owned()
            }
            ConnectError::Tls { .. } if self.ca_file.is_none() => {
                ": where the broker's certificate is not of a public authority, give that authority's by --ca-file"
                    .to_owned()
            }
            ConnectError::Tls { .. } => {
                ": check --ca-file, and --cert-file and --key-file if the broker wants them".to_owned()
            }
            ConnectError::RefusedCredentials { .. } | ConnectError::Refused { .. } => {
                format!(": check --username, and the password in --password-file or {PASSWORD}")
            }
        }
    }
}

/// The content of a file, without the line break at its end, which is often not part of what it holds.
fn read(what: &str, path: &Path, flag: &str) -> Result<Vec<u8>> {
    let content = fs::read(path);
    let mut content =
        content.with_context(|| format!("cannot read the {what} file {}: check {flag}", path.display()))?;
    while content.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        content.pop();
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        access: Access,
    }

    fn options(arguments: &[&str]) -> Result<ClientOptions> {
        let line = Line::try_parse_from(std::iter::once(&"mcp").chain(arguments))?;
        line.access.options(Some("of the environment".to_owned()))
    }

    #[test]
    fn the_password_is_the_files_and_without_one_the_environments() -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), "of the file\r\n")?;
        let flag = format!("--password-file={}", file.path().display());
        let with_file = options(&["--broker=mqtt://a", "--username=me", &flag])?;
        assert_eq!(with_file.password.as_deref(), Some(b"of the file".as_slice()));
        assert_eq!(with_file.username.as_deref(), Some("me"));
        let flag = format!("--broker-username-file={}", file.path().display());
        let named_by_file = options(&["--broker=mqtt://a", &flag])?;
        assert_eq!(named_by_file.username.as_deref(), Some("of the file"));
        let without = options(&["--broker=mqtt://a"])?;
        assert_eq!(without.password.as_deref(), Some(b"of the environment".as_slice()));
        Ok(())
    }

    #[test]
    fn the_gateways_own_flags_are_taken() -> Result<()> {
        let options = options(&[
            "--broker-url=wss://a/mqtt",
            "--broker-ca-file=/ca",
            "--broker-cert-file=/cert",
            "--broker-key-file=/key",
        ])?;
        let files = [options.tls.ca, options.tls.cert, options.tls.key];
        assert_eq!(files, ["/ca", "/cert", "/key"].map(|path| Some(PathBuf::from(path))));
        Ok(())
    }

    #[test]
    fn what_cannot_be_used_is_named_by_its_argument_and_no_password_is_shown() {
        for (arguments, told) in [
            (&["--broker=mqtts://me:hunter2@a"][..], "--broker holds credentials"),
            (&["--broker=mqtt://a", "--ca-file=/ca"], "--ca-file is for mqtts:// and wss://"),
            (
                &["--broker=mqtt://a", "--password-file=/no/such"],
                "password file /no/such: check --password-file",
            ),
            (&["--broker=mqtts://a", "--cert-file=/cert"], "--key-file"),
            (&["--username=me"], "--broker <URL>"),
        ] {
            let error = format!("{:#}", options(arguments).expect_err("it cannot be used"));
            assert!(error.contains(told) && !error.contains("hunter2"), "{arguments:?}: {error}");
        }
    }
}
