//! Newline-delimited messages out of a stream of bytes, with a bound on each. Sans-IO; a line is not copied.

use bytes::{Bytes, BytesMut};
use mcp_mqtt_transport::jsonrpc::RequestId;

use super::id_scanner::IdScanner;

/// Room for the first read, in bytes: most messages fit.
const FIRST_READ: usize = 4 * 1024;
/// Most room for one read, in bytes: what a pipe holds.
const LARGEST_READ: usize = 64 * 1024;

/// Cuts lines. Read into [`Lines::buffer`], then take [`Lines::next_line`] until there is none.
#[derive(Debug)]
pub struct Lines {
    buffer: BytesMut,
    /// So much of the buffer has no newline.
    scanned: usize,
    next_read: usize,
    max: usize,
    dropping: Option<Dropping>,
}

/// What is left of a line that is too long.
#[derive(Debug, Default)]
struct Dropping {
    size: usize,
    ids: IdScanner,
}

/// A line without its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// Not blank, and within the limit.
    Whole(Bytes),
    /// Over the limit, and dropped.
    TooLong {
        /// Its length in bytes.
        size: usize,
        /// The request that it would have answered.
        answers: Option<RequestId>,
    },
}

impl Lines {
    /// Lines of at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, next_read: FIRST_READ, max, dropping: None }
    }

    /// Where to append what was read; has room.
    pub fn buffer(&mut self) -> &mut BytesMut {
        self.buffer.reserve(self.next_read);
        &mut self.buffer
    }

    /// Tells how much a read brought: who fills the buffer gets a larger one.
    pub fn was_read(&mut self, bytes: usize) {
        self.next_read = if bytes >= self.next_read {
            (self.next_read * 2).min(LARGEST_READ)
        } else if bytes < FIRST_READ {
            FIRST_READ
        } else {
            self.next_read
        };
    }

    /// The next line that is whole.
    pub fn next_line(&mut self) -> Option<Line> {
        loop {
            let Some(end) = memchr::memchr(b'\n', &self.buffer[self.scanned..]) else {
                self.scanned = self.buffer.len();
                if self.dropping.is_some() || self.scanned > self.max {
                    self.drop_buffered(self.scanned);
                }
                return None;
            };
            let line = self.take(self.scanned + end);
            let _newline = self.buffer.split_to(1);
            if line.is_some() {
                return line;
            }
        }
    }

    /// Bytes that are kept.
    pub fn held(&self) -> usize {
        self.buffer.len()
    }

    /// What stands behind the last newline when nothing more comes.
    pub fn rest(&mut self) -> Option<Line> {
        self.take(self.buffer.len())
    }

    fn take(&mut self, length: usize) -> Option<Line> {
        self.scanned = 0;
        if self.dropping.is_some() || length > self.max {
            self.drop_buffered(length);
            let Dropping { size, ids } = self.dropping.take().unwrap_or_default();
            return Some(Line::TooLong { size, answers: ids.answers() });
        }
        let line = self.buffer.split_to(length).freeze();
        if line.trim_ascii().is_empty() { None } else { Some(Line::Whole(line)) }
    }

    fn drop_buffered(&mut self, length: usize) {
        let dropping = self.dropping.get_or_insert_default();
        dropping.ids.feed(&self.buffer[..length]);
        dropping.size += length;
        let _dropped = self.buffer.split_to(length);
        self.scanned = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(pieces: &[&[u8]], max: usize) -> Vec<Line> {
        let mut lines = Lines::new(max);
        let mut all = Vec::new();
        for piece in pieces {
            lines.buffer().extend_from_slice(piece);
            lines.was_read(piece.len());
            all.extend(std::iter::from_fn(|| lines.next_line()));
        }
        all.extend(lines.rest());
        all
    }

    fn whole(line: &'static str) -> Line {
        Line::Whole(Bytes::from_static(line.as_bytes()))
    }

    #[test]
    fn lines_come_out_whole_and_blank_ones_not_at_all() {
        assert_eq!(
            cut(&[b"one\ntw", b"o\n\n  \r\nthree\r\n", b"rest"], 10),
            [whole("one"), whole("two"), whole("three\r"), whole("rest")]
        );
    }

    #[test]
    fn a_line_over_the_limit_is_dropped_whole_and_the_next_one_comes() {
        let long: &[u8] = br#"{"result":"xxxxxxxxxxxxxxxx","id":4}"#;
        let dropped = || Line::TooLong { size: long.len(), answers: RequestId::from_json("4").ok() };
        assert_eq!(cut(&[long, b"\nnext\n"], 10), [dropped(), whole("next")]);
        assert_eq!(
            cut(&[long, long, b"\n"], 10),
            [Line::TooLong { size: 2 * long.len(), answers: RequestId::from_json("4").ok() }]
        );
        assert_eq!(cut(&[&[long, b"\nnext\n".as_slice()].concat()], 10), [dropped(), whole("next")]);
        assert_eq!(cut(&[long], 10), [dropped()], "without a newline at the end");
        assert_eq!(cut(&[b"0123456789\n"], 10), [whole("0123456789")], "exactly the limit");
    }

    #[test]
    fn a_line_without_end_takes_no_more_memory_than_the_limit() {
        let mut lines = Lines::new(1000);
        for _ in 0..1000 {
            lines.buffer().extend_from_slice(&[b'x'; 4096]);
            assert_eq!(lines.next_line(), None);
            assert_eq!(lines.held(), 0);
        }
        assert!(lines.buffer.capacity() <= 2 * LARGEST_READ);
        lines.buffer().extend_from_slice(b"\n");
        assert_eq!(lines.next_line(), Some(Line::TooLong { size: 4_096_000, answers: None }));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_the_reads_end(text in "[a-c{}\":\n]{0,80}", cuts in proptest::collection::vec(0usize..80, 0..6)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.push(0);
            cuts.push(text.len());
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
            prop_assert_eq!(cut(&pieces, 12), cut(&[text.as_bytes()], 12));
        }
    }
}
