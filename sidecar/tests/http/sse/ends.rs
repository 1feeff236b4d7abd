//! The end of a session, and of the server.

use std::time::{Duration, Instant};

use mcp_mqtt_sidecar::backend::{BackendEnd, FromBackend, Lost, ProbeError};
use tokio::time::timeout;

use super::{HELLO, Sse, backend};
use crate::fake::{Client, Fake, PATIENCE, json_status, on, status};

async fn until_closed(server: &Sse) {
    let deadline = Instant::now() + PATIENCE;
    while !server.stream.is_closed() {
        assert!(Instant::now() < deadline, "the stream stands");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_session_ends_by_closing_its_stream() {
    let server = Sse::usual().await;
    let client = server.session().await;
    assert!(!server.stream.is_closed());
    client.notify("notifications/cancelled", serde_json::json!({"requestId": 9})).await;
    client.close().await;
    until_closed(&server).await;
    assert_eq!(
        server.fake.whats().last().unwrap(),
        "notifications/cancelled",
        "last words are said; no DELETE"
    );
}

#[tokio::test]
async fn the_end_of_the_stream_is_the_end_of_the_session() {
    for (end, why) in [
        (super::Stream::end as fn(&super::Stream), "ended its stream"),
        (super::Stream::cut, "the stream broke"),
    ] {
        let server =
            Sse::start(HELLO, |seen, _| (seen.what() == "tools/call").then(|| status(202, ""))).await;
        let mut client = server.session().await;
        client.request(1, "tools/call").await;
        server.fake.nth("tools/call", 0).await;
        end(&server.stream);
        match client.end().await {
            BackendEnd::SessionLost(told) => assert!(told.contains(why), "{told}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(server.fake.whats().iter().filter(|what| *what == "GET").count(), 1, "nothing is resumed");
        // And the next session works.
        let mut again = Client::open(&server.backend());
        again.initialize().await;
        again.close().await;
    }
}

#[tokio::test]
async fn a_session_that_the_server_does_not_know_any_more_is_lost() {
    let not_found = || status(404, "Could not find session");
    let bad_request = || {
        json_status(
            400,
            r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"No valid session ID"}}"#,
        )
    };
    for reply in [not_found as fn() -> _, bad_request] {
        for (what, id) in [("tools/list", r#""id":1,"#), ("notifications/cancelled", "")] {
            let server = Sse::start(HELLO, move |seen, _| (seen.what() == what).then(reply)).await;
            let mut client = server.session().await;
            client.send(&format!(r#"{{"jsonrpc":"2.0",{id}"method":"{what}"}}"#)).await;
            assert!(matches!(client.end().await, BackendEnd::SessionLost(_)));
            until_closed(&server).await;
        }
    }
}

#[tokio::test]
async fn a_server_that_goes_ends_its_sessions_and_is_noticed_at_once() {
    let server = Sse::usual().await;
    let backend = server.backend();
    let mut client = server.session().await;
    let lost = tokio::spawn({
        let backend = backend.clone();
        async move { backend.lost().await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!lost.is_finished());
    let Sse { fake, stream } = server;
    fake.stop().await;
    stream.cut();
    assert!(matches!(client.end().await, BackendEnd::BackendLost(_)));
    let lost = timeout(PATIENCE, lost).await.unwrap().unwrap();
    let Lost::Gone(why) = lost else { panic!("{lost:?}") };
    assert!(why.contains("nobody listens at http://127.0.0.1:") && why.contains("transport.sse"), "{why}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_explained() {
    let fake = Fake::start(on("", |_| status(500, ""))).await;
    let backend = backend(&fake);
    fake.stop().await;
    match backend.probe().await {
        Err(ProbeError::Ended(BackendEnd::NobodyListens(why))) => {
            assert!(why.contains("nobody listens"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_never_replies_does_not_keep_a_session() {
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/sse", deaf.local_addr().unwrap());
    let config = mcp_mqtt_sidecar::config::BackendConfig::sse(url.parse().unwrap());
    let client = Client::open(&crate::fake::backend_of(&config));
    client.request(0, "initialize").await;
    let (_stream, _) = deaf.accept().await.unwrap();
    let started = Instant::now();
    client.close().await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_probe_leaves_no_session_behind() {
    let server = Sse::usual().await;
    let info = server.backend().probe().await.unwrap();
    assert_eq!((info.name.as_str(), info.protocol_version.as_str()), ("fake", "2024-11-05"));
    until_closed(&server).await;
}

#[tokio::test]
async fn a_session_dropped_at_any_moment_ends() {
    let server = Sse::usual().await;
    for round in 0..30_u64 {
        let client = Client::open(&server.backend());
        client.request(0, "initialize").await;
        client.request(1, "tools/list").await;
        tokio::time::sleep(Duration::from_micros(round * 100)).await;
        client.close().await;
    }
}

#[tokio::test]
async fn nothing_is_reported_after_the_end() {
    let server = Sse::usual().await;
    let mut client = server.session().await;
    for _ in 0..50 {
        server.stream.tell(&serde_json::json!({"jsonrpc": "2.0", "method": "n"}));
    }
    server.stream.end();
    let mut notifications = 0;
    loop {
        match client.event().await {
            FromBackend::Message(_) => notifications += 1,
            FromBackend::Ended(end) => {
                assert!(matches!(end, BackendEnd::SessionLost(_)), "{end:?}");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(notifications, 50, "its last words come before its end");
    assert!(client.events.recv().await.is_none());
}
