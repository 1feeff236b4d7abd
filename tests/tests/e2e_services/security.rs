//! A broker that is reached over TLS and asks for a password, in the cluster: what the pods hold, and its rotation.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use mcp_mqtt_tests::{
    broker_pod::{BrokerPod, create},
    certificates::Authority,
    platform::{Deployed, PATIENCE, Platform, call, everything_over_stdio, text, with},
};
use mcp_mqtt_transport::{
    client::{Client, ClientOptions},
    mqtt::TlsFiles,
    topic::ClientId,
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::conditions::condition;

const USERS: [(&str, &str); 3] = [("before", "one"), ("after", "two"), ("caller", "three")];

/// Connects as a client of the outside, by the broker's certificate and with a password.
async fn connect(broker: &BrokerPod) -> Result<Client> {
    let directory = tempfile::tempdir()?;
    let ca = directory.path().join("ca.crt");
    fs::write(&ca, &broker.authority.as_ref().context("a broker with TLS")?.certificate)?;
    let start = Instant::now();
    loop {
        let id = ClientId::new(&format!("e2e-{:x}", fastrand::u64(..)))?;
        let mut options = ClientOptions::new(broker.url_by_address.clone(), id);
        options.username = Some("caller".to_owned());
        options.password = Some("three".into());
        options.tls = TlsFiles { ca: Some(ca.clone()), ..TlsFiles::default() };
        options.connect_timeout = Duration::from_secs(3);
        match Client::connect(options).await {
            // Its pod may have started a moment ago.
            Err(_) if start.elapsed() < PATIENCE => sleep(Duration::from_millis(100)).await,
            result => return Ok(result?),
        }
    }
}

/// The pods of the service's instances.
async fn instances(
    client: &Client,
    service: &Deployed,
    fits: impl Fn(&[String]) -> bool,
) -> Result<Vec<String>> {
    let mut pods = Vec::new();
    let mut watch = client.watch(service.server_name().as_str()).await?;
    service
        .until(&mut watch, |all| {
            pods = all.iter().filter_map(|instance| service.pod_of(instance).ok()).collect();
            fits(&pods)
        })
        .await?;
    Ok(pods)
}

async fn echoes(client: &Client, service: &Deployed, message: &str) -> Result<()> {
    let session = service.plain_session(client).await?;
    let answer = call(&session, "echo", json!({ "message": message })).await?;
    ensure!(text(&answer)? == format!("Echo: {message}"), "{answer}");
    Ok(())
}

/// Waits until an instance in one of these pods has connected to the broker as that user.
async fn connected_as(broker: &BrokerPod, pods: &[String], user: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let log = broker.log().await?;
        let found = log.lines().any(|line| {
            line.contains("New client connected")
                && line.contains(&format!("u'{user}'"))
                && pods.iter().any(|pod| line.contains(pod.as_str()))
        });
        if found {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "none of {pods:?} connected as {user}; the broker's log:\n{log}");
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_a_password_are_used_and_what_is_rotated_reaches_the_pods() -> Result<()> {
    let platform = Platform::get().await?;
    // The broker stands in the service's own namespace, which is there with the service: so that starts at zero.
    let service = platform.apply("secure", with(everything_over_stdio(), json!({ "replicas": 0 }))).await?;
    let (kube, namespace) = (&platform.kube, service.namespace.as_str());
    let broker = BrokerPod::create(kube, namespace, &USERS, true).await?;
    let trusted = broker.authority.as_ref().context("a broker with TLS")?.certificate.clone();
    let ca = json!({ "metadata": { "name": "broker-ca" }, "data": { "ca.crt": trusted } });
    create::<ConfigMap>(kube, namespace, ca).await?;
    let credentials =
        |user: &str, word: &str| json!({ "stringData": { "username": user, "password": word } });
    let secret = with(credentials("before", "one"), json!({ "metadata": { "name": "broker-login" } }));
    create::<Secret>(kube, namespace, secret).await?;

    let spec = json!({
        "replicas": 1,
        "broker": {
            "url": broker.url.as_str(),
            "tls": { "ca": { "configMapKeyRef": { "name": "broker-ca" } } },
            "auth": { "passwordSecret": "broker-login" },
        },
    });
    service.patch(json!({ "spec": spec })).await?;
    let client = connect(&broker).await?;
    let before = instances(&client, &service, |pods| pods.len() == 1).await?;
    echoes(&client, &service, "over TLS").await?;
    connected_as(&broker, &before, "before").await?;

    // Nothing but the Secret changes: the pods are made anew, one at a time, and connect as the new user.
    let secrets = Api::<Secret>::namespaced(kube.clone(), namespace);
    let rotated = Patch::Merge(credentials("after", "two"));
    secrets.patch("broker-login", &PatchParams::default(), &rotated).await?;
    let after = instances(&client, &service, |pods| pods.len() == 1 && pods != before).await?;
    connected_as(&broker, &after, "after").await?;
    echoes(&client, &service, "rotated").await?;

    // A certificate that nobody trusts is named; the instance that is registered goes on serving.
    let maps = Api::<ConfigMap>::namespaced(kube.clone(), namespace);
    let other = json!({ "data": { "ca.crt": Authority::new("another authority")?.certificate } });
    maps.patch("broker-ca", &PatchParams::default(), &Patch::Merge(other)).await?;
    let status =
        service.status(|status| condition(status, "Ready").to_string().contains("certificate")).await?;
    ensure!(condition(&status, "Ready")["reason"] == "RollingOut", "{status:#}");
    echoes(&client, &service, "still there").await?;
    client.close(PATIENCE).await?;
    service.remove().await
}
