//! Our place in the registry, and who else writes there: somebody who clears it by mistake, and whoever puts the whole
//! service to sleep.
//!
//! A service that sleeps has a presence of its own, and an `initialize` for it is held. An instance that stands in
//! for the service is under the same id: until it has published its presence, `initialize` on control is not for it;
//! and when the sleeper's presence comes back, it is relieved: it takes no more, and leaves that presence alone.

use std::time::Duration;

use mcp_mqtt_transport::{
    jsonrpc::Message,
    mqtt::{CloseReason, Filter, PublishError, Qos, ReasonCode, Received},
    presence::{self, Online},
};
use tokio::time::Instant;

use super::{Answer, Driver, End, LinkId, Presence, farewell};
use crate::status::reason;

/// Our presence is published again at most this often: real clients initialize anew on each.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);
/// One that is relieved is about to be ended. If it is not, then something went wrong, and it is there to be used.
const RESUME_AFTER: Duration = Duration::from_secs(30);
/// Anybody may ask us to register anew; we do so at most this often.
const ASKED_PAUSE: Duration = Duration::from_secs(5);
/// What asks for it is short.
const MAX_ASKING_BYTES: usize = 256;

/// See the module.
#[derive(Debug)]
pub(super) struct Place {
    presence_topic: String,
    control_topic: String,
    /// Whether it is under the id of the service as a whole.
    stands_in: bool,
    /// Whether the presence there is not ours.
    foreign: bool,
    /// When to give the connection up and try again for a place.
    resume: Option<Instant>,
    /// When we may be asked to register anew.
    askable: Instant,
    /// When our presence may be published again.
    renew: Renewal,
    watch: Watch,
}

#[derive(Debug, Clone, Copy)]
enum Renewal {
    NoSooner(Instant),
    At(Instant),
}

/// Whether we hear what others write there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// Not yet; or never, as the broker has ended a connection on it.
    Not,
    Asked,
    Answered,
}

impl Place {
    pub(super) fn new(presence_topic: String, control_topic: String, stands_in: bool) -> Self {
        Self {
            presence_topic,
            control_topic,
            stands_in,
            foreign: stands_in,
            resume: None,
            askable: Instant::now() + ASKED_PAUSE,
            renew: Renewal::NoSooner(Instant::now()),
            watch: Watch::Not,
        }
    }

    /// Our own presence is on its way there.
    pub(super) fn taken(&mut self) {
        self.foreign = false;
    }

    /// Whether the presence there is not ours to clear.
    pub(super) fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Whether it waits for its end.
    pub(super) fn is_relieved(&self) -> bool {
        self.resume.is_some()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let renewal = match self.renew {
            Renewal::At(at) => Some(at),
            Renewal::NoSooner(_) => None,
        };
        renewal.into_iter().chain(self.resume).min()
    }

    /// Whether it was relieved, and nobody has ended it.
    pub(super) fn resumes(&self) -> bool {
        self.resume.is_some_and(|at| at <= Instant::now())
    }
}

impl Driver<'_> {
    /// What concerns the place; none: it is for the sessions.
    pub(super) fn take_of_place(&mut self, received: Received) -> Option<Received> {
        if received.topic == self.place.presence_topic {
            self.take_presence(&received);
            return None;
        }
        if received.topic == self.place.control_topic && asks_to_register(&received) {
            self.asked_to_register();
            return None;
        }
        if self.place.foreign && received.topic == self.place.control_topic {
            self.dropped("held-elsewhere");
            return None;
        }
        Some(received)
    }

    fn take_presence(&mut self, received: &Received) {
        if self.place.foreign {
            return;
        }
        if received.payload.is_empty() {
            // A retained one is none; ours comes back from no broker that knows No Local.
            if !received.retain {
                self.renew("somebody else has cleared our presence");
            }
        } else if self.place.stands_in
            && Online::parse(&received.payload).is_ok_and(|online| online.is_parked())
        {
            if self.drain.is_some() {
                self.place.foreign = true;
            } else if self.core.sessions.is_empty() {
                self.relieve();
            } else {
                self.renew("the service was put to sleep while it has sessions here");
            }
        }
    }

    fn renew(&mut self, why: &str) {
        if self.drain.is_some() || !matches!(self.presence, Presence::Online | Presence::Sent(true)) {
            return;
        }
        tracing::warn!(topic = self.place.presence_topic, "{why}: publishing it again");
        if let Renewal::NoSooner(at) = self.place.renew {
            self.place.renew = Renewal::At(at.max(Instant::now()));
            self.take_renewal();
        }
    }

    /// Publishes the presence again, when that is due.
    pub(super) fn take_renewal(&mut self) {
        let now = Instant::now();
        if matches!(self.place.renew, Renewal::At(at) if at <= now) {
            self.place.renew = Renewal::NoSooner(now + RENEWAL_PAUSE);
            if self.drain.is_none() && matches!(self.presence, Presence::Online | Presence::Sent(true)) {
                self.announce(true);
            }
        }
    }

    fn relieve(&mut self) {
        self.place.foreign = true;
        self.place.resume = Some(Instant::now() + RESUME_AFTER);
        self.presence = Presence::Cleared;
        let message = "the service is put to sleep: this instance takes no more sessions and is about to end";
        self.bridge.board.unregistered(reason::RELIEVED, message);
    }

    /// An instance that the registry does not show publishes its presence again. Where the service sleeps beside it, it
    /// is to take that place: with no session nobody loses anything by a new connection.
    fn asked_to_register(&mut self) {
        let now = Instant::now();
        let comes_anyway = self.place.foreign && !self.place.is_relieved();
        if now < self.place.askable || self.drain.is_some() || comes_anyway {
            return self.dropped("register-not-now");
        }
        self.place.askable = now + ASKED_PAUSE;
        if self.core.sessions.is_empty() && self.bridge.config.standby_id.is_some() {
            tracing::info!("asked to register anew");
            self.place.resume = Some(now);
        } else {
            self.renew("asked to");
        }
    }

    /// Once our presence stands: hears what others write there.
    pub(super) fn watch_place(&mut self) {
        if self.place.watch != Watch::Not || !self.bridge.watches_place {
            return;
        }
        let Some(link) = self.links.get(LinkId::REGISTERING) else { return };
        let filter = Filter::no_local(self.place.presence_topic.clone(), Qos::AtLeastOnce);
        if let Ok(reply) = link.publisher.subscribe_start(vec![filter]) {
            self.place.watch = Watch::Asked;
            self.answers.push(Box::pin(async move { Answer::Watching(reply.await) }));
        }
    }

    pub(super) fn watching(&mut self, answer: Result<Vec<ReasonCode>, PublishError>) {
        let Ok(codes) = answer else { return }; // the connection is over
        self.place.watch = Watch::Answered;
        if let Some(code) = codes.into_iter().find(|code| code.is_error()) {
            tracing::info!(
                topic = self.place.presence_topic,
                "the broker does not let us watch our own presence ({code}): if somebody clears it, it stays cleared"
            );
        }
    }

    /// The registering connection was lost: a broker may have ended it over a topic that it does not let us read, and
    /// that we can do without.
    pub(super) fn unwatch_place(&mut self) {
        if self.place.watch == Watch::Asked {
            self.bridge.watches_place = false;
        }
    }

    /// Gives the connection up, in order; a presence that is not ours stays as it is.
    pub(super) async fn resume(mut self) -> End {
        tracing::info!("registering anew");
        self.clear_presence().await;
        farewell::disconnect_in_order(self.publishers()).await;
        self.end(End::Lost(CloseReason::Wanted))
    }
}

fn asks_to_register(received: &Received) -> bool {
    received.payload.len() <= MAX_ASKING_BYTES
        && Message::parse(received.payload.clone(), MAX_ASKING_BYTES)
            .is_ok_and(|message| message.method() == Some(presence::REGISTER) && message.id().is_none())
}
