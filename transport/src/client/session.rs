//! One MCP session with one server instance.

use std::{fmt::Debug, future::Future, ops::ControlFlow, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    Initialize, Instance, Link, OpenError, RequestError, SessionEnd,
    requests::{Asked, Requests},
};
use crate::{
    jsonrpc::{InitializeResult, Kind, Message, Progress, RequestId, RpcError, code},
    mqtt::{Filter, Publication, PublishError, PublishReply, Publisher, Qos, ReasonCode},
    topic,
    user_property::UserProperties,
};

/// A future that a handler returns.
pub type HandlerFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the client does with what the server asks and tells.
pub trait SessionHandler: Send + Sync + Debug + 'static {
    /// A request of the server: `sampling/createMessage`, `elicitation/create`, `roots/list`. Each runs in a task
    /// of its own, which ends when the server cancels it or the session ends. `ping` is answered without asking.
    fn request<'a>(&'a self, request: &'a Message) -> HandlerFuture<'a, Result<Box<RawValue>, RpcError>> {
        let message = format!("this client does not handle {}", request.method().unwrap_or_default());
        Box::pin(async move { Err(RpcError { code: code::METHOD_NOT_FOUND, message, data: None }) })
    }

    /// A notification of the server: `*/list_changed`, `notifications/message`, … on either topic, in order of
    /// arrival. It runs in the task that routes everything, so it must not block.
    fn notification(&self, notification: &Message) {
        let _ = notification;
    }
}

/// Answers no request and hears no notification.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unhandled;

impl SessionHandler for Unhandled {}

/// One MCP session. Cheap to clone; dropping the last clone closes it.
#[derive(Debug, Clone)]
pub struct Session {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    core: Arc<Core>,
    link: Arc<Link>,
    server: InitializeResult,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.link.end(&self.core, SessionEnd::Closed);
    }
}

/// What the router has of a session.
#[derive(Debug)]
pub(super) struct Core {
    instance: Instance,
    rpc: String,
    capability: String,
    presence: String,
    publisher: Publisher,
    properties: UserProperties,
    qos: Qos,
    requests: Requests,
    handler: Arc<dyn SessionHandler>,
    ended: watch::Sender<bool>,
}

/// A session whose `initialize` is not yet answered. Dropping it takes everything back.
pub(super) struct Opening {
    core: Arc<Core>,
    link: Arc<Link>,
    opened: bool,
}

impl Opening {
    /// Takes the topics; the session that had them is replaced.
    pub(super) fn new(link: &Arc<Link>, instance: &Instance, handler: Arc<dyn SessionHandler>) -> Self {
        let (id, name) = (&instance.server_id, &instance.server_name);
        let core = Arc::new(Core {
            instance: instance.clone(),
            rpc: topic::rpc(&link.options.client_id, id, name),
            capability: topic::server_capability(id, name),
            presence: topic::server_presence(id, name),
            publisher: link.publisher.clone(),
            properties: link.properties(),
            qos: link.options.qos,
            requests: Requests::default(),
            handler,
            ended: watch::Sender::new(false),
        });
        if let Some(before) = link.router.add(&core) {
            before.end(SessionEnd::Replaced);
        }
        Self { core, link: link.clone(), opened: false }
    }

    /// Presence too, so that the server's end is seen.
    pub(super) fn filters(&self) -> Vec<Filter> {
        let qos = self.core.qos;
        vec![
            Filter::no_local(&self.core.rpc, qos),
            Filter::new(&self.core.capability, qos),
            Filter::new(&self.core.presence, qos),
        ]
    }

    pub(super) async fn initialize(
        mut self,
        params: &Initialize<'_>,
        within: Duration,
    ) -> Result<Session, OpenError> {
        let control = topic::control(&self.core.instance.server_id, &self.core.instance.server_name);
        let request = Request { topic: &control, method: "initialize", timeout: within, opens: true };
        let answer = self.core.call(&request, Some(params)).await?;
        let server = answer.initialize_result().map_err(|error| OpenError::Malformed(error.to_string()))?;
        self.core.notify::<()>("notifications/initialized", None)?;
        self.opened = true;
        let handle = Handle { core: self.core.clone(), link: self.link.clone(), server };
        Ok(Session { handle: Arc::new(handle) })
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.opened {
            self.link.end(&self.core, SessionEnd::Closed);
        }
    }
}

/// How a request is sent.
struct Request<'a> {
    topic: &'a str,
    method: &'a str,
    timeout: Duration,
    /// Whether it is `initialize`, which is never cancelled (MCP, lifecycle), and which nobody may hear: the instance may
    /// have left since its presence was seen.
    opens: bool,
}

impl Session {
    /// Whom it is with.
    pub fn instance(&self) -> &Instance {
        &self.handle.core.instance
    }

    /// What the server answered to `initialize`.
    pub fn server(&self) -> &InitializeResult {
        &self.handle.server
    }

    /// Sends a request and waits for its result (raw JSON).
    ///
    /// # Errors
    /// [`RequestError`]. After `timeout`, or when this future is dropped, the request is cancelled at the server.
    pub async fn request<P: Serialize + ?Sized>(
        &self,
        method: &str,
        params: Option<&P>,
        timeout: Duration,
    ) -> Result<Box<RawValue>, RequestError> {
        result_of(&self.call(method, params, timeout).await?)
    }

    /// As [`request`](Self::request), without a copy: the whole response, which is never an error.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn call<P: Serialize + ?Sized>(
        &self,
        method: &str,
        params: Option<&P>,
        timeout: Duration,
    ) -> Result<Message, RequestError> {
        let core = &self.handle.core;
        core.call(&Request { topic: &core.rpc, method, timeout, opens: false }, params).await
    }

    /// As [`request`](Self::request), with a progress token; `on_progress` is called for each report, and each one
    /// starts the timeout anew. `params` have to be an object.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn request_with_progress<P: Serialize + ?Sized>(
        &self,
        method: &str,
        params: Option<&P>,
        timeout: Duration,
        on_progress: impl FnMut(Progress) + Send,
    ) -> Result<Box<RawValue>, RequestError> {
        let core = &self.handle.core;
        let request = Request { topic: &core.rpc, method, timeout, opens: false };
        let mut params = match params {
            Some(params) => {
                serde_json::to_value(params).map_err(|error| RequestError::Json(error.to_string()))?
            }
            None => Value::Object(serde_json::Map::new()),
        };
        let asked = core.requests.ask(true).map_err(RequestError::Ended)?;
        let Some(object) = params.as_object_mut() else {
            core.requests.give_up(asked.id);
            return Err(RequestError::Json("the params are not an object".to_owned()));
        };
        let meta = object.entry("_meta").or_insert_with(|| Value::Object(serde_json::Map::new()));
        meta["progressToken"] = asked.id.into();
        let answer = core.ask(&request, Some(&params), asked, on_progress).await?;
        result_of(&answer)
    }

    /// Sends any bytes as they are on the RPC topic: for tests of what a server does with them.
    ///
    /// # Errors
    /// When they cannot be queued.
    pub fn send_raw(&self, message: Bytes) -> Result<(), PublishError> {
        self.handle.core.publish(&self.handle.core.rpc, message)
    }

    /// Sends a notification on the RPC topic; `notifications/roots/list_changed` goes to the client's capability
    /// topic.
    ///
    /// # Errors
    /// When it cannot be queued.
    pub fn notify<P: Serialize + ?Sized>(
        &self,
        method: &str,
        params: Option<&P>,
    ) -> Result<(), RequestError> {
        let core = &self.handle.core;
        if method == "notifications/roots/list_changed" {
            let message = notification(method, params)?;
            let topic = topic::client_capability(&self.handle.link.options.client_id);
            return Ok(core.publish(&topic, message.into_raw())?);
        }
        core.notify(method, params)
    }

    /// Ends the session: `notifications/disconnected` on RPC, then the subscriptions. Requests in flight end with
    /// [`SessionEnd::Closed`].
    pub fn close(&self) {
        self.handle.link.end(&self.handle.core, SessionEnd::Closed);
    }

    /// Why the session is over; none while it is open.
    pub fn ended(&self) -> Option<SessionEnd> {
        self.handle.core.requests.ended()
    }

    /// Waits until the session is over.
    pub async fn wait_ended(&self) -> SessionEnd {
        let mut ended = self.handle.core.ended.subscribe();
        // Its sender lives in our own core.
        let _ = ended.wait_for(|ended| *ended).await;
        self.ended().unwrap_or(SessionEnd::Closed)
    }
}

/// The PUBACK, once, where one is waited for.
async fn reply(puback: &mut Option<PublishReply>) -> Result<ReasonCode, PublishError> {
    let Some(reply) = puback else { return std::future::pending().await };
    let acknowledged = reply.await;
    *puback = None;
    acknowledged
}

fn result_of(answer: &Message) -> Result<Box<RawValue>, RequestError> {
    let result = answer.result().unwrap_or("null").to_owned();
    RawValue::from_string(result).map_err(|error| RequestError::Json(error.to_string()))
}

fn notification<P: Serialize + ?Sized>(method: &str, params: Option<&P>) -> Result<Message, RequestError> {
    Message::notification(method, params).map_err(|error| RequestError::Json(error.to_string()))
}

impl Core {
    pub(super) fn topics(&self) -> Vec<String> {
        vec![self.rpc.clone(), self.capability.clone(), self.presence.clone()]
    }

    pub(super) fn is_rpc(&self, topic: &str) -> bool {
        self.rpc == topic
    }

    pub(super) fn is_presence(&self, topic: &str) -> bool {
        self.presence == topic
    }

    /// Ends it here: everybody who waits learns it. False when it was over before.
    pub(super) fn end(&self, reason: SessionEnd) -> bool {
        let ended = self.requests.end(reason);
        self.ended.send_replace(true);
        ended
    }

    pub(super) fn tell_disconnected(&self) {
        if let Err(error) = self.publish(&self.rpc, Message::disconnected().into_raw()) {
            tracing::debug!(%error, server = %self.instance.server_id, "cannot tell the server that the session ends");
        }
    }

    pub(super) fn unsubscribe(&self) {
        // A full queue or a closed connection: the broker forgets them with the connection.
        if let Err(error) = self.publisher.unsubscribe(self.topics()) {
            tracing::debug!(%error, "cannot unsubscribe from the topics of an ended session");
        }
    }

    fn publish(&self, topic: &str, payload: Bytes) -> Result<(), PublishError> {
        self.publisher.try_publish(self.publication(topic, payload))
    }

    fn publication(&self, topic: &str, payload: Bytes) -> Publication {
        let user_properties = self.properties.clone();
        Publication { topic: topic.to_owned(), payload, qos: self.qos, retain: false, user_properties }
    }

    fn notify<P: Serialize + ?Sized>(&self, method: &str, params: Option<&P>) -> Result<(), RequestError> {
        if let Some(end) = self.requests.ended() {
            return Err(RequestError::Ended(end));
        }
        Ok(self.publish(&self.rpc, notification(method, params)?.into_raw())?)
    }

    async fn call<P: Serialize + ?Sized>(
        &self,
        request: &Request<'_>,
        params: Option<&P>,
    ) -> Result<Message, RequestError> {
        let asked = self.requests.ask(false).map_err(RequestError::Ended)?;
        self.ask(request, params, asked, |_| {}).await
    }

    async fn ask<P: Serialize + ?Sized>(
        &self,
        request: &Request<'_>,
        params: Option<&P>,
        asked: Asked,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<Message, RequestError> {
        let Asked { id, mut answer, mut progress } = asked;
        let mut unanswered = Unanswered { core: self, id, cancellable: false };
        let message = Message::request(RequestId::number(id), request.method, params)
            .map_err(|error| RequestError::Json(error.to_string()))?;
        let mut deadline = Instant::now() + request.timeout;
        let late = |_| RequestError::Timeout(request.timeout);
        let mut puback = loop {
            let publication = self.publication(request.topic, message.raw().clone());
            let bytes = Publisher::packet_size(&publication);
            let sent = if request.opens && self.qos == Qos::AtLeastOnce {
                self.publisher.publish_start(publication).map(Some)
            } else {
                self.publisher.try_publish(publication).map(|()| None)
            };
            match sent {
                Ok(reply) => break reply,
                Err(PublishError::Full) => {
                    timeout_at(deadline, self.publisher.ready(bytes)).await.map_err(late)?;
                }
                Err(error) => return Err(error.into()),
            }
        };
        unanswered.cancellable = !request.opens;
        loop {
            tokio::select! {
                biased;
                Some(report) = next(&mut progress) => {
                    deadline = Instant::now() + request.timeout;
                    on_progress(report);
                }
                answered = timeout_at(deadline, &mut answer) => {
                    return match answered.map_err(late)? {
                        Ok(response) => match response.error() {
                            Some(error) => Err(RequestError::Rpc(error)),
                            None => Ok(response),
                        },
                        Err(_) => Err(RequestError::Ended(self.requests.ended().unwrap_or(SessionEnd::Closed))),
                    };
                }
                acknowledged = reply(&mut puback) => match acknowledged {
                    Ok(ReasonCode::NO_MATCHING_SUBSCRIBERS) => return Err(RequestError::Ended(SessionEnd::Offline)),
                    Ok(reason) if reason.is_error() => return Err(PublishError::Refused(reason).into()),
                    // Somebody has it, and owes the answer; or the connection is over, which ends the session.
                    Ok(_) | Err(_) => {}
                },
            }
        }
    }

    /// A message on the RPC or capability topic. It breaks when that ended the session.
    pub(super) fn take(self: &Arc<Self>, payload: Bytes, limit: usize) -> ControlFlow<()> {
        let message = match Message::parse(payload, limit) {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(server = %self.instance.server_id, %error, "message passed over");
                return ControlFlow::Continue(());
            }
        };
        match message.kind() {
            Kind::Response { .. } => {
                if !self.requests.answered(message) {
                    tracing::debug!(server = %self.instance.server_id, "answer that nobody waits for");
                }
            }
            Kind::Notification { method } => match &**method {
                "notifications/progress" => self.requests.reported(&message),
                "notifications/cancelled" => {
                    if let Some(id) = message.cancelled_request() {
                        self.requests.cancelled(&id);
                    }
                }
                "notifications/disconnected" => {
                    self.end(SessionEnd::Disconnected);
                    return ControlFlow::Break(());
                }
                _ => self.handler.notification(&message),
            },
            Kind::Request { id, method } if &**method == "ping" => {
                let empty = RawValue::from_string("{}".to_owned()).expect("it is JSON");
                self.answer(Message::result_of(id, &empty));
            }
            Kind::Request { id, .. } => self.work(&id.clone(), message),
        }
        ControlFlow::Continue(())
    }

    /// Lets the handler answer a request of the server, in a task of its own.
    fn work(self: &Arc<Self>, id: &RequestId, message: Message) {
        let core = self.clone();
        let task = || {
            let id = id.clone();
            tokio::spawn(async move {
                let answer = match core.handler.request(&message).await {
                    Ok(result) => Message::result_of(&id, &result),
                    Err(error) => Message::error_of(&id, &error),
                };
                core.answer(answer);
                core.requests.worked(&id);
            })
            .abort_handle()
        };
        if !self.requests.work(id, task) {
            let text = "too many requests of the server are in work at the client";
            self.answer(Message::internal_error(id, text, "client-busy"));
        }
    }

    fn answer(&self, answer: Message) {
        if let Err(error) = self.publish(&self.rpc, answer.into_raw()) {
            tracing::debug!(%error, server = %self.instance.server_id, "cannot answer the server");
        }
    }
}

/// The next progress report; when there will be none, this waits for ever.
async fn next(progress: &mut Option<tokio::sync::mpsc::Receiver<Progress>>) -> Option<Progress> {
    match progress {
        Some(reports) => match reports.recv().await {
            Some(report) => Some(report),
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// A request whose answer is waited for: when nobody waits any more, the server is told.
struct Unanswered<'a> {
    core: &'a Core,
    id: u64,
    /// It was sent, and may be cancelled.
    cancellable: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if self.core.requests.give_up(self.id) && self.cancellable {
            let cancelled =
                Message::cancelled(&RequestId::number(self.id), "the caller does not wait any more");
            if let Err(error) = self.core.publish(&self.core.rpc, cancelled.into_raw()) {
                tracing::debug!(%error, "cannot cancel a request");
            }
        }
    }
}
