//! What is written by hand about the protocol holds: `tests/PROTOCOL.md` names a test for each item, each of which has to
//! exist, and `docs/errors.md` has every word that an error may have.

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

/// Where the words of `data.reason` stand in the sources: a file, and what they stand behind.
const REASONS: [(&str, &str); 6] = [
    ("sidecar/src/bridge/refusal.rs", "pub fn reason("),
    ("sidecar/src/backend.rs", "pub mod failure {"),
    ("sidecar/src/backend/modern.rs", "pub mod reason {"),
    ("sidecar/src/backend/modern/translator.rs", "fn request("),
    ("transport/src/jsonrpc/error.rs", "pub fn reason("),
    ("operator/src/registry/pending.rs", "pub fn reason("),
];

fn is_reason(word: &str) -> bool {
    let letters = word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    letters && word.starts_with(|first: char| first.is_ascii_lowercase())
}

#[test]
fn every_word_of_an_error_is_explained_and_every_word_explained_is_there() -> Result<()> {
    let page = fs::read_to_string(workspace().join("docs/errors.md"))?;
    let explained: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split(" |").next())
        .flat_map(|cell| cell.split("`, `"))
        .map(|word| word.trim_end_matches('`'))
        .filter(|word| is_reason(word))
        .collect();
    let mut sources = String::new();
    let mut count = 0;
    for (file, before) in REASONS {
        let source = fs::read_to_string(workspace().join(file))?;
        let (_, behind) =
            source.split_once(before).with_context(|| format!("{file} has no `{before}` any more"))?;
        let end = if before.contains(" mod ") { "\n}" } else { "\n    }\n" };
        let body = behind.split(end).next().unwrap_or_default();
        // Methods stand there too.
        let others = file.ends_with("translator.rs");
        let quoted = body.split('"').skip(1).step_by(2);
        for word in quoted.filter(|word| is_reason(word) && (word.contains('-') || !others)) {
            ensure!(explained.contains(word), "docs/errors.md does not explain {word} ({file})");
            count += 1;
        }
        sources.push_str(&source);
    }
    ensure!(count > 40, "only {count} words were found: do they stand elsewhere now?");
    // A session's end is an error for its requests, by these words.
    sources.push_str(&fs::read_to_string(workspace().join("sidecar/src/bridge/action.rs"))?);
    let unknown: Vec<_> = explained.iter().filter(|word| !sources.contains(&format!("\"{word}\""))).collect();
    ensure!(unknown.is_empty(), "docs/errors.md explains what no error has: {unknown:?}");
    Ok(())
}
