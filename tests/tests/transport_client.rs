//! The MCP client of the transport crate over a real Mosquitto. The other side is a few lines that answer as a
//! server does, so that each of the client's promises is tested alone.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use mcp_mqtt_tests::broker::Mosquitto;
use mcp_mqtt_transport::{
    client::{
        Client, ClientOptions, DiscoverError, HandlerFuture, Instance, OpenError, RequestError, Session,
        SessionEnd, SessionHandler, Unhandled,
    },
    jsonrpc::{Kind, Message, RequestId, RpcError},
    mqtt::{ConnectOptions, Connection, Event, Events, Filter, Publication, Publisher, Qos},
    presence::Online,
    topic::{self, ClientId, ServerId, ServerName, Topic},
    user_property::{self, Component},
};
use serde_json::{Value, json, value::RawValue};
use tokio::{task::JoinHandle, time::timeout};
use url::Url;

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(300);

/// What a client has sent, in order: topic and message.
type Seen = Arc<Mutex<Vec<(String, String)>>>;

/// A server that registers, answers `initialize` and `echo`, and does what the method names say.
struct Server {
    publisher: Publisher,
    id: ServerId,
    name: ServerName,
    seen: Seen,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(url: &Url, id: &str, name: &str) -> Result<Self> {
        let (id, name) = (ServerId::new(id)?, ServerName::new(name)?);
        let properties = user_property::of_publish(Component::Server, id.as_str());
        let presence = |payload: bytes::Bytes| Publication {
            retain: true,
            user_properties: properties.clone(),
            ..Publication::new(topic::server_presence(&id, &name), payload, Qos::AtLeastOnce)
        };
        let connection = Connection::open(&ConnectOptions {
            keep_alive: LONG,
            connect_timeout: LONG,
            user_properties: user_property::of_connect(Component::Server, "{}"),
            will: Some(presence(bytes::Bytes::new())),
            max_packet_size: 8 << 20,
            ..ConnectOptions::new(url.clone(), id.as_str())
        })
        .await?;
        let publisher = connection.publisher;
        publisher.subscribe(vec![Filter::new(topic::control(&id, &name), Qos::AtLeastOnce)], LONG).await?;
        let online = Online::new(name.as_str(), "for tests", None).to_payload();
        publisher.publish_confirmed(presence(online), LONG).await?;
        let seen = Seen::default();
        let task =
            tokio::spawn(serve(publisher.clone(), connection.events, id.clone(), name.clone(), seen.clone()));
        Ok(Self { publisher, id, name, seen, task })
    }

    fn publish(&self, topic: String, message: &Message) -> Result<()> {
        let user_properties = user_property::of_publish(Component::Server, self.id.as_str());
        Ok(self.publisher.try_publish(Publication {
            user_properties,
            ..Publication::new(topic, message.raw().clone(), Qos::AtLeastOnce)
        })?)
    }

    fn rpc(&self, client: &Client) -> String {
        topic::rpc(client.client_id(), &self.id, &self.name)
    }

    /// Waits until a client has sent a message with that text in it.
    async fn until_seen(&self, text: &str) -> Result<String> {
        timeout(LONG, async {
            loop {
                let found =
                    self.seen.lock().expect("no panic").iter().find(|(_, m)| m.contains(text)).cloned();
                if let Some((topic, _)) = found {
                    return topic;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .with_context(|| format!("{text} was not seen in {:?}", self.seen.lock().expect("no panic")))
    }
}

async fn serve(publisher: Publisher, mut events: Events, id: ServerId, name: ServerName, seen: Seen) {
    while let Some(Event::Received(received)) = events.recv().await {
        let text = String::from_utf8_lossy(&received.payload).into_owned();
        seen.lock().expect("no panic").push((received.topic.clone(), text));
        let Ok(message) = Message::parse(received.payload.clone(), 1 << 20) else { continue };
        let client = user_property::find(&received.user_properties, user_property::MQTT_CLIENT_ID);
        let Ok(client) = ClientId::new(client.expect("every publish has it")) else { continue };
        let rpc = topic::rpc(&client, &id, &name);
        let Kind::Request { id: request, method } = message.kind() else { continue };
        let mut answers = Vec::new();
        match &**method {
            "initialize" => {
                let filters = [
                    Filter::no_local(&rpc, Qos::AtLeastOnce),
                    Filter::new(topic::client_presence(&client), Qos::AtLeastOnce),
                    Filter::new(topic::client_capability(&client), Qos::AtLeastOnce),
                ];
                publisher.subscribe(filters.to_vec(), LONG).await.expect("granted");
                let result = json!({
                    "protocolVersion": message.protocol_version(),
                    "serverInfo": {"name": "test", "version": "1"},
                    "capabilities": {"tools": {}},
                });
                answers.push(result_of(request, &result));
            }
            "echo" => answers.push(result_of(request, &message.params_as::<Value>().expect("JSON").into())),
            "fail" => answers.push(Message::error_response(request, -32603, "it failed", "on-purpose")),
            "progress" => {
                let token = message.progress_token().expect("it was asked for");
                for n in 1..=3 {
                    let params = json!({"progressToken": token, "progress": n, "total": 3});
                    answers
                        .push(Message::notification("notifications/progress", Some(&params)).expect("JSON"));
                }
                answers.push(result_of(request, &json!("done")));
            }
            // `silence`
            _ => {}
        }
        for answer in answers {
            let user_properties = user_property::of_publish(Component::Server, id.as_str());
            let publication = Publication {
                user_properties,
                ..Publication::new(rpc.clone(), answer.into_raw(), Qos::AtLeastOnce)
            };
            publisher.try_publish(publication).expect("room");
        }
    }
}

fn result_of(id: &RequestId, result: &Value) -> Message {
    Message::result_of(id, &raw(result))
}

fn raw(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("JSON")
}

async fn client(broker: &Mosquitto, id: &str) -> Result<Client> {
    Ok(Client::connect(ClientOptions::new(broker.url(), ClientId::new(id)?)).await?)
}

async fn instance(client: &Client, server: &Server) -> Result<Instance> {
    let found = client.discover(server.name.as_str(), LONG).await?;
    found.into_iter().find(|instance| instance.server_id == server.id).context("not discovered")
}

async fn open(client: &Client, server: &Server) -> Result<Session> {
    open_with(client, server, Arc::new(Unhandled)).await
}

async fn open_with(client: &Client, server: &Server, handler: Arc<dyn SessionHandler>) -> Result<Session> {
    let instance = instance(client, server).await?;
    Ok(client.open_session(&instance, &raw(&json!({"roots": {}})), handler, LONG).await?)
}

#[tokio::test]
async fn instances_are_discovered_by_name_filter_and_seen_to_come_and_go() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let one = Server::start(&broker.url(), "one", "tools/echo").await?;
    let _two = Server::start(&broker.url(), "two", "tools/echo").await?;
    let _other = Server::start(&broker.url(), "other", "data/base").await?;
    let client = client(&broker, "client").await?;
    let ids = |instances: &[Instance]| instances.iter().map(|i| i.server_id.to_string()).collect::<Vec<_>>();

    let tools = client.discover("tools/+", LONG).await?;
    assert_eq!(ids(&tools), ["one", "two"]);
    assert_eq!(tools[0].online.description, "for tests");
    assert_eq!(ids(&client.discover("#", LONG).await?), ["other", "one", "two"]);
    assert!(client.discover("nobody/here", LONG).await?.is_empty());

    let mut watch = client.watch("tools/#").await?;
    timeout(LONG, watch.until(|instances| instances.len() == 2)).await?.context("open")?;
    drop(one);
    let left = timeout(LONG, watch.until(|instances| instances.len() < 2)).await?.context("open")?;
    assert_eq!(ids(&left), ["two"]);
    let _three = Server::start(&broker.url(), "three", "tools/echo").await?;
    let left = timeout(LONG, watch.until(|instances| instances.len() == 2)).await?.context("open")?;
    assert_eq!(ids(&left), ["three", "two"]);
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_after_the_deadline() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let client = client(&broker, "client").await?;
    let name = ServerName::new("tools/echo")?;
    let error = client.find(&name, SHORT).await.expect_err("nobody");
    assert!(matches!(error, DiscoverError::NotFound { .. }), "{error}");

    // Somebody hears `initialize`, and does not answer.
    let mute = Instance {
        server_id: ServerId::new("mute")?,
        server_name: name.clone(),
        online: Online::new("tools/echo", "", None),
    };
    let hears = Connection::open(&ConnectOptions::new(broker.url(), "mute")).await?;
    hears
        .publisher
        .subscribe(vec![Filter::new(topic::control(&mute.server_id, &name), Qos::AtLeastOnce)], LONG)
        .await?;
    let opened =
        client.open_session(&mute, &raw(&json!({})), Arc::new(Unhandled), Duration::from_secs(2)).await;
    assert!(matches!(opened, Err(OpenError::Initialize(RequestError::Timeout(_)))), "{opened:?}");

    let waiting = client.clone();
    let found = tokio::spawn(async move { waiting.find(&name, LONG).await });
    let _server = Server::start(&broker.url(), "late", "tools/echo").await?;
    assert_eq!(found.await??.server_id.as_str(), "late");
    Ok(())
}

#[tokio::test]
async fn a_session_initializes_by_the_book_and_then_calls() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let server = Server::start(&broker.url(), "server", "tools/echo").await?;
    let client = client(&broker, "client").await?;
    let session = open(&client, &server).await?;
    assert_eq!(
        (session.server().server_info.name.as_str(), session.server().protocol_version.as_str()),
        ("test", "2025-11-25")
    );
    assert_eq!(session.server().capabilities.get(), r#"{"tools":{}}"#);

    let control = server.until_seen("\"initialize\"").await?;
    assert_eq!(Topic::parse(&control)?, Topic::Control { server_id: "server", server_name: "tools/echo" });
    assert_eq!(server.until_seen("notifications/initialized").await?, server.rpc(&client));

    let result = session.request("echo", Some(&json!({"a": [1, "ü"]})), LONG).await?;
    assert_eq!(result.get(), r#"{"a":[1,"ü"]}"#);
    let error = session.request::<()>("fail", None, LONG).await.expect_err("it fails");
    assert_eq!(error.rpc().and_then(RpcError::reason), Some("on-purpose"), "{error}");

    let (one, two) = (json!({"n": 1}), json!({"n": 2}));
    let (one, two) =
        tokio::join!(session.request("echo", Some(&one), LONG), session.request("echo", Some(&two), LONG));
    assert_eq!((one?.get(), two?.get()), (r#"{"n":1}"#, r#"{"n":2}"#));
    Ok(())
}

#[tokio::test]
async fn progress_is_reported_in_order_before_the_result() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let server = Server::start(&broker.url(), "server", "tools/echo").await?;
    let client = client(&broker, "client").await?;
    let session = open(&client, &server).await?;
    let mut reports = Vec::new();
    let result = session
        .request_with_progress::<()>("progress", None, LONG, |report| {
            reports.push((report.progress, report.total));
        })
        .await?;
    assert_eq!(result.get(), "\"done\"");
    assert_eq!(reports, [(1.0, Some(3.0)), (2.0, Some(3.0)), (3.0, Some(3.0))]);
    Ok(())
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_any_more_is_cancelled_at_the_server() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let server = Server::start(&broker.url(), "server", "tools/echo").await?;
    let client = client(&broker, "client").await?;
    let session = open(&client, &server).await?;
    let error = session.request::<()>("silence", None, SHORT).await.expect_err("no answer");
    assert_eq!(error, RequestError::Timeout(SHORT));
    server.until_seen("\"requestId\":2").await?;

    let dropped = timeout(SHORT, session.request::<()>("silence", None, LONG)).await;
    assert!(dropped.is_err());
    server.until_seen("\"requestId\":3").await?;
    Ok(())
}

#[tokio::test]
async fn an_instance_that_left_before_initialize_reached_it_is_not_waited_for() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let server = Server::start(&broker.url(), "server", "tools/echo").await?;
    let client = client(&broker, "client").await?;
    let instance = instance(&client, &server).await?;
    server.publisher.disconnect(LONG).await?;
    let capabilities = raw(&json!({}));
    let opening = client.open_session(&instance, &capabilities, Arc::new(Unhandled), LONG);
    let error = timeout(LONG / 2, opening).await?.expect_err("nobody hears it");
    assert_eq!(error, OpenError::Initialize(RequestError::Ended(SessionEnd::Offline)));
    Ok(())
}

#[tokio::test]
async fn a_server_that_goes_offline_ends_what_is_in_flight_at_once() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let server = Server::start(&broker.url(), "server", "tools/echo").await?;
    let client = client(&broker, "client").await?;
    let session = open(&client, &server).await?;
    let waiting = session.clone();
    let request = tokio::spawn(async move { waiting.request::<()>("silence", None, LONG).await });
    server.until_seen("silence").await?;
    drop(server);
    let error = timeout(Duration::from_secs(2), request).await??.expect_err("the server is gone");
    assert_eq!(error, RequestError::Ended(SessionEnd::Offline));
    assert_eq!(timeout(LONG, session.wait_ended()).await?, SessionEnd::Offline);
    let late = session.request::<()>("echo", None, LONG).await.expect_err("ended");
    assert_eq!(late, RequestError::Ended(SessionEnd::Offline));
    Ok(())
}

#[tokio::test]
async fn a_session_ends_when_the_server_says_so_or_the_broker_goes_or_another_replaces_it() -> Result<()> {
    let mut broker = Mosquitto::start().await?;
    let server = Server::start(&broker.url(), "server", "tools/echo").await?;
    let client = client(&broker, "client").await?;

    let first = open(&client, &server).await?;
    server.publish(server.rpc(&client), &Message::disconnected())?;
    assert_eq!(timeout(LONG, first.wait_ended()).await?, SessionEnd::Disconnected);

    let second = open(&client, &server).await?;
    let third = open(&client, &server).await?;
    assert_eq!(second.ended(), Some(SessionEnd::Replaced));
    drop((first, second));
    third
        .request("echo", Some(&json!({})), LONG)
        .await
        .context("the drop of the old ones ended the new one")?;

    broker.kill()?;
    let end = timeout(LONG, third.wait_ended()).await?;
    assert!(matches!(end, SessionEnd::Connection(_)), "{end}");
    timeout(LONG, client.closed()).await?;
    Ok(())
}

#[tokio::test]
async fn closing_tells_the_server_and_ends_requests_in_flight() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let server = Server::start(&broker.url(), "server", "tools/echo").await?;
    let client = client(&broker, "client").await?;
    let session = open(&client, &server).await?;
    let waiting = session.clone();
    let request = tokio::spawn(async move { waiting.request::<()>("silence", None, LONG).await });
    server.until_seen("silence").await?;
    session.close();
    assert_eq!(server.until_seen("notifications/disconnected").await?, server.rpc(&client));
    assert_eq!(request.await?.expect_err("closed"), RequestError::Ended(SessionEnd::Closed));
    Ok(())
}

#[tokio::test]
async fn a_client_that_is_dropped_leaves_its_will_and_one_that_closes_does_not() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let server = Server::start(&broker.url(), "server", "tools/echo").await?;
    let orderly = client(&broker, "orderly").await?;
    let _session = open(&orderly, &server).await?;
    orderly.close(LONG).await?;
    assert_eq!(server.until_seen("notifications/disconnected").await?, server.rpc(&orderly));

    let hasty = client(&broker, "hasty").await?;
    let session = open(&hasty, &server).await?;
    server.seen.lock().expect("no panic").clear();
    drop((hasty, session));
    let topic = server.until_seen("notifications/disconnected").await?;
    ensure!(topic.starts_with("$mcp-client/presence/hasty") || topic.contains("$mcp-rpc/hasty"), "{topic}");
    Ok(())
}

/// Answers roots, takes its time for sampling, refuses the rest, and notes what it hears.
#[derive(Debug, Default)]
struct Handler {
    heard: Mutex<Vec<String>>,
}

impl SessionHandler for Handler {
    fn request<'a>(&'a self, request: &'a Message) -> HandlerFuture<'a, Result<Box<RawValue>, RpcError>> {
        Box::pin(async move {
            match request.method() {
                Some("roots/list") => Ok(raw(&json!({"roots": []}))),
                Some("sampling/createMessage") => {
                    self.heard.lock().expect("no panic").push("sampling".to_owned());
                    std::future::pending().await
                }
                _ => Err(RpcError { code: -32601, message: "no".to_owned(), data: None }),
            }
        })
    }

    fn notification(&self, notification: &Message) {
        self.heard.lock().expect("no panic").push(notification.method().unwrap_or_default().to_owned());
    }
}

#[tokio::test]
async fn requests_and_notifications_of_the_server_reach_the_handler() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let server = Server::start(&broker.url(), "server", "tools/echo").await?;
    let client = client(&broker, "client").await?;
    let handler = Arc::new(Handler::default());
    let session = open_with(&client, &server, handler.clone()).await?;
    let rpc = server.rpc(&client);
    let ask = |id: u64, method: &str| -> Result<()> {
        server.publish(rpc.clone(), &Message::request::<()>(RequestId::number(id), method, None)?)
    };
    ask(71, "ping")?;
    server.until_seen(r#""id":71,"result":{}"#).await?;
    ask(72, "roots/list")?;
    server.until_seen(r#""id":72,"result":{"roots":[]}"#).await?;
    ask(73, "elicitation/create")?;
    server.until_seen(r#""id":73,"error":{"code":-32601"#).await?;

    // One that is cancelled is not answered, and gives its place back.
    ask(74, "sampling/createMessage")?;
    let heard = || handler.heard.lock().expect("no panic").clone();
    timeout(LONG, async {
        while heard().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await?;
    server.publish(rpc.clone(), &Message::cancelled(&RequestId::number(74), "changed its mind"))?;
    let changed = Message::notification::<()>("notifications/tools/list_changed", None)?;
    server.publish(topic::server_capability(&server.id, &server.name), &changed)?;
    ask(75, "ping")?;
    server.until_seen(r#""id":75"#).await?;
    assert_eq!(heard(), ["sampling", "notifications/tools/list_changed"]);
    if server.seen.lock().expect("no panic").iter().any(|(_, message)| message.contains("\"id\":74")) {
        bail!("a cancelled request was answered");
    }

    session.notify::<()>("notifications/roots/list_changed", None)?;
    assert_eq!(server.until_seen("roots/list_changed").await?, topic::client_capability(client.client_id()));
    Ok(())
}

#[tokio::test]
async fn too_many_requests_of_a_server_are_refused_and_do_not_pile_up() -> Result<()> {
    let broker = Mosquitto::start().await?;
    let server = Server::start(&broker.url(), "server", "tools/echo").await?;
    let client = client(&broker, "client").await?;
    let session = open_with(&client, &server, Arc::new(Handler::default())).await?;
    for id in 100..140 {
        let request = Message::request::<()>(RequestId::number(id), "sampling/createMessage", None)?;
        server.publish(server.rpc(&client), &request)?;
    }
    server.until_seen(r#""reason":"client-busy""#).await?;
    session.request("echo", Some(&json!({})), LONG).await?;
    Ok(())
}
