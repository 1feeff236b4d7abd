//! What is so, as far as a service that may sleep is concerned.

use std::time::Duration;

use mcp_mqtt_transport::topic::ServerId;

use crate::controller::validate::Sleep;

/// Whose presence stands under the service's own id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServicePresence {
    /// Nobody's.
    #[default]
    Empty,
    /// Ours.
    Parked,
    /// An instance's.
    Taken,
}

/// What a broker has to allow for a service to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// To write its presence.
    Place,
    /// To hear who wakes it.
    Control,
}

/// For how long nobody has had a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Idle {
    /// Not all gateways say so.
    #[default]
    Unknown,
    /// Somebody has one.
    Busy,
    /// For so long.
    For(Duration),
}

/// An instance that could take the place, and did not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// Its own id.
    pub instance: ServerId,
    /// The one that it has now: its own, or that of the place, where another presence has taken its presence's place.
    pub at: ServerId,
    /// Whether it has sessions, for which it stays where it is when it is asked to come.
    pub busy: bool,
}

/// What keeps all instances from starting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// In the words of whoever knows.
    pub why: String,
    /// Whether nobody need wait for it to pass.
    pub hopeless: bool,
}

/// What is so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "facts, each of which may hold without the others")]
pub struct Observed {
    /// When it sleeps; none: never.
    pub sleep: Option<Sleep>,
    /// Instances wanted, by the service's spec.
    pub replicas: i32,
    /// Whether it cannot be as it is asked for, so that no instance is made.
    pub refused: bool,
    /// Whether that was never otherwise, as far as is known.
    pub unaccepted: bool,
    /// Whether the broker is connected, and has told all presences.
    pub link: bool,
    /// Whose presence stands there.
    pub place: ServicePresence,
    /// The instance that our presence there names as the one to take it over.
    pub named: Option<ServerId>,
    /// Whether our presence there says something else than it is to say by now.
    pub outdated: bool,
    /// What the gateways say of sessions.
    pub idle: Idle,
    /// Instances that there are, or are about to be; the oldest first.
    pub instances: Vec<ServerId>,
    /// Instances that could take the place, and did not.
    pub elsewhere: Vec<Elsewhere>,
    /// What keeps all instances from starting.
    pub problem: Option<Obstacle>,
}
