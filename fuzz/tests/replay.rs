//! The corpus of each target, replayed, and then mutated at random for some seconds: what fuzzing has found stays found,
//! and a parser that changes meets more than what was found before.
#![allow(clippy::unwrap_used, reason = "how a test fails")]

use std::{
    fs,
    panic::{RefUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mcp_mqtt_fuzz::Target;

/// How long each target is mutated for.
const MUTATED_FOR: Duration = Duration::from_secs(10);
/// Longest input that mutation makes, in bytes.
const MAX_LENGTH: usize = 4096;

fn replay(name: &str) {
    let target = mcp_mqtt_fuzz::target(name).unwrap();
    let seeds = seeds(name);
    assert!(seeds.len() >= 5, "fuzz/corpus/{name} has {} seeds", seeds.len());
    for seed in &seeds {
        run(target, seed);
    }
    let words = words(name);
    let mut random = fastrand::Rng::new();
    let end = Instant::now() + MUTATED_FOR;
    let mut runs = 0_u64;
    while Instant::now() < end {
        let mut input = seeds[random.usize(..seeds.len())].clone();
        for _ in 0..random.u8(1..8) {
            mutate(&mut input, &seeds, &words, &mut random);
        }
        input.truncate(MAX_LENGTH);
        run(target, &input);
        runs += 1;
    }
    eprintln!("{name}: {} seeds, {runs} mutations", seeds.len());
}

/// Runs one input; a finding is kept as a file, which `cargo xtask fuzz` replays.
fn run(target: Target, input: &[u8]) {
    let quiet: &(dyn Fn() + RefUnwindSafe) = &|| (target.run)(input);
    if catch_unwind(quiet).is_err() {
        let hash = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let directory = root().join("../target/fuzz/findings");
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join(format!("{}-{hash:016x}", target.name));
        fs::write(&file, input).unwrap();
        panic!(
            "the target {} has a finding (above): {:?}\nkept as {}",
            target.name,
            String::from_utf8_lossy(input),
            file.display()
        );
    }
}

fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[Vec<u8>], random: &mut fastrand::Rng) {
    let at = random.usize(..=input.len());
    let to = at + random.usize(..=(input.len() - at).min(32));
    match random.u8(..8) {
        0 if at < input.len() => input[at] ^= 1 << random.u8(..8),
        1 if at < input.len() => input[at] = random.u8(..),
        2 => drop(input.drain(at..to)),
        3 => {
            let part = input[at..to].to_vec();
            input.splice(at..at, part);
        }
        4 => {
            let other = &seeds[random.usize(..seeds.len())];
            let from = random.usize(..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        5 => input.truncate(at),
        _ if !words.is_empty() => {
            let word = &words[random.usize(..words.len())];
            input.splice(at..at, word.iter().copied());
        }
        _ => input.insert(at, random.u8(..)),
    }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(root().join("corpus").join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// The words of a dictionary: each a line in quotes; `\xAB`, `\"` and `\\` stand for bytes.
fn words(name: &str) -> Vec<Vec<u8>> {
    let text = fs::read_to_string(root().join(format!("dictionaries/{name}.dict"))).unwrap();
    let quoted = text.lines().filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    quoted.map(|word| unescape(word.as_bytes())).collect()
}

fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = word;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'\\', [b'x', high, low, after @ ..]) => {
                let digits = [*high, *low];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                rest = after;
            }
            (b'\\', [escaped, after @ ..]) => {
                bytes.push(*escaped);
                rest = after;
            }
            _ => bytes.push(*byte),
        }
    }
    bytes
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_target_has_a_corpus_a_dictionary_and_a_test() {
    let names = mcp_mqtt_fuzz::TARGETS.map(|target| target.name);
    assert_eq!(names, ["topic", "jsonrpc", "sse", "lines", "control", "envelope"]);
    for name in names {
        assert!(!words(name).is_empty(), "{name}");
    }
}

#[test]
fn topic() {
    replay("topic");
}

#[test]
fn jsonrpc() {
    replay("jsonrpc");
}

#[test]
fn sse() {
    replay("sse");
}

#[test]
fn lines() {
    replay("lines");
}

#[test]
fn control() {
    replay("control");
}

#[test]
fn envelope() {
    replay("envelope");
}
