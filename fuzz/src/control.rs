//! The lines between gateway and shim: in pieces as in one, bounded, and what is read is written as it was.

use mcp_mqtt_sidecar::shim::control::{Hello, MAX_LINE, Report, decode, encode};

use crate::pieces::{knobs, pieces};

/// As much as one read brings.
const READ: usize = 1024;

/// A knob for the pieces, and what the other side sent.
pub(crate) fn run(data: &[u8]) {
    let ([knob], stream) = knobs(data);
    let whole = read(&stream.chunks(READ).collect::<Vec<_>>());
    assert_eq!(read(&pieces(stream, knob.max(1))), whole, "in pieces");
    let simple: Vec<String> = stream.split_inclusive(|byte| *byte == b'\n').map_while(simple).collect();
    assert!(whole.starts_with(&simple) || simple.starts_with(&whole), "{whole:?}\n{simple:?}");
    if let Ok(hello) = serde_json::from_slice::<Hello>(stream) {
        let mut line = encode(&hello).expect("it is JSON");
        assert_eq!(decode(&mut line).expect("it is a line"), Some(hello));
        assert!(line.is_empty());
    }
}

/// The lines up to the first that is refused, which ends a connection.
fn read(pieces: &[&[u8]]) -> Vec<String> {
    let mut received = Vec::new();
    let mut reports = Vec::new();
    for piece in pieces {
        received.extend_from_slice(piece);
        loop {
            match decode::<Report>(&mut received) {
                Ok(Some(report)) => reports.push(again(&report)),
                Ok(None) => break,
                Err(_) => return reports,
            }
        }
        assert!(received.len() < MAX_LINE, "{} bytes are kept", received.len());
    }
    reports
}

fn simple(line: &[u8]) -> Option<String> {
    let line = line.strip_suffix(b"\n").filter(|line| line.len() < MAX_LINE)?;
    serde_json::from_slice::<Report>(line).ok().map(|report| again(&report))
}

/// Writes a report and reads it: the same one.
fn again(report: &Report) -> String {
    let mut line = encode(report).expect("it is JSON");
    let written = String::from_utf8(line.clone()).expect("JSON is UTF-8");
    assert_eq!(written.matches('\n').count(), 1, "one line: {written:?}");
    assert_eq!(decode::<Report>(&mut line).expect("it is a line").as_ref(), Some(report));
    assert!(line.is_empty());
    written
}
