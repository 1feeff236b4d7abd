//! What can happen, and how often.

use proptest::prelude::*;

use super::{CLIENTS, WORKERS};

/// What can happen. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Initialize(usize),
    Request(usize, &'static str),
    /// A request with the id of an earlier one.
    Repeat(usize, usize),
    Cancel(usize, usize),
    Leave(usize),
    /// The server answers one of the requests that it got, perhaps twice, perhaps late.
    Answer(usize, usize, bool),
    Ask(usize),
    ClientAnswers(usize, usize),
    ServerFails(usize, usize),
    Suback(usize, bool),
    Ends(usize),
    Busy,
    /// A worker's connection stands, or is lost.
    Link(usize, bool),
    /// The client reports progress or something else; so does the server. Numbered, so that their order can be seen.
    Tells(usize, bool),
    Told(usize, bool),
    /// The server gives up a request of its own.
    Withdraws(usize, usize),
    /// The broker refuses what was last published for a client.
    Undelivered(usize),
    /// The connection to the broker is lost, and another one made.
    Lost,
    Wait(u64),
    BackendUp(bool),
    Drain,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let (c, n) = (0..CLIENTS.len(), 0..64_usize);
    let method = prop_oneof![Just("tools/call"), Just("ping"), Just("tools/list"), Just("initialize")];
    prop_oneof![
        3 => c.clone().prop_map(Step::Initialize),
        8 => (c.clone(), method).prop_map(|(c, m)| Step::Request(c, m)),
        2 => (c.clone(), n.clone()).prop_map(|(c, n)| Step::Repeat(c, n)),
        2 => (c.clone(), n.clone()).prop_map(|(c, n)| Step::Cancel(c, n)),
        1 => c.clone().prop_map(Step::Leave),
        12 => (n.clone(), n.clone(), any::<bool>()).prop_map(|(s, n, e)| Step::Answer(s, n, e)),
        2 => n.clone().prop_map(Step::Ask),
        2 => (c, n.clone()).prop_map(|(c, n)| Step::ClientAnswers(c, n)),
        1 => (n.clone(), n.clone()).prop_map(|(s, n)| Step::ServerFails(s, n)),
        6 => (n.clone(), prop::bool::weighted(0.9)).prop_map(|(s, ok)| Step::Suback(s, ok)),
        1 => n.clone().prop_map(Step::Ends),
        1 => Just(Step::Busy),
        2 => (1..=WORKERS, any::<bool>()).prop_map(|(link, up)| Step::Link(link, up)),
        4 => (0..CLIENTS.len(), any::<bool>()).prop_map(|(c, p)| Step::Tells(c, p)),
        4 => (n.clone(), any::<bool>()).prop_map(|(s, p)| Step::Told(s, p)),
        1 => (n.clone(), n.clone()).prop_map(|(s, n)| Step::Withdraws(s, n)),
        1 => (0..CLIENTS.len()).prop_map(Step::Undelivered),
        1 => prop::bool::weighted(0.3).prop_map(|l| if l { Step::Lost } else { Step::Wait(1) }),
        3 => (1..40_u64).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::BackendUp),
        1 => prop::bool::weighted(0.1).prop_map(|d| if d { Step::Drain } else { Step::Wait(1) }),
    ]
}
