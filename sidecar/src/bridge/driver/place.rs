//! Our place in the registry, and who else writes there: somebody who clears it by mistake, and whoever puts the whole
//! service to sleep.
//!
//! A service that sleeps has a presence of its own, and an `initialize` for it is held. An instance that stands in
//! for the service is under the same id: until it has published its presence, `initialize` on control is not for it;
//! and when the sleeping service's own presence comes back, it takes no more, and leaves that presence alone.

use mcp_mqtt_transport::{
    jsonrpc::Message,
    mqtt::{CloseReason, Filter, PublishError, Qos, ReasonCode, Received},
    presence::{self, Online},
};

use super::{Answer, Driver, End, EndReason, LinkId, Outgoing, now};
use crate::{bridge::presence::Step, status::reason};

/// What asks for it is short.
const MAX_ASKING_BYTES: usize = 256;

/// See the module.
#[derive(Debug)]
pub(super) struct Place {
    presence_topic: String,
    control_topic: String,
    watch: Watch,
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
    pub(super) fn new(presence_topic: String, control_topic: String) -> Self {
        Self { presence_topic, control_topic, watch: Watch::Not }
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
        if self.presence.is_foreign() && received.topic == self.place.control_topic {
            self.dropped("held-elsewhere");
            return None;
        }
        Some(received)
    }

    fn take_presence(&mut self, received: &Received) {
        let step = if received.payload.is_empty() {
            // A retained one is none; ours comes back from no broker that knows No Local.
            if received.retain { None } else { self.presence.missed(now()) }
        } else if Online::parse(&received.payload).is_ok_and(|online| online.is_parked()) {
            self.presence.put_to_sleep(!self.core.sessions.is_empty(), now())
        } else {
            None
        };
        if step == Some(Step::Publish) {
            let topic = &self.place.presence_topic;
            tracing::warn!(topic, "somebody else has written our presence: publishing it again");
        }
        self.step(step);
    }

    /// An instance that the registry does not show publishes its presence again. Where the service sleeps beside it, it
    /// is to take that place: with no session nobody loses anything by a new connection.
    fn asked_to_register(&mut self) {
        let may_move = self.core.sessions.is_empty() && self.bridge.config.standby_id.is_some();
        let step = self.presence.asked(may_move, now());
        if step != Some(Step::NotNow) {
            tracing::info!("asked to register anew");
        }
        self.step(step);
    }

    /// Does what the presence's state machine asks for.
    pub(super) fn step(&mut self, step: Option<Step>) {
        match step {
            None => {}
            Some(Step::Publish) => self.send(LinkId::REGISTERING, Outgoing::Presence { online: true }),
            Some(Step::Clear) => self.send(LinkId::REGISTERING, Outgoing::Presence { online: false }),
            Some(Step::Registered) => {
                self.bridge.board.registered(self.server_name.as_str(), self.remark.as_deref());
                self.watch_place();
            }
            Some(Step::HandedOver) => {
                let message =
                    "the service is put to sleep: this instance takes no more sessions and is about to end";
                self.bridge.board.unregistered(reason::RELIEVED, message);
            }
            Some(Step::NotNow) => self.dropped("register-not-now"),
        }
    }

    /// Once our presence stands: hears what others write there.
    fn watch_place(&mut self) {
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
    pub(super) async fn restart(mut self) -> End {
        tracing::info!("registering anew");
        // One may have begun a moment ago, and none is to begin from here on.
        self.core.sessions.end_all(&EndReason::ConnectionLost, now(), &mut self.actions);
        self.core.sessions.drain(now(), &mut self.actions);
        self.perform();
        self.part().await;
        self.end(End::Lost(CloseReason::Wanted))
    }
}

fn asks_to_register(received: &Received) -> bool {
    received.payload.len() <= MAX_ASKING_BYTES
        && Message::parse(received.payload.clone(), MAX_ASKING_BYTES)
            .is_ok_and(|message| message.method() == Some(presence::REGISTER) && message.id().is_none())
}
