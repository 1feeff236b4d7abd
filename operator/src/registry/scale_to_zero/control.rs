//! Whether who wakes a service is heard: the subscription of its control topic, and what the broker says of it.

use std::time::Instant;

use super::{Action, Need, ScaleToZero, ServicePresence};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    /// Nothing was asked on this connection: an earlier one may have subscribed it.
    Unknown,
    Off,
    Asked,
    On,
}

impl ScaleToZero {
    /// The broker's answer to [`Action::Subscribe`].
    pub fn subscribed(&mut self, granted: bool, now: Instant, out: &mut Vec<Action>) {
        if self.control == Control::Asked && granted {
            self.control = Control::On;
            self.asked_control.worked(now);
        } else if self.control == Control::Asked {
            self.control = Control::Unknown; // it may have the subscription from before
            self.asked_control.failed();
        }
        self.step(now, out);
    }

    /// The broker refuses what it takes to sleep: why, and what it has to allow.
    pub fn forbid(&mut self, need: Need, why: String, now: Instant) {
        match need {
            // Who is awake, and whose presence of before cannot be cleared, was not to sleep.
            Need::Place if !self.holds(now) => {}
            Need::Place => self.published.refuse(why),
            Need::Control => {
                self.asked_control.refuse(why);
                if self.control == Control::Asked {
                    self.control = Control::Unknown; // it may have the subscription from before
                }
            }
        }
    }

    /// What the broker refused when the service was last to sleep.
    pub fn forbidden(&self) -> Option<&str> {
        self.observed.sleep?;
        self.asked_control.refused().or(self.published.refused())
    }

    /// Whether our presence is about to stand there, or to be refused: the broker has not said yet which.
    pub fn awaits_place(&self) -> bool {
        self.observed.sleep.is_some()
            && self.observed.replicas == 0
            && !self.observed.unaccepted
            && self.observed.place == ServicePresence::Empty
            && self.forbidden().is_none()
    }

    /// The broker's connection takes no [`Action::Unsubscribe`] at present: the next step asks again.
    pub fn not_unsubscribed(&mut self) {
        if self.control == Control::Off {
            self.control = Control::Unknown;
        }
    }

    pub(super) fn stop_listening(&mut self, out: &mut Vec<Action>) {
        let listens = match self.control {
            Control::Off => false,
            Control::Unknown => self.resumed,
            Control::Asked | Control::On => true,
        };
        self.control = Control::Off;
        if listens {
            out.push(Action::Unsubscribe);
        }
    }
}
