//! What passes through a session.

use std::os::unix::fs::PermissionsExt;

use mcp_mqtt_sidecar::backend::{BackendEnd, FromBackend, failure};

use crate::rig::{MAX_MESSAGE, Shim, ping};

#[tokio::test]
async fn messages_come_back_in_order_whatever_their_size() {
    let shim = Shim::command(&[], &["cat"]);
    let mut client = shim.open();
    let sent: Vec<String> = (0..500_usize)
        .map(|n| {
            format!(
                r#"{{"jsonrpc":"2.0","id":{n},"method":"m","params":{{"x":"{}"}}}}"#,
                "é".repeat(n * n % 9973)
            )
        })
        .collect();
    for chunk in sent.chunks(50) {
        for raw in chunk {
            client.send(raw).await;
        }
        for raw in chunk {
            assert_eq!(&client.raw().await, raw);
        }
    }
    client.close().await;
    shim.until_alone().await;
}

#[tokio::test]
async fn a_message_on_several_lines_reaches_the_server_on_one() {
    let shim = Shim::command(&[], &["cat"]);
    let mut client = shim.open();
    client.send("{\"jsonrpc\":\"2.0\",\r\n  \"method\":\"m\"\n}").await;
    assert_eq!(client.raw().await, "{\"jsonrpc\":\"2.0\",    \"method\":\"m\" }");
}

#[tokio::test]
async fn sessions_do_not_share_a_process() {
    let shim = Shim::script(&[], r#"echo "{\"jsonrpc\":\"2.0\",\"method\":\"pid-$$\"}"; cat"#);
    let (mut one, mut other) = (shim.open(), shim.open());
    assert_ne!(one.raw().await, other.raw().await);
    one.close().await;
    other.send(&ping(1)).await;
    assert_eq!(other.raw().await, ping(1));
}

#[tokio::test]
async fn what_is_no_message_is_reported_and_the_session_goes_on() {
    let shim = Shim::script(&[], "echo 'Server v1.0 listening on stdio'; echo; cat");
    let mut client = shim.open();
    match client.event().await {
        FromBackend::Malformed { detail } => assert!(detail.contains("listening on stdio"), "{detail}"),
        other => panic!("{other:?}"),
    }
    client.send(&ping(1)).await;
    assert_eq!(client.raw().await, ping(1));
}

#[tokio::test]
async fn a_line_over_the_limit_fails_its_request_and_the_session_goes_on() {
    const TEN_MIB: usize = 10 * 1024 * 1024;
    let answer = format!(
        r#"printf '{{"result":"'; head -c {TEN_MIB} /dev/zero | tr '\0' a; printf '","jsonrpc":"2.0","id":7}}\n'; cat"#
    );
    let shim = Shim::script(&[], &answer);
    let mut client = shim.open();
    client.send(&ping(8)).await;
    match client.event().await {
        FromBackend::Malformed { detail } => assert!(detail.contains(&MAX_MESSAGE.to_string()), "{detail}"),
        other => panic!("{other:?}"),
    }
    match client.event().await {
        FromBackend::RequestFailed { id, reason, .. } => {
            assert_eq!((id.as_json(), reason), ("7", failure::ANSWER_TOO_LARGE));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.raw().await, ping(8));
}

#[tokio::test]
async fn last_words_come_before_the_end_and_the_end_says_how() {
    for (script, how) in [
        (r#"echo '{"jsonrpc":"2.0","method":"bye"}'; exit 3"#, "exit code 3"),
        (r#"echo '{"jsonrpc":"2.0","method":"bye"}'; exit 0"#, "exit code 0"),
        (r#"printf '{"jsonrpc":"2.0","method":"bye"}'; kill -9 $$"#, "signal 9 (killed; out of memory?)"),
    ] {
        let shim = Shim::script(&[], script);
        let mut client = shim.open();
        assert!(client.raw().await.contains("bye"));
        assert_eq!(client.end().await, BackendEnd::Exited(how.to_owned()));
    }
}

#[tokio::test]
async fn a_process_that_closes_one_of_its_pipes_is_ended() {
    for script in ["exec 1>&-; sleep 1000", "exec 0<&-; sleep 1000"] {
        let shim = Shim::script(&[], script);
        let mut client = shim.open();
        shim.until("it sleeps", || shim.descendants().iter().any(|process| process.contains("sleep"))).await;
        let _ = client.session.say(crate::rig::message(&ping(1)));
        match client.end().await {
            BackendEnd::Exited(how) => assert!(how.contains("being ended"), "{how}"),
            other => panic!("{other:?}"),
        }
        shim.until_alone().await;
    }
}

#[tokio::test]
async fn anyone_in_the_pod_may_use_the_socket() {
    let shim = Shim::command(&[], &["cat"]);
    assert_eq!(std::fs::metadata(shim.socket()).unwrap().permissions().mode() & 0o777, 0o666);
}

#[tokio::test]
async fn nothing_of_what_was_said_before_the_end_is_lost() {
    let shim = Shim::script(
        &[],
        r#"for n in $(seq 300); do echo "{\"jsonrpc\":\"2.0\",\"method\":\"m$n\"}"; done; touch "$DIRECTORY/said"; sleep 60 &"#,
    );
    let mut client = shim.open();
    // More than the bridge's channel takes: most of it is still in the pipe when the process has ended, and the shim
    // ends the child that it left.
    let marker = shim.directory.path().join("said");
    shim.until("all is said", || marker.exists()).await;
    shim.until_alone().await;
    for n in 1..=300 {
        assert!(client.raw().await.contains(&format!("\"m{n}\"")));
    }
    assert_eq!(client.end().await, BackendEnd::Exited("exit code 0".to_owned()));
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_any_more_does_not_break_the_server() {
    // As Node does, it fails where its stdout is closed.
    let script = r#"trap '' PIPE; cat > /dev/null; sleep 0.2; echo '{"jsonrpc":"2.0","id":1,"result":{}}' && touch "$DIRECTORY/said""#;
    let shim = Shim::script(&[], script);
    let client = shim.open();
    shim.until("it reads", || shim.descendants().iter().any(|process| process.contains("cat"))).await;
    client.close().await;
    let marker = shim.directory.path().join("said");
    shim.until("it has said it", || marker.exists()).await;
    shim.until_alone().await;
}
