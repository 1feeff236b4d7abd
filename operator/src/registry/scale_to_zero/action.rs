//! What a service that may sleep asks for.

use mcp_mqtt_transport::topic::ServerId;

use crate::registry::pending::{PendingInitialize, WakeError};

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Subscribe control: [`ScaleToZero::subscribed`](super::ScaleToZero::subscribed) tells how it went.
    Subscribe,
    /// And no longer.
    Unsubscribe,
    /// Publish our presence.
    Park,
    /// Clear our presence.
    Clear,
    /// Have `to` instances in place of `from`: [`ScaleToZero::scaled`](super::ScaleToZero::scaled) tells how it went,
    /// [`ScaleToZero::outrun`](super::ScaleToZero::outrun) that there are no longer `from`.
    Scale {
        /// What it was decided on.
        from: i32,
        /// What there is to be.
        to: i32,
    },
    /// Ask the gateways for their sessions now: [`ScaleToZero::asked`](super::ScaleToZero::asked) tells.
    Ask,
    /// Ask this instance to register anew.
    Nudge(ServerId),
    /// Write down what is held, for an operator that comes after us.
    Keep(PendingInitialize),
    /// Its client has gone, or says something else now.
    Drop(PendingInitialize),
    /// Pass on to the instance that has the place.
    Forward(PendingInitialize),
    /// Answer with an error.
    Refuse(PendingInitialize, WakeError),
}
