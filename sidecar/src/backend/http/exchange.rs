//! One message posted, and its answer followed to the end: a JSON body, or a stream that may break and be resumed.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use mcp_mqtt_transport::jsonrpc::{Kind, Message, RequestId};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    metadata::Metadata,
    session::Transport,
    sse_parser::{Event, SseParser},
    wire::{Failure, Reply, Wire, innermost, read_json},
};
use crate::backend::{
    BackendEnd, BackendEvents, FromBackend, SessionId, failure,
    findings::{Findings, Suspicion},
    incoming::{self, Events},
    modern::{
        members::member,
        result::{HEADER_MISMATCH, UNSUPPORTED_VERSION},
    },
    reports::{Room, more},
    send_quota::Outbound,
};

/// Pause before a broken stream is resumed when the server named none; doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause, whatever the server says: its client waits for an answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// The shortest, whatever the server says: not a tight loop.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// Failures in a row after which a stream is given up.
const MAX_FAILURES: u32 = 5;
/// How long a stream may go on after it brought the answer: its proper end lets the connection be used again.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// Pages of `tools/list` that are read for a call's headers.
const MAX_PAGES: u64 = 32;
/// Events of such a list that may wait; all are read at once.
const UNHEARD: usize = 4;
/// How long the delivery of a notification or response may take.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// What all exchanges of a session share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: SessionId,
    pub(super) wire: Wire,
    /// In 2026-07-28: a request is an exchange of its own, which cannot be resumed and ends with its connection.
    pub(super) metadata: Option<Arc<Metadata>>,
    pub(super) events: BackendEvents,
    pub(super) max: usize,
    pub(super) findings: Findings,
}

/// How a stream ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// It brought the answer that it was read for.
    Answered,
    /// The server ended it.
    Closed,
    /// It broke.
    Broken(String),
}

impl Transport for Shared {
    fn shared(&self) -> &Shared {
        self
    }

    async fn exchange(
        &self,
        request: Outbound,
        written: Option<oneshot::Sender<()>>,
    ) -> Result<(), BackendEnd> {
        self.ask(request, written).await
    }

    /// What the server thinks of it is told to nobody but the log.
    async fn deliver(
        &self,
        outbound: Outbound,
        written: Option<oneshot::Sender<()>>,
    ) -> Result<(), BackendEnd> {
        let session = self.id.0;
        let Outbound { message, reserved: _reserved } = outbound;
        let post = self.wire.post(message.into_raw(), HeaderMap::new(), written, false);
        match timeout(DELIVERY_TIMEOUT, post).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(Failure::SessionLost(why))) => Err(BackendEnd::SessionLost(why)),
            Ok(Err(Failure::Refused(why))) => Err(BackendEnd::BackendLost(why)),
            Ok(Err(Failure::Broken(told) | Failure::Rejected { told, .. })) => {
                tracing::warn!(session, "the MCP server did not take a notification or response: {told}");
                Ok(())
            }
            Err(_) => {
                tracing::warn!(
                    session,
                    "the MCP server did not take a notification or response in {DELIVERY_TIMEOUT:?}"
                );
                Ok(())
            }
        }
    }

    async fn listen(&self) -> Result<(), BackendEnd> {
        self.hear().await
    }
}

impl Shared {
    async fn ask(&self, outbound: Outbound, written: Option<oneshot::Sender<()>>) -> Result<(), BackendEnd> {
        let Outbound { message: request, reserved } = outbound;
        let Some(id) = request.id().cloned() else { return Ok(()) }; // a request has an id
        let opening = request.method() == Some("initialize");
        let mut reply = self.wire.post(request.raw().clone(), self.headers(&request), written, opening).await;
        if let Err(Failure::Rejected { body, .. }) = &reply
            && self.learn_headers(&request, body).await
        {
            reply = self.wire.post(request.raw().clone(), self.headers(&request), None, opening).await;
        }
        drop((request, reserved)); // its answer may take a while
        match reply {
            Ok(Reply::Json(body)) => {
                self.read_body(body, &id, opening).await;
                Ok(())
            }
            Ok(Reply::Stream(body)) => self.follow(body, &id, opening).await,
            Ok(Reply::Accepted) => {
                self.fail(
                    id,
                    failure::BAD_ANSWER,
                    "the server accepted the request but does not answer it".into(),
                )
                .await;
                Ok(())
            }
            Err(failed) => self.give_up(id, failed, opening).await,
        }
    }

    /// A request that the server did not take. `Err`: the session is over.
    pub(super) async fn give_up(
        &self,
        id: RequestId,
        failed: Failure,
        opening: bool,
    ) -> Result<(), BackendEnd> {
        match failed {
            Failure::Rejected { body, told, .. } => self.reject(id, &body, told, opening).await,
            Failure::Broken(why) if opening => Err(BackendEnd::OpenFailed(why)),
            Failure::Refused(why) if opening => Err(BackendEnd::NobodyListens(why)),
            Failure::SessionLost(told) if opening => Err(BackendEnd::OpenRefused(self.misplaced(&told))),
            Failure::Broken(why) => {
                self.fail(id, failure::CONNECTION_BROKEN, why).await;
                Ok(())
            }
            Failure::Refused(why) => Err(BackendEnd::BackendLost(why)),
            Failure::SessionLost(why) => Err(BackendEnd::SessionLost(why)),
        }
    }

    /// An error status: the server's own error if it sent one, ours otherwise.
    async fn reject(
        &self,
        id: RequestId,
        body: &Bytes,
        told: String,
        opening: bool,
    ) -> Result<(), BackendEnd> {
        let said = Message::parse(body.clone(), self.max).ok();
        if let Some(message) = said.filter(|message| message.error().is_some()) {
            self.forward(message, None, Some(&id), opening).await;
            return Ok(());
        }
        if opening {
            return Err(BackendEnd::OpenRefused(self.misplaced(&told)));
        }
        self.fail(id, failure::HTTP_STATUS, format!("the server answered {told}")).await;
        Ok(())
    }

    pub(super) fn misplaced(&self, told: &str) -> String {
        format!("{} answered {told}. {}", self.wire.shown_uri(), self.wire.endpoint.hint())
    }

    async fn read_body(&self, body: Incoming, id: &RequestId, opening: bool) {
        let mut room = None;
        match read_json(body, self.max, &self.events, &mut room).await {
            Ok(body) => {
                if !self.take(incoming::read(&body, self.max), room, Some(id), opening).await {
                    let detail = format!(
                        "the server's reply holds no answer to the request: {}",
                        incoming::excerpt(&body)
                    );
                    self.fail(id.clone(), failure::BAD_ANSWER, detail).await;
                }
            }
            Err(None) => {
                let events = incoming::too_large(None, self.max, Some(id.clone()));
                self.take(events, None, Some(id), opening).await;
            }
            Err(Some(why)) => {
                self.fail(id.clone(), failure::CONNECTION_BROKEN, format!("the answer broke off: {why}"))
                    .await;
            }
        }
    }

    /// Reads the stream of a request's answer, resuming it as long as that is possible.
    async fn follow(&self, mut body: Incoming, id: &RequestId, opening: bool) -> Result<(), BackendEnd> {
        let mut parser = SseParser::new(self.max);
        loop {
            let why = match self.read_stream(body, &mut parser, Some(id), opening).await {
                StreamEnd::Answered => return Ok(()),
                StreamEnd::Closed => "the server closed the stream before the answer".to_owned(),
                StreamEnd::Broken(why) => why,
            };
            body = match self.resume(&parser).await? {
                Ok(body) => body,
                Err(why_not) => {
                    self.fail(id.clone(), failure::CONNECTION_BROKEN, format!("{why}; {why_not}")).await;
                    return Ok(());
                }
            };
            parser.restart();
        }
    }

    /// Asks for the rest of a stream, more than once where that may help. The inner error says why there is none; the
    /// outer: the session is over.
    async fn resume(&self, parser: &SseParser) -> Result<Result<Incoming, String>, BackendEnd> {
        if self.metadata.is_some() || parser.last_event_id().is_none() {
            return Ok(Err("it has no place at which it could be resumed".to_owned()));
        }
        let mut failures = 0;
        loop {
            sleep(pause(parser.retry(), failures)).await;
            failures += 1;
            match self.wire.get(parser.last_event_id()).await {
                Ok(Reply::Stream(body)) => return Ok(Ok(body)),
                Ok(Reply::Json(_) | Reply::Accepted) => {
                    return Ok(Err("the server does not let us resume it".to_owned()));
                }
                Err(Failure::Refused(why)) => return Err(BackendEnd::BackendLost(why)),
                Err(Failure::SessionLost(why)) => return Err(BackendEnd::SessionLost(why)),
                Err(failed) if failed.may_pass() && failures < MAX_FAILURES => {
                    tracing::debug!(session = self.id.0, ?failed, "a stream could not be resumed yet");
                }
                Err(Failure::Rejected { told, .. } | Failure::Broken(told)) => {
                    return Ok(Err(format!("to resume it failed: {told}")));
                }
            }
        }
    }

    /// Reports what a stream brings, until it ends or `awaited` is answered.
    pub(super) async fn read_stream(
        &self,
        mut body: Incoming,
        parser: &mut SseParser,
        awaited: Option<&RequestId>,
        opening: bool,
    ) -> StreamEnd {
        let mut events = Vec::new();
        let mut room = None;
        let mut answered = false;
        let mut until = None; // not each event anew: some servers never end a stream
        loop {
            let read = more(&mut room, next_chunk(&mut body));
            let next = match until {
                Some(until) => timeout_at(until, read).await.unwrap_or(Ok(None)),
                None => read.await,
            };
            let chunk = match next {
                Ok(Some(chunk)) => chunk,
                _ if answered => return StreamEnd::Answered,
                unfinished => {
                    self.wire.endpoint.look(); // a server that goes ends its streams
                    return unfinished.map_or_else(StreamEnd::Broken, |_| StreamEnd::Closed);
                }
            };
            parser.feed(chunk, &mut events);
            for event in events.drain(..) {
                let brought = match event {
                    Event::Message(data) if data.trim_ascii().is_empty() => continue, // only an id
                    Event::Message(data) => incoming::read(&data, self.max),
                    Event::TooLarge { size, answers } => incoming::too_large(Some(size), self.max, answers),
                    Event::Endpoint(_) | Event::Other => continue,
                };
                answered |= self.take(brought, room.take(), awaited, opening).await;
            }
            if answered && until.is_none() {
                until = Some(Instant::now() + LINGER);
            }
            self.events.make_room(&mut room, parser.held()).await;
        }
    }

    /// Reports what the server sent; true when it answers `awaited`.
    async fn take(
        &self,
        events: Events,
        mut room: Option<Room>,
        awaited: Option<&RequestId>,
        opening: bool,
    ) -> bool {
        let mut answered = false;
        for event in events {
            answered |= match event {
                FromBackend::Message(message) => self.forward(message, room.take(), awaited, opening).await,
                other => {
                    let fails =
                        matches!(&other, FromBackend::RequestFailed { id, .. } if Some(id) == awaited);
                    self.report(other).await;
                    fails
                }
            };
        }
        answered
    }

    /// Reports a message; true when it answers `awaited`. An error without an id where an answer is awaited is the
    /// answer: servers that cannot read a request's id say null.
    pub(super) async fn forward(
        &self,
        mut message: Message,
        room: Option<Room>,
        awaited: Option<&RequestId>,
        opening: bool,
    ) -> bool {
        if let (Kind::Response { id: None, .. }, Some(id), Some(error)) =
            (message.kind(), awaited, message.error())
        {
            message = Message::error_of(id, &error);
        }
        let answers =
            awaited.is_some() && matches!(message.kind(), Kind::Response { .. }) && message.id() == awaited;
        if answers
            && opening
            && let Some(version) = message.protocol_version()
        {
            self.wire.agree_on(&version);
        }
        if opening && message.error().is_some_and(|error| error.code == UNSUPPORTED_VERSION) {
            self.findings.suspect(Suspicion::Revision);
        }
        if let (Some(metadata), Some(id), Some(result)) = (&self.metadata, message.id(), message.result())
            && let Some(result) = metadata.learn(result)
        {
            message = Message::result_of_parts(id, &[&result]);
        }
        self.events.report(self.id, FromBackend::Message(message), room).await;
        answers
    }

    fn headers(&self, request: &Message) -> HeaderMap {
        self.metadata.as_ref().map(|metadata| metadata.headers(request)).unwrap_or_default()
    }

    /// Whether a call was refused for headers that are learnt now, from `tools/list`, so that it is worth another try.
    async fn learn_headers(&self, call: &Message, refusal: &Bytes) -> bool {
        let refused = Message::parse(refusal.clone(), self.max).ok().and_then(|said| said.error());
        let Some(metadata) = self.metadata.clone().filter(|_| {
            call.method() == Some("tools/call") && refused.is_some_and(|error| error.code == HEADER_MISMATCH)
        }) else {
            return false;
        };
        let known = metadata.headers(call);
        let learnt = timeout(DELIVERY_TIMEOUT, self.list_tools(&metadata, call)).await;
        learnt.is_ok() && metadata.headers(call) != known
    }

    /// Reads the whole list, in a session that nobody else hears of; [`forward`](Self::forward) learns from it.
    async fn list_tools(&self, metadata: &Arc<Metadata>, call: &Message) {
        let meta = call.params().and_then(|params| member(params, "_meta")).unwrap_or("{}");
        let mut cursor = String::new();
        for page in 0..MAX_PAGES {
            let (events, mut answers) = self.events.before(UNHEARD);
            let list = Self {
                id: self.id,
                wire: self.wire.beside(),
                metadata: Some(metadata.clone()),
                events,
                max: self.max,
                findings: self.findings.clone(),
            };
            let params = [r#"{"_meta":"#, meta, &cursor, "}"];
            let request = Message::request_of_parts(&RequestId::number(page), "tools/list", &params);
            let asked =
                Box::pin(async move { list.ask(Outbound { message: request, reserved: None }, None).await });
            let heard = async {
                let mut next = None;
                while let Some(report) = answers.recv().await {
                    if let FromBackend::Message(message) = &report.event {
                        next = message
                            .result()
                            .and_then(|result| member(result, "nextCursor"))
                            .map(str::to_owned);
                    }
                }
                next
            };
            match tokio::join!(asked, heard) {
                (Ok(()), Some(next)) if next.starts_with('"') => cursor = format!(r#","cursor":{next}"#),
                _ => return,
            }
        }
    }

    pub(super) async fn fail(&self, id: RequestId, reason: &'static str, detail: String) {
        self.report(FromBackend::RequestFailed { id, reason, detail }).await;
    }

    /// Reports what needs no room.
    pub(super) async fn report(&self, event: FromBackend) {
        self.events.report(self.id, event, None).await;
    }
}

/// The next bytes of a stream; nothing at its end. `Err`: it broke, and how. Cancel-safe.
pub(super) async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>, String> {
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(chunk)) => return Ok(Some(chunk)),
            Ok(Err(_trailers)) => {}
            Err(error) => return Err(format!("the stream broke: {}", innermost(&error))),
        }
    }
    Ok(None)
}

/// How long to wait before a stream is tried again. A server that names no time at all is left alone longer and longer
/// like any other.
pub(super) fn pause(retry: Option<Duration>, failures: u32) -> Duration {
    let first = retry.unwrap_or(FIRST_PAUSE).max(SHORTEST_PAUSE);
    first.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_follow_the_server_within_bounds() {
        assert_eq!(pause(None, 0), FIRST_PAUSE);
        assert_eq!(pause(None, 2), 4 * FIRST_PAUSE);
        assert_eq!(pause(Some(Duration::from_millis(100)), 1), Duration::from_millis(200));
        assert_eq!(pause(Some(Duration::ZERO), 0), SHORTEST_PAUSE);
        assert_eq!(pause(Some(Duration::ZERO), 3), 8 * SHORTEST_PAUSE);
        assert_eq!(pause(Some(Duration::ZERO), u32::MAX), LONGEST_PAUSE);
        assert_eq!(pause(Some(Duration::MAX), u32::MAX), LONGEST_PAUSE);
    }
}
