//! `tests/PROTOCOL.md` names a test for each item of the protocol; each of them has to exist.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result, ensure};
use mcp_mqtt_tests::binaries::workspace;

/// Items of the server's side.
const ITEMS: u32 = 26;

/// The tests that a line names: file and function.
fn named(line: &str) -> Vec<(&str, &str)> {
    line.split('`').skip(1).step_by(2).filter_map(|quoted| quoted.split_once(".rs::")).collect()
}

#[test]
fn every_item_names_tests_and_every_test_that_is_named_exists() -> Result<()> {
    let table = fs::read_to_string(workspace().join("tests/PROTOCOL.md"))?;
    let mut items = BTreeSet::new();
    let mut count = 0;
    for (at, line) in table.lines().enumerate().map(|(at, line)| (at + 1, line)) {
        let tests = named(line);
        if line.starts_with('|') && !line.starts_with("|---") && !line.contains("| tests |") {
            ensure!(!tests.is_empty(), "PROTOCOL.md:{at} names no test: {line}");
            if let Some(item) = line.split('|').nth(1).and_then(|item| item.trim().parse::<u32>().ok()) {
                ensure!(items.insert(item), "PROTOCOL.md:{at} is another item {item}");
            }
        }
        for (file, test) in tests {
            let path = workspace().join(format!("{file}.rs"));
            let source = fs::read_to_string(&path)
                .with_context(|| format!("PROTOCOL.md:{at} names {file}.rs, which cannot be read"))?;
            let before = source.split_once(&format!("fn {test}(")).map(|(before, _)| before);
            let before = before.and_then(|before| before.rsplit("\n\n").next());
            ensure!(
                before.is_some_and(|before| ["#[test]", "#[tokio::test"]
                    .iter()
                    .any(|mark| before.contains(mark))),
                "PROTOCOL.md:{at} names {test}, which is no test in {file}.rs: was it renamed?"
            );
            count += 1;
        }
    }
    ensure!(items == (1..=ITEMS).collect(), "items of the server's side: {items:?}");
    ensure!(count > 2 * ITEMS, "{count} tests are too few: is the table read as it should be?");
    Ok(())
}
