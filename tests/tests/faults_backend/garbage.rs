//! A stdio server that says what it should not.

use anyhow::Result;
use mcp_mqtt_tests::{
    baseline::Baseline,
    broker::Mosquitto,
    gateway::{Gateway, call, connect, open, reason},
};
use serde_json::json;

#[tokio::test]
async fn lines_of_ten_mebibytes_are_an_error_or_dropped_and_their_memory_is_given_back() -> Result<()> {
    const LINE: usize = 10 << 20;
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let before = Baseline::of(&gateway);
    for _ in 0..3 {
        let error = call(&session, "big", json!({"bytes": LINE})).await.expect_err("over the limit");
        assert_eq!(reason(&error), Some("answer-too-large"), "{error}");
        assert_eq!(call(&session, "flood", json!({"count": 2, "bytes": LINE})).await?, "flooded");
    }
    // Three answers and six notifications: none of them whole in memory.
    gateway.wait_metric(r#"messages_dropped_total{reason="malformed-from-server"}"#, 9).await?;
    let failed = r#"requests_total{asker="client",method="tools/call",outcome="failed"}"#;
    assert_eq!(gateway.metric(failed).await?, 3);
    assert_eq!(gateway.status().await?.sessions, 1, "the session goes on");
    before.regained(&gateway).await
}

#[tokio::test]
async fn lines_that_are_no_json_or_no_utf_8_are_counted_and_the_session_goes_on() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let before = Baseline::of(&gateway);
    for (n, kind) in ["text", "utf8", "json"].into_iter().enumerate() {
        assert_eq!(call(&session, "garbage", json!({"kind": kind})).await?, "said", "{kind}");
        gateway
            .wait_metric(r#"messages_dropped_total{reason="malformed-from-server"}"#, n as u64 + 1)
            .await?;
    }
    assert_eq!(call(&session, "echo", json!({"message": "still here"})).await?, "still here");
    before.regained(&gateway).await
}

#[tokio::test]
async fn answers_to_nobody_and_second_answers_reach_nobody() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let gateway = Gateway::ready_at(&broker.url()).await?;
    let client = connect(&broker.url(), "c").await?;
    let session = open(&client, &gateway.instance()).await?;
    let before = Baseline::of(&gateway);
    assert_eq!(call(&session, "stranger", json!({})).await?, "said");
    gateway.wait_metric(r#"messages_dropped_total{reason="unknown-answer-of-server"}"#, 2).await?;
    for n in 0..10 {
        assert_eq!(call(&session, "twice", json!({})).await?, "first");
        // The second answer would be taken for this one's, if it passed and ids were not compared.
        assert_eq!(call(&session, "echo", json!({"message": n.to_string()})).await?, n.to_string());
    }
    gateway.wait_metric(r#"messages_dropped_total{reason="unknown-answer-of-server"}"#, 12).await?;
    let answered = r#"requests_total{asker="client",method="tools/call",outcome="ok"}"#;
    assert_eq!(gateway.metric(answered).await?, 21);
    before.regained(&gateway).await
}
