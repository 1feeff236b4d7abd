//! What a server can answer to one request.

use mcp_mqtt_sidecar::backend::{BackendEnd, FromBackend, failure};
use serde_json::json;

use crate::fake::{Client, Fake, MAX_MESSAGE, Then, event, events, json, json_status, on, result, status};

#[tokio::test]
async fn a_json_answer_passes_byte_for_byte() {
    const ANSWER: &str = "{ \"result\" : {\"a\":1.0,\"b\":\"\\u00e9\"},\n\"id\":1, \"jsonrpc\":\"2.0\"}";
    let fake = Fake::start(on("tools/list", |_| json(ANSWER))).await;
    let mut client = fake.session().await;
    client.request(1, "tools/list").await;
    assert_eq!(client.raw().await, ANSWER);
}

#[tokio::test]
async fn a_stream_of_events_passes_in_order_and_the_connection_is_used_again() {
    let progress =
        |n: u64| json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": n}});
    let script = move |seen: &crate::fake::Seen| {
        let pieces = [event(&progress(1)), event(&progress(2)), event(&result(seen.body["id"].clone()))];
        events(&[&pieces[0], &pieces[1][..10], &pieces[1][10..], &pieces[2]], Then::Close)
    };
    let fake = Fake::start(on("tools/call", script)).await;
    let mut client = fake.session().await;
    for id in 1..20 {
        client.request(id, "tools/call").await;
        assert_eq!(client.message().await["params"]["progress"], 1);
        assert_eq!(client.message().await["params"]["progress"], 2);
        assert_eq!(client.message().await["id"], id);
    }
}

#[tokio::test]
async fn an_error_with_a_null_id_gets_the_id_of_its_request_back() {
    let error =
        json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32001, "message": "no", "data": {"a": 1}}});
    for (code, streamed) in [(200, false), (400, false), (500, false), (200, true)] {
        let error = error.clone();
        let script = move |_: &crate::fake::Seen| {
            if streamed {
                events(&[&event(&error)], Then::Close)
            } else {
                json_status(code, &error.to_string())
            }
        };
        let fake = Fake::start(on("tools/call", script)).await;
        let mut client = fake.session().await;
        client.send(r#"{"jsonrpc":"2.0","id":"seven","method":"tools/call"}"#).await;
        let answer = client.message().await;
        assert_eq!(answer["id"], "seven", "status {code}, streamed {streamed}");
        assert_eq!(answer["error"], json!({"code": -32001, "message": "no", "data": {"a": 1}}));
    }
}

#[tokio::test]
async fn a_reply_that_is_no_answer_fails_the_request_and_the_session_goes_on() {
    type Reply = fn() -> axum::response::Response;
    let cases: [(Reply, &str, &str); 8] = [
        (
            || status(500, "<h1>oops</h1>\nat line 1"),
            failure::HTTP_STATUS,
            "HTTP 500 Internal Server Error: <h1>oops</h1> at",
        ),
        (|| status(502, "<h1>Bad Gateway</h1>"), failure::HTTP_STATUS, "HTTP 502 Bad Gateway: <h1>Bad"),
        (|| status(503, ""), failure::HTTP_STATUS, "HTTP 503 Service Unavailable"),
        (|| status(200, "<html>"), failure::HTTP_STATUS, "content type"),
        (|| status(202, ""), failure::BAD_ANSWER, "accepted"),
        (
            || json(r#"{"jsonrpc":"2.0","id":99,"result":{}}"#),
            failure::BAD_ANSWER,
            "no answer to the request",
        ),
        (|| events(&[": nothing\n\n"], Then::Close), failure::CONNECTION_BROKEN, "closed the stream"),
        (|| status(307, ""), failure::HTTP_STATUS, "307"),
    ];
    for (reply, reason, told) in cases {
        let fake = Fake::start(on("tools/call", move |_| reply())).await;
        let mut client = fake.session().await;
        client.request(1, "tools/call").await;
        if reason == failure::BAD_ANSWER && told.starts_with("no answer") {
            assert_eq!(client.message().await["id"], 99, "passed on; the bridge knows no such request");
        }
        let (id, its_reason, detail) = client.failure().await;
        assert_eq!((id.as_str(), its_reason), ("1", reason), "{detail}");
        assert!(detail.contains(told), "{detail}");
        client.request(2, "ping").await;
        assert_eq!(client.message().await["id"], 2);
    }
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let target = Fake::start(on("", |_| status(500, ""))).await;
    let location = target.url.clone();
    let script = move |_: &crate::fake::Seen| {
        let mut reply = status(308, "");
        reply.headers_mut().insert("location", location.parse().unwrap());
        reply
    };
    let fake = Fake::start(on("tools/call", script)).await;
    let mut client = fake.session().await;
    client.request(1, "tools/call").await;
    assert!(client.failure().await.2.contains("308"));
    assert!(target.seen().is_empty(), "{:?}", target.whats());
}

#[tokio::test]
async fn an_answer_over_the_limit_fails_its_request() {
    let large = |id: &serde_json::Value| json!({"jsonrpc": "2.0", "result": "x".repeat(MAX_MESSAGE as usize), "id": id});
    for streamed in [false, true] {
        let script = move |seen: &crate::fake::Seen| {
            let large = large(&seen.body["id"]);
            if streamed { events(&[&event(&large)], Then::Stay) } else { json(&large.to_string()) }
        };
        let fake = Fake::start(on("tools/call", script)).await;
        let mut client = fake.session().await;
        client.request(1, "tools/call").await;
        assert!(matches!(client.event().await, FromBackend::Malformed { .. }));
        let (id, reason, detail) = client.failure().await;
        assert_eq!((id.as_str(), reason), ("1", failure::ANSWER_TOO_LARGE));
        assert!(detail.contains("maxMessageBytes"), "{detail}");
        client.request(2, "ping").await;
        assert_eq!(client.message().await["id"], 2);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_fails_its_request() {
    let script = |_: &crate::fake::Seen| {
        let mut reply = events(&[r#"{"jsonrpc":"2.0","#], Then::Break);
        reply.headers_mut().insert("content-type", "application/json".parse().unwrap());
        reply
    };
    let fake = Fake::start(on("tools/call", script)).await;
    let mut client = fake.session().await;
    client.request(1, "tools/call").await;
    let (id, reason, detail) = client.failure().await;
    assert_eq!((id.as_str(), reason), ("1", failure::CONNECTION_BROKEN), "{detail}");
}

#[tokio::test]
async fn an_initialize_that_meets_no_mcp_endpoint_is_explained() {
    for code in [404, 405, 500] {
        let fake = Fake::start(on("initialize", move |_| status(code, "Cannot POST /mcp"))).await;
        let mut client = Client::open(&fake.backend());
        client.request(1, "initialize").await;
        match client.end().await {
            BackendEnd::OpenRefused(why) => {
                assert!(why.contains("Cannot POST /mcp") && why.contains("streamableHttp.path"), "{why}");
            }
            other => panic!("{other:?}"),
        }
        let probed = fake.backend().probe().await.unwrap_err().to_string();
        assert!(probed.contains(&code.to_string()), "{probed}");
    }
}

#[tokio::test]
async fn a_refused_initialize_is_the_servers_own_error() {
    let refusal =
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32602,"message":"Unsupported protocol version"}}"#;
    let fake = Fake::start(on("initialize", move |_| json_status(400, refusal))).await;
    let mut client = Client::open(&fake.backend());
    client.request(5, "initialize").await;
    let answer = client.message().await;
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(5), &json!(-32602)));
    let probed = fake.backend().probe().await.unwrap_err().to_string();
    assert!(probed.contains("Unsupported protocol version"), "{probed}");
}
