//! One service that sleeps when nobody uses it, as a state machine without IO.
//!
//! What is so is told by the API server (how many instances are wanted), the gateways (for how long nobody had a
//! session) and the broker (whose presence stands under the service's own id); only what has no other home is kept
//! here. So an operator that has just started goes on where the last one stopped:
//!
//! | instances wanted | presence | the service |
//! |---|---|---|
//! | none | ours | sleeps |
//! | some | ours | wakes: `initialize` is held until an instance takes the presence over |
//! | some | an instance's, or none | is awake |
//!
//! To sleep: subscribe control, publish the presence, wait a little, ask the gateways once more, scale to none. The
//! presence is there before the instances go, and `initialize` is heard before the presence is there.

use std::time::{Duration, Instant};

use mcp_mqtt_transport::topic::ServerId;

mod action;
mod attempts;
mod control;
mod observed;

pub(super) use self::attempts::after_refusals;
pub use self::{
    action::Action,
    observed::{Elsewhere, Idle, Need, Observed, Obstacle, ServicePresence},
};
use self::{attempts::Attempts, control::Control};
use super::pending::{PendingInitialize, PendingQueue, WakeError};

/// Between our presence and the last look at the sessions: for the gateways to have seen it.
const QUIET: Duration = Duration::from_secs(1);
/// What goes to sleep does so within this, or stays awake.
const PARKING: Duration = Duration::from_secs(15);
/// After that it is not tried again for this long.
const PARKING_PAUSE: Duration = Duration::from_secs(30);
/// What we asked the API server for shows in the watch within this.
const SCALING: Duration = Duration::from_secs(10);
/// Between two requests to the API server that did not come to anything.
const AGAIN: Duration = Duration::from_millis(500);
/// An instance under an id of its own is asked so often to take the service's place.
const NUDGE: Duration = Duration::from_secs(3);
/// If it does not, the service has no place of its own.
const ELSEWHERE: Duration = Duration::from_secs(15);
/// That the pods cannot start is told to clients once it has been so for this long: it may pass.
const PROBLEM: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Steady,
    /// The presence is being placed.
    Placing(Instant),
    /// It stands.
    Quiet(Instant),
    /// The gateways are asked once more.
    Asking(Instant),
}

/// See the module.
#[derive(Debug)]
pub struct ScaleToZero {
    /// What is so; [`step`](Self::step) goes by it.
    pub observed: Observed,
    /// Whether the connection may have subscriptions of an earlier one: the broker has kept its session.
    pub resumed: bool,
    control: Control,
    phase: Phase,
    /// What was asked of the API server and does not show yet.
    scaling: Option<(i32, Instant)>,
    /// The instance that is to take the place over.
    successor: Option<ServerId>,
    waiting: PendingQueue,
    /// Publications of our presence, or of none.
    published: Attempts,
    asked_control: Attempts,
    asked_scale: Option<Instant>,
    nudged: Option<Instant>,
    elsewhere_since: Option<Instant>,
    problem_since: Option<Instant>,
    /// Why the API server did not take the last request for an instance.
    unscaled: Option<Obstacle>,
    /// Since when it is about to wake for nobody.
    needless_since: Option<Instant>,
    parking_after: Option<Instant>,
}

impl ScaleToZero {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self {
            observed: Observed::default(),
            resumed: false,
            control: Control::Unknown,
            phase: Phase::Steady,
            scaling: None,
            successor: None,
            waiting: PendingQueue::default(),
            published: Attempts::new(),
            asked_control: Attempts::new(),
            asked_scale: None,
            nudged: None,
            elsewhere_since: None,
            problem_since: None,
            unscaled: None,
            needless_since: None,
            parking_after: None,
        }
    }

    /// What is held.
    pub fn waiting(&self) -> &PendingQueue {
        &self.waiting
    }

    /// Whether it sleeps, and can be woken: our presence stands, and `initialize` is heard. It does so from the
    /// moment at which we ask for no instance until the API server shows that one is wanted: in between, a status would
    /// say that clients find nobody.
    pub fn sleeps(&self) -> bool {
        self.observed.replicas.min(self.replicas()) == 0
            && self.observed.place == ServicePresence::Parked
            && self.control == Control::On
    }

    /// Whether it sleeps but for the broker's answer to our subscription, which is on its way.
    pub fn is_about_to_sleep(&self) -> bool {
        self.observed.sleep.is_some()
            && self.observed.replicas == 0
            && self.observed.place == ServicePresence::Parked
            && self.control != Control::On
    }

    /// Why the last wake failed, by the API server's word; none: it did not, or another one has not failed since.
    pub fn unscaled(&self) -> Option<&str> {
        self.unscaled.as_ref().map(|obstacle| obstacle.why.as_str())
    }

    /// Whether it is on its way from sleep.
    pub fn wakes(&self) -> bool {
        self.replicas() > 0 && self.observed.place == ServicePresence::Parked && self.phase == Phase::Steady
    }

    /// The instance that our presence is to name as the one that takes the place over: where there are several, each of
    /// which would. One alone needs no word, and clients see each change of a presence.
    pub fn successor(&self) -> Option<&ServerId> {
        self.successor.as_ref().filter(|_| self.observed.instances.len() > 1)
    }

    /// A new connection to the broker, or none any more.
    pub fn unlinked(&mut self) {
        self.observed.link = false;
        self.control = Control::Unknown;
        self.asked_control.begin_anew();
        self.published.begin_anew();
        self.phase = Phase::Steady;
    }

    /// The API server's answer to [`Action::Scale`].
    pub fn scaled(
        &mut self,
        replicas: i32,
        answer: Result<(), Obstacle>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if answer.is_err() && self.scaling.is_some_and(|(wanted, _)| wanted == replicas) {
            self.scaling = None;
            self.parking_after = Some(now + PARKING_PAUSE);
        }
        self.unscaled = answer.err().filter(|_| replicas > 0);
        self.step(now, out);
    }

    /// Somebody else has scaled it since [`Action::Scale`] was asked for: what there is to do is looked at anew.
    pub fn outrun(&mut self, replicas: i32, now: Instant, out: &mut Vec<Action>) {
        if self.scaling.is_some_and(|(wanted, _)| wanted == replicas) {
            self.scaling = None;
            if replicas == 0 {
                self.parking_after = Some(now + PARKING_PAUSE);
            }
        }
        self.step(now, out);
    }

    /// The gateways' answer to [`Action::Ask`].
    pub fn asked(&mut self, idle: Idle, now: Instant, out: &mut Vec<Action>) {
        self.observed.idle = idle;
        if matches!(self.phase, Phase::Asking(_)) {
            self.phase = Phase::Steady;
            let placed = self.observed.place == ServicePresence::Parked && self.control == Control::On;
            if matches!(idle, Idle::For(_)) && placed && self.waiting.is_empty() && self.observed.link {
                self.scale(0, now, out);
            } else {
                self.parking_after = Some(now + PARKING_PAUSE);
            }
        }
        self.step(now, out);
    }

    /// An `initialize` on the service's control topic, now or earlier. `room`: whether there is any, over all services.
    pub fn initialize(&mut self, held: PendingInitialize, room: bool, now: Instant, out: &mut Vec<Action>) {
        // Before the broker has told all, it cannot be told whether it is for us.
        if self.observed.link && !self.holds(now) {
            match self.observed.place {
                // It may have come before that instance listened: if not, the instance has it already.
                ServicePresence::Taken => out.push(Action::Forward(held)),
                _ => out.push(Action::Refuse(held, WakeError::Elsewhere)),
            }
            return;
        }
        self.waiting.hold(held, room, out);
        self.step(now, out);
    }

    /// The client waits no more.
    pub fn client_left(&mut self, client: &str, out: &mut Vec<Action>) {
        out.extend(self.waiting.remove(client).map(Action::Drop));
    }

    /// The service is not looked after here any more: nobody is to wait, and no presence of ours is to stay.
    pub fn end(&mut self, refusal: &WakeError, out: &mut Vec<Action>) {
        out.extend(self.waiting.take().map(|held| Action::Refuse(held, refusal.clone())));
        if self.observed.place == ServicePresence::Parked {
            out.push(Action::Clear);
        }
        self.stop_listening(out);
    }

    /// Goes by what is so. To be called whenever that changes, and now and then.
    pub fn step(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.scaling.is_some_and(|(wanted, since)| {
            wanted == self.observed.replicas || now.duration_since(since) >= SCALING
        }) {
            self.scaling = None;
        }
        if self.observed.replicas > 0 {
            self.unscaled = None; // somebody has woken it all the same
        }
        self.keep_time(now);
        if self.observed.link {
            self.begin_parking(now);
            self.choose_successor(now);
            if self.holds(now) {
                self.take_place(now, out);
                self.mend_presence(now, out);
                self.wake(now, out);
            } else {
                self.give_up_place(now, out);
            }
            self.go_on_parking(now, out);
        }
        self.expire(now, out);
    }

    /// Instances wanted, as soon as we asked for them.
    fn replicas(&self) -> i32 {
        self.scaling.map_or(self.observed.replicas, |(wanted, _)| wanted)
    }

    /// What keeps instances from starting, or from being asked for.
    fn problem(&self) -> Option<&Obstacle> {
        self.unscaled.as_ref().or(self.observed.problem.as_ref())
    }

    fn keep_time(&mut self, now: Instant) {
        let since = |holds: bool, since: Option<Instant>| holds.then(|| since.unwrap_or(now));
        let wakes = self.wakes();
        self.elsewhere_since = since(wakes && !self.observed.elsewhere.is_empty(), self.elsewhere_since);
        let hopeless = self.problem().is_some_and(|problem| problem.hopeless);
        // A refused wake is tried again for the next client, and a refused service is not woken at all.
        let by_clients = self.unscaled.is_some() || self.observed.refused;
        let tried = if by_clients { !self.waiting.is_empty() } else { self.replicas() > 0 };
        self.problem_since = since(tried && hopeless, self.problem_since);
        let needless = wakes && self.waiting.is_empty() && self.observed.elsewhere.is_empty();
        self.needless_since = since(needless, self.needless_since);
    }

    /// Whether the place, and what comes there, is ours.
    fn holds(&self, now: Instant) -> bool {
        if self.observed.sleep.is_none() {
            return false;
        }
        if self.replicas() == 0 || self.phase != Phase::Steady {
            return true;
        }
        match self.observed.place {
            ServicePresence::Parked => !passed(self.elsewhere_since, ELSEWHERE, now),
            // An instance that had just taken it over failed; another one comes.
            ServicePresence::Empty => !self.waiting.is_empty() && self.observed.elsewhere.is_empty(),
            ServicePresence::Taken => false,
        }
    }

    fn take_place(&mut self, now: Instant, out: &mut Vec<Action>) {
        match self.control {
            Control::Off | Control::Unknown if self.asked_control.is_due(now) => {
                self.control = Control::Asked;
                self.asked_control.begin(now);
                out.push(Action::Subscribe);
            }
            Control::On
                if self.observed.place != ServicePresence::Parked
                    && !self.observed.unaccepted
                    && self.published.is_due(now) =>
            {
                self.publish(now, out);
            }
            _ => {}
        }
    }

    /// The same one as long as it exists, so that no two of them think it is them; another one when that one has an id of
    /// its own and the successor, for a while, does not show.
    fn choose_successor(&mut self, now: Instant) {
        let Observed { instances, elsewhere, .. } = &self.observed;
        if self.replicas() == 0 || self.phase != Phase::Steady {
            self.successor = None;
            return;
        }
        let outrun = passed(self.elsewhere_since, NUDGE, now);
        let is_there = |successor: &ServerId| elsewhere.iter().any(|other| other.instance == *successor);
        let stays = |successor: &ServerId| instances.contains(successor) && (!outrun || is_there(successor));
        if !self.successor.as_ref().is_some_and(stays) {
            let there = elsewhere.iter().min_by_key(|other| other.busy);
            self.successor = there.map(|other| &other.instance).or(instances.first()).cloned();
        }
    }

    /// Whether our presence, as it stands at the broker, keeps nobody from taking the place who is to.
    fn is_named(&self) -> bool {
        let named = self.observed.named.as_ref();
        named == self.successor() || (named.is_some() && named == self.successor.as_ref())
    }

    /// Our presence is to name the successor, and to say what the service says of itself now: once an instance is on its
    /// way, it says that itself, and ours must not come behind.
    fn mend_presence(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.observed.place != ServicePresence::Parked {
            return;
        }
        let outdated = self.observed.outdated && self.replicas() == 0 && !self.observed.unaccepted;
        if self.is_named() && !outdated {
            self.published.worked(now);
        } else if self.published.is_due(now) {
            self.publish(now, out);
        }
    }

    fn publish(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.published.begin(now);
        out.push(Action::Park);
    }

    fn give_up_place(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.observed.place == ServicePresence::Parked && self.published.is_due(now) {
            self.published.begin(now);
            out.push(Action::Clear);
        }
        if self.control != Control::Asked {
            self.stop_listening(out); // else once the broker has answered
        }
        let taken = self.observed.place == ServicePresence::Taken;
        out.extend(self.waiting.take().map(|held| {
            if taken { Action::Forward(held) } else { Action::Refuse(held, WakeError::Elsewhere) }
        }));
    }

    fn wake(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !self.waiting.is_empty() {
            self.phase = Phase::Steady; // somebody wants it
            if self.replicas() == 0 && !self.observed.refused {
                self.scale(1, now, out);
            }
        }
        let is_successor = |other: &&Elsewhere| Some(&other.instance) == self.successor.as_ref();
        if let Some(Elsewhere { at, .. }) = self.observed.elsewhere.iter().find(is_successor)
            && self.elsewhere_since.is_some()
            && self.is_named()
            && due(self.nudged, NUDGE, now)
        {
            self.nudged = Some(now);
            out.push(Action::Nudge(at.clone()));
        }
        let idle = self.observed.sleep.map_or(Duration::MAX, |sleep| sleep.idle);
        if passed(self.needless_since, idle.max(PARKING_PAUSE), now) && !self.observed.refused {
            self.scale(0, now, out); // nobody waits any more, and no instance came
        }
    }

    fn scale(&mut self, replicas: i32, now: Instant, out: &mut Vec<Action>) {
        if due(self.asked_scale, AGAIN, now) || self.scaling.is_some() {
            self.asked_scale = Some(now);
            let from = self.replicas();
            self.scaling = Some((replicas, now));
            out.push(Action::Scale { from, to: replicas });
        }
    }

    fn begin_parking(&mut self, now: Instant) {
        let Some(sleep) = self.observed.sleep else { return };
        let idle = matches!(self.observed.idle, Idle::For(idle) if idle >= sleep.idle);
        if self.phase == Phase::Steady
            && idle
            && !self.observed.refused // it could not be woken
            && self.replicas() > 0
            && self.observed.place != ServicePresence::Parked
            && self.scaling.is_none()
            && self.waiting.is_empty()
            && self.parking_after.is_none_or(|after| after <= now)
        {
            self.phase = Phase::Placing(now);
        }
    }

    fn go_on_parking(&mut self, now: Instant, out: &mut Vec<Action>) {
        let (Phase::Placing(since) | Phase::Quiet(since) | Phase::Asking(since)) = self.phase else { return };
        let placed = self.observed.place == ServicePresence::Parked && self.control == Control::On;
        let lost = !placed && !matches!(self.phase, Phase::Placing(_));
        let busy = self.observed.idle == Idle::Busy || self.observed.sleep.is_none();
        if lost || busy || now.duration_since(since) >= PARKING {
            self.phase = Phase::Steady;
            self.parking_after = Some(now + PARKING_PAUSE);
            return;
        }
        match self.phase {
            Phase::Placing(_) if placed => self.phase = Phase::Quiet(now),
            Phase::Quiet(_) if now.duration_since(since) >= QUIET => {
                self.phase = Phase::Asking(now);
                out.push(Action::Ask);
            }
            _ => {}
        }
    }

    /// Nobody waits longer than was said, nor for what cannot come.
    fn expire(&mut self, now: Instant, out: &mut Vec<Action>) {
        let timeout = self.observed.sleep.map_or(Duration::ZERO, |sleep| sleep.wake_timeout);
        let hopeless =
            passed(self.problem_since, PROBLEM, now) && self.observed.place != ServicePresence::Taken;
        let problem = self.problem().cloned();
        out.extend(self.waiting.take_if(|held| hopeless || now.duration_since(held.since) >= timeout).map(
            |held| {
                let refusal = match &problem {
                    Some(problem) => WakeError::Failed(problem.why.clone()),
                    None => WakeError::TimedOut(timeout),
                };
                Action::Refuse(held, refusal)
            },
        ));
        if self.waiting.is_empty() && self.unscaled.is_some() {
            // The next client is a new attempt; of what may have passed meanwhile nothing is told.
            self.problem_since = None;
            self.unscaled = self.unscaled.take().filter(|obstacle| obstacle.hopeless);
        }
    }
}

impl Default for ScaleToZero {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether it has been so for this long.
fn passed(since: Option<Instant>, time: Duration, now: Instant) -> bool {
    since.is_some_and(|since| now.duration_since(since) >= time)
}

/// Whether it was never done, or so long ago.
fn due(last: Option<Instant>, pause: Duration, now: Instant) -> bool {
    last.is_none_or(|last| now.duration_since(last) >= pause)
}

#[cfg(test)]
mod tests;
