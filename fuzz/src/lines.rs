//! The newline framing of stdio, against a split of the whole; and the id that is skimmed off a message that is not
//! kept, against the message's own reading.

use bytes::Bytes;
use mcp_mqtt_sidecar::backend::parsers::{IdScanner, Line, Lines};
use mcp_mqtt_transport::jsonrpc::{Kind, Message, RequestId};

use crate::pieces::{knobs, pieces};

/// Knobs for the limit and for the pieces, and a stream.
pub(crate) fn run(data: &[u8]) {
    let ([limit, knob], stream) = knobs(data);
    let max = usize::from(limit);
    assert_eq!(cut(&pieces(stream, knob), max), simple(stream, max));
    for line in stream.split(|byte| *byte == b'\n') {
        scan(line, knob);
    }
}

fn cut(pieces: &[&[u8]], max: usize) -> Vec<Line> {
    let mut lines = Lines::new(max);
    let mut all = Vec::new();
    for piece in pieces {
        lines.buffer().extend_from_slice(piece);
        lines.was_read(piece.len());
        while let Some(line) = lines.next_line() {
            all.push(line);
        }
        assert!(lines.held() <= max, "{} bytes are kept; the limit is {max}", lines.held());
    }
    all.extend(lines.rest());
    all
}

fn simple(stream: &[u8], max: usize) -> Vec<Line> {
    let lines = stream.split(|byte| *byte == b'\n');
    let line = |line: &[u8]| match line.len() {
        size if size > max => Some(Line::TooLong { size, answers: skimmed(&[line]) }),
        _ if line.trim_ascii().is_empty() => None,
        _ => Some(Line::Whole(Bytes::copy_from_slice(line))),
    };
    lines.filter_map(line).collect()
}

fn scan(line: &[u8], knob: u8) {
    let answers = skimmed(&[line]);
    assert_eq!(skimmed(&pieces(line, knob)), answers, "in pieces");
    if let Some(id) = &answers {
        let is_json = serde_json::from_str::<serde_json::Value>(id.as_json());
        assert!(is_json.is_ok(), "{id} is no id");
    }
    // Names of fields with escapes in them are nobody's; ids are kept up to a length.
    let Ok(message) = Message::parse(Bytes::copy_from_slice(line), usize::MAX) else { return };
    if line.contains(&b'\\') {
        return;
    }
    match message.kind() {
        Kind::Response { id: Some(id), .. } if id.as_json().len() < 200 => {
            assert_eq!(answers.as_ref(), Some(id));
        }
        Kind::Response { id: Some(_), .. } => {}
        Kind::Response { id: None, .. } | Kind::Request { .. } | Kind::Notification { .. } => {
            assert_eq!(answers, None, "nothing is answered");
        }
    }
}

fn skimmed(pieces: &[&[u8]]) -> Option<RequestId> {
    let mut scan = IdScanner::default();
    for piece in pieces {
        scan.feed(piece);
    }
    scan.answers()
}
