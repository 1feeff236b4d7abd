//! What a broker has to allow the operator, and what is said where it does not.

use std::collections::HashSet;

use mcp_mqtt_transport::mqtt::ReasonCode;

use super::{Broker, journal::JOURNAL};

/// What a broker has to allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::registry::controller) enum Right {
    ReadPresences,
    ReadControl,
    ReadJournal,
    ReadAnswers,
    WritePresences,
    WriteControl,
    WriteJournal,
    WriteRpc,
}

/// What was refused on a connection, as far as it was told.
pub(super) type Told = HashSet<Right>;

impl Right {
    /// To write there.
    pub(in crate::registry::controller) fn to_write(topic: &str) -> Self {
        if topic.starts_with(JOURNAL) {
            Self::WriteJournal
        } else if topic.starts_with("$mcp-server/presence/") {
            Self::WritePresences
        } else if topic.starts_with("$mcp-rpc/") {
            Self::WriteRpc
        } else {
            Self::WriteControl
        }
    }

    /// What is to be done, where that must be allowed, and what does not work without.
    fn in_words(self) -> (&'static str, &'static str, &'static str) {
        let presences = "$mcp-server/presence/#";
        match self {
            Self::ReadPresences => ("read", presences, "no service can sleep or wake"),
            Self::ReadControl => ("read", "$mcp-server/#", "it cannot be heard who wakes a service"),
            Self::ReadJournal => (
                "read",
                "mcp-mqtt/held/#",
                "what is held for services that wake does not outlive the operator",
            ),
            Self::ReadAnswers => (
                "read",
                "$mcp-rpc/#",
                "what stood on a lost node stays in the registry until its keep-alive is over",
            ),
            Self::WritePresences => ("write", presences, "no service can sleep"),
            Self::WriteControl => ("write", "$mcp-server/#", "who wakes a service is not answered"),
            Self::WriteJournal => ("write", "mcp-mqtt/held/#", "what is held does not outlive the operator"),
            Self::WriteRpc => ("write", "$mcp-rpc/#", "clients do not hear why they are refused"),
        }
    }
}

impl Broker {
    /// The broker refused it: what a condition says of it. It is logged once on a connection.
    pub(in crate::registry::controller) fn refused(
        &mut self,
        right: Right,
        topic: &str,
        reason: ReasonCode,
    ) -> String {
        let (verb, allow, consequence) = right.in_words();
        let why = format!(
            "the broker does not let {} {verb} {topic} ({reason}): allow it to {verb} {allow} in the broker's ACL",
            self.client_id
        );
        if self.told.insert(right) {
            tracing::warn!(broker = %self.url, "{why}; without it, {consequence}");
        }
        why
    }
}
