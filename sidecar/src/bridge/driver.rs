//! Moves the bytes between one connection, the state machines and the backends. It never waits for a send: what the
//! broker does not take waits in the outbox (and with it the backends), what a backend does not take is an error to
//! its caller. Reading from the broker goes on throughout.

use std::{collections::HashMap, time::Duration};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use mcp_mqtt_transport::{
    mqtt::{CloseReason, Event, Events, PublishError, Publisher, ReasonCode, Received, Refused},
    topic::{ClientId, ServerName},
};
use tokio::{
    sync::mpsc::error::TrySendError,
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};

use super::{
    Bridge,
    action::{Action, EndReason},
    broadcast::{Broadcasts, Said},
    core::{Core, Setting},
    outbox::{Outbox, Outgoing, Sent, Unsent},
};
use crate::{
    backend::{BackendEnd, BackendSession, SessionId},
    drain::Progress,
    health::Health,
    registrar::{Link, Registrar},
    status::reason,
};

mod farewell;

/// Messages that are taken from one side in one go, before the others get their turn.
const BATCH: usize = 64;
/// For the broker to acknowledge a presence; it did so in the self-test a moment ago.
const PRESENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// The connection's queue is full by bytes when a large message does not fit, though a small one would: it is asked
/// again no sooner than this.
const RETRY_PAUSE: Duration = Duration::from_millis(1);
/// Far away, in place of no deadline.
const NO_DEADLINE: Duration = Duration::from_hours(24);

/// Why a driver has ended.
#[derive(Debug)]
pub(super) enum End {
    /// The connection is over.
    Lost(CloseReason),
    /// A drain is done.
    Drained,
}

/// An answer of the broker that somebody waits for.
enum Answer {
    Subscribed(SessionId, Result<Vec<ReasonCode>, PublishError>),
    Announced(bool, Result<ReasonCode, PublishError>),
}

/// Whether the presence stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Cleared,
    /// Sent; true: the online message.
    Sent(bool),
    Online,
}

/// See the module.
pub(super) struct Driver<'a> {
    bridge: &'a mut Bridge,
    registrar: &'a Registrar,
    publisher: Publisher,
    events: Events,
    server_name: ServerName,
    remark: Option<String>,
    core: Core,
    backends: HashMap<SessionId, BackendSession>,
    broadcasts: Broadcasts,
    outbox: Outbox,
    /// Not before this is it tried again to send what waits there.
    retry_at: Instant,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    actions: Vec<Action>,
    presence: Presence,
    drain: Option<Drain>,
}

/// A drain that runs.
#[derive(Debug)]
struct Drain {
    deadline: Instant,
    /// Whose subscriptions are given up at the end: until then a late request is answered with an error.
    given_up: Vec<ClientId>,
}

impl<'a> Driver<'a> {
    pub(super) fn new(bridge: &'a mut Bridge, registrar: &'a Registrar, link: Link) -> Self {
        let Link { connection, server_name, early, remark, since: _ } = link;
        let limits = &bridge.config.limits;
        let setting = Setting {
            server_id: registrar.server_id().clone(),
            server_name: server_name.clone(),
            qos: bridge.config.qos(),
            max_packet: connection.accepted.maximum_packet_size,
            rules: bridge.rules.clone(),
            max_sessions: limits.max_sessions,
        };
        // An error for all that can be in flight, a goodbye to all, and room for what is refused meanwhile.
        let errors = u64::from(limits.max_sessions) * (u64::from(limits.max_in_flight) + 4) + 1024;
        let mut driver = Self {
            core: Core::new(setting, bridge.last_id),
            bridge,
            registrar,
            publisher: connection.publisher,
            events: connection.events,
            server_name,
            remark,
            backends: HashMap::new(),
            broadcasts: Broadcasts::default(),
            outbox: Outbox::new(usize::try_from(errors).unwrap_or(usize::MAX)),
            retry_at: Instant::now(),
            answers: FuturesUnordered::new(),
            actions: Vec::new(),
            presence: Presence::Cleared,
            drain: None,
        };
        driver.take_health();
        for received in early {
            driver.take_received(received);
        }
        driver
    }

    /// Serves until the connection or a drain ends.
    pub(super) async fn run(mut self) -> End {
        let mut timer = std::pin::pin!(sleep(NO_DEADLINE));
        loop {
            self.publish_counts();
            if self.drain.is_some() && self.core.sessions.is_empty() {
                return self.leave().await;
            }
            self.set_timer(timer.as_mut());
            tokio::select! {
                event = self.events.recv() => {
                    if let Some(why) = self.take_events(event) {
                        return self.lost(why);
                    }
                }
                // A broker that does not keep up makes the backends wait.
                Some((session, event)) = self.bridge.from_backends.recv(), if self.outbox.is_empty() => {
                    self.core.sessions.backend_event(session, event, now(), &mut self.actions);
                    self.perform();
                    self.take_backend_events();
                }
                () = room(&self.publisher, self.retry_at), if !self.outbox.is_empty() => self.flush(),
                Some(answer) = self.answers.next(), if !self.answers.is_empty() => {
                    if let Some(why) = self.take_answer(answer) {
                        return self.lost(why);
                    }
                }
                Ok(()) = self.bridge.health.changed() => self.take_health(),
                Some(patience) = self.bridge.drains.requests.recv() => self.begin_drain(patience),
                () = timer.as_mut() => {
                    self.take_deadlines();
                    timer.as_mut().reset(Instant::now() + NO_DEADLINE);
                }
            }
        }
    }

    fn publish_counts(&self) {
        let metrics = &self.bridge.metrics;
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.sessions.set(gauge(self.core.sessions.len()));
        metrics.in_flight.set(gauge(self.core.sessions.in_flight()));
        if self.drain.is_some() {
            let sessions = self.core.sessions.len();
            let progress = Progress::Draining { sessions, in_flight: self.core.sessions.in_flight() };
            self.bridge.drains.progress.send_if_modified(|old| std::mem::replace(old, progress) != progress);
        }
    }

    /// Moves the timer to the next deadline, if that has changed.
    fn set_timer(&self, timer: std::pin::Pin<&mut Sleep>) {
        let drain = self.drain.as_ref().map(|drain| drain.deadline);
        let others = [self.core.sessions.next_deadline(), self.broadcasts.next_deadline()];
        let others = others.into_iter().flatten().map(Instant::from_std);
        if let Some(deadline) = others.chain(drain).min()
            && timer.deadline() != deadline
        {
            timer.reset(deadline);
        }
    }

    fn take_deadlines(&mut self) {
        let now = now();
        self.core.sessions.expire(now, &mut self.actions);
        while let Some(payload) = self.broadcasts.take_due(now) {
            self.bridge.metrics.broadcasts.inc();
            self.send(Outgoing::ToAll { payload });
        }
        if let Some(drain) = &mut self.drain
            && drain.deadline.into_std() <= now
        {
            drain.deadline += NO_DEADLINE;
            self.core.sessions.end_all(&EndReason::Drained, now, &mut self.actions);
        }
        self.perform();
    }

    /// What came from the broker; the reason when that was the end.
    fn take_events(&mut self, first: Option<Event>) -> Option<CloseReason> {
        let mut next = first;
        for _ in 0..BATCH {
            match next {
                Some(Event::Received(received)) => self.take_received(received),
                Some(Event::Refused(refused)) => self.take_refused(refused),
                Some(Event::Closed(why)) => return Some(why),
                None => return Some(CloseReason::ClosedByBroker), // not after `Closed`, with which we have left
            }
            next = Some(self.events.try_recv()?);
        }
        match next {
            Some(Event::Received(received)) => self.take_received(received),
            Some(Event::Refused(refused)) => self.take_refused(refused),
            Some(Event::Closed(why)) => return Some(why),
            None => {}
        }
        None
    }

    fn take_received(&mut self, received: Received) {
        self.bridge.metrics.received_bytes.inc_by(received.payload.len() as u64);
        let (backend, events, backends) = (&self.bridge.backend, &self.bridge.events, &mut self.backends);
        let open = |session| {
            backends.insert(session, backend.open(session, events.clone()));
        };
        self.core.received(received, now(), &mut self.actions, open);
        self.perform();
    }

    fn take_refused(&mut self, refused: Refused) {
        let Refused { note, payload, reason } = refused;
        self.dropped("broker-refused");
        self.core.undelivered(note, payload, &reason.to_string(), now(), &mut self.actions);
        self.perform();
    }

    fn take_backend_events(&mut self) {
        for _ in 0..BATCH {
            if !self.outbox.is_empty() {
                return;
            }
            let Ok((session, event)) = self.bridge.from_backends.try_recv() else { return };
            self.core.sessions.backend_event(session, event, now(), &mut self.actions);
            self.perform();
        }
    }

    /// Item 1 of readiness: without a backend nobody is to find us.
    fn take_health(&mut self) {
        let health = self.bridge.health.borrow_and_update().clone();
        match health {
            Health::Up(_) => {
                // Up again, without a look at the down between: what that would have ended is ended by its backend.
                self.core.sessions.set_backend_up(true);
                if self.presence != Presence::Online
                    && self.presence != Presence::Sent(true)
                    && self.drain.is_none()
                {
                    self.announce(true);
                }
            }
            Health::Down(why) => {
                self.core.sessions.set_backend_up(false);
                let end = EndReason::Backend(BackendEnd::BackendLost(why));
                self.core.sessions.end_all(&end, now(), &mut self.actions);
                self.perform();
                if self.drain.is_none() {
                    // Errors first, then the empty presence (item 14).
                    if matches!(self.presence, Presence::Online | Presence::Sent(true)) {
                        self.announce(false);
                    }
                    let message = "the presence is published once the MCP server answers";
                    self.bridge.board.unregistered(reason::WAITING_FOR_BACKEND, message);
                }
            }
        }
    }

    fn announce(&mut self, online: bool) {
        self.presence = Presence::Sent(online);
        self.send(Outgoing::Presence { online });
    }

    /// An answer of the broker; the reason when it makes the connection useless.
    fn take_answer(&mut self, answer: Answer) -> Option<CloseReason> {
        match answer {
            Answer::Subscribed(session, result) => {
                let result = match result {
                    Ok(codes) => match codes.into_iter().find(|code| code.is_error()) {
                        None => Ok(()),
                        Some(code) => Err(code.to_string()),
                    },
                    Err(error) => Err(error.to_string()),
                };
                self.core.sessions.subscribed(session, result, now(), &mut self.actions);
                self.perform();
                None
            }
            Answer::Announced(online, result) => {
                let refused = match result {
                    Ok(code) if !code.is_error() => {
                        if online && self.presence == Presence::Sent(true) && self.drain.is_none() {
                            self.presence = Presence::Online;
                            self.bridge.board.registered(self.server_name.as_str(), self.remark.as_deref());
                        } else if !online && self.presence == Presence::Sent(false) {
                            self.presence = Presence::Cleared;
                        }
                        return None;
                    }
                    Ok(code) => code.to_string(),
                    Err(PublishError::Closed) => return None, // the events tell why
                    Err(error) => error.to_string(),
                };
                Some(CloseReason::Protocol(format!("the presence was not taken: {refused}")))
            }
        }
    }

    fn lost(mut self, why: CloseReason) -> End {
        self.core.sessions.end_all(&EndReason::BrokerLost, now(), &mut self.actions);
        self.perform();
        self.publish_counts();
        self.bridge.last_id = self.core.sessions.last_id();
        if self.drain.is_some() { End::Drained } else { End::Lost(why) }
    }

    /// Does what the state machines have asked for.
    fn perform(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        while !actions.is_empty() {
            for action in actions.drain(..) {
                self.act(action);
            }
            std::mem::swap(&mut actions, &mut self.actions); // what the actions have led to
        }
        self.actions = actions; // empty, but its memory serves again
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::ToClient { client, message } => {
                self.send(Outgoing::ToClient { client, payload: message.into_raw() });
            }
            Action::ToBackend { session, message } => {
                let Some(backend) = self.backends.get(&session) else { return };
                // A closed one is about to report its end, which answers what is in flight.
                if let Err(TrySendError::Full(message)) = backend.to_backend.try_send(message) {
                    self.core.sessions.backend_busy(session, &message, now(), &mut self.actions);
                }
            }
            Action::Resolved { asker, method, outcome, elapsed } => {
                self.bridge.metrics.request(asker, method, outcome, elapsed);
            }
            Action::Broadcast { message } => match self.broadcasts.say(message.into_raw(), now()) {
                Said::Waits => {}
                Said::Merged => {
                    self.bridge.metrics.broadcasts_merged.inc();
                }
                Said::Now(payload) => {
                    self.bridge.metrics.broadcasts.inc();
                    self.send(Outgoing::ToAll { payload });
                }
            },
            Action::Subscribe { session, client } => self.send(Outgoing::Subscribe { session, client }),
            Action::Unsubscribe { client } => match &mut self.drain {
                Some(drain) => drain.given_up.push(client),
                None => self.send(Outgoing::Unsubscribe { clients: vec![client] }),
            },
            Action::Opened { session, client, .. } => {
                self.bridge.metrics.sessions_started.inc();
                tracing::info!(session = session.0, %client, "session began");
            }
            Action::Ended { session, client, reason } => {
                self.backends.remove(&session);
                self.bridge.metrics.session_ended(reason.as_str());
                let word = reason.as_str();
                if reason.is_trouble() {
                    tracing::warn!(session = session.0, %client, reason = word, "session ended: {reason}");
                } else {
                    tracing::info!(session = session.0, %client, reason = word, "session ended: {reason}");
                }
            }
            Action::Dropped { reason } => self.dropped(reason),
        }
    }

    fn send(&mut self, outgoing: Outgoing) {
        let transmit = |outgoing: &Outgoing| transmit(&self.publisher, &self.core, self.registrar, outgoing);
        let was_empty = self.outbox.is_empty();
        let sent = self.outbox.send(outgoing, transmit);
        if was_empty && !self.outbox.is_empty() {
            self.retry_at = Instant::now() + RETRY_PAUSE;
        }
        self.sent(sent);
    }

    fn flush(&mut self) {
        loop {
            let transmit =
                |outgoing: &Outgoing| transmit(&self.publisher, &self.core, self.registrar, outgoing);
            match self.outbox.retry(transmit) {
                Some(sent) => self.sent(sent),
                None => break,
            }
        }
        self.retry_at = Instant::now() + RETRY_PAUSE;
        self.perform(); // what a failure has led to
    }

    fn sent(&mut self, sent: Result<Sent, Unsent>) {
        match sent {
            Ok(Sent::Bytes(bytes)) => {
                self.bridge.metrics.sent_bytes.inc_by(bytes as u64);
            }
            Ok(Sent::Subscribing(session, reply)) => {
                self.answers.push(Box::pin(async move { Answer::Subscribed(session, reply.await) }));
            }
            Ok(Sent::Announcing(online, reply)) => self.answers.push(Box::pin(async move {
                let answer = timeout(PRESENCE_TIMEOUT, reply).await;
                Answer::Announced(online, answer.unwrap_or(Err(PublishError::Timeout(PRESENCE_TIMEOUT))))
            })),
            // Once closed, the events tell why, and all sessions end.
            Ok(Sent::Waits) | Err(Unsent::Refused(_, PublishError::Closed)) => {}
            Err(Unsent::Overflow(outgoing)) => {
                self.unsent(&outgoing, "outbox-full", "too much waits for the broker");
            }
            Err(Unsent::Refused(outgoing, error)) => {
                self.unsent(&outgoing, "packet-refused", &error.to_string());
            }
        }
    }

    fn unsent(&mut self, outgoing: &Outgoing, reason: &'static str, why: &str) {
        self.dropped(reason);
        tracing::warn!(reason, "not sent: {why}");
        match outgoing {
            Outgoing::Subscribe { session, .. } => {
                self.core.sessions.subscribed(*session, Err(why.to_owned()), now(), &mut self.actions);
            }
            Outgoing::ToClient { client, payload } => {
                let note = self.core.note(client);
                self.core.undelivered(note, payload.clone(), why, now(), &mut self.actions);
            }
            _ => {}
        }
    }

    fn dropped(&self, reason: &'static str) {
        self.bridge.metrics.dropped(reason);
        tracing::debug!(reason, "dropped a message");
    }
}

/// The one place where things go out.
fn transmit(
    publisher: &Publisher,
    core: &Core,
    registrar: &Registrar,
    outgoing: &Outgoing,
) -> Result<Sent, PublishError> {
    let publish = |publication: mcp_mqtt_transport::mqtt::Publication, note| {
        let bytes = publication.payload.len();
        publisher.try_publish_noted(publication, note).map(|()| Sent::Bytes(bytes))
    };
    match outgoing {
        Outgoing::ToClient { client, payload } => {
            publish(core.to_client(client, payload.clone()), core.note(client))
        }
        Outgoing::ToAll { payload } => publish(core.to_all(payload.clone()), 0),
        Outgoing::Subscribe { session, client } => {
            Ok(Sent::Subscribing(*session, publisher.subscribe_start(core.filters(client).into())?))
        }
        Outgoing::Unsubscribe { clients } => {
            let filters = clients.iter().flat_map(|client| core.filters(client)).map(|filter| filter.filter);
            publisher.unsubscribe(filters.collect()).map(|_reply| Sent::Waits)
        }
        Outgoing::Presence { online } => {
            let presence = if *online { registrar.online() } else { registrar.offline() };
            Ok(Sent::Announcing(*online, publisher.publish_start(presence)?))
        }
    }
}

/// Waits until it makes sense to try again. Begun anew it waits no longer than before.
async fn room(publisher: &Publisher, retry_at: Instant) {
    sleep_until(retry_at).await;
    publisher.ready().await;
}

fn now() -> std::time::Instant {
    std::time::Instant::now()
}
