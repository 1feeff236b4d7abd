//! What a booting node tells of itself.

use std::{fs, path::Path};

use serde::Deserialize;

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(super) enum Event {
    /// Something is in place.
    Step {
        /// What.
        text: String,
    },
    /// The boot is over and went well.
    Ready {
        /// How long it took.
        millis: u64,
    },
    /// The node has ended, during its boot or later.
    Failed {
        /// Why, and which log to read.
        text: String,
    },
}

/// All lines so far.
#[derive(Debug, Default)]
pub(super) struct Journal(Vec<Event>);

impl Journal {
    /// Reads what there is; none is an empty journal, and a line half-written is no line yet.
    pub(super) fn read(file: &Path) -> Self {
        Self::parse(&fs::read_to_string(file).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// The newest line.
    pub(super) fn last(&self) -> Option<&Event> {
        self.0.last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_line_counts() {
        let step = r#"{"event":"step","millis":324,"text":"etcd"}"#;
        let ready = r#"{"event":"ready","millis":3638,"text":""}"#;
        let failed = r#"{"event":"failed","millis":9000,"text":"etcd ended"}"#;
        assert_eq!(Journal::parse("").last(), None);
        assert_eq!(
            Journal::parse(&format!("{step}\n{}", &ready[..20])).last(),
            Some(&Event::Step { text: "etcd".to_owned() })
        );
        assert_eq!(
            Journal::parse(&format!("{step}\n{ready}\n")).last(),
            Some(&Event::Ready { millis: 3638 })
        );
        assert_eq!(
            Journal::parse(&format!("{ready}\n{failed}\n")).last(),
            Some(&Event::Failed { text: "etcd ended".to_owned() })
        );
    }
}
