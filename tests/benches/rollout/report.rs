//! The table that people read.

use std::{fmt, time::Duration};

use mcp_mqtt_tests::load::Account;

use crate::{DRAIN_SECONDS, MOVE_AIM, REPLICAS, SLOW_SECONDS, changes::Change};

/// What the clients saw of a change.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) change: Change,
    pub(crate) took: Duration,
    pub(crate) seen: Account,
}

impl fmt::Display for Row {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { change, took, seen } = self;
        let repeated = seen.refused - seen.cut;
        write!(
            to,
            "{change:<32} │ {:>7.1} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9.2}",
            took.as_secs_f64(),
            seen.sessions,
            seen.answered,
            repeated,
            seen.cut,
            seen.lost,
            seen.longest_move.as_secs_f64(),
        )
    }
}

/// All of it.
pub(crate) fn table(clients: usize, rows: &[Row]) -> String {
    let mut text = format!(
        "{clients} clients call throughout, every fourth a tool that takes {SLOW_SECONDS} s; {REPLICAS} instances, drained for at most {DRAIN_SECONDS} s\nThe longest move is to take at most {} s.\n\n\
         {:<32} │ {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n\
         {:<32} │ {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
        MOVE_AIM.as_secs(),
        "",
        "",
        "",
        "calls",
        "not begun",
        "calls",
        "never",
        "longest",
        "",
        "took s",
        "sessions",
        "answered",
        "repeated",
        "cut off",
        "answered",
        "move s",
    );
    text.extend(rows.iter().map(|row| format!("{row}\n")));
    let reasons: std::collections::BTreeSet<&str> =
        rows.iter().flat_map(|row| row.seen.reasons.iter().map(String::as_str)).collect();
    text.push_str("\nWhat the clients were told:\n");
    text.extend(reasons.into_iter().map(|reason| format!("  {reason}\n")));
    text
}
