//! Server-sent events out of a stream of bytes, with a bound on each. Sans-IO.
//!
//! After <https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation>, with two
//! things left out that MCP has no use for: an event's name is only compared with those of MCP, and bytes that are
//! not UTF-8 are left to the JSON parser.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mcp_mqtt_transport::jsonrpc::RequestId;

use crate::backend::id_scanner::IdScanner;

/// Longest event id that is remembered, in bytes; with a longer one the stream cannot be resumed there.
const MAX_ID: usize = 1024;
/// What a line may have beside its data: a field name, a colon, a space, a byte order mark.
const LINE_EXTRA: usize = 16;

/// What a blank line ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A message; its data may be empty (an event whose only purpose is its id).
    Message(Bytes),
    /// HTTP+SSE: where to post to; a URL reference.
    Endpoint(Bytes),
    /// An event of another name, which is none of ours.
    Other,
    /// Its data was over the limit, and dropped.
    TooLarge {
        /// Bytes of data.
        size: usize,
        /// The request that it would have answered.
        answers: Option<RequestId>,
    },
}

/// Parses one stream after another: what it knows for a resumption outlives the stream.
#[derive(Debug)]
pub struct SseParser {
    max: usize,
    /// The beginning of a line whose end has not come.
    line: BytesMut,
    /// The last byte was a CR: an LF right after it belongs to the same line end.
    after_cr: bool,
    at_start: bool,
    event: Pending,
    last_event_id: Option<Box<str>>,
    retry: Option<Duration>,
}

/// The event whose blank line has not come.
#[derive(Debug, Default)]
struct Pending {
    data: Option<Data>,
    id: Option<Box<str>>,
    name: Name,
    /// A line that is over the limit goes by.
    dropping_line: bool,
    /// It is a line of data.
    dropping_data: bool,
}

/// An event's name.
#[derive(Debug, Default, Clone, Copy)]
enum Name {
    /// None, or `message`.
    #[default]
    Message,
    /// `endpoint`.
    Endpoint,
    /// None of ours.
    Other,
}

/// An event's data.
#[derive(Debug)]
enum Data {
    /// One line so far, not copied.
    One(Bytes),
    /// Several lines, joined.
    Joined(BytesMut),
    /// Too much.
    Dropped { size: usize, ids: IdScanner },
}

impl SseParser {
    /// Takes events with at most `max` bytes of data.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            line: BytesMut::new(),
            after_cr: false,
            at_start: true,
            event: Pending::default(),
            last_event_id: None,
            retry: None,
        }
    }

    /// What to send as `Last-Event-ID`.
    pub fn last_event_id(&self) -> Option<&str> {
        self.last_event_id.as_deref()
    }

    /// The server does not know the id any more.
    pub fn forget(&mut self) {
        self.last_event_id = None;
    }

    /// How long the server asks to wait before a reconnection.
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// Bytes of data and unfinished lines that are kept.
    pub fn held(&self) -> usize {
        let data = match &self.event.data {
            Some(Data::One(data)) => data.len(),
            Some(Data::Joined(data)) => data.len(),
            Some(Data::Dropped { .. }) | None => 0,
        };
        self.line.len() + data
    }

    /// A new stream begins; what the old one left unfinished is no event.
    pub fn restart(&mut self) {
        self.line.clear();
        self.after_cr = false;
        self.at_start = true;
        self.event = Pending::default();
    }

    /// The next bytes of the stream; appends the events that they complete.
    pub fn feed(&mut self, mut chunk: Bytes, events: &mut Vec<Event>) {
        if !chunk.is_empty() && std::mem::take(&mut self.after_cr) && chunk[0] == b'\n' {
            let _rest_of_line_end = chunk.split_to(1);
        }
        while let Some(end) = memchr::memchr2(b'\r', b'\n', &chunk) {
            let part = chunk.split_to(end);
            let line_end = chunk.split_to(1);
            if line_end[0] == b'\r' {
                match chunk.first() {
                    Some(b'\n') => drop(chunk.split_to(1)),
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            if self.line.is_empty() {
                self.end_line(part, events);
            } else {
                self.line.extend_from_slice(&part);
                let line = self.line.split().freeze();
                self.end_line(line, events);
            }
        }
        self.line.extend_from_slice(&chunk);
        if self.event.dropping_line || self.is_too_long(&self.line) {
            let part = self.line.split().freeze();
            self.drop_part(&part);
        }
    }

    fn end_line(&mut self, mut line: Bytes, events: &mut Vec<Event>) {
        if self.event.dropping_line || self.is_too_long(&line) {
            self.drop_part(&line);
            self.event.dropping_line = false;
            return;
        }
        if std::mem::take(&mut self.at_start) && line.starts_with(b"\xef\xbb\xbf") {
            let _byte_order_mark = line.split_to(3);
        }
        if line.is_empty() {
            events.extend(self.end_event());
            return;
        }
        let colon = memchr::memchr(b':', &line).unwrap_or(line.len());
        let mut value = line.split_off(colon);
        for skipped in [b':', b' '] {
            if value.first() == Some(&skipped) {
                let _skipped = value.split_to(1);
            }
        }
        match &line[..] {
            b"data" => self.add_data(value),
            b"id" => {
                let id =
                    std::str::from_utf8(&value).ok().filter(|id| id.len() <= MAX_ID && !id.contains('\0'));
                self.event.id = id.map(Into::into).or(self.event.id.take());
            }
            b"event" => {
                self.event.name = match &value[..] {
                    b"" | b"message" => Name::Message,
                    b"endpoint" => Name::Endpoint,
                    _ => Name::Other,
                };
            }
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let milliseconds = std::str::from_utf8(&value).ok().and_then(|digits| digits.parse().ok());
                self.retry = Some(Duration::from_millis(milliseconds.unwrap_or(u64::MAX)));
            }
            _ => {} // a comment, or a field of another world
        }
    }

    fn end_event(&mut self) -> Option<Event> {
        let Pending { data, id, name, .. } = std::mem::take(&mut self.event);
        if let Some(id) = id {
            self.last_event_id = Some(id).filter(|id| !id.is_empty());
        }
        let data = match (name, data?) {
            (Name::Other, _) => return Some(Event::Other),
            (_, Data::One(data)) => data,
            (_, Data::Joined(data)) => data.freeze(),
            (_, Data::Dropped { size, ids }) => {
                return Some(Event::TooLarge { size, answers: ids.answers() });
            }
        };
        Some(if matches!(name, Name::Endpoint) { Event::Endpoint(data) } else { Event::Message(data) })
    }

    fn add_data(&mut self, line: Bytes) {
        let size = line.len();
        let data = match self.event.data.take() {
            None => Data::One(line),
            Some(Data::One(first)) => {
                let mut joined = BytesMut::with_capacity(first.len() + 1 + size);
                joined.extend_from_slice(&first);
                Data::Joined(join(joined, &line))
            }
            Some(Data::Joined(joined)) => Data::Joined(join(joined, &line)),
            Some(Data::Dropped { size: before, mut ids }) => {
                ids.feed(&line);
                Data::Dropped { size: before + 1 + size, ids }
            }
        };
        self.event.data = Some(match data {
            Data::One(data) if data.len() > self.max => dropped(&data),
            Data::Joined(data) if data.len() > self.max => dropped(&data),
            within => within,
        });
    }

    fn is_too_long(&self, line: &[u8]) -> bool {
        line.len() > self.max + LINE_EXTRA
    }

    /// A part of a line that is too long to keep.
    fn drop_part(&mut self, part: &[u8]) {
        let begins = !std::mem::replace(&mut self.event.dropping_line, true);
        if begins {
            self.event.dropping_data = false;
            let mark: &[u8] = if std::mem::take(&mut self.at_start) { b"\xef\xbb\xbf" } else { b"" };
            let line = part.strip_prefix(mark).unwrap_or(part);
            if let Some(data) = line.strip_prefix(b"data:") {
                self.event.dropping_data = true;
                self.add_data(Bytes::copy_from_slice(data.strip_prefix(b" ").unwrap_or(data)));
            }
        } else if !self.event.dropping_data {
            // a comment, or a field that is not kept
        } else if let Some(Data::Dropped { size, ids }) = &mut self.event.data {
            ids.feed(part);
            *size += part.len();
        }
    }
}

fn join(mut joined: BytesMut, line: &[u8]) -> BytesMut {
    joined.extend_from_slice(b"\n");
    joined.extend_from_slice(line);
    joined
}

fn dropped(data: &[u8]) -> Data {
    let mut ids = IdScanner::default();
    ids.feed(data);
    Data::Dropped { size: data.len(), ids }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 40;

    /// The events, the id to resume at, and the retry that a stream in these pieces gives.
    fn parse(pieces: &[&[u8]]) -> (Vec<Event>, Option<String>, Option<Duration>) {
        let mut parser = SseParser::new(MAX);
        let mut events = Vec::new();
        for piece in pieces {
            parser.feed(Bytes::copy_from_slice(piece), &mut events);
            assert!(parser.held() <= 2 * MAX + LINE_EXTRA, "unbounded");
        }
        (events, parser.last_event_id().map(str::to_owned), parser.retry())
    }

    fn events(stream: &str) -> Vec<Event> {
        parse(&[stream.as_bytes()]).0
    }

    fn message(data: &'static str) -> Event {
        Event::Message(Bytes::from_static(data.as_bytes()))
    }

    #[test]
    fn every_line_end_ends_a_line() {
        for end in ["\n", "\r", "\r\n"] {
            let stream = "event: message|data: {}||data:1||".replace('|', end);
            assert_eq!(events(&stream), [message("{}"), message("1")], "{end:?}");
        }
        assert_eq!(events("data: a\r\rdata: b\n\r\n"), [message("a"), message("b")], "mixed");
    }

    #[test]
    fn lines_of_data_are_joined_and_only_one_space_is_skipped() {
        assert_eq!(events("data: {\ndata:  }\ndata\n\n"), [message("{\n }\n")]);
    }

    #[test]
    fn comments_unknown_fields_and_unfinished_events_are_nothing() {
        assert_eq!(events(": ping\n\nfoo: bar\n\ndata: a\n:\n\ndata: lost\n"), [message("a")]);
    }

    #[test]
    fn other_events_are_told_apart() {
        let endpoint = || Event::Endpoint(Bytes::from_static(b"/x"));
        assert_eq!(
            events("event: endpoint\ndata: /x\n\nevent:\ndata: a\n\nevent: ping\ndata: b\n\n"),
            [endpoint(), message("a"), Event::Other]
        );
        assert_eq!(events("data: /x\nevent: endpoint\n\ndata: a\n\n"), [endpoint(), message("a")]);
    }

    #[test]
    fn a_byte_order_mark_is_skipped_once() {
        assert_eq!(events("\u{feff}data: a\n\n\u{feff}data: b\n\n"), [message("a")]);
    }

    #[test]
    fn an_id_counts_when_its_event_ends() {
        assert_eq!(parse(&[b"id: 7\ndata: a\n\nid: 8\ndata: b\n"]).1.as_deref(), Some("7"));
        assert_eq!(parse(&[b"id: 7\n\n"]).1.as_deref(), Some("7"), "without data too");
        assert_eq!(parse(&[b"id: 7\n\ndata: a\n\n"]).1.as_deref(), Some("7"), "it lasts");
        assert_eq!(parse(&[b"id: 7\n\nid: a\0b\n\n"]).1.as_deref(), Some("7"), "NUL is no id");
        assert_eq!(parse(&[b"id: 7\n\nid\n\n"]).1, None, "an empty id resets it");
    }

    #[test]
    fn an_event_that_only_carries_an_id_has_empty_data() {
        assert_eq!(events("id: 7\ndata:\n\n"), [message("")]);
    }

    #[test]
    fn retry_takes_digits_only() {
        assert_eq!(parse(&[b"retry: 1500\n"]).2, Some(Duration::from_millis(1500)));
        for bad in ["retry: 1.5\n", "retry: -1\n", "retry:\n", "retry: 1s\n"] {
            assert_eq!(parse(&[bad.as_bytes()]).2, None, "{bad}");
        }
        assert!(parse(&[b"retry: 99999999999999999999999\n"]).2.is_some());
    }

    #[test]
    fn an_event_over_the_limit_is_dropped_and_names_the_request() {
        let long = format!(r#"{{"result":"{}","id":4}}"#, "x".repeat(200));
        let answers = || RequestId::from_json("4").ok();
        let dropped = || Event::TooLarge { size: long.len(), answers: answers() };
        let stream = format!("data:{long}\n\ndata: a\n\n");
        assert_eq!(events(&stream), [dropped(), message("a")]);
        let pieces: Vec<&[u8]> = stream.as_bytes().chunks(7).collect();
        assert_eq!(parse(&pieces).0, [dropped(), message("a")]);

        let lines = "data: {\"id\":4,\ndata: \"result\":\"xxxxxxxxxxxxxxxxxxxxxxx\"\ndata: }\n\ndata: a\n\n";
        assert!(matches!(&events(lines)[..], [Event::TooLarge { answers: Some(_), .. }, Event::Message(_)]));
        assert_eq!(events(&format!(": {}\n\ndata: a\n\n", "x".repeat(500))), [message("a")], "a comment");
    }

    #[test]
    fn a_new_stream_forgets_what_was_unfinished_but_not_where_to_resume() {
        let mut parser = SseParser::new(MAX);
        let mut events = Vec::new();
        parser.feed(Bytes::from_static(b"id: 7\ndata: a\n\nid: 8\ndata: lost\r"), &mut events);
        parser.restart();
        parser.feed(Bytes::from_static(b"\ndata: b\n\n"), &mut events);
        assert_eq!(events, [message("a"), message("b")]);
        assert_eq!(parser.last_event_id(), Some("7"));
    }

    const STREAM: &str = "\u{feff}id: 1\r\nevent: message\r\ndata: {\"a\":1}\r\n\r\n: hi\rretry: 20\r\rdata: x\ndata: y\n\n\
                          data: {\"result\":\"0123456789012345678901234567890123456789\",\"id\":9}\n\nid:2\ndata:\n\nevent: e\ndata: z\n\n";

    #[test]
    fn a_stream_may_be_split_at_any_two_bytes() {
        let bytes = STREAM.as_bytes();
        let whole = parse(&[bytes]);
        assert_eq!(whole.0.len(), 5);
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(parse(&pieces), whole, "split at {first} and {second}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_split_and_no_noise_changes_what_is_read(
            stream in "(data|id|event|retry|[a-d]|:|: |\n|\r|\r\n|\u{feff}|\0|[{}\",0-9]|xxxxxxxxxxxxxxxxxxxx){0,60}",
            size in 1usize..20,
        ) {
            let pieces: Vec<&[u8]> = stream.as_bytes().chunks(size).collect();
            prop_assert_eq!(parse(&pieces), parse(&[stream.as_bytes()]));
        }
    }
}
