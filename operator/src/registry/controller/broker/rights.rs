//! What the operator may write at a broker.

use super::journal::JOURNAL;

/// What the operator writes, by the right that a broker has to give for it: the note by which a refusal is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    Journal,
    Presence,
    Rpc,
    Control,
}

impl Right {
    pub(super) fn of(topic: &str) -> Self {
        if topic.starts_with(JOURNAL) {
            Self::Journal
        } else if topic.starts_with("$mcp-server/presence/") {
            Self::Presence
        } else if topic.starts_with("$mcp-rpc/") {
            Self::Rpc
        } else {
            Self::Control
        }
    }

    /// Where it must be allowed to write, and what does not work without.
    pub(super) fn in_words(note: u64) -> (&'static str, &'static str) {
        match note {
            note if note == Self::Journal as u64 => {
                ("mcp-mqtt/held/#", "what is held does not outlive the operator")
            }
            note if note == Self::Presence as u64 => ("$mcp-server/presence/#", "no service can sleep"),
            note if note == Self::Rpc as u64 => ("$mcp-rpc/#", "clients do not hear why they are refused"),
            _ => ("$mcp-server/#", "who wakes a service is not answered"),
        }
    }
}
