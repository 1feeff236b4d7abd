//! The end of a session, and of the server.

use std::time::{Duration, Instant};

use mcp_mqtt_sidecar::backend::{BackendEnd, Lost, ProbeError, Suspicion};
use tokio::time::timeout;

use crate::fake::{Client, Fake, PATIENCE, SESSION, Seen, Then, backend, events, json_status, on, status};

#[tokio::test]
async fn a_session_ends_with_a_delete() {
    let fake = Fake::start(on("DELETE", |_| status(405, ""))).await;
    let client = fake.session().await;
    client.close().await;
    assert_eq!(fake.nth("DELETE", 0).await.header("mcp-session-id"), Some(SESSION));
}

#[tokio::test]
async fn a_delete_that_is_not_answered_does_not_keep_the_session() {
    let fake = Fake::start(|seen: Seen| {
        Box::pin(async move {
            if seen.what() == "DELETE" {
                std::future::pending::<()>().await;
            }
            None
        })
    })
    .await;
    let client = fake.session().await;
    let started = Instant::now();
    client.close().await;
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn what_a_lost_session_is_answered_ends_it() {
    let not_found = || status(404, "Session not found");
    let bad_request = || {
        let body = r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID provided"}}"#;
        json_status(400, body)
    };
    for reply in [not_found as fn() -> _, bad_request] {
        for (what, id) in [("tools/list", r#""id":1,"#), ("notifications/cancelled", "")] {
            let fake = Fake::start(on(what, move |_| reply())).await;
            let mut client = fake.session().await;
            client.send(&format!(r#"{{"jsonrpc":"2.0",{id}"method":"{what}"}}"#)).await;
            match client.end().await {
                BackendEnd::SessionLost(why) => assert!(why.contains("HTTP 40"), "{why}"),
                other => panic!("{what}: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_goes_ends_its_sessions_and_is_noticed_at_once() {
    let fake = Fake::start(on("GET", |_| events(&[], Then::Stay))).await;
    let backend = fake.backend();
    let mut client = Client::open(&backend);
    client.initialize().await;
    fake.nth("GET", 0).await;
    let lost = tokio::spawn({
        let backend = backend.clone();
        async move { backend.lost().await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!lost.is_finished());
    fake.stop().await;
    let stopped = Instant::now();
    client.request(1, "ping").await;
    let lost = timeout(PATIENCE, lost).await.unwrap().unwrap();
    assert!(
        matches!(&lost, Lost::Gone(why) if why.contains("nobody listens at http://127.0.0.1:")),
        "{lost:?}"
    );
    assert!(stopped.elapsed() < Duration::from_millis(1500), "{:?}", stopped.elapsed());
    loop {
        match client.event().await {
            mcp_mqtt_sidecar::backend::FromBackend::Ended(end) => {
                assert!(matches!(end, BackendEnd::BackendLost(_)), "{end:?}");
                break;
            }
            other => drop(other), // the ping, when its connection broke first
        }
    }
}

#[tokio::test]
async fn a_server_that_has_no_room_for_a_probe_is_not_silent() {
    let fake = Fake::start(on("initialize", |_| status(503, "Too many sessions"))).await;
    let backend = fake.backend();
    let lost = tokio::spawn({
        let backend = backend.clone();
        async move { backend.lost().await }
    });
    backend.suspect(Suspicion::Silence);
    fake.nth("initialize", 0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!lost.is_finished(), "{:?}", lost.await);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_explained() {
    let fake = Fake::start(on("", |_| status(500, ""))).await;
    let url = fake.url.clone();
    fake.stop().await;
    let backend = backend(&url);
    let lost = timeout(PATIENCE, backend.lost()).await.unwrap();
    assert!(matches!(&lost, Lost::Gone(why) if why.contains("nobody listens")), "{lost:?}");
    match backend.probe().await {
        Err(ProbeError::Ended(BackendEnd::NobodyListens(why))) => {
            assert!(why.contains("nobody listens"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_told_of_a_server_holds_no_key_of_its_url() {
    let told = async |url: &str| backend(url).probe().await.unwrap_err().to_string();
    let fake = Fake::start(on("initialize", |seen| status(404, &format!("no route {}", seen.path)))).await;
    let broken = Fake::start(on("initialize", |_| events(&[], Then::Break))).await;
    let url = format!("{}?key=SECRET", fake.url);
    let misplaced = told(&url).await;
    assert!(misplaced.contains(&format!("{} answered HTTP 404", fake.url)), "{misplaced}");
    assert!(misplaced.contains("no route /mcp."), "{misplaced}");
    let broke = told(&format!("{}?key=SECRET", broken.url)).await;
    fake.stop().await;
    let gone = told(&url).await;
    assert!(gone.contains("nobody listens"), "{gone}");
    for told in [misplaced, broke, gone] {
        assert!(!told.contains("SECRET"), "{told}");
    }
}

#[tokio::test]
async fn a_probe_leaves_no_session_behind() {
    let fake = Fake::start(on("", |_| status(500, ""))).await;
    let info = fake.backend().probe().await.unwrap();
    assert_eq!(
        (info.name.as_str(), info.version.as_str(), info.protocol_version.as_str()),
        ("fake", "1.2", "2025-11-25")
    );
    let deleted = async {
        while fake.whats() != ["initialize", "DELETE"] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, deleted).await.expect("nobody waits for the end, but it comes");
}

#[tokio::test]
async fn a_session_dropped_at_any_moment_ends() {
    let fake = Fake::start(on("GET", |_| events(&[], Then::Stay))).await;
    for round in 0..30_u64 {
        let client = Client::open(&fake.backend());
        client.request(0, "initialize").await;
        client.request(1, "tools/list").await;
        tokio::time::sleep(Duration::from_micros(round * 100)).await;
        client.close().await;
    }
}

#[tokio::test]
async fn a_session_whose_handshake_is_never_answered_ends_when_it_is_dropped() {
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::open(&backend(&format!("http://{}/", deaf.local_addr().unwrap())));
    client.request(0, "initialize").await;
    let (_stream, _) = deaf.accept().await.unwrap();
    client.request(1, "ping").await;
    client.close().await;
}

#[tokio::test]
async fn a_session_dropped_while_it_opens_is_deleted_all_the_same() {
    let fake = Fake::start(|seen: Seen| {
        Box::pin(async move {
            if seen.what() == "initialize" {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            None
        })
    })
    .await;
    let client = Client::open(&fake.backend());
    client.request(0, "initialize").await;
    fake.nth("initialize", 0).await;
    client.close().await;
    assert_eq!(fake.whats(), ["initialize", "DELETE"]);
}
