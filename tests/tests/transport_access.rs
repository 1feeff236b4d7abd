//! Getting in: TLS, client certificates, passwords, ACLs, websockets, against a real Mosquitto.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use mcp_mqtt_tests::broker::Mosquitto;
use mcp_mqtt_transport::mqtt::{
    ConnectError, ConnectOptions, Connection, Event, Filter, Publication, PublishError, Qos, ReasonCode,
    TlsFiles,
};
use tokio::time::timeout;
use url::Url;

const LONG: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_millis(300);

fn options(url: Url) -> ConnectOptions {
    ConnectOptions {
        keep_alive: Duration::from_secs(15),
        connect_timeout: LONG,
        max_packet_size: 8 << 20,
        ..ConnectOptions::new(url, "client")
    }
}

/// Sends a message to itself.
async fn speak(options: &ConnectOptions) -> Result<()> {
    let mut connection = Connection::open(options).await?;
    connection.publisher.subscribe(vec![Filter::new("echo", Qos::AtLeastOnce)], LONG).await?;
    connection.publisher.publish_confirmed(Publication::new("echo", "hello", Qos::AtLeastOnce), LONG).await?;
    match timeout(LONG, connection.events.recv()).await.context("no echo")? {
        Some(Event::Received(received)) if received.payload == "hello" => {}
        other => bail!("not the echo: {other:?}"),
    }
    connection.publisher.disconnect(LONG).await?;
    Ok(())
}

#[tokio::test]
async fn tls_with_the_right_authority_is_trusted_and_with_another_it_is_not() -> Result<()> {
    let broker = Mosquitto::options().tls().start().await?;
    let certificates = broker.certificates();
    let trusting = |ca: &std::path::Path| ConnectOptions {
        tls: TlsFiles { ca: Some(ca.to_owned()), ..TlsFiles::default() },
        ..options(broker.tls_url())
    };
    speak(&trusting(&certificates.ca)).await?;

    let error = Connection::open(&trusting(&certificates.other_ca)).await.expect_err("another authority");
    assert!(matches!(error, ConnectError::Tls { .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");

    let public = Connection::open(&options(broker.tls_url())).await.expect_err("not a public authority");
    assert!(matches!(public, ConnectError::Tls { .. }), "{public}");

    let plain_to_tls = Url::parse(&format!("mqtts://127.0.0.1:{}", broker.port()))?;
    let error = Connection::open(&ConnectOptions { url: plain_to_tls, ..trusting(&certificates.ca) }).await;
    assert!(matches!(error, Err(ConnectError::Tls { .. })), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn rotated_files_are_picked_up_at_the_next_connect() -> Result<()> {
    let broker = Mosquitto::options().tls().start().await?;
    let dir = tempfile::tempdir()?;
    let ca = dir.path().join("ca.crt");
    let rotating = ConnectOptions {
        tls: TlsFiles { ca: Some(ca.clone()), ..TlsFiles::default() },
        ..options(broker.tls_url())
    };
    fs::copy(&broker.certificates().other_ca, &ca)?;
    assert!(matches!(Connection::open(&rotating).await, Err(ConnectError::Tls { .. })));
    fs::copy(&broker.certificates().ca, &ca)?;
    speak(&rotating).await
}

#[tokio::test]
async fn a_client_certificate_lets_in_and_its_lack_is_named_as_a_tls_failure() -> Result<()> {
    let broker = Mosquitto::options().mutual_tls().start().await?;
    let certificates = broker.certificates();
    let ca = Some(certificates.ca.clone());
    let with = TlsFiles {
        ca: ca.clone(),
        cert: Some(certificates.client_cert.clone()),
        key: Some(certificates.client_key.clone()),
    };
    speak(&ConnectOptions { tls: with, ..options(broker.tls_url()) }).await?;

    let without = TlsFiles { ca, ..TlsFiles::default() };
    let refused = Connection::open(&ConnectOptions { tls: without, ..options(broker.tls_url()) }).await;
    assert!(matches!(&refused, Err(ConnectError::Tls { .. })), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn websockets_work_with_and_without_tls() -> Result<()> {
    let broker = Mosquitto::options().websocket().tls().start().await?;
    speak(&options(broker.websocket_url())).await?;
    let mut with_path = broker.websocket_url();
    with_path.set_path("/mqtt");
    speak(&options(with_path)).await?;
    let tls = TlsFiles { ca: Some(broker.certificates().ca.clone()), ..TlsFiles::default() };
    speak(&ConnectOptions { tls: tls.clone(), ..options(broker.websocket_tls_url()) }).await?;

    let other = TlsFiles { ca: Some(broker.certificates().other_ca.clone()), ..TlsFiles::default() };
    let refused =
        Connection::open(&ConnectOptions { tls: other, ..options(broker.websocket_tls_url()) }).await;
    assert!(matches!(&refused, Err(ConnectError::Tls { .. })), "{refused:?}");

    let not_a_websocket = Url::parse(&format!("ws://127.0.0.1:{}", broker.port()))?;
    let refused = Connection::open(&ConnectOptions {
        connect_timeout: Duration::from_secs(1),
        ..options(not_a_websocket)
    })
    .await;
    assert!(
        matches!(&refused, Err(ConnectError::Unreachable { .. } | ConnectError::Timeout { .. })),
        "{refused:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_is_told_apart_from_an_unreachable_broker() -> Result<()> {
    let broker = Mosquitto::options().user("gateway", "right").start().await?;
    let with = |password: &'static str| ConnectOptions {
        username: Some("gateway".to_owned()),
        password: Some(Bytes::from_static(password.as_bytes())),
        ..options(broker.url())
    };
    speak(&with("right")).await?;
    for refused in [with("wrong"), options(broker.url())] {
        let error = Connection::open(&refused).await.expect_err("refused");
        assert!(matches!(error, ConnectError::RefusedCredentials { .. }), "{error}");
        assert!(error.to_string().contains("not authorized"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_publish_that_the_acl_forbids_says_so_and_a_subscription_stays_silent() -> Result<()> {
    let acl = "topic readwrite allowed/#\n";
    let broker = Mosquitto::options().acl(acl).start().await?;
    let mut connection = Connection::open(&options(broker.url())).await?;
    let to = |topic: &str| Publication::new(topic, "hello", Qos::AtLeastOnce);
    let publisher = &connection.publisher;

    let error = publisher.publish_confirmed(to("forbidden/a"), LONG).await;
    assert_eq!(error, Err(PublishError::Refused(ReasonCode::NOT_AUTHORIZED)));
    publisher.publish_confirmed(to("allowed/a"), LONG).await?;

    // Mosquitto grants a subscription that the ACL forbids, and then delivers nothing.
    let granted = publisher
        .subscribe(
            vec![Filter::new("forbidden/#", Qos::AtLeastOnce), Filter::new("allowed/#", Qos::AtLeastOnce)],
            LONG,
        )
        .await?;
    assert_eq!(granted.len(), 2);
    let other =
        Connection::open(&ConnectOptions { client_id: "other".to_owned(), ..options(broker.url()) }).await?;
    other.publisher.try_publish(to("forbidden/a"))?;
    other.publisher.try_publish(to("allowed/b"))?;
    let first = timeout(LONG, connection.events.recv()).await?;
    assert!(matches!(first, Some(Event::Received(received)) if received.topic == "allowed/b"));
    assert!(timeout(QUIET, connection.events.recv()).await.is_err());
    Ok(())
}

#[tokio::test]
async fn unsubscribing_answers_for_each_filter_and_ends_delivery() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let mut connection = Connection::open(&options(broker.url())).await?;
    let publisher = &connection.publisher;
    publisher
        .subscribe(vec![Filter::new("a", Qos::AtLeastOnce), Filter::new("b", Qos::AtMostOnce)], LONG)
        .await?;
    let reply = publisher.unsubscribe(["a", "never", "b"].map(str::to_owned).to_vec())?;
    assert_eq!(
        timeout(LONG, reply).await??,
        [ReasonCode::SUCCESS, ReasonCode::NO_SUBSCRIPTION_EXISTED, ReasonCode::SUCCESS]
    );
    publisher.publish_confirmed(Publication::new("a", "x", Qos::AtLeastOnce), LONG).await?;
    assert!(timeout(QUIET, connection.events.recv()).await.is_err());
    Ok(())
}

#[tokio::test]
async fn options_that_cannot_work_are_refused_before_anything_is_sent() -> Result<()> {
    for (url, why) in [
        ("http://localhost", "scheme"),
        ("mqtt://user:secret@localhost", "credentials"),
        ("mqtt:nothing", "host"),
    ] {
        let error = Connection::open(&options(Url::parse(url)?)).await.expect_err(url);
        assert!(matches!(error, ConnectError::Options(_)), "{error}");
        let message = error.to_string();
        assert!(message.contains(why) && !message.contains("secret"), "{message}");
    }
    let nowhere = Connection::open(&options(Url::parse("mqtt://broker.invalid")?)).await;
    assert!(
        matches!(&nowhere, Err(ConnectError::Unreachable { address, .. }) if address == "broker.invalid:1883")
    );
    Ok(())
}
