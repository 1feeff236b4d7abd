//! `cargo xtask mcp` against a broker that is not the demo's: TLS, a password, a client certificate.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use mcp_mqtt_tests::{
    binaries,
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME},
};
use tempfile::TempDir;
use tokio::{process::Command, time::timeout};

/// Where `cargo xtask mcp` finds the password if no file has it.
const PASSWORD: &str = "MCP_MQTT_BROKER_PASSWORD";

/// A broker that wants TLS and a password, and a gateway that has both.
struct Secured {
    broker: Mosquitto,
    _gateway: Gateway,
    dir: TempDir,
}

impl Secured {
    async fn start(broker: mcp_mqtt_tests::broker::Options) -> Result<Self> {
        let broker = broker.user("gateway", "secret").user("caller", "word").start().await?;
        let dir = tempfile::tempdir()?;
        let files = broker.certificates();
        let gateway = Options::new(&broker.tls_url())
            .arg(&flag("--broker-ca-file", &files.ca))
            .arg(&flag("--broker-cert-file", &files.client_cert))
            .arg(&flag("--broker-key-file", &files.client_key))
            .file("--broker-username-file", dir.path(), "gateway")?
            .file("--broker-password-file", dir.path(), "secret")?
            .start()?;
        gateway.wait_ready().await?;
        fs::write(dir.path().join("word"), "word\n")?;
        Ok(Self { broker, _gateway: gateway, dir })
    }

    /// `cargo xtask mcp` at this broker; whether it ended well, and all that it said.
    async fn mcp(&self, access: &[String], password: Option<&str>, ask: &[&str]) -> Result<(bool, String)> {
        let mut command = Command::new(binaries::xtask());
        command.arg("mcp").arg(format!("--broker={}", self.broker.tls_url())).args(access).args(ask);
        command.env_remove(PASSWORD).envs(password.map(|word| (PASSWORD, word)));
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(2 * PATIENCE, command.output()).await.context("it does not end")??;
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        Ok((output.status.success(), said.concat()))
    }

    fn ca(&self) -> String {
        flag("--ca-file", &self.broker.certificates().ca)
    }

    fn password_file(&self) -> String {
        flag("--password-file", &self.dir.path().join("word"))
    }
}

fn flag(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

const USER: &str = "--username=caller";

#[tokio::test]
async fn a_broker_with_tls_and_a_password_is_listed_and_called() -> Result<()> {
    let secured = Secured::start(Mosquitto::options().tls()).await?;
    let access = [USER.to_owned(), secured.password_file(), secured.ca()];
    let (good, said) = secured.mcp(&access, None, &["list"]).await?;
    ensure!(good && said.contains(SERVER_NAME), "{said}");
    let (good, said) = secured.mcp(&access, None, &["tools", SERVER_NAME]).await?;
    ensure!(good && said.contains("echo"), "{said}");
    let call = ["call", SERVER_NAME, "echo", r#"{"message":"first call"}"#];
    let (good, said) = secured.mcp(&access, None, &call).await?;
    ensure!(good && said.contains("first call"), "{said}");
    // The password of the environment, as where it comes out of a Secret.
    let (good, said) = secured.mcp(&[USER.to_owned(), secured.ca()], Some("word"), &call).await?;
    ensure!(good && said.contains("first call"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_client_certificate_opens_a_broker_that_wants_one() -> Result<()> {
    let secured = Secured::start(Mosquitto::options().mutual_tls()).await?;
    let files = secured.broker.certificates();
    let mut access = vec![USER.to_owned(), secured.password_file(), secured.ca()];
    let (good, said) = secured.mcp(&access, None, &["list"]).await?;
    ensure!(!good && said.contains("--cert-file and --key-file"), "{said}");
    access.extend([flag("--cert-file", &files.client_cert), flag("--key-file", &files.client_key)]);
    let (good, said) = secured.mcp(&access, None, &["list"]).await?;
    ensure!(good && said.contains(SERVER_NAME), "{said}");
    Ok(())
}

#[tokio::test]
async fn what_keeps_it_out_is_named_with_the_argument_that_mends_it() -> Result<()> {
    let secured = Secured::start(Mosquitto::options().tls()).await?;
    let (user, ca, word) = (USER.to_owned(), secured.ca(), secured.password_file());
    let other = flag("--ca-file", &secured.broker.certificates().other_ca);
    let none = flag("--ca-file", Path::new("/no/such/ca.pem"));
    for (access, password, named) in [
        (vec![user.clone(), word.clone()], None, &["TLS", "give that authority's by --ca-file"][..]),
        (vec![user.clone(), word.clone(), other], None, &["TLS", "check --ca-file"]),
        (vec![user.clone(), word, none], None, &["/no/such/ca.pem", "check --ca-file"]),
        (vec![user.clone(), ca.clone()], Some("hunter2"), &["refused the credentials", "--password-file"]),
        (vec![ca.clone()], None, &["refused", "check --username"]),
        (vec![user, ca, "--password-file=/no/such".to_owned()], None, &["/no/such: check --password-file"]),
    ] {
        let (good, said) = secured.mcp(&access, password, &["list"]).await?;
        ensure!(!good && named.iter().all(|part| said.contains(part)), "{access:?}: {said}");
        ensure!(!said.contains("hunter2"), "{said}");
    }
    Ok(())
}
