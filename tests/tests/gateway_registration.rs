//! What a broker may have against a gateway, and that each of it ends in a message that names it.

use std::time::Duration;

use anyhow::{Result, ensure};
use mcp_mqtt_sidecar::status::GatewayStatus;
use mcp_mqtt_tests::{
    binaries::workspace,
    broker::{self, Mosquitto},
    gateway::{Gateway, Options, PATIENCE, SERVER_NAME, call, connect, open},
    proxy::{
        Manner, Proxy,
        kind::{PUBLISH, SUBSCRIBE},
    },
    raw::Raw,
};
use mcp_mqtt_transport::{
    mqtt::{ConnectOptions, Connection, Publication, PublishError, Qos, ReasonCode},
    topic::{self, ServerName},
};
use serde_json::json;
use tokio::time::{sleep, timeout};

/// What a server needs, and nothing else; see the table in the gateway's self-test.
const MINIMAL_ACL: &str = "user gateway
topic write $mcp-server/presence/gw/tests/stub
topic write $mcp-server/capability/gw/tests/stub
topic read $mcp-server/gw/tests/stub
topic read $mcp-client/presence/+
topic read $mcp-client/capability/+
topic readwrite $mcp-rpc/+/gw/tests/stub

user client
topic read $mcp-server/presence/#
topic read $mcp-server/capability/#
topic write $mcp-server/gw/#
pattern readwrite $mcp-rpc/%c/+/#
pattern write $mcp-client/presence/%c
pattern write $mcp-client/capability/%c
";

fn with_users() -> broker::Options {
    Mosquitto::options().user("gateway", "secret").user("client", "client")
}

/// A gateway that logs in as `gateway`, with these passwords.
fn login(broker: &url::Url, password: &str) -> Result<(Gateway, tempfile::TempDir)> {
    let dir = tempfile::tempdir()?;
    let gateway = Options::new(broker)
        .server_id("gw")
        .file("--broker-username-file", dir.path(), "gateway\n")?
        .file("--broker-password-file", dir.path(), password)?
        .start()?;
    Ok((gateway, dir))
}

async fn refused(gateway: &Gateway, reason: &str, named: &[&str]) -> Result<()> {
    let status = gateway.wait_for(reason, |status| status.broker.reason == reason).await?;
    let message = &status.broker.message;
    for part in named {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    assert!(!status.ready() && !message.contains("secret"), "{message}");
    let (code, body) = gateway.get("/readyz").await?;
    assert!(code == 503 && body.contains(message.as_str()), "{body}");
    Ok(())
}

#[tokio::test]
async fn a_refused_password_is_named_and_a_rotated_one_picked_up() -> Result<()> {
    let broker = with_users().start().await?;
    let (gateway, dir) = login(&broker.url(), "wrong")?;
    refused(&gateway, "BrokerRefusedCredentials", &["credentials", "Secret"]).await?;
    std::fs::write(dir.path().join("broker-password-file"), "secret\n")?;
    gateway.wait_ready().await
}

#[tokio::test]
async fn a_missing_credential_file_is_named() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).arg("--broker-password-file=/no/such/file").start()?;
    refused(&gateway, "BrokerSettingsInvalid", &["/no/such/file"]).await
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_named() -> Result<()> {
    let mut broker = Mosquitto::start().await?;
    broker.kill()?;
    let gateway = Options::new(&broker.url()).start()?;
    refused(&gateway, "BrokerUnreachable", &[&broker.port().to_string(), "network"]).await
}

#[tokio::test]
async fn the_rights_of_a_minimal_acl_are_enough() -> Result<()> {
    serves_under(MINIMAL_ACL).await?;
    Ok(())
}

#[tokio::test]
async fn the_acl_that_the_documentation_gives_is_enough() -> Result<()> {
    let page = std::fs::read_to_string(workspace().join("docs/operations.md"))?;
    let block = |user: &str| {
        let (_, rest) = page.split_once(&format!("```\nuser {user}\n")).expect("it is on the page");
        rest.split_once("```").expect("a block has an end").0.to_owned()
    };
    // As it stands there, but for the services that its client may use.
    let client = block("client").replace("/tools/", "/tests/");
    let broker = serves_under(&format!("user gateway\n{}\nuser client\n{client}", block("mcp"))).await?;
    // Nor does it let a client put anything into the registry, in whatever name.
    let options = ConnectOptions {
        username: Some("client".to_owned()),
        password: Some("client".into()),
        ..ConnectOptions::new(broker.url(), "c2")
    };
    let connection = Connection::open(&options).await?;
    for topic in [
        "$mcp-server/presence/tests/finance/pay",
        "$mcp-server/presence/gw/tests/stub",
        "$mcp-server/capability/tests/finance/pay",
        "$mcp-server/capability/gw/tests/stub",
    ] {
        let forged = Publication::new(topic, "{}", Qos::AtLeastOnce);
        let answer = connection.publisher.publish_confirmed(forged, Duration::from_secs(10)).await;
        assert_eq!(answer, Err(PublishError::Refused(ReasonCode::NOT_AUTHORIZED)), "{topic}");
    }
    Ok(())
}

/// Under these rules for the users `gateway` and `client` one serves and the other calls.
async fn serves_under(acl: &str) -> Result<Mosquitto> {
    let broker = with_users().acl(acl).start().await?;
    let (gateway, _dir) = login(&broker.url(), "secret")?;
    gateway.wait_ready().await?;
    let mut options = mcp_mqtt_transport::client::ClientOptions::new(broker.url(), "c1".parse()?);
    options.username = Some("client".to_owned());
    options.password = Some("client".into());
    let client = mcp_mqtt_transport::client::Client::connect(options).await?;
    let session = open(&client, &gateway.instance()).await?;
    assert_eq!(call(&session, "echo", json!({"message": "x"})).await?, "x");
    let status = gateway.status().await?;
    assert_eq!(status.broker.message, "registered as tests/stub", "nothing to remark");
    Ok(broker)
}

#[tokio::test]
async fn an_acl_that_forbids_a_topic_is_named_with_the_topic() -> Result<()> {
    // Everything but one line; and the usual mistake: `#` does not cover topics with a dollar.
    let without = |part: &str| {
        MINIMAL_ACL.lines().filter(|line| !line.contains(part)).collect::<Vec<_>>().join("\n") + "\n"
    };
    for (acl, named) in [
        ("topic readwrite #\n".to_owned(), "$mcp-server/presence/gw/tests/stub"),
        (without("topic write $mcp-server/presence"), "$mcp-server/presence/gw/tests/stub"),
        (without("topic readwrite $mcp-rpc"), "$mcp-rpc/gw-self-test/gw/tests/stub"),
        // Mosquitto grants the subscription and stays silent.
        (
            MINIMAL_ACL.replace("readwrite $mcp-rpc/+", "write $mcp-rpc/+"),
            "$mcp-rpc/gw-self-test/gw/tests/stub",
        ),
    ] {
        let broker = with_users().acl(&acl).start().await?;
        let (gateway, _dir) = login(&broker.url(), "secret")?;
        refused(&gateway, "BrokerNotAuthorized", &[named, "ACL"]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_control_topic_that_may_be_written_and_is_not_heard_is_remarked() -> Result<()> {
    let acl = MINIMAL_ACL.replace("topic read $mcp-server/gw", "topic write $mcp-server/gw");
    let broker = with_users().acl(&acl).start().await?;
    let (gateway, _dir) = login(&broker.url(), "secret")?;
    gateway.wait_ready().await?;
    let message = gateway.status().await?.broker.message;
    assert!(message.contains("$mcp-server/gw/tests/stub did not come back"), "{message}");
    Ok(())
}

#[tokio::test]
async fn a_broker_that_closes_the_connection_on_what_it_does_not_allow_is_named() -> Result<()> {
    let broker = Mosquitto::start().await?;
    for (kind, topic) in
        [(PUBLISH, "$mcp-server/presence/"), (SUBSCRIBE, "$mcp-server/"), (PUBLISH, "$mcp-rpc/")]
    {
        let proxy =
            Proxy::start(broker.port(), Manner { closes_on: Some((kind, topic)), ..Manner::default() })
                .await?;
        let gateway = Options::new(&proxy.url()).start()?;
        refused(&gateway, "BrokerRefusedTopics", &[topic, "closed the connection", "$mcp-"]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_broker_that_closes_the_connection_on_our_own_message_to_control_is_a_good_one() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let manner = Manner { closes_on: Some((PUBLISH, "$mcp-server/gw/tests")), ..Manner::default() };
    let proxy = Proxy::start(broker.port(), manner).await?;
    let gateway = Options::new(&proxy.url()).server_id("gw").start()?;
    gateway.wait_ready().await?;
    assert_eq!(proxy.connections(), 2, "once too often, and then no more");
    Ok(())
}

#[tokio::test]
async fn a_broker_that_does_not_acknowledge_is_named() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let manner = Manner { swallows: Some("$mcp-server/presence/"), ..Manner::default() };
    let proxy = Proxy::start(broker.port(), manner).await?;
    let gateway = Options::new(&proxy.url()).start()?;
    refused(&gateway, "BrokerRefusedTopics", &["did not acknowledge", "$mcp-server/presence/"]).await
}

#[tokio::test]
async fn a_presence_that_is_too_large_for_the_broker_is_named_with_both_sizes() -> Result<()> {
    let broker = Mosquitto::options().max_packet_size(2000).start().await?;
    let description = format!("--description={}", "x".repeat(4096));
    let gateway = Options::new(&broker.url()).arg(&description).start()?;
    refused(&gateway, "BrokerSettingsInvalid", &["a packet of 4", "at most 2000", "description"]).await
}

/// What may wait for the broker has a bound, and what is over it is dropped: refusals, and nothing else.
#[tokio::test]
async fn a_flood_of_refusals_takes_no_place_of_the_presence() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let proxy = Proxy::start(broker.port(), Manner::default()).await?;
    let gateway = Options::new(&proxy.url()).arg("--max-sessions=1").arg("--max-in-flight=1").start()?;
    gateway.wait_ready().await?;
    let mut flood = Raw::connect_deaf(&broker.url(), "flood", &gateway).await?;
    // At QoS 0: otherwise the broker would wait for the gateway, as that waits for the broker.
    flood.qos = Qos::AtMostOnce;
    proxy.behave(Manner { swallows: Some("$mcp-rpc/"), ..Manner::default() });
    let ping =
        flood.publication(&flood.control, Some("flood"), r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#);
    // No more at a time than the broker queues for one client.
    for _ in 0..20 {
        flood.pour(vec![ping.clone(); 500]).await??;
        sleep(Duration::from_millis(50)).await;
    }
    gateway.wait_metric_above(r#"messages_dropped_total{reason="outbox-full"}"#, 0).await?;
    let instance = gateway.instance();
    let presence = topic::server_presence(&instance.server_id, &instance.server_name);
    let empty = Publication { retain: true, ..flood.publication(&presence, None, "") };
    flood.connection.publisher.publish_confirmed(empty, PATIENCE).await?;
    sleep(Duration::from_secs(1)).await;
    ensure!(gateway.status().await?.broker.ok, "{:?}", gateway.status().await?.broker);
    proxy.behave(Manner::default());
    proxy.cut();
    gateway.wait_for("another connection", |status| !status.broker.ok).await?;
    gateway.wait_ready().await
}

// tests/PROTOCOL.md, item 4.
#[tokio::test]
async fn the_brokers_server_name_is_adopted_everywhere_with_one_more_connect() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let manner = Manner { server_name: Some("their/name"), ..Manner::default() };
    let proxy = Proxy::start(broker.port(), manner).await?;
    let gateway = Options::new(&proxy.url()).start()?;
    gateway.wait_ready().await?;
    assert_eq!(proxy.connections(), 2);
    assert_eq!(gateway.status().await?.server_name, "their/name");
    let client = connect(&broker.url(), "c").await?;
    let mut watch = client.watch("#").await?;
    timeout(PATIENCE, watch.until(|instances| !instances.is_empty())).await?;
    let instance = client.find(&ServerName::new("their/name")?, PATIENCE).await?;
    assert_eq!(instance.online.server_name, "their/name");
    let session = open(&client, &instance).await?;
    assert_eq!(call(&session, "echo", json!({"message": "x"})).await?, "x");
    assert!(watch.instances().iter().all(|instance| instance.server_name.as_str() != SERVER_NAME));
    drop(gateway); // killed: the will has the new name
    timeout(PATIENCE, watch.until(<[_]>::is_empty)).await?;
    Ok(())
}

#[tokio::test]
async fn a_server_name_of_the_broker_that_is_none_is_named() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let manner = Manner { server_name: Some("flat"), ..Manner::default() };
    let proxy = Proxy::start(broker.port(), manner).await?;
    let gateway = Options::new(&proxy.url()).start()?;
    refused(&gateway, "BrokerSettingsInvalid", &["MCP-SERVER-NAME", "flat", "no '/'"]).await
}

#[tokio::test]
async fn tls_needs_the_right_authority_and_where_asked_a_client_certificate() -> Result<()> {
    let broker = Mosquitto::options().mutual_tls().start().await?;
    let files = broker.certificates();
    let arg = |name: &str, path: &std::path::Path| format!("{name}={}", path.display());
    let wrong = Options::new(&broker.tls_url()).arg(&arg("--broker-ca-file", &files.other_ca)).start()?;
    refused(&wrong, "BrokerTlsFailed", &["TLS", "CA"]).await?;
    let right = Options::new(&broker.tls_url())
        .arg(&arg("--broker-ca-file", &files.ca))
        .arg(&arg("--broker-cert-file", &files.client_cert))
        .arg(&arg("--broker-key-file", &files.client_key))
        .start()?;
    right.wait_ready().await
}

#[tokio::test]
async fn a_server_that_refuses_initialize_is_named_and_not_registered() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Options::new(&broker.url()).server_arg("--refuse").start()?;
    let named = |status: &GatewayStatus| {
        status.backend.reason == "BackendNotAnswering" && status.backend.message.contains("not today")
    };
    gateway.wait_for("the cause", named).await?;
    gateway.wait_for("the wait", |status| status.broker.reason == "WaitingForBackend").await?;
    Ok(())
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_ends_with_64_and_all_problems() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut gateway =
        Options::new(&broker.url()).server_id("a/b").arg("--max-sessions=0").start_without_server()?;
    assert_eq!(gateway.wait_ended().await?.code(), Some(64));
    let log = gateway.log();
    assert!(log.contains("--server-id contains '/'") && log.contains("--max-sessions is 0"), "{log}");
    Ok(())
}
