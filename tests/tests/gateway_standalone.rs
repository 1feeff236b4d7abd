//! The gateway without Kubernetes: it puts any MCP server on a broker, and starts its processes itself.

use std::{
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result};
use mcp_mqtt_tests::{
    binaries,
    broker::Mosquitto,
    certificates::Authority,
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME, call, children, connect, open, runs, until},
    servers,
};
use mcp_mqtt_transport::client::SessionEnd;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::timeout,
};

/// `server-everything`, its processes started by the gateway, ready.
async fn everything(broker: &Mosquitto, extra: &[&str]) -> Result<Gateway> {
    let options = Options::new(&broker.url()).alone(&servers::everything_command().await?);
    let gateway = extra.iter().fold(options, |options, arg| options.arg(arg)).start()?;
    gateway.wait_ready().await?;
    Ok(gateway)
}

#[tokio::test]
async fn each_session_has_a_process_of_its_own_that_ends_with_it() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = everything(&broker, &[]).await?;
    until("the probe's process ends", || children(gateway.pid()).is_empty()).await?;
    let (one, two) = (connect(&broker.url(), "one").await?, connect(&broker.url(), "two").await?);
    let a = open(&one, &gateway.instance()).await?;
    let first = children(gateway.pid());
    let b = open(&two, &gateway.instance()).await?;
    assert_eq!((first.len(), children(gateway.pid()).len()), (1, 2));
    for (session, text) in [(&a, "from one"), (&b, "from two")] {
        assert_eq!(call(session, "echo", json!({"message": text})).await?, format!("Echo: {text}"));
    }
    a.close();
    until("the first one's process ends", || !runs(first[0])).await?;
    assert_eq!(call(&b, "echo", json!({"message": "still"})).await?, "Echo: still");
    // A process that ends by itself ends its session, and the next one gets another.
    let second = children(gateway.pid()).into_iter().find(|pid| *pid != first[0]);
    kill(second.expect("its session is open"), Signal::KILL);
    assert_eq!(timeout(PATIENCE, b.wait_ended()).await?, SessionEnd::Disconnected);
    assert!(gateway.log().contains("signal 9 (killed; out of memory?)"), "{}", gateway.log());
    let again = open(&two, &gateway.instance()).await?;
    assert_eq!(call(&again, "echo", json!({"message": "back"})).await?, "Echo: back");
    Ok(())
}

/// A session holds three descriptors, and by habit a process may open 1,024 files and no more. What the server is
/// started with stays what it was.
#[tokio::test]
async fn it_opens_as_many_files_as_it_may_and_its_processes_as_many_as_is_usual() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let soft = limit.maximum.map_or(1000, |hard| hard.min(1000));
    setrlimit(Resource::Nofile, Rlimit { current: Some(soft), ..limit })?; // what it inherits from us
    let broker = Mosquitto::start().await?;
    // (Node raises the limit for itself.)
    let command = ["sleep".to_owned(), "1000".to_owned()];
    let gateway = Options::new(&broker.url()).alone(&command).arg("--prewarm=1").start()?;
    let open_files = |pid: u32| -> Result<(String, String)> {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let line =
            limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("no such limit")?;
        let mut words = line.split_whitespace().map(str::to_owned);
        words.next().zip(words.next()).context("no soft and hard limit")
    };
    let of_server = || children(gateway.pid()).first().and_then(|pid| open_files(*pid).ok());
    until("a process waits for a session", || of_server().is_some()).await?;
    let (raised, hard) = open_files(gateway.pid())?;
    assert_eq!(raised, hard);
    until("it has the limit that is usual", || of_server() == Some((soft.to_string(), hard.clone()))).await
}

#[tokio::test]
async fn ctrl_c_and_sigterm_drain_and_leave_no_process() -> Result<()> {
    for signal in [Signal::INT, Signal::TERM] {
        let broker = Mosquitto::start().await?;
        let mut gateway = everything(&broker, &["--prewarm=1"]).await?;
        let client = connect(&broker.url(), "c").await?;
        let mut watch = client.watch(SERVER_NAME).await?;
        timeout(PATIENCE, watch.until(|instances| instances.len() == 1)).await?;
        let session = open(&client, &gateway.instance()).await?;
        until("the session's process and the next one's", || children(gateway.pid()).len() == 2).await?;
        let processes = children(gateway.pid());
        let slow = tokio::spawn({
            let session = session.clone();
            async move {
                call(&session, "trigger-long-running-operation", json!({"duration": 5, "steps": 1})).await
            }
        });
        gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
        gateway.signal(signal)?;
        let answer = timeout(PATIENCE, slow).await???;
        assert!(answer.contains("completed"), "what is in flight is answered: {answer}");
        assert_eq!(timeout(PATIENCE, session.wait_ended()).await?, SessionEnd::Disconnected);
        timeout(PATIENCE, watch.until(<[_]>::is_empty)).await?;
        assert!(gateway.wait_ended().await?.success());
        assert!(processes.iter().all(|pid| !runs(*pid)), "none is left when the gateway has ended");
    }
    Ok(())
}

#[tokio::test]
async fn a_gateway_that_is_killed_takes_its_processes_along() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = everything(&broker, &[]).await?;
    let client = connect(&broker.url(), "c").await?;
    let _session = open(&client, &gateway.instance()).await?;
    // One that does not care whether its stdin is open.
    let deaf = Options::new(&broker.url())
        .alone(&["sleep".to_owned(), "1000".to_owned()])
        .arg("--prewarm=1")
        .start()?;
    until("both have processes", || !children(gateway.pid()).is_empty() && !children(deaf.pid()).is_empty())
        .await?;
    let processes = [children(gateway.pid()), children(deaf.pid())].concat();
    gateway.signal(Signal::KILL)?;
    deaf.signal(Signal::KILL)?;
    until("all are gone", || processes.iter().all(|pid| !runs(*pid))).await
}

#[tokio::test]
async fn a_second_signal_ends_it_without_a_drain_and_without_its_processes() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut gateway = everything(&broker, &[]).await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let slow = tokio::spawn(async move {
        call(&session, "trigger-long-running-operation", json!({"duration": 100, "steps": 1})).await
    });
    gateway.wait_for("a request in flight", |status| status.in_flight == 1).await?;
    let processes = children(gateway.pid());
    gateway.signal(Signal::INT)?;
    gateway.wait_for("the drain", |status| status.draining).await?;
    gateway.signal(Signal::INT)?;
    assert!(!gateway.wait_ended().await?.success());
    until("its processes end", || processes.iter().all(|pid| !runs(*pid))).await?;
    let _ = timeout(PATIENCE, slow).await??.expect_err("nobody answers");
    Ok(())
}

#[tokio::test]
async fn a_server_at_a_url_is_put_on_the_broker_too() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let server = servers::everything_http().await?;
    let url = server.transport().http_url.as_ref().expect("it has one");
    let gateway = Options::new(&broker.url()).alone(&[]).arg(&format!("--url={url}")).start()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    assert_eq!(call(&session, "echo", json!({"message": "x"})).await?, "Echo: x");
    Ok(())
}

/// TLS is spoken by Node, before the same real server.
#[tokio::test]
async fn a_server_behind_tls_is_reached_if_its_certificate_is_trusted() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let server = servers::everything_http().await?;
    let dir = tempfile::tempdir()?;
    let authority = Authority::new("authority of servers")?;
    let leaf = authority.sign("localhost", &["localhost"])?;
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).map(|()| path.display().to_string())
    };
    let (certificate, key) = (file("tls.crt", &leaf.certificate)?, file("tls.key", &leaf.key)?);
    let mut front = tokio::process::Command::new("node")
        .arg(binaries::workspace().join("tests/servers/tls-front.js"))
        .args([certificate, key, server.port().expect("it has one").to_string()])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut port = String::new();
    let mut said = BufReader::new(front.stdout.take().expect("piped"));
    timeout(PATIENCE, said.read_line(&mut port)).await??;
    let url = format!("--url=https://localhost:{}/mcp", port.trim());
    let ca = format!("--url-ca-file={}", file("ca.crt", &authority.certificate)?);
    let gateway = Options::new(&broker.url()).alone(&[]).arg(&url).arg(&ca).start()?;
    gateway.wait_ready().await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    assert_eq!(call(&session, "echo", json!({"message": "x"})).await?, "Echo: x");
    let stranger = Options::new(&broker.url()).alone(&[]).arg(&url).start()?;
    stranger
        .wait_for("the cause", |status| status.backend.message.contains("invalid peer certificate"))
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_command_that_cannot_be_run_is_named() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).alone(&["no-such-server".to_owned()]).start()?;
    let named = |status: &mcp_mqtt_sidecar::status::GatewayStatus| {
        status.backend.message.contains("command not found: `no-such-server`")
    };
    gateway.wait_for("the cause", named).await?;
    Ok(())
}

/// Runs the gateway's command line to its end.
fn gateway(args: &[&str]) -> Result<Output> {
    Ok(Command::new(binaries::sidecar()).arg("gateway").args(args).output()?)
}

#[test]
fn the_shown_configuration_can_be_pasted_back_and_an_unusable_one_is_told_in_full() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let password = dir.path().join("password");
    std::fs::write(&password, "hunter2")?;
    let password = format!("--broker-password-file={}", password.display());
    let args = [
        "--broker=mqtt://broker",
        "--server-name=a/b",
        &password,
        "--print-config",
        "--",
        "npx",
        "-y",
        "x y",
    ];
    let shown = gateway(&args)?;
    let text = String::from_utf8(shown.stdout)?;
    assert!(shown.status.success() && text.contains(&password) && !text.contains("hunter2"), "{text}");
    // As a person would do it, with this test's binary for the one in the PATH.
    let pasted = text.trim_end().replacen("mcp-mqtt-sidecar gateway", "\"$0\" gateway --print-config", 1);
    let again = Command::new("sh").args(["-c", &pasted]).arg(binaries::sidecar()).output()?;
    assert_eq!(String::from_utf8(again.stdout)?, text);

    let refused = gateway(&["--server-name=echo", "--keep-alive=soon", "--print-config"])?;
    let told = String::from_utf8(refused.stderr)?;
    assert_eq!(refused.status.code(), Some(64), "{told}");
    for problem in
        ["--keep-alive \"soon\"", "--broker-url <URL> is missing", "--server-name has no '/'", "COMMAND"]
    {
        assert!(told.contains(problem), "{problem} is not in {told}");
    }
    Ok(())
}

/// A gateway without wishes listens nowhere, so that there can be several on one host.
#[tokio::test]
async fn two_gateways_with_nothing_but_their_names_run_side_by_side() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let command = servers::everything_command().await?;
    let client = connect(&broker.url(), "c").await?;
    let mut watch = client.watch("plain/#").await?;
    let mut gateways = Vec::new();
    for name in ["plain/one", "plain/two"] {
        let mut gateway = Command::new(binaries::sidecar());
        gateway
            .args(["gateway", "--broker", broker.url().as_str(), "--server-name", name, "--"])
            .args(&command);
        gateway.env(servers::NODE_OPTIONS.0, servers::NODE_OPTIONS.1);
        gateways.push(gateway.spawn()?);
    }
    let found = timeout(PATIENCE, watch.until(|instances| instances.len() == 2)).await;
    let log: Vec<_> = gateways.iter_mut().map(std::process::Child::try_wait).collect();
    for gateway in &mut gateways {
        kill(gateway.id(), Signal::TERM);
        let deadline = std::time::Instant::now() + PATIENCE;
        while gateway.try_wait()?.is_none() && std::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    found.map_err(|_| anyhow::anyhow!("not both are found: {log:?}"))?;
    Ok(())
}

fn kill(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
    let _ = rustix::process::kill_process(pid, signal); // gone meanwhile: good
}
