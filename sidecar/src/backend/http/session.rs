//! One session over HTTP: each message is a POST of its own; nothing but order holds one up for another.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::FutureExt;
use mcp_mqtt_transport::jsonrpc::{Kind, RequestId};
use tokio::{
    sync::{Notify, oneshot},
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::exchange::Shared;
use crate::backend::{BackendEnd, FromBridge, failure, send_quota::Outbound};

/// How long the next message waits for the one before to be on its way: longer when a connection does not take
/// it, and then order is given up for the sake of the others.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// How long everything waits for `initialize` to be answered and `notifications/initialized` to be delivered.
/// Their own timeouts are shorter, or the bridge's are.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_mins(10);
/// How long after its request a cancellation is sent at the earliest: the request may be on a new connection, which
/// a server takes later than what comes on an old one.
const CANCEL_HEADSTART: Duration = Duration::from_millis(50);
/// How long an answer may still come after its request was cancelled; the server need not end the stream.
const CANCEL_LINGER: Duration = Duration::from_secs(5);
/// Backstop of a request that is never answered nor cancelled; the bridge's timeouts are far shorter.
const EXCHANGE_CEILING: Duration = Duration::from_hours(1);
/// How long what is still to be sent may take to be on its way, or answered if it is `initialize`, once the bridge has
/// dropped the session.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long the DELETE at the end may take.
const DELETE_TIMEOUT: Duration = Duration::from_secs(2);
/// Notifications and responses that may be on their way at one time; each is bounded in time. The stream of the
/// server counts as one.
const MAX_DELIVERIES: usize = 64;

/// What the two kinds of HTTP do in their own ways.
pub(super) trait Transport: Send + Sync + 'static {
    /// What they have in common.
    fn shared(&self) -> &Shared;

    /// Posts a request and reports its answer, or that there is none. The next message may go when `written` was told
    /// or dropped. `Err`: the session is over.
    fn exchange(
        &self,
        request: Outbound,
        written: Option<oneshot::Sender<()>>,
    ) -> impl Future<Output = Result<(), BackendEnd>> + Send;

    /// Posts a notification or a response; otherwise as [`Transport::exchange`].
    fn deliver(
        &self,
        message: Outbound,
        written: Option<oneshot::Sender<()>>,
    ) -> impl Future<Output = Result<(), BackendEnd>> + Send;

    /// Hears what belongs to no request, from the end of the handshake on. `Err`: the session is over.
    fn listen(&self) -> impl Future<Output = Result<(), BackendEnd>> + Send;
}

/// What a task of a session leaves behind: the request that was its own, if there was one, and how it ended.
type Done = (Option<RequestId>, Result<(), BackendEnd>);

/// A session's tasks.
pub(super) struct Driver<T> {
    session: Arc<T>,
    tasks: JoinSet<Done>,
    in_flight: HashMap<RequestId, InFlight>,
    max_in_flight: usize,
    hold: Option<Hold>,
    listening: bool,
}

/// A request that waits for its answer.
struct InFlight {
    sent: Instant,
    cancelled: Arc<Notify>,
    /// Nobody waits for it any more: its place is for the next one that needs it.
    given_up: bool,
    task: AbortHandle,
}

/// What the next message waits for.
struct Hold {
    /// Sent or dropped when it may go.
    released: oneshot::Receiver<()>,
    until: Instant,
}

impl<T: Transport> Driver<T> {
    /// `max_in_flight`: the bridge's bound. Twice that may be open here, since what it gave up (cancelled, timed
    /// out) is not over at once.
    pub(super) fn new(session: Arc<T>, max_in_flight: usize) -> Self {
        Self {
            session,
            tasks: JoinSet::new(),
            in_flight: HashMap::new(),
            max_in_flight: max_in_flight.saturating_mul(2),
            hold: None,
            listening: false,
        }
    }

    /// Another task of the session, which is over when this one has an error.
    pub(super) fn spawn(&mut self, task: impl Future<Output = Result<(), BackendEnd>> + Send + 'static) {
        // An async block would hold it twice: as it came, and while it runs.
        self.tasks.spawn(task.map(|result| (None, result)));
    }

    /// Serves the session to its end.
    pub(super) async fn serve(mut self, from_bridge: FromBridge) -> BackendEnd {
        let end = self.pump(from_bridge).await;
        self.tasks.shutdown().await; // nothing is reported after the end
        if end == BackendEnd::Closed {
            let shared = self.session.shared();
            match timeout(DELETE_TIMEOUT, shared.wire.delete()).await {
                Ok(Ok(())) => {}
                Ok(Err(failed)) => tracing::debug!(session = shared.id.0, ?failed, "DELETE failed"),
                Err(_) => {
                    tracing::debug!(session = shared.id.0, "DELETE took more than {DELETE_TIMEOUT:?}");
                }
            }
        }
        end
    }

    async fn pump(&mut self, from_bridge: FromBridge) -> BackendEnd {
        let FromBridge { mut messages, mut dropped } = from_bridge;
        let mut leaving = None;
        loop {
            let has_room = self.tasks.len() < self.max_in_flight.saturating_add(MAX_DELIVERIES);
            tokio::select! {
                biased;
                Some(done) = self.tasks.join_next_with_id() => {
                    if let Some(end) = self.settle(done) {
                        return end;
                    }
                }
                () = released(&mut self.hold), if self.hold.is_some() => self.hold = None,
                message = messages.recv(), if self.hold.is_none() && has_room => match message {
                    Some(outbound) => self.dispatch(*outbound).await,
                    None => return BackendEnd::Closed,
                },
                // Last words may still wait, and `initialize` may be about to bring a session that has to be deleted.
                _ = &mut dropped, if leaving.is_none() => leaving = Some(Instant::now() + LAST_WORDS),
                () = sleep_until(leaving.unwrap_or_else(Instant::now)), if leaving.is_some() => {
                    return BackendEnd::Closed;
                }
            }
        }
    }

    /// Sends a message on its way in a task of its own.
    async fn dispatch(&mut self, outbound: Outbound) {
        let message = &outbound.message;
        let (release, released) = oneshot::channel();
        let mut patience = SEND_TIMEOUT;
        match (message.kind().clone(), message.method()) {
            (Kind::Request { id, .. }, _) if !self.make_room() => {
                let detail =
                    format!("{} requests of this session wait for the server already", self.in_flight.len());
                self.session.shared().fail(id, failure::TOO_MANY_IN_FLIGHT, detail).await;
                return;
            }
            (Kind::Request { id, .. }, Some("initialize")) => {
                patience = HANDSHAKE_TIMEOUT;
                self.exchange(id, outbound, None, Some(release));
            }
            (Kind::Request { id, .. }, _) => self.exchange(id, outbound, Some(release), None),
            // In 2026-07-28 the end of its stream cancels a request, and nothing else is told to the server.
            (_, method) if self.session.shared().metadata.is_some() => {
                let cancelled = message.cancelled_request().and_then(|id| self.in_flight.get(&id));
                if let Some(request) = cancelled {
                    request.cancelled.notify_one();
                } else {
                    tracing::debug!(method, "is not sent to a server without sessions");
                }
                return;
            }
            (_, Some("notifications/initialized")) => {
                patience = HANDSHAKE_TIMEOUT;
                let session = self.session.clone();
                let listen = !std::mem::replace(&mut self.listening, true);
                self.spawn(async move {
                    let delivered = session.deliver(outbound, None).await;
                    drop(release);
                    match delivered {
                        Ok(()) if listen => session.listen().await,
                        other => other,
                    }
                });
            }
            _ => {
                let cancelled = message.cancelled_request().and_then(|id| self.in_flight.get_mut(&id));
                let not_before = cancelled.map(|request| {
                    request.given_up = true;
                    request.cancelled.notify_one();
                    request.sent + CANCEL_HEADSTART
                });
                let session = self.session.clone();
                self.spawn(async move {
                    if let Some(not_before) = not_before.filter(|at| *at > Instant::now()) {
                        drop(release); // nothing has to come after a cancellation
                        sleep_until(not_before).await;
                        return session.deliver(outbound, None).await;
                    }
                    session.deliver(outbound, Some(release)).await
                });
            }
        }
        self.hold = Some(Hold { released, until: Instant::now() + patience });
    }

    /// `written` is told when the request is on its way, `answered` dropped when it is over.
    fn exchange(
        &mut self,
        id: RequestId,
        outbound: Outbound,
        written: Option<oneshot::Sender<()>>,
        answered: Option<oneshot::Sender<()>>,
    ) {
        let cancelled = Arc::new(Notify::new());
        let (request, heard) = (id.clone(), cancelled.clone());
        let session = self.session.clone();
        let is_endless = outbound.message.method() == Some("subscriptions/listen");
        let task = self.tasks.spawn(async move {
            let given_up = async {
                heard.notified().await;
                if session.shared().metadata.is_none() {
                    sleep(CANCEL_LINGER).await;
                }
            };
            let result = tokio::select! {
                result = session.exchange(outbound, written) => result,
                () = given_up => Ok(()), // nobody waits for it
                () = sleep(EXCHANGE_CEILING), if !is_endless => {
                    let detail = format!("no answer within {EXCHANGE_CEILING:?}");
                    session.shared().fail(id.clone(), failure::CONNECTION_BROKEN, detail).await;
                    Ok(())
                }
            };
            drop(answered);
            (Some(id), result)
        });
        let request_in_flight = InFlight { sent: Instant::now(), cancelled, given_up: false, task };
        // The bridge does not wait for the old one any more, and would take its late answer for the new one's.
        if let Some(old) = self.in_flight.insert(request, request_in_flight).filter(|old| old.given_up) {
            old.task.abort();
        }
    }

    /// Whether there is a place for one more request; one that nobody waits for gives way.
    fn make_room(&mut self) -> bool {
        if self.in_flight.len() < self.max_in_flight {
            return true;
        }
        let given_up = self.in_flight.iter().filter(|(_, request)| request.given_up);
        let Some((oldest, _)) = given_up.min_by_key(|(_, request)| request.sent) else { return false };
        let oldest = oldest.clone();
        if let Some(request) = self.in_flight.remove(&oldest) {
            request.task.abort();
        }
        true
    }

    fn settle(&mut self, done: Result<(Id, Done), JoinError>) -> Option<BackendEnd> {
        match done {
            Ok((task, (request, result))) => {
                // Its id may be that of another request by now.
                if let Some(id) = request
                    && self.in_flight.get(&id).is_some_and(|request| request.task.id() == task)
                {
                    self.in_flight.remove(&id);
                }
                result.err()
            }
            Err(error) if error.is_cancelled() => None, // it gave way
            Err(error) => Some(BackendEnd::SessionLost(format!("a task of the gateway failed: {error}"))),
        }
    }
}

async fn released(hold: &mut Option<Hold>) {
    let Some(hold) = hold else { return }; // nothing to wait for
    tokio::select! {
        _ = &mut hold.released => {}
        () = sleep_until(hold.until) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use bytes::Bytes;
    use mcp_mqtt_transport::jsonrpc::Message;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::backend::{
        BackendEvents, SendQuota, SessionId,
        findings::Findings,
        http::{Endpoint, Wire},
    };

    /// Never answers what it is asked, until it may.
    struct Mute {
        shared: Shared,
        answers: Semaphore,
        open: AtomicUsize,
    }

    struct Open<'a>(&'a AtomicUsize);

    impl Drop for Open<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }

    impl Transport for Mute {
        fn shared(&self) -> &Shared {
            &self.shared
        }

        async fn exchange(
            &self,
            _: Outbound,
            written: Option<oneshot::Sender<()>>,
        ) -> Result<(), BackendEnd> {
            drop(written);
            self.open.fetch_add(1, SeqCst);
            let _open = Open(&self.open);
            if let Ok(answer) = self.answers.acquire().await {
                answer.forget();
            }
            Ok(())
        }

        async fn deliver(&self, _: Outbound, _: Option<oneshot::Sender<()>>) -> Result<(), BackendEnd> {
            Ok(())
        }

        async fn listen(&self) -> Result<(), BackendEnd> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_with_an_id_that_was_used_before_can_be_given_up_in_its_turn() {
        let endpoint =
            Endpoint::new(&"http://127.0.0.1:1/".parse().unwrap(), None, "--http-url", "transport").unwrap();
        let (events, _heard) = BackendEvents::channel(8, 1000);
        let shared = Shared {
            id: SessionId(1),
            wire: Wire::new(Arc::new(endpoint)),
            metadata: None,
            events,
            max: 1000,
            findings: Findings::default(),
        };
        let mute = Arc::new(Mute { shared, answers: Semaphore::new(0), open: AtomicUsize::new(0) });
        let (session, from_bridge) = SendQuota::for_messages_of(1000).session();
        tokio::spawn(Driver::new(mute.clone(), 8).serve(from_bridge));
        let say = async |text: &'static str| {
            session.say(Message::parse(Bytes::from_static(text.as_bytes()), 1000).unwrap()).unwrap();
            sleep(Duration::from_millis(100)).await;
            mute.open.load(SeqCst)
        };
        let request = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call"}"#;
        let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}"#;
        assert_eq!(say(request).await, 1);
        assert_eq!(say(cancel).await, 1, "its answer may still come");
        assert_eq!(say(request).await, 1, "the answer to the old one would be taken for that to the new one");
        sleep(2 * CANCEL_LINGER).await;
        assert_eq!(say(cancel).await, 1);
        sleep(2 * CANCEL_LINGER).await;
        assert_eq!(mute.open.load(SeqCst), 0, "nobody waits for the new one, either");
        // Of one that was answered, the stream may go on for a moment.
        assert_eq!(say(request).await, 1);
        assert_eq!(say(request).await, 2);
        mute.answers.add_permits(1);
        assert_eq!(say(cancel).await, 1);
        sleep(2 * CANCEL_LINGER).await;
        assert_eq!(mute.open.load(SeqCst), 0);
    }
}
