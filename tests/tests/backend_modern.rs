//! A real server on the SDK's second line, which speaks only 2026-07-28, behind a real gateway and a real broker, for a
//! client that begins with `initialize`; and the same server when it speaks both eras.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    gateway::{Gateway, Options, PATIENCE, call, connect, reason},
    servers::{self, Eras, Server},
};
use mcp_mqtt_transport::{
    client::{Client, ClientOptions, Session, SessionHandler},
    jsonrpc::{Message, RpcError, code},
    topic::ClientId,
};
use serde_json::{Value, json, value::RawValue};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

/// A client that answers what it is asked, and keeps what it is told.
#[derive(Debug, Default)]
struct Person {
    told: Mutex<Vec<(String, Value)>>,
    news: Notify,
    /// What it answers by method; an error where there is nothing.
    answers: HashMap<&'static str, Value>,
    /// It thinks about each answer for this long.
    thinks: Duration,
}

type Answer<'a> = std::pin::Pin<Box<dyn Future<Output = Result<Box<RawValue>, RpcError>> + Send + 'a>>;

impl SessionHandler for Person {
    fn request<'a>(&'a self, request: &'a Message) -> Answer<'a> {
        Box::pin(async move {
            self.hear(request);
            let given_up = GivenUp(self);
            sleep(self.thinks).await;
            std::mem::forget(given_up);
            let answer = self.answers.get(request.method().unwrap_or_default());
            let refusal =
                || RpcError { code: code::INTERNAL, message: "I will not say".to_owned(), data: None };
            answer
                .map(|answer| RawValue::from_string(answer.to_string()).expect("it is JSON"))
                .ok_or_else(refusal)
        })
    }

    fn notification(&self, notification: &Message) {
        self.hear(notification);
    }
}

/// The client gives an answer up when the server takes its question back.
struct GivenUp<'a>(&'a Person);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.0.keep("given up", Value::Null);
    }
}

impl Person {
    fn who_answers() -> Self {
        let answers = HashMap::from([
            ("elicitation/create", json!({"action": "accept", "content": {"name": "Ada"}})),
            (
                "sampling/createMessage",
                json!({"role": "assistant", "model": "m", "content": {"type": "text", "text": "s-42"}}),
            ),
            ("roots/list", json!({"roots": [{"uri": "file:///work"}]})),
        ]);
        Self { answers, ..Self::default() }
    }

    fn hear(&self, message: &Message) {
        let params =
            message.params().map_or(Value::Null, |params| serde_json::from_str(params).expect("JSON"));
        self.keep(message.method().unwrap_or_default(), params);
    }

    fn keep(&self, what: &str, params: Value) {
        self.told.lock().expect("no panic").push((what.to_owned(), params));
        self.news.notify_one();
    }

    fn of(&self, method: &str) -> Vec<Value> {
        let told = self.told.lock().expect("no panic");
        told.iter().filter(|(said, _)| said == method).map(|(_, params)| params.clone()).collect()
    }

    async fn hears(&self, method: &str, times: usize) -> Result<Vec<Value>> {
        let heard = async {
            while self.of(method).len() < times {
                self.news.notified().await;
            }
        };
        timeout(PATIENCE, heard).await.with_context(|| format!("{method}: {:?}", self.told))?;
        Ok(self.of(method))
    }
}

/// Server, gateway, broker, client.
struct Rig {
    server: Server,
    gateway: Gateway,
    client: Client,
    broker: Mosquitto,
}

const ALL: &str = r#"{"sampling":{},"elicitation":{},"roots":{"listChanged":true}}"#;

impl Rig {
    async fn new(server: Server) -> Result<Self> {
        Self::with(server, &[]).await
    }

    async fn with(server: Server, arguments: &[&str]) -> Result<Self> {
        let broker = Mosquitto::start().await?;
        let options = Options::new(&broker.url()).backend(server.transport());
        let options = arguments.iter().fold(options, |options, argument| options.arg(argument));
        let gateway = options.start_without_server()?;
        gateway.wait_ready().await?;
        let client = connect(&broker.url(), "person").await?;
        Ok(Self { server, gateway, client, broker })
    }

    async fn open(&self, person: &Arc<Person>, capabilities: &str) -> Result<Session> {
        let capabilities = RawValue::from_string(capabilities.to_owned())?;
        Ok(self
            .client
            .open_session(&self.gateway.instance(), &capabilities, person.clone(), PATIENCE)
            .await?)
    }

    async fn session(&self) -> Result<(Session, Arc<Person>)> {
        let person = Arc::new(Person::who_answers());
        Ok((self.open(&person, ALL).await?, person))
    }
}

async fn ask(session: &Session, method: &str, params: Value) -> Result<Value> {
    Ok(serde_json::from_str(session.request(method, Some(&params), PATIENCE).await?.get())?)
}

async fn what_every_client_does_works(rig: Rig) -> Result<()> {
    let status = rig.gateway.status().await?.server.context("server info")?;
    assert_eq!((&*status.name, &*status.protocol_version), ("modern", "2026-07-28"));
    let (session, person) = rig.session().await?;
    let server = session.server();
    assert_eq!((&*server.server_info.name, &*server.protocol_version), ("modern", "2025-11-25"));
    assert_eq!(server.instructions.as_deref(), Some("Call echo."));

    ask(&session, "ping", json!({})).await?;
    let tools = ask(&session, "tools/list", json!({})).await?;
    assert!(tools["resultType"].is_null(), "{tools}");
    let named = |name: &str| {
        tools["tools"].as_array().and_then(|tools| tools.iter().find(|tool| tool["name"] == name))
    };
    assert!(named("numbers").is_some_and(|tool| tool["outputSchema"].is_null()), "{tools}");
    assert_eq!(call(&session, "echo", json!({"message": "grüße\n\"x\""})).await?, "grüße\n\"x\"");
    let numbers = ask(&session, "tools/call", json!({"name": "numbers"})).await?;
    assert!(
        numbers["structuredContent"].is_null() && numbers["content"][0]["text"] == "1, 2, 3",
        "{numbers}"
    );
    let prompt = ask(&session, "prompts/get", json!({"name": "greet", "arguments": {"name": "Ada"}})).await?;
    assert_eq!(prompt["messages"][0]["content"]["text"], "Hello Ada");
    ask(&session, "prompts/list", json!({})).await?;
    ask(&session, "resources/list", json!({})).await?;
    ask(&session, "resources/templates/list", json!({})).await?;
    let page = ask(&session, "resources/read", json!({"uri": "test://pages/a%20b"})).await?;
    assert_eq!(page["contents"][0]["text"], "page a b");
    let reference = json!({"type": "ref/prompt", "name": "greet"});
    let completion = json!({"ref": reference, "argument": {"name": "name", "value": "A"}});
    let completed = ask(&session, "completion/complete", completion).await?;
    assert_eq!(completed["completion"]["values"], json!(["Ada", "Alan"]));

    let unknown = session.request::<()>("no/such", None, PATIENCE).await.expect_err("no method");
    assert_eq!(unknown.rpc().map(|error| error.code), Some(-32601), "the server's own error");
    let unknown =
        session.request("tools/call", Some(&json!({"name": "no"})), PATIENCE).await.expect_err("no tool");
    assert_eq!(unknown.rpc().map(|error| error.code), Some(-32602));

    let meta: Value = serde_json::from_str(&call(&session, "meta", json!({})).await?)?;
    let of = |name: &str| meta["envelope"][format!("io.modelcontextprotocol/{name}")].clone();
    assert_eq!(of("protocolVersion"), "2026-07-28");
    assert_eq!(of("clientInfo")["name"], "mcp-mqtt-transport");
    assert_eq!(of("clientCapabilities"), json!({"sampling": {}, "elicitation": {"form": {}}, "roots": {}}));
    let traced = json!({"name": "meta", "_meta": {"traceparent": "00-1"}});
    let traced = ask(&session, "tools/call", traced).await?.to_string();
    assert!(traced.contains("traceparent"), "{traced}");

    let progress = Arc::new(Mutex::new(Vec::new()));
    let steps = json!({"name": "steps", "arguments": {"count": 5}});
    let seen = progress.clone();
    session
        .request_with_progress("tools/call", Some(&steps), PATIENCE, move |report| {
            seen.lock().expect("no panic").push(report.progress);
        })
        .await?;
    assert_eq!(*progress.lock().expect("no panic"), [1.0, 2.0, 3.0, 4.0, 5.0]);

    call(&session, "log", json!({})).await?;
    assert!(person.of("notifications/message").is_empty(), "nobody asked for the log");
    ask(&session, "logging/setLevel", json!({"level": "warning"})).await?;
    call(&session, "log", json!({})).await?;
    let logged = person.hears("notifications/message", 1).await?;
    assert_eq!(logged.iter().map(|message| &message["data"]).collect::<Vec<_>>(), ["a warning"]);

    session.close();
    rig.gateway.wait_for("the session's end", |status| status.sessions == 0).await.map(drop)
}

async fn what_the_server_wants_to_know_is_asked_of_the_client(rig: Rig) -> Result<()> {
    let (session, person) = rig.session().await?;
    let answered: Value = serde_json::from_str(&call(&session, "elicit", json!({})).await?)?;
    assert_eq!((&answered["name"], &answered["state"]), (&json!("Ada"), &json!("round \"1\"")));
    assert_eq!(person.of("elicitation/create")[0]["message"], "Who are you?");
    let sampled = call(&session, "sample", json!({})).await?;
    assert!(sampled.contains("s-42") && sampled.contains("file:///work"), "{sampled}");
    assert_eq!(call(&session, "retry", json!({})).await?, "round 3");
    let error = call(&session, "endless", json!({})).await.expect_err("without end");
    assert_eq!(reason(&error), Some("too-many-input-rounds"), "{error}");
    assert_eq!(person.of("roots/list").len(), 1 + 10);
    let error = call(&session, "visit", json!({})).await.expect_err("the client shows no pages");
    assert_eq!(reason(&error), Some("client-lacks-capability"), "{error}");
    session.close();

    let reader = Arc::new(Person::who_answers());
    let session = rig.open(&reader, r#"{"elicitation":{"url":{}}}"#).await?;
    call(&session, "visit", json!({})).await?;
    let asked = &reader.of("elicitation/create")[0];
    assert!(asked["elicitationId"].is_string() && asked["url"] == "https://example.com/", "{asked}");
    let error = call(&session, "sample", json!({})).await.expect_err("the client has no model");
    assert_eq!(reason(&error), Some("client-lacks-capability"), "{error}");
    assert_eq!(call(&session, "echo", json!({"message": "on"})).await?, "on");
    Ok(())
}

async fn a_client_that_does_not_answer_fails_its_own_call_only(rig: Rig) -> Result<()> {
    let mute = Arc::new(Person::default());
    let session = rig.open(&mute, ALL).await?;
    let error = call(&session, "elicit", json!({})).await.expect_err("refused");
    assert_eq!(reason(&error), Some("client-input-refused"), "{error}");
    assert!(error.to_string().contains("I will not say"), "{error}");
    session.close();

    let slow = Arc::new(Person { thinks: Duration::from_hours(1), ..Person::who_answers() });
    let session = rig.open(&slow, ALL).await?;
    let call_elicit = async { call(&session, "elicit", json!({})).await };
    let cancelled = async {
        slow.hears("elicitation/create", 1).await?;
        anyhow::Ok(())
    };
    tokio::select! {
        _ = call_elicit => anyhow::bail!("nobody answered"),
        asked = cancelled => asked?, // and with that the call is dropped, which cancels it
    }
    slow.hears("given up", 1).await?;
    // The gateway's own time-out of what it asks ends the call too.
    let error = call(&session, "elicit", json!({})).await.expect_err("nobody answers");
    assert!(matches!(reason(&error), Some("client-input-refused" | "timed-out")), "{error}");
    assert_eq!(call(&session, "echo", json!({"message": "on"})).await?, "on");
    rig.gateway.wait_for("nothing in flight", |status| status.in_flight == 0).await.map(drop)
}

async fn changes_are_told(rig: Rig) -> Result<()> {
    let (session, person) = rig.session().await?;
    let uri = json!({"uri": "test://counter"});
    ask(&session, "resources/subscribe", uri.clone()).await?;
    call(&session, "count", json!({})).await?;
    assert_eq!(person.hears("notifications/resources/updated", 1).await?[0], uri);
    let counted = ask(&session, "resources/read", uri.clone()).await?;
    assert_eq!(counted["contents"][0]["text"], "1");
    call(&session, "toggle", json!({})).await?;
    person.hears("notifications/tools/list_changed", 1).await?;
    let tools = ask(&session, "tools/list", json!({})).await?.to_string();
    assert!(tools.contains("\"extra\""), "{tools}");

    ask(&session, "resources/unsubscribe", uri).await?;
    call(&session, "toggle", json!({})).await?; // told after whatever there is to tell of the counter
    call(&session, "count", json!({})).await?;
    call(&session, "toggle", json!({})).await?;
    person.hears("notifications/tools/list_changed", 2).await?;
    Ok(())
}

async fn a_cancelled_call_is_cancelled_at_the_server(rig: Rig) -> Result<()> {
    let (session, _person) = rig.session().await?;
    let begun = timeout(Duration::from_millis(500), call(&session, "hang", json!({}))).await;
    ensure!(begun.is_err(), "it hangs");
    let cancelled = async {
        while !rig.server.log().contains("hang was cancelled") {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, cancelled).await.context("the server heard nothing of it")?;
    assert_eq!(call(&session, "echo", json!({"message": "on"})).await?, "on");
    Ok(())
}

async fn many_sessions_at_once_do_not_mix(rig: Rig) -> Result<()> {
    let mut sessions = Vec::new();
    for n in 0..4 {
        let client = connect(&rig.broker.url(), &format!("many-{n}")).await?;
        let person = Arc::new(Person::who_answers());
        let capabilities = RawValue::from_string(ALL.to_owned())?;
        let session = client.open_session(&rig.gateway.instance(), &capabilities, person, PATIENCE).await?;
        sessions.push((client, session));
    }
    let work = |n: usize, session: Session| async move {
        for round in 0..30 {
            let text = format!("{n}-{round}");
            ensure!(call(&session, "echo", json!({"message": text})).await? == text);
            if round % 10 == 0 {
                ensure!(call(&session, "elicit", json!({})).await?.contains("Ada"));
            }
        }
        Ok(())
    };
    let all = sessions.iter().enumerate().map(|(n, (_, session))| work(n, session.clone()));
    futures::future::try_join_all(all).await?;
    Ok(())
}

macro_rules! over_both_transports {
    ($($test:ident),* $(,)?) => {
        mod stdio {
            $(#[tokio::test]
            async fn $test() -> anyhow::Result<()> {
                let server = super::servers::modern_stdio(super::Eras::Modern).await?;
                super::$test(super::Rig::with(server, super::QUICK).await?).await
            })*
        }
        mod http {
            $(#[tokio::test]
            async fn $test() -> anyhow::Result<()> {
                let server = super::servers::modern_http(super::Eras::Modern).await?;
                super::$test(super::Rig::with(server, super::QUICK).await?).await
            })*
        }
    };
}

/// Time enough for all but what is never answered.
const QUICK: &[&str] = &["--timeout-default=4s", "--timeout-call=8s"];

over_both_transports!(
    what_every_client_does_works,
    what_the_server_wants_to_know_is_asked_of_the_client,
    a_client_that_does_not_answer_fails_its_own_call_only,
    changes_are_told,
    a_cancelled_call_is_cancelled_at_the_server,
    many_sessions_at_once_do_not_mix,
);

#[tokio::test]
async fn a_parameter_that_belongs_into_a_header_goes_there() -> Result<()> {
    let rig = Rig::new(servers::modern_http(Eras::Modern).await?).await?;
    let (session, _person) = rig.session().await?;
    // Without tools/list before: the gateway learns it from the server's refusal.
    assert_eq!(call(&session, "region", json!({"region": "öst", "count": 7})).await?, "öst 7");
    assert_eq!(call(&session, "region", json!({"region": " a "})).await?, " a  -");
    Ok(())
}

#[tokio::test]
async fn every_revision_of_a_client_is_spoken() -> Result<()> {
    let rig = Rig::new(servers::modern_http(Eras::Modern).await?).await?;
    for (asked, spoken) in
        [("2024-11-05", "2024-11-05"), ("2025-06-18", "2025-06-18"), ("2026-07-28", "2025-11-25")]
    {
        let options = ClientOptions {
            protocol_version: asked.to_owned(),
            ..ClientOptions::new(rig.broker.url(), ClientId::new("other")?)
        };
        let client = Client::connect(options).await?;
        let none = RawValue::from_string("{}".to_owned())?;
        let person = Arc::new(Person::default());
        let session = client.open_session(&rig.gateway.instance(), &none, person, PATIENCE).await?;
        assert_eq!(session.server().protocol_version, spoken);
        assert_eq!(call(&session, "echo", json!({"message": asked})).await?, asked);
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_speaks_both_is_spoken_to_as_its_client_speaks() -> Result<()> {
    for server in [servers::modern_stdio(Eras::Both).await?, servers::modern_http(Eras::Both).await?] {
        let rig = Rig::new(server).await?;
        let status = rig.gateway.status().await?.server.context("server info")?;
        assert_eq!(status.protocol_version, "2025-11-25");
        let (session, _person) = rig.session().await?;
        assert_eq!(call(&session, "echo", json!({"message": "both"})).await?, "both");
        let meta = call(&session, "meta", json!({})).await?;
        assert!(!meta.contains("2026-07-28"), "{meta}");
    }
    Ok(())
}

/// Waits until the gateway says that the server speaks this revision, and a new session works.
async fn follows(rig: &Rig, version: &str) -> Result<()> {
    let works = async {
        loop {
            // A gateway that did not see the server go finds out by whoever calls.
            let said = match rig.session().await {
                Ok((session, _)) => call(&session, "echo", json!({"message": "here"})).await.ok(),
                Err(_) => None,
            };
            let status = rig.gateway.status().await?;
            let speaks = status.server.as_ref().is_some_and(|server| server.protocol_version == version);
            if said.as_deref().is_some_and(|said| said.contains("here")) && speaks && status.ready() {
                return anyhow::Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, works).await.with_context(|| format!("{version} is not spoken"))?
}

#[tokio::test]
async fn a_server_that_comes_back_in_another_era_is_followed() -> Result<()> {
    let mut rig = Rig::new(servers::modern_http(Eras::Both).await?).await?;
    let port = rig.server.port().context("a port")?;
    for (eras, version) in [(Eras::Modern, "2026-07-28"), (Eras::Both, "2025-11-25")] {
        rig.server.kill()?;
        rig.gateway.wait_for("the loss", |status| !status.backend.ok).await?;
        rig.server = servers::modern_http_at(&port, eras).await?;
        follows(&rig, version).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_comes_back_in_another_era_before_anybody_looked_is_followed_too() -> Result<()> {
    let mut rig = Rig::new(servers::modern_http(Eras::Both).await?).await?;
    let port = rig.server.port().context("a port")?;
    rig.server.kill()?;
    rig.server = servers::modern_http_at(&port, Eras::Modern).await?;
    follows(&rig, "2026-07-28").await?;
    rig.server.kill()?;
    rig.server = servers::everything_http_at(&port).await?;
    follows(&rig, "2025-11-25").await
}

#[tokio::test]
async fn a_server_that_dies_in_a_call_is_an_error_and_the_next_session_works() -> Result<()> {
    let rig = Rig::new(servers::modern_stdio(Eras::Modern).await?).await?;
    let (session, _person) = rig.session().await?;
    let error = call(&session, "exit", json!({})).await.expect_err("it dies");
    assert_eq!(reason(&error), Some("backend-ended"), "{error}");
    timeout(PATIENCE, session.wait_ended()).await.context("the session's end is told")?;
    let (session, _person) = rig.session().await?;
    assert_eq!(call(&session, "echo", json!({"message": "again"})).await?, "again");
    Ok(())
}
