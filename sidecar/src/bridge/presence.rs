//! The presence of this instance in the registry, as a state machine without IO: when it is published, when it is taken
//! back, and who else may hold its place.
//!
//! An instance that stands in for its service is under the id of the service as a whole, where a presence stands already:
//! whoever puts the service to sleep holds the place before and after it.
//!
//! | state | at the broker stands |
//! |---|---|
//! | `Waiting` | nothing of ours; where the instance stands in: another's |
//! | `Announcing` | what was there before, until the broker has ours |
//! | `Online` | ours |
//! | `Retracting` | ours, until the clients of the sessions that have ended are told |
//! | `HandedOver` | another's: the service was put to sleep |
//! | `Restarting` | ours, until the connection is given up for a new registration |

use std::time::{Duration, Instant};

/// Our presence is published again at most this often: real clients initialize anew on each.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);
/// An instance that has handed its place over is about to be ended. If it is not, something went wrong, and it is there to
/// be used.
const RESTART_AFTER: Duration = Duration::from_secs(30);
/// Anybody may ask us to register anew; we do so at most this often.
const ASKED_PAUSE: Duration = Duration::from_secs(5);
/// For the clients of ended sessions to be told, before an empty presence that ends all sessions at once.
const TELLING_TIMEOUT: Duration = Duration::from_secs(3);

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Publish our presence, and report the broker's acknowledgement.
    Publish,
    /// Publish the empty presence.
    Clear,
    /// Nothing more at the broker: our presence stands.
    Registered,
    /// Nothing more at the broker: another holds our place.
    HandedOver,
    /// Nothing: it is no time for what was asked.
    NotNow,
}

/// See the module.
#[derive(Debug)]
pub struct Presence {
    state: State,
    draining: bool,
    /// Whether another's presence holds the place until ours is published.
    stands_in: bool,
    renewal: Renewal,
    /// When we may be asked to register anew.
    askable: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { held: bool },
    Announcing,
    Online,
    Retracting { by: Instant },
    HandedOver { restart: Instant },
    Restarting,
}

/// When our presence may be, or is to be, published again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Renewal {
    NoSooner(Instant),
    At(Instant),
}

impl Presence {
    /// Of a new registration: nothing is published. `stands_in`: under the id of the service as a whole.
    pub fn new(stands_in: bool, now: Instant) -> Self {
        Self {
            state: State::Waiting { held: stands_in },
            draining: false,
            stands_in,
            renewal: Renewal::NoSooner(now),
            askable: now + ASKED_PAUSE,
        }
    }

    /// The backend answers, and there is nothing else to wait for.
    pub fn backend_up(&mut self) -> Option<Step> {
        match self.state {
            State::Waiting { .. } | State::Retracting { .. } if !self.draining => Some(self.publish()),
            _ => None,
        }
    }

    /// The backend is gone; `told`: all clients know that their sessions are over.
    pub fn backend_down(&mut self, told: bool, now: Instant) -> Option<Step> {
        if self.draining || !self.is_announced() {
            return None;
        }
        self.state = State::Retracting { by: now + TELLING_TIMEOUT };
        if told { self.told() } else { None }
    }

    /// All clients know that their sessions are over.
    pub fn told(&mut self) -> Option<Step> {
        matches!(self.state, State::Retracting { .. }).then(|| self.clear())
    }

    /// The broker has our presence.
    pub fn published(&mut self) -> Option<Step> {
        if self.state != State::Announcing || self.draining {
            return None;
        }
        self.state = State::Online;
        Some(Step::Registered)
    }

    /// A drain has begun: from here on nothing is published, and the end of the drain clears what is ours.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Somebody has cleared our presence, or is said not to see it.
    pub fn missed(&mut self, now: Instant) -> Option<Step> {
        if self.draining || !self.is_announced() {
            return None;
        }
        if let Renewal::NoSooner(at) = self.renewal {
            self.renewal = Renewal::At(at.max(now));
        }
        self.renew(now)
    }

    /// The service was put to sleep: another's presence has taken the place of ours. With sessions here we take it back.
    pub fn put_to_sleep(&mut self, has_sessions: bool, now: Instant) -> Option<Step> {
        if !self.stands_in || self.is_foreign() {
            return None;
        }
        if has_sessions && !self.draining {
            return self.missed(now);
        }
        self.state = State::HandedOver { restart: now + RESTART_AFTER };
        (!self.draining).then_some(Step::HandedOver)
    }

    /// Somebody asks us to register anew, as the registry does not show us. `may_move`: there may be a place of the service
    /// as a whole to take over, and no session loses anything by a new connection.
    pub fn asked(&mut self, may_move: bool, now: Instant) -> Option<Step> {
        let comes_anyway = self.state == State::Waiting { held: true };
        if now < self.askable || self.draining || comes_anyway {
            return Some(Step::NotNow);
        }
        self.askable = now + ASKED_PAUSE;
        if !may_move {
            return self.missed(now);
        }
        self.state = match self.state {
            State::HandedOver { .. } => State::HandedOver { restart: now },
            _ => State::Restarting,
        };
        None
    }

    /// What is due by now.
    pub fn expire(&mut self, now: Instant) -> Option<Step> {
        match self.state {
            State::Retracting { by } if by <= now => {
                tracing::warn!(
                    "the broker does not answer: clearing the presence before all clients are told"
                );
                Some(self.clear())
            }
            _ => self.renew(now),
        }
    }

    /// When something will be due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let own = match self.state {
            State::Retracting { by } => Some(by),
            State::HandedOver { restart } if !self.draining => Some(restart),
            _ => None,
        };
        let renewal = match self.renewal {
            Renewal::At(at) => Some(at),
            Renewal::NoSooner(_) => None,
        };
        own.into_iter().chain(renewal).min()
    }

    /// Whether the connection is to be given up for a new registration.
    pub fn restarts(&self, now: Instant) -> bool {
        match self.state {
            State::HandedOver { restart } => restart <= now && !self.draining,
            State::Restarting => !self.draining,
            _ => false,
        }
    }

    /// Whether another's presence stands in our place: it is not ours to clear, and who sends an `initialize` there does
    /// not mean us.
    pub fn is_foreign(&self) -> bool {
        matches!(self.state, State::Waiting { held: true } | State::HandedOver { .. })
    }

    fn is_announced(&self) -> bool {
        matches!(self.state, State::Announcing | State::Online)
    }

    fn publish(&mut self) -> Step {
        self.state = State::Announcing;
        Step::Publish
    }

    fn clear(&mut self) -> Step {
        self.state = State::Waiting { held: false };
        Step::Clear
    }

    fn renew(&mut self, now: Instant) -> Option<Step> {
        if !matches!(self.renewal, Renewal::At(at) if at <= now) {
            return None;
        }
        self.renewal = Renewal::NoSooner(now + RENEWAL_PAUSE);
        (self.is_announced() && !self.draining).then(|| self.publish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens; the seconds pass before what follows.
    #[derive(Debug, Clone, Copy)]
    enum Does {
        Up,
        Down { told: bool },
        Told,
        Published,
        Drain,
        Missed,
        Sleep { has_sessions: bool },
        Asked { may_move: bool },
        Seconds(u64),
    }
    use Does::{Asked, Down, Drain, Missed, Published, Seconds, Sleep, Told, Up};

    /// Plays from a new registration on; what each thing leads to.
    fn play(stands_in: bool, script: &[(Does, Option<Step>)]) -> (Presence, Instant) {
        let mut now = Instant::now();
        let mut presence = Presence::new(stands_in, now);
        for (at, (does, expected)) in script.iter().enumerate() {
            let step = match *does {
                Up => presence.backend_up(),
                Down { told } => presence.backend_down(told, now),
                Told => presence.told(),
                Published => presence.published(),
                Drain => {
                    presence.drain();
                    None
                }
                Missed => presence.missed(now),
                Sleep { has_sessions } => presence.put_to_sleep(has_sessions, now),
                Asked { may_move } => presence.asked(may_move, now),
                Seconds(seconds) => {
                    now += Duration::from_secs(seconds);
                    presence.expire(now)
                }
            };
            assert_eq!(step, *expected, "{at}: {does:?} of {script:?}, {presence:?}");
        }
        (presence, now)
    }

    const PUBLISH: (Does, Option<Step>) = (Up, Some(Step::Publish));
    const REGISTERED: (Does, Option<Step>) = (Published, Some(Step::Registered));

    #[test]
    fn it_follows_the_backend_and_is_published_once() {
        play(
            false,
            &[(Down { told: true }, None), PUBLISH, (Up, None), REGISTERED, (Up, None), (Published, None)],
        );
        play(false, &[PUBLISH, REGISTERED, (Down { told: true }, Some(Step::Clear)), PUBLISH, REGISTERED]);
        play(false, &[PUBLISH, (Down { told: true }, Some(Step::Clear)), (Published, None), PUBLISH]);
    }

    #[test]
    fn it_is_taken_back_once_all_clients_are_told_or_it_takes_too_long() {
        let gone = [PUBLISH, REGISTERED, (Down { told: false }, None)];
        play(false, &[&gone[..], &[(Told, Some(Step::Clear)), (Told, None)]].concat());
        let (presence, now) = play(false, &gone);
        assert_eq!(presence.next_deadline(), Some(now + TELLING_TIMEOUT));
        play(
            false,
            &[&gone[..], &[(Seconds(2), None), (Seconds(1), Some(Step::Clear)), (Told, None)]].concat(),
        );
        // The backend is there again before: clients find us as before.
        play(false, &[&gone[..], &[PUBLISH, (Told, None), REGISTERED]].concat());
    }

    #[test]
    fn one_that_somebody_cleared_is_published_again_no_sooner_than_a_second_later() {
        play(
            false,
            &[
                (Missed, None),
                (Up, Some(Step::Publish)),
                REGISTERED,
                (Missed, Some(Step::Publish)),
                REGISTERED,
            ],
        );
        let script = [PUBLISH, REGISTERED, (Missed, Some(Step::Publish)), (Missed, None), (Missed, None)];
        let (presence, now) = play(false, &script);
        assert_eq!(presence.next_deadline(), Some(now + RENEWAL_PAUSE));
        play(false, &[&script[..], &[(Seconds(1), Some(Step::Publish)), (Seconds(1), None)]].concat());
        play(false, &[&script[..], &[(Down { told: true }, Some(Step::Clear)), (Seconds(1), None)]].concat());
    }

    #[test]
    fn a_drain_publishes_nothing_and_leaves_the_end_to_the_driver() {
        play(false, &[(Drain, None), (Up, None)]);
        let drains = [PUBLISH, (Drain, None), (Published, None), (Missed, None), (Down { told: true }, None)];
        let (presence, _) = play(true, &drains);
        assert!(!presence.is_foreign(), "ours to clear");
        let asleep = [&drains[..], &[(Sleep { has_sessions: true }, None), (Seconds(60), None)]].concat();
        let (presence, now) = play(true, &asleep);
        assert!(presence.is_foreign() && !presence.restarts(now), "not ours any more");
        assert_eq!(presence.next_deadline(), None);
    }

    #[test]
    fn who_stands_in_takes_the_place_and_hands_it_over_again() {
        let (presence, _) = play(true, &[(Sleep { has_sessions: false }, None)]);
        assert!(presence.is_foreign());
        let (presence, _) = play(true, &[PUBLISH]);
        assert!(!presence.is_foreign(), "ours is on its way");
        let asleep = [PUBLISH, REGISTERED, (Sleep { has_sessions: false }, Some(Step::HandedOver))];
        let (presence, now) = play(true, &asleep);
        assert!(presence.is_foreign() && !presence.restarts(now));
        assert_eq!(presence.next_deadline(), Some(now + RESTART_AFTER));
        let ignores =
            [(Up, None), (Missed, None), (Down { told: true }, None), (Sleep { has_sessions: false }, None)];
        play(true, &[&asleep[..], &ignores].concat());
        let (presence, now) = play(true, &[&asleep[..], &[(Seconds(30), None)]].concat());
        assert!(presence.restarts(now), "nobody has ended it");
        // One with sessions, or that stands for itself, keeps its place.
        play(true, &[PUBLISH, REGISTERED, (Sleep { has_sessions: true }, Some(Step::Publish)), REGISTERED]);
        play(false, &[PUBLISH, REGISTERED, (Sleep { has_sessions: false }, None)]);
    }

    #[test]
    fn who_is_asked_to_register_publishes_again_or_begins_anew() {
        let online = [PUBLISH, REGISTERED];
        let too_soon = (Asked { may_move: true }, Some(Step::NotNow));
        let stays = (Asked { may_move: false }, Some(Step::Publish));
        play(
            false,
            &[&online[..], &[too_soon, (Seconds(5), None), stays, (Seconds(4), None), too_soon]].concat(),
        );
        let (presence, now) =
            play(false, &[&online[..], &[(Seconds(5), None), (Asked { may_move: true }, None)]].concat());
        assert!(presence.restarts(now) && !presence.is_foreign(), "what is ours is cleared first");
        play(false, &[&online[..], &[(Seconds(5), None), (Drain, None), too_soon]].concat());
        // Its own is on the way, once the backend answers.
        play(true, &[(Seconds(5), None), too_soon]);
        let asleep = [PUBLISH, REGISTERED, (Sleep { has_sessions: false }, Some(Step::HandedOver))];
        let (presence, now) =
            play(true, &[&asleep[..], &[(Seconds(5), None), (Asked { may_move: true }, None)]].concat());
        assert!(presence.restarts(now) && presence.is_foreign());
    }
}
