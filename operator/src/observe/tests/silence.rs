//! The observer among gateways that take a connection and say nothing, at addresses of the loopback network.

use std::{net::Ipv4Addr, sync::atomic::AtomicUsize};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
    time::sleep,
};

use super::*;
use crate::watched::{Watched, tests::watched};

/// Addresses that no other test has.
struct Network {
    prefix: [u8; 2],
    next: AtomicUsize,
}

impl Network {
    fn new() -> Self {
        Self { prefix: [fastrand::u8(1..255), fastrand::u8(..)], next: AtomicUsize::new(1) }
    }

    /// A gateway that answers nothing, as a stopped process does.
    async fn silent(&self) -> (Ipv4Addr, TcpListener) {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let address = Ipv4Addr::new(127, self.prefix[0], self.prefix[1], u8::try_from(number).unwrap());
        (address, TcpListener::bind((address, ADMIN_PORT)).await.unwrap())
    }

    /// A gateway that answers.
    async fn answering(&self) -> (Ipv4Addr, JoinHandle<()>) {
        let (address, listener) = self.silent().await;
        let answers = tokio::spawn(async move {
            let body = serde_json::to_string(&status(0)).unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (address, answers)
    }
}

fn gateway(uid: &str, host: &str, address: Ipv4Addr) -> Pod {
    let running = json!([{"name": "gateway", "state": {"running": {}}}]);
    let annotations = json!({"mcp-mqtt.io/service-name": "weather"});
    let metadata = json!({"name": uid, "namespace": "meteo", "uid": uid, "annotations": annotations});
    let status = json!({
        "phase": "Running", "podIP": address, "hostIP": host, "initContainerStatuses": running,
        "conditions": [{"type": "Ready", "status": "True"}],
    });
    serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
}

fn observe(pods: Vec<Pod>) -> (Watched, JoinHandle<()>) {
    let watched = watched(None, Vec::new(), pods);
    let observer = Observer {
        stores: watched.stores.clone(),
        watched: "*".to_owned(),
        observations: watched.observations.clone(),
        interval: Duration::from_secs(5),
        metrics: Arc::new(Metrics::new()),
        changed: mpsc::channel(CHANGED_CAPACITY).0,
    };
    (watched, tokio::spawn(observer.run()))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_been_silent_for_long_keeps_nobody_waiting_who_answers() {
    const SILENT: usize = 200;
    let network = Network::new();
    let (mut pods, mut held) = (Vec::new(), Vec::new());
    for number in 0..SILENT {
        let (address, listener) = network.silent().await;
        pods.push(gateway(&format!("silent-{number}"), "10.0.0.1", address));
        held.push(listener);
    }
    let names = ["a", "b", "c"];
    for name in names {
        let (address, _) = network.answering().await;
        pods.push(gateway(name, &format!("10.0.1.{name}"), address));
    }
    let uids: Vec<String> = pods.iter().filter_map(ResourceExt::uid).collect();
    let (watched, observer) = observe(pods);
    let long_ago = Instant::now().checked_sub(2 * LONG_SILENT).unwrap();
    for uid in uids {
        if uid.starts_with("silent") {
            watched.observations.set(&uid, Err("no answer".to_owned()));
            lock(&watched.observations.0).unanswered.insert(uid, long_ago);
        }
    }
    // The first answers may have found the silent ones asked already.
    sleep(2 * ANSWER).await;
    let mut longest = Duration::ZERO;
    for _ in 0..50 {
        for name in names {
            longest = longest.max(watched.observations.last(name).unwrap().0.elapsed());
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert!(longest < 3 * TICK, "a node was not heard of for {longest:?}");
    observer.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_full_nodes_that_are_lost_all_gateways_are_asked_at_once() {
    const PODS: usize = 200;
    let network = Network::new();
    let (mut pods, mut held) = (Vec::new(), Vec::new());
    for number in 0..PODS {
        let (address, listener) = network.silent().await;
        pods.push(gateway(
            &number.to_string(),
            if number % 2 == 0 { "10.0.0.1" } else { "10.0.0.2" },
            address,
        ));
        held.push(listener);
    }
    let uids: Vec<String> = pods.iter().filter_map(ResourceExt::uid).collect();
    let (watched, observer) = observe(pods);
    for uid in &uids {
        watched.observations.set(uid, Ok(status(0)));
    }
    let start = Instant::now();
    while uids.iter().any(|uid| watched.observations.silent_for(uid).is_none()) {
        sleep(TICK / 10).await;
    }
    // Both nodes are asked each second, and suspected at the tick after.
    assert!(start.elapsed() < 5 * TICK, "only after {:?}", start.elapsed());
    observer.abort();
}
