//! HTTP+SSE, 2024-11-05: one stream brings everything that the server says, and is the session; what the client says is
//! posted to where the stream's first event points.
//!
//! After <https://modelcontextprotocol.io/specification/2024-11-05/basic/transports#http-with-sse>.

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::Incoming;
use mcp_mqtt_transport::{
    jsonrpc::{Kind, RequestId},
    redact,
};
use tokio::{
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};
use url::Url;

use super::{
    endpoint::Endpoint,
    exchange::{LINGER, Shared, next_chunk},
    session::{Driver, Transport},
    sse_parser::{Event, SseParser},
    wire::{Failure, Reply, Wire},
};
use crate::backend::{
    BackendConfigError, BackendEnd, BackendEvents, BackendLimits, FromBackend, FromBridge, Lost, SessionId,
    findings::Findings,
    incoming,
    reports::{Room, more},
    send_quota::Outbound,
};

/// From the request for the stream to its `endpoint` event, which a server sends at once.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after its streams' end a server that was killed may still seem to listen.
const CLOSING: Duration = Duration::from_millis(100);

/// A server that speaks HTTP+SSE, with this stream.
#[derive(Debug, Clone)]
pub struct SseBackend {
    endpoint: Arc<Endpoint>,
    limits: BackendLimits,
    /// Always of the older era.
    pub(in crate::backend) findings: Findings,
}

impl SseBackend {
    /// The backend with this stream; `ca` as in [`HttpBackend::new`](super::HttpBackend::new).
    ///
    /// # Errors
    /// As there.
    pub fn new(url: &Url, ca: Option<&Path>, limits: BackendLimits) -> Result<Self, BackendConfigError> {
        let endpoint = Endpoint::new(url, ca, "--sse-url", "transport.sse")?;
        Ok(Self { endpoint: Arc::new(endpoint), limits, findings: Findings::default() })
    }

    pub(in crate::backend) fn open(&self, id: SessionId, events: BackendEvents, from_bridge: FromBridge) {
        let wire = Wire::new(self.endpoint.clone());
        let (max, findings) = (self.limits.max_message_bytes, self.findings.clone());
        let shared = Shared { id, wire, metadata: None, events: events.clone(), max, findings };
        let max_in_flight = self.limits.max_in_flight;
        tokio::spawn(async move {
            let end = serve(shared, max_in_flight, from_bridge).await;
            events.report(id, FromBackend::Ended(end), None).await;
        });
    }

    /// Resolves when nobody listens any more.
    pub(in crate::backend) async fn lost(&self) -> Lost {
        self.endpoint.lost().await
    }

    /// Has it looked at now.
    pub(in crate::backend) fn look(&self) {
        self.endpoint.look();
    }
}

async fn serve(shared: Shared, max_in_flight: usize, mut from_bridge: FromBridge) -> BackendEnd {
    let stream = tokio::select! {
        opened = timeout(OPEN_TIMEOUT, Stream::open(&shared)) => match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(end)) => return end,
            Err(_) => return BackendEnd::OpenFailed(format!(
                "{} sent no `endpoint` event within {OPEN_TIMEOUT:?}. {}",
                shared.wire.shown_uri(),
                shared.wire.endpoint.hint(),
            )),
        },
        _ = &mut from_bridge.dropped => return BackendEnd::Closed,
    };
    let session = Arc::new(Session { shared, asked: Mutex::default() });
    let mut driver = Driver::new(session.clone(), max_in_flight);
    driver.spawn(async move { Err(session.read(stream).await) });
    driver.serve(from_bridge).await
}

/// The server's stream, from its `endpoint` event on.
struct Stream {
    body: Incoming,
    parser: SseParser,
    /// What came and was not taken yet.
    waiting: VecDeque<Event>,
    /// Of the message that is about to come whole, if it is large.
    room: Option<Room>,
}

impl Stream {
    /// Opens it, and learns where messages go. `Err`: why not.
    async fn open(shared: &Shared) -> Result<Self, BackendEnd> {
        let refused = |why| Err(BackendEnd::OpenRefused(why));
        let wire = &shared.wire;
        let body = match wire.get(None).await {
            Ok(Reply::Stream(body)) => body,
            Ok(Reply::Json(_) | Reply::Accepted) => {
                let (uri, hint) = (wire.shown_uri(), wire.endpoint.hint());
                return refused(format!("{uri} answered with no stream. {hint}"));
            }
            Err(Failure::Rejected { told, .. } | Failure::SessionLost(told)) => {
                return refused(shared.misplaced(&told));
            }
            Err(Failure::Refused(why)) => return Err(BackendEnd::NobodyListens(why)),
            Err(Failure::Broken(why)) => return Err(BackendEnd::OpenFailed(why)),
        };
        let mut stream =
            Self { body, parser: SseParser::new(shared.max), waiting: VecDeque::new(), room: None };
        loop {
            match stream.next(&shared.events).await {
                Ok(Event::Endpoint(reference)) => {
                    let uri = wire.endpoint.join(&reference).map_err(|why| {
                        let shown = redact::url(&incoming::excerpt(&reference));
                        BackendEnd::OpenFailed(format!(
                            "the server wants its messages at `{shown}`, which cannot be: {why}"
                        ))
                    })?;
                    wire.post_to(uri);
                    return Ok(stream);
                }
                Ok(event) => {
                    let detail = format!("the server sent {} before its `endpoint`", name(&event));
                    shared.report(FromBackend::Malformed { detail }).await;
                }
                Err(why) => {
                    return Err(BackendEnd::OpenFailed(format!("{why}, before its `endpoint` event")));
                }
            }
        }
    }

    /// The next event that says something. `Err`: there will be none, and why.
    async fn next(&mut self, reports: &BackendEvents) -> Result<Event, String> {
        let mut events = Vec::new();
        loop {
            match self.waiting.pop_front() {
                Some(Event::Other) => {} // a ping, say
                Some(Event::Message(data)) if data.trim_ascii().is_empty() => {}
                Some(event) => return Ok(event),
                None => {
                    reports.make_room(&mut self.room, self.parser.held()).await;
                    let Some(chunk) = more(&mut self.room, next_chunk(&mut self.body)).await? else {
                        return Err("the server ended its stream".to_owned());
                    };
                    self.parser.feed(chunk, &mut events);
                    self.waiting.extend(events.drain(..));
                }
            }
        }
    }
}

fn name(event: &Event) -> &'static str {
    match event {
        Event::Message(_) => "a message",
        Event::Endpoint(_) => "an `endpoint`",
        Event::Other => "an event",
        Event::TooLarge { .. } => "an event over the limit",
    }
}

/// One session.
struct Session {
    shared: Shared,
    /// Requests of the client that wait for their answer on the stream.
    asked: Mutex<HashMap<RequestId, Arc<Asked>>>,
}

/// A request that waits.
#[derive(Default)]
struct Asked {
    /// It is `initialize`.
    opening: bool,
    /// Told when the answer has come.
    answered: Notify,
}

impl Session {
    /// Reports what the stream brings, to its end, which is the session's.
    async fn read(&self, mut stream: Stream) -> BackendEnd {
        loop {
            let events = match stream.next(&self.shared.events).await {
                Ok(Event::Message(data)) => incoming::read(&data, self.shared.max),
                Ok(Event::TooLarge { size, answers }) => {
                    incoming::too_large(Some(size), self.shared.max, answers)
                }
                Ok(Event::Endpoint(reference)) => {
                    self.compare(&reference).await;
                    continue;
                }
                Ok(Event::Other) => continue, // not told
                Err(why) => return self.ended(why).await,
            };
            let mut room = stream.room.take();
            for event in events {
                self.report(event, room.take()).await;
            }
        }
    }

    /// Reports, and lets go whoever waited for it.
    async fn report(&self, event: FromBackend, room: Option<Room>) {
        match event {
            FromBackend::Message(message) => {
                let answers = match message.kind() {
                    Kind::Response { id, .. } => id.as_ref().and_then(|id| self.forget(id)),
                    _ => None,
                };
                let opening = answers.as_ref().is_some_and(|asked| asked.opening);
                let id = message.id().cloned();
                self.shared.forward(message, room, id.as_ref(), opening).await;
                if let Some(asked) = answers {
                    asked.answered.notify_one();
                }
            }
            FromBackend::RequestFailed { ref id, .. } => {
                let answers = self.forget(id);
                self.shared.report(event).await;
                if let Some(asked) = answers {
                    asked.answered.notify_one();
                }
            }
            other => self.shared.report(other).await,
        }
    }

    /// A second `endpoint`: the first one stands.
    async fn compare(&self, reference: &Bytes) {
        let wire = &self.shared.wire;
        if wire.endpoint.join(reference).as_ref() != Ok(wire.uri()) {
            let (other, first) = (redact::url(&incoming::excerpt(reference)), wire.shown_uri());
            let detail = format!("the server sent another `endpoint`, `{other}`; messages go on to {first}");
            self.shared.report(FromBackend::Malformed { detail }).await;
        }
    }

    /// The server has ended the session, or is gone.
    async fn ended(&self, why: String) -> BackendEnd {
        let endpoint = &self.shared.wire.endpoint;
        endpoint.look();
        if endpoint.gone().await.is_none() {
            sleep(CLOSING).await;
        }
        match endpoint.gone().await {
            Some(gone) => BackendEnd::BackendLost(gone),
            None => BackendEnd::SessionLost(why),
        }
    }

    fn ask(&self, id: RequestId, opening: bool) -> Waiter<'_> {
        let asked = Arc::new(Asked { opening, ..Asked::default() });
        self.asked().insert(id.clone(), asked.clone());
        Waiter { session: self, id, asked }
    }

    fn forget(&self, id: &RequestId) -> Option<Arc<Asked>> {
        self.asked().remove(id)
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, HashMap<RequestId, Arc<Asked>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for Session {
    fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The next message goes once the server has taken this one: there is one order in a session, as on a pipe.
    async fn exchange(
        &self,
        outbound: Outbound,
        written: Option<oneshot::Sender<()>>,
    ) -> Result<(), BackendEnd> {
        let Outbound { message: request, reserved } = outbound;
        let Some(id) = request.id().cloned() else { return Ok(()) }; // a request has an id
        let opening = request.method() == Some("initialize");
        let waiter = self.ask(id.clone(), opening);
        let mut post = pin!(self.shared.wire.post(request.into_raw(), HeaderMap::new(), None, false));
        let posted = tokio::select! {
            posted = &mut post => posted,
            () = waiter.asked.answered.notified() => {
                drop(written);
                let _ = timeout(LINGER, post).await; // its proper end lets the connection be used again
                return Ok(());
            }
        };
        drop((written, reserved));
        match posted {
            Ok(_) => {
                waiter.asked.answered.notified().await;
                Ok(())
            }
            Err(_) if self.forget(&id).is_none() => Ok(()), // the answer was quicker
            Err(failed) => self.shared.give_up(id, failed, opening).await,
        }
    }

    async fn deliver(
        &self,
        message: Outbound,
        written: Option<oneshot::Sender<()>>,
    ) -> Result<(), BackendEnd> {
        let delivered = self.shared.deliver(message, None).await;
        drop(written);
        delivered
    }

    /// The stream stands since before the handshake.
    async fn listen(&self) -> Result<(), BackendEnd> {
        Ok(())
    }
}

/// Takes a request off the list when nobody waits for its answer any more.
struct Waiter<'a> {
    session: &'a Session,
    id: RequestId,
    asked: Arc<Asked>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut asked = self.session.asked();
        // The id may be another request's by now.
        if asked.get(&self.id).is_some_and(|other| Arc::ptr_eq(other, &self.asked)) {
            asked.remove(&self.id);
        }
    }
}
