//! Server-sent events, against the standard's rules applied line by line to the whole stream.

use std::time::Duration;

use bytes::Bytes;
use mcp_mqtt_sidecar::backend::parsers::{Event, SseParser};

use crate::pieces::{knobs, pieces};

/// Longest id that is remembered, and what a line may have beside its data: as in the parser.
const MAX_ID: usize = 1024;
const LINE_EXTRA: usize = 16;

/// Knobs for the limit and for the pieces, and a stream.
pub(crate) fn run(data: &[u8]) {
    let ([limit, knob], stream) = knobs(data);
    let max = usize::from(limit);
    let whole = read(&[stream], max);
    assert_eq!(read(&pieces(stream, knob), max), whole, "in pieces");
    let simple = Simple::read(stream, max);
    assert_eq!(whole.events.iter().map(shape).collect::<Vec<_>>(), simple.events);
    assert_eq!(
        (whole.last_event_id.as_deref(), whole.retry),
        (simple.last_event_id.as_deref(), simple.retry)
    );
}

#[derive(Debug, PartialEq)]
struct Read {
    events: Vec<Event>,
    last_event_id: Option<String>,
    retry: Option<Duration>,
}

fn read(pieces: &[&[u8]], max: usize) -> Read {
    let mut parser = SseParser::new(max);
    let mut events = Vec::new();
    for piece in pieces {
        parser.feed(Bytes::copy_from_slice(piece), &mut events);
        assert!(
            parser.held() <= 2 * max + LINE_EXTRA,
            "{} bytes are kept; the limit is {max}",
            parser.held()
        );
    }
    Read { events, last_event_id: parser.last_event_id().map(str::to_owned), retry: parser.retry() }
}

/// An event, and what was dropped by its size alone.
#[derive(Debug, PartialEq)]
enum Shape {
    Message(Vec<u8>),
    Endpoint(Vec<u8>),
    Other,
    TooLarge(usize),
}

fn shape(event: &Event) -> Shape {
    match event {
        Event::Message(data) => Shape::Message(data.to_vec()),
        Event::Endpoint(data) => Shape::Endpoint(data.to_vec()),
        Event::Other => Shape::Other,
        Event::TooLarge { size, .. } => Shape::TooLarge(*size),
    }
}

/// <https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation>
#[derive(Default)]
struct Simple {
    events: Vec<Shape>,
    last_event_id: Option<String>,
    retry: Option<Duration>,
}

impl Simple {
    fn read(stream: &[u8], max: usize) -> Self {
        let mut simple = Self::default();
        let (mut data, mut name, mut id): (Option<Vec<u8>>, Vec<u8>, Option<String>) =
            (None, Vec::new(), None);
        for (n, line) in lines(stream).iter().enumerate() {
            let too_long = line.len() > max + LINE_EXTRA;
            let line = if n == 0 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
            if line.is_empty() {
                simple.end(data.take(), &std::mem::take(&mut name), id.take(), max);
                continue;
            }
            let (field, value) = match line.iter().position(|byte| *byte == b':') {
                Some(colon) => (&line[..colon], &line[colon + 1..]),
                None => (line, &b""[..]),
            };
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match field {
                b"data" if !too_long || line.starts_with(b"data:") => match &mut data {
                    Some(data) => {
                        data.push(b'\n');
                        data.extend_from_slice(value);
                    }
                    None => data = Some(value.to_vec()),
                },
                _ if too_long => {} // nothing else that is kept is so long
                b"event" => value.clone_into(&mut name),
                b"id" => {
                    if let Ok(text) = std::str::from_utf8(value)
                        && !text.contains('\0')
                        && text.len() <= MAX_ID
                    {
                        id = Some(text.to_owned());
                    }
                }
                b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                    let number = String::from_utf8_lossy(value).parse().unwrap_or(u64::MAX);
                    simple.retry = Some(Duration::from_millis(number));
                }
                _ => {}
            }
        }
        simple
    }

    fn end(&mut self, data: Option<Vec<u8>>, name: &[u8], id: Option<String>, max: usize) {
        if let Some(id) = id {
            self.last_event_id = Some(id).filter(|id| !id.is_empty());
        }
        let Some(data) = data else { return };
        self.events.push(match name {
            b"" | b"message" | b"endpoint" if data.len() > max => Shape::TooLarge(data.len()),
            b"" | b"message" => Shape::Message(data),
            b"endpoint" => Shape::Endpoint(data),
            _ => Shape::Other,
        });
    }
}

/// The lines of a stream, without their ends; what has no end is none.
fn lines(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    while let Some(end) = stream.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        lines.push(&stream[..end]);
        let skip = if stream[end..].starts_with(b"\r\n") { 2 } else { 1 };
        stream = &stream[end + skip..];
    }
    lines
}
