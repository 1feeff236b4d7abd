//! Calls in the cluster: all transports, everything that passes between a client and a real server.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kube::api::LogParams;
use mcp_mqtt_tests::{
    clients,
    cluster::eventually,
    gateway::metric_at,
    platform::{
        PATIENCE, Platform, call, everything_over_http, everything_over_sse, everything_over_stdio, text,
        with,
    },
};
use mcp_mqtt_transport::{
    client::{HandlerFuture, RequestError, Session, SessionHandler},
    jsonrpc::{Message, RpcError},
};
use serde_json::{Value, json, value::RawValue};

/// The gateway's count of calls whose client gave up. What is cancelled comes there ten seconds later, or with its
/// session's end.
const ABANDONED: &str = r#"requests_total{asker="client",method="tools/call",outcome="abandoned"}"#;

/// A client that samples, elicits and has roots, and remembers what it was told.
#[derive(Debug, Default)]
struct Able {
    requests: Mutex<Vec<String>>,
    notifications: Mutex<Vec<String>>,
}

impl Able {
    fn saw_request(&self, method: &str) -> bool {
        self.requests.lock().expect("no test panics with it").iter().any(|seen| seen == method)
    }

    async fn notified(&self, method: &str) -> Result<()> {
        let seen = async {
            while !self
                .notifications
                .lock()
                .expect("no test panics with it")
                .iter()
                .any(|seen| seen == method)
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.with_context(|| format!("no {method} came"))
    }
}

impl SessionHandler for Able {
    fn request<'a>(&'a self, request: &'a Message) -> HandlerFuture<'a, Result<Box<RawValue>, RpcError>> {
        let method = request.method().unwrap_or_default();
        self.requests.lock().expect("no test panics with it").push(method.to_owned());
        let result = match method {
            "sampling/createMessage" => {
                json!({ "role": "assistant", "model": "none", "content": { "type": "text", "text": "sampled over MQTT" } })
            }
            "elicitation/create" => {
                json!({ "action": "accept", "content": { "name": "Ada", "check": true } })
            }
            _ => json!({ "roots": [{ "uri": "file:///srv/data", "name": "data" }] }),
        };
        Box::pin(async move { Ok(RawValue::from_string(result.to_string()).expect("JSON")) })
    }

    fn notification(&self, notification: &Message) {
        self.notifications
            .lock()
            .expect("no test panics with it")
            .push(notification.method().unwrap_or_default().to_owned());
    }
}

fn capabilities() -> Value {
    json!({ "sampling": {}, "elicitation": {}, "roots": { "listChanged": true } })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_and_a_stdio_server_say_everything_to_each_other() -> Result<()> {
    converse("stdio", everything_over_stdio()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_and_a_streamable_http_server_say_everything_to_each_other() -> Result<()> {
    converse("http", everything_over_http()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_and_an_sse_server_say_everything_to_each_other() -> Result<()> {
    converse("sse", everything_over_sse()).await
}

/// Tools, progress, cancellation, sampling, elicitation, roots, list changes.
async fn converse(name: &str, spec: Value) -> Result<()> {
    let platform = Platform::get().await?;
    let service = platform.deploy(name, spec).await?;
    let client = platform.client().await?;
    let able = Arc::new(Able::default());
    let session = service.session(&client, &capabilities(), able.clone()).await?;
    assert_eq!(session.server().server_info.name, "mcp-servers/everything");

    // The server registers some tools only when it knows what the client can do.
    for tool in ["echo", "trigger-sampling-request", "trigger-elicitation-request", "get-roots-list"] {
        offers(&session, tool).await?;
    }
    if name != "http" {
        // And says so to all. Over Streamable HTTP it says so before there is a stream that it could say it on; a server
        // that says so later stands in tests/gateway_http.rs.
        able.notified("notifications/tools/list_changed").await?;
    }
    session
        .request("resources/subscribe", Some(&json!({ "uri": "demo://resource/dynamic/text/1" })), PATIENCE)
        .await?;
    call(&session, "toggle-subscriber-updates", json!({})).await?;
    able.notified("notifications/resources/updated").await?;
    assert_eq!(text(&call(&session, "echo", json!({ "message": "hello" })).await?)?, "Echo: hello");

    let sampled = call(&session, "trigger-sampling-request", json!({ "prompt": "say something" })).await?;
    ensure!(text(&sampled)?.contains("sampled over MQTT"), "{sampled}");
    ensure!(able.saw_request("sampling/createMessage"));

    let elicited = call(&session, "trigger-elicitation-request", json!({})).await?;
    ensure!(elicited.to_string().contains("Ada"), "{elicited}");
    ensure!(able.saw_request("elicitation/create"));

    let roots = call(&session, "get-roots-list", json!({})).await?;
    ensure!(roots.to_string().contains("file:///srv/data"), "{roots}");
    ensure!(able.saw_request("roots/list"));

    let mut steps = Vec::new();
    let params =
        json!({ "name": "trigger-long-running-operation", "arguments": { "duration": 1, "steps": 4 } });
    let on_progress = |progress: mcp_mqtt_transport::jsonrpc::Progress| steps.push(progress.progress);
    session.request_with_progress("tools/call", Some(&params), PATIENCE, on_progress).await?;
    assert_eq!(steps.len(), 4, "{steps:?}");

    // A call that its client gives up is cancelled at the server; the session lives on.
    let pod = service.live_pods().await?.pop().context("no pod")?;
    let admin = service.admin(&pod).await?;
    let abandoned = async || metric_at(admin, ABANDONED).await.unwrap_or_default();
    assert_eq!(abandoned().await, 0);
    let params =
        json!({ "name": "trigger-long-running-operation", "arguments": { "duration": 60, "steps": 60 } });
    let given_up = session.request("tools/call", Some(&params), Duration::from_millis(300)).await;
    ensure!(matches!(given_up, Err(RequestError::Timeout(_))), "{given_up:?}");
    assert_eq!(text(&call(&session, "echo", json!({ "message": "still here" })).await?)?, "Echo: still here");
    // The gateway has heard of it: nobody waits there for the minute that the call takes.
    eventually(PATIENCE, async || (abandoned().await == 1).then_some(()))
        .await
        .context("the gateway does not count the call as abandoned")?;

    // What the server writes to stderr is in its container's log, through the shim too.
    let of_server = LogParams { container: Some("server".to_owned()), ..LogParams::default() };
    let log = service.pods().logs(&pod, &of_server).await?;
    ensure!(log.lines().any(|line| line.starts_with("Starting ")), "the server's log is {log:?}");

    let status = service.status(|status| status["sessions"] == 1).await?;
    assert_eq!(status["server"]["name"], "mcp-servers/everything");
    session.close();
    service.status(|status| status["sessions"] == 0).await?;
    client.close(PATIENCE).await?;
    service.remove().await
}

/// Waits until a tool is there.
async fn offers(session: &Session, tool: &str) -> Result<()> {
    let listed = async {
        loop {
            let tools = session.request("tools/list", Some(&json!({})), PATIENCE).await?;
            if tools.get().contains(&format!("\"{tool}\"")) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, listed).await.with_context(|| format!("no tool {tool}"))?
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_on_one_instance_do_not_see_each_other() -> Result<()> {
    let platform = Platform::get().await?;
    let service = platform.deploy("apart", everything_over_stdio()).await?;
    let mut calls = Vec::new();
    for n in 0..8 {
        let client = platform.client().await?;
        let session = service.plain_session(&client).await?;
        calls.push(tokio::spawn(async move {
            for round in 0..20 {
                let message = format!("client {n} round {round}");
                let answer = call(&session, "echo", json!({ "message": message })).await?;
                ensure!(text(&answer)? == format!("Echo: {message}"), "{answer}");
            }
            client.close(PATIENCE).await?;
            Ok(())
        }));
    }
    for call in calls {
        call.await??;
    }
    service.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_not_ours_discovers_and_uses_a_service() -> Result<()> {
    let platform = Platform::get().await?;
    let service = platform.deploy("foreign", with(everything_over_http(), json!({ "replicas": 2 }))).await?;
    let seen = clients::everything(&platform.broker, service.server_name().as_str()).await?;
    assert_eq!(seen["server"]["name"], "mcp-servers/everything", "{seen}");
    assert_eq!(seen["echo"], "Echo: hello from MQTT.js", "{seen}");
    ensure!(seen["sampled"].as_str().is_some_and(|text| text.contains("sampled over MQTT")), "{seen}");
    assert_eq!(seen["seen"]["sampling"], 1, "{seen}");
    // The SDK forgets a request's progress handler with its answer, and the last report comes just before that.
    ensure!(seen["seen"]["progress"].as_u64() >= Some(3), "{seen}");
    ensure!(seen["tools"].as_array().is_some_and(|tools| tools.len() > 10), "{seen}");
    service.remove().await
}
