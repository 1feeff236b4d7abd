//! Moves the bytes between the connections, the state machines and the backends. It never waits for a send: what the
//! broker does not take waits in the connection's outbox (and with it the backends of its sessions), what a backend
//! does not take is an error to its caller. Reading from the broker goes on throughout.

use std::{collections::HashMap, time::Duration};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use mcp_mqtt_transport::{
    mqtt::{CloseReason, Event, PublishError, ReasonCode, Received, Refused},
    topic::{self, ClientId, ServerName},
};
use tokio::time::{Instant, Sleep, sleep};

use super::{
    Bridge,
    action::{Action, EndReason},
    broadcast::{Broadcasts, Said},
    core::{Core, Setting},
    link::{Link, LinkEvent, Links},
    outbox::Outgoing,
    placement::LinkId,
    presence::Presence,
    silence::Silence,
};
use crate::{
    backend::{BackendEnd, BackendSession, Report, SessionId},
    drain::Progress,
    health::State,
    registrar::{Registrar, Registration},
    status::reason,
};

mod place;
mod sending;
mod shutdown;
mod workers;

use place::Place;
use workers::Workers;

/// Messages that are taken from one side in one go, before the others get their turn.
const BATCH: usize = 64;
/// Room for actions that is kept for the next ones: after most events there are one or two.
const KEPT_ACTIONS: usize = 64;
/// For the broker to acknowledge a presence; it did so in the self-test a moment ago.
const PRESENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// Far away, in place of no deadline.
const NO_DEADLINE: Duration = Duration::from_hours(24);

/// Why a driver has ended.
#[derive(Debug)]
pub(super) enum End {
    /// The registering connection is over.
    Lost(CloseReason),
    /// A drain is done.
    Drained,
}

/// An answer of the broker that somebody waits for.
enum Answer {
    Subscribed(SessionId, Result<Vec<ReasonCode>, PublishError>),
    Unsubscribed,
    Announced(bool, Result<ReasonCode, PublishError>),
    Watching(Result<Vec<ReasonCode>, PublishError>),
}

/// See the module.
pub(super) struct Driver<'a> {
    bridge: &'a mut Bridge,
    registrar: &'a Registrar,
    links: Links,
    workers: Workers,
    /// What may wait for one connection.
    outbox_limit: usize,
    server_name: ServerName,
    remark: Option<String>,
    core: Core,
    backends: HashMap<SessionId, BackendSession>,
    broadcasts: Broadcasts,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    actions: Vec<Action>,
    presence: Presence,
    place: Place,
    silence: Silence,
    /// The server takes no new session: the presence goes with the last of those that it has, since a client that sees an
    /// empty one drops its session at once.
    is_failing: bool,
    /// Unsubscribes that the broker has not answered: it has all that was sent before one that it has.
    unsubscribing: usize,
    drain: Option<Drain>,
}

/// A drain that runs.
#[derive(Debug)]
struct Drain {
    deadline: Instant,
    /// Whose subscriptions are given up at the end: until then a late request is answered with an error.
    given_up: Vec<(LinkId, ClientId)>,
}

impl<'a> Driver<'a> {
    pub(super) fn new(bridge: &'a mut Bridge, registrar: &'a Registrar, registration: Registration) -> Self {
        let Registration { connection, server_name, stands_in, early, remark, since } = registration;
        let workers = registrar.workers();
        let limits = &bridge.config.limits;
        let setting = Setting {
            server_id: registrar.server_id().clone(),
            server_name: server_name.clone(),
            qos: bridge.config.qos(),
            max_packet: connection.accepted.maximum_packet_size,
            workers: workers.len(),
            rules: bridge.rules.clone(),
            max_sessions: limits.max_sessions,
            stands_in,
        };
        let place = Place::new(
            topic::server_presence(&setting.server_id, &server_name),
            topic::control(&setting.server_id, &server_name),
        );
        // An error for all that can be in flight, a goodbye to all, and what the driver says of itself.
        let errors = u64::from(limits.max_sessions) * (u64::from(limits.max_in_flight) + 4) + 1024;
        let outbox_limit = usize::try_from(errors).unwrap_or(usize::MAX);
        bridge.board.set_workers(workers.iter().map(|worker| worker.client_id().to_owned()).collect());
        let registering = Link::new(connection, since, outbox_limit, bridge.rules.max_message_bytes);
        let mut driver = Self {
            core: Core::new(setting, bridge.last_id),
            bridge,
            registrar,
            links: Links::new(registering, workers.len()),
            workers: Workers::new(workers),
            outbox_limit,
            server_name,
            remark,
            backends: HashMap::new(),
            broadcasts: Broadcasts::default(),
            answers: FuturesUnordered::new(),
            actions: Vec::new(),
            presence: Presence::new(stands_in, now()),
            place,
            silence: Silence::default(),
            is_failing: false,
            unsubscribing: 0,
            drain: None,
        };
        driver.count_links();
        driver.take_health();
        for received in early {
            driver.take_received(LinkId::REGISTERING, received);
        }
        driver
    }

    /// Serves until the registering connection or a drain ends.
    pub(super) async fn run(mut self) -> End {
        let mut timer = std::pin::pin!(sleep(NO_DEADLINE));
        loop {
            self.publish_counts();
            if self.drain.is_some() && self.core.sessions.is_empty() {
                return self.leave().await;
            }
            if self.is_failing && self.core.sessions.is_empty() {
                self.is_failing = false;
                self.retract();
            }
            if self.presence.restarts(now()) {
                return self.restart().await;
            }
            self.set_timer(timer.as_mut());
            tokio::select! {
                (link, event) = self.links.next() => {
                    if let Some(why) = self.take_link_events(link, event) {
                        return self.lost(why).await;
                    }
                }
                Some(answer) = self.answers.next(), if !self.answers.is_empty() => {
                    if let Some(why) = self.take_answer(answer) {
                        return self.lost(why).await;
                    }
                }
                tried = self.workers.next() => self.take_tried(tried),
                Ok(()) = self.bridge.health.changed() => self.take_health(),
                Some(patience) = self.bridge.drains.next() => self.begin_drain(patience),
                _ = self.bridge.heart.tick() => self.bridge.board.pulse().beat(),
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
        if metrics.sessions.get() > 0 || !self.core.sessions.is_empty() {
            self.bridge.board.busy();
        }
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
        let own = [drain, self.workers.presence_waits()];
        let others = [
            self.core.sessions.next_deadline(),
            self.broadcasts.next_deadline(),
            self.presence.next_deadline(),
        ];
        let others = others.into_iter().flatten().map(Instant::from_std);
        if let Some(deadline) = others.chain(own.into_iter().flatten()).min()
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
            self.send(LinkId::REGISTERING, Outgoing::ToAll { payload });
        }
        if let Some(drain) = &mut self.drain
            && drain.deadline.into_std() <= now
        {
            drain.deadline += NO_DEADLINE;
            self.core.sessions.end_all(&EndReason::Drained, now, &mut self.actions);
        }
        if self.workers.presence_waits().is_some_and(|by| by.into_std() <= now) {
            self.workers.waited_enough();
            self.take_health();
        }
        let step = self.presence.expire(now);
        self.step(step);
        self.perform();
    }

    /// What happens on a connection, and more of its kind; the reason when the registering one is over.
    fn take_link_events(&mut self, link: LinkId, first: LinkEvent) -> Option<CloseReason> {
        let mut next = Some(first);
        for taken in 1.. {
            let from_backend = match next? {
                LinkEvent::Event(Event::Received(received)) => {
                    self.take_received(link, received);
                    false
                }
                LinkEvent::Event(Event::Unusable(why)) => {
                    self.dropped(why.as_str());
                    false
                }
                LinkEvent::Event(Event::Refused(refused)) => {
                    self.take_refused(refused);
                    false
                }
                LinkEvent::Event(Event::Closed(why)) if link == LinkId::REGISTERING => return Some(why),
                LinkEvent::Event(Event::Closed(why)) => {
                    self.worker_lost(link, &why);
                    return None;
                }
                LinkEvent::FromBackend(Report { session, event, .. }) => {
                    self.core.sessions.backend_event(session, event, now(), &mut self.actions);
                    self.perform();
                    true
                }
                LinkEvent::Room => {
                    self.flush(link);
                    return None;
                }
            };
            if taken == BATCH {
                break;
            }
            next = self.links.get_mut(link)?.more_like(from_backend);
        }
        None
    }

    fn take_received(&mut self, link: LinkId, received: Received) {
        self.bridge.metrics.received_bytes.inc_by(received.payload.len() as u64);
        let Some(received) = self.take_of_place(received) else { return };
        let (backend, quota) = (&self.bridge.backend, &self.bridge.quota);
        let (links, backends) = (&self.links, &mut self.backends);
        let open = |session, via| {
            // A session is placed on a connection that stands.
            if let Some(link) = links.get(via) {
                backends.insert(session, backend.open(session, quota, link.backend_events()));
            }
        };
        self.core.received(link, received, now(), &mut self.actions, open);
        self.perform();
    }

    fn take_refused(&mut self, refused: Refused) {
        let Refused { note, payload, reason, .. } = refused;
        self.dropped("broker-refused");
        self.core.undelivered(note, payload, &reason.to_string(), now(), &mut self.actions);
        self.perform();
    }

    /// The presence follows the backend: a client that finds us is to be served.
    fn take_health(&mut self) {
        let state = self.bridge.health.borrow_and_update().state.clone();
        self.is_failing = matches!(state, State::Failing(_));
        match state {
            State::Up => {
                // Up again, without a look at the down between: what that would have ended is ended by its backend.
                self.core.sessions.backend_up();
                if self.workers.presence_waits().is_none() {
                    let step = self.presence.backend_up();
                    self.step(step);
                }
            }
            State::Failing(why) => self.core.sessions.backend_down(&why),
            State::Down(why) => {
                self.core.sessions.backend_down(&why);
                let end = EndReason::Backend(BackendEnd::BackendLost(why));
                self.core.sessions.end_all(&end, now(), &mut self.actions);
                self.perform();
                self.retract();
            }
        }
    }

    /// Errors first, then the empty presence: a client that sees it drops its session at once.
    fn retract(&mut self) {
        let step = self.presence.backend_down(self.unsubscribing == 0, now());
        self.step(step);
        if self.drain.is_none() {
            let message = "the presence is published once the MCP server answers";
            self.bridge.board.unregistered(reason::WAITING_FOR_BACKEND, message);
        }
    }

    /// The order of packets holds on one connection only: on the others the broker's answers tell that it has all.
    fn unsubscribed(&mut self) {
        self.unsubscribing -= 1;
        if self.unsubscribing == 0 {
            let step = self.presence.told();
            self.step(step);
        }
    }

    /// An answer of the broker; the reason when it makes the connection useless.
    fn take_answer(&mut self, answer: Answer) -> Option<CloseReason> {
        match answer {
            Answer::Subscribed(session, result) => {
                self.take_earlier(session);
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
            Answer::Unsubscribed => {
                self.unsubscribed();
                None
            }
            Answer::Watching(answer) => {
                self.watching(answer);
                None
            }
            Answer::Announced(online, result) => {
                let refused = match result {
                    Ok(code) if !code.is_error() => {
                        if online {
                            let step = self.presence.published();
                            self.step(step);
                        }
                        return None;
                    }
                    Ok(code) => code.to_string(),
                    Err(PublishError::Closed) => return None, // the events tell why
                    Err(error) => error.to_string(),
                };
                Some(CloseReason::Lost(format!("the presence was not taken: {refused}")))
            }
        }
    }

    /// A worker's events and the broker's answers to it come by two ways: what came before the answer to these
    /// subscriptions is taken before it.
    fn take_earlier(&mut self, session: SessionId) {
        let Some(via) = self.core.sessions.via(session).filter(|via| *via != LinkId::REGISTERING) else {
            return;
        };
        self.take_waiting(via);
    }

    /// What has come on a connection already; the reason when the registering one is over. (Its task is on this thread,
    /// too: nothing is added meanwhile.)
    fn take_waiting(&mut self, link: LinkId) -> Option<CloseReason> {
        while let Some(event) = self.links.get_mut(link).and_then(|link| link.more_like(false)) {
            if let Some(why) = self.take_link_events(link, event) {
                return Some(why);
            }
        }
        None
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
        actions.shrink_to(KEPT_ACTIONS);
        self.actions = actions; // empty, but its memory serves again
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::ToClient { via, client, message, owed } => {
                self.send(via, Outgoing::ToClient { client, payload: message.into_raw(), owed });
            }
            Action::ToBackend { session, message } => {
                let Some(backend) = self.backends.get(&session) else { return };
                if let Err(message) = backend.say(message) {
                    self.core.sessions.backend_busy(session, &message, now(), &mut self.actions);
                }
            }
            Action::Resolved { asker, method, outcome, elapsed, span } => {
                self.bridge.metrics.request(asker, method, outcome, elapsed);
                if let Some(suspicion) = self.silence.ended(asker, method, outcome, elapsed) {
                    self.bridge.backend.suspect(suspicion);
                }
                if let (Some(tracer), Some(span)) = (&self.bridge.tracer, span) {
                    tracer.finish(span, method, outcome, elapsed);
                }
            }
            Action::Broadcast { message } => match self.broadcasts.say(message.into_raw(), now()) {
                Said::Waits => {}
                Said::Merged => {
                    self.bridge.metrics.broadcasts_merged.inc();
                }
                Said::Now(payload) => {
                    self.bridge.metrics.broadcasts.inc();
                    self.send(LinkId::REGISTERING, Outgoing::ToAll { payload });
                }
            },
            Action::Subscribe { via, session, client } => {
                self.send(via, Outgoing::Subscribe { session, client });
                self.count_links();
            }
            Action::Unsubscribe { via, client } => match &mut self.drain {
                Some(drain) => drain.given_up.push((via, client)),
                None => self.send(via, Outgoing::Unsubscribe { clients: vec![client] }),
            },
            Action::Opened { session, client } => {
                self.bridge.metrics.sessions_started.inc();
                tracing::info!(session = session.0, %client, "session began");
            }
            Action::Ended { session, client, reason, summary } => {
                self.backends.remove(&session);
                self.count_links();
                self.bridge.metrics.session_ended(reason.as_str());
                summary.log(session, &client, &reason);
            }
            Action::Refused { reason } => self.bridge.metrics.refused(reason),
            Action::Dropped { reason } => self.dropped(reason),
        }
    }
}

fn now() -> std::time::Instant {
    std::time::Instant::now()
}
