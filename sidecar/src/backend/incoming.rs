//! What a server sent, made into what the bridge hears.

use std::{iter::Chain, option, vec};

use bytes::Bytes;
use mcp_mqtt_transport::jsonrpc::{Batch, Message, ParseErrorKind, RequestId};

use super::{FromBackend, failure, id_scanner::IdScanner};

/// How much of something unreadable is shown to a person, in characters.
const EXCERPT: usize = 120;
/// Messages of one batch that are taken: the answers to a client's largest batch, and much that may be told beside.
const MAX_BATCH: usize = 1024;

/// What is to be reported, in order: one message most often, for which no list is made.
pub(super) type Events = Chain<option::IntoIter<FromBackend>, vec::IntoIter<FromBackend>>;

/// Reads one message, or what is to be reported in the place of what is none. A batch (2025-03-26) is taken apart.
pub(super) fn read(raw: &Bytes, limit: usize) -> Events {
    let error = match Message::parse(raw.clone(), limit) {
        Ok(message) => return Some(FromBackend::Message(message)).into_iter().chain(Vec::new()),
        Err(error) => error,
    };
    match error.kind {
        ParseErrorKind::Batch => read_batch(raw, limit),
        ParseErrorKind::TooLarge { size, limit } => too_large(Some(size), limit, answered_by(raw)),
        kind => {
            let detail = if raw.trim_ascii_start().starts_with(b"{") {
                format!("the server sent a message that cannot be used: {kind}")
            } else {
                format!("the server sent something that is no JSON-RPC message: `{}`", excerpt(raw))
            };
            refuse(detail, failure::BAD_ANSWER, answered_by(raw))
        }
    }
}

/// Reports a message that was over the limit and not kept; `answers`: the request that it would have
/// answered. `size`: when it is known.
pub(super) fn too_large(size: Option<usize>, limit: usize, answers: Option<RequestId>) -> Events {
    let size = size.map_or("too many".to_owned(), |size| size.to_string());
    let detail = format!(
        "the server sent a message of {size} bytes; the limit is {limit} (gateway.maxMessageBytes of the McpService, \
         --max-message-bytes)"
    );
    refuse(detail, failure::ANSWER_TOO_LARGE, answers)
}

fn refuse(detail: String, reason: &'static str, answers: Option<RequestId>) -> Events {
    let failed = answers.map(|id| FromBackend::RequestFailed { id, reason, detail: detail.clone() });
    let failed: Vec<FromBackend> = failed.into_iter().collect();
    Some(FromBackend::Malformed { detail }).into_iter().chain(failed)
}

fn read_batch(raw: &Bytes, limit: usize) -> Events {
    let Batch { parts, more } = match Batch::read(raw, MAX_BATCH) {
        Ok(batch) => batch,
        Err(error) => return refuse(format!("the server sent no JSON: {error}"), failure::BAD_ANSWER, None),
    };
    let mut read_all = Vec::with_capacity(parts.len());
    for part in parts {
        // A batch in a batch is none; it would recurse.
        match Message::parse(part.clone(), limit) {
            Ok(message) => read_all.push(FromBackend::Message(message)),
            Err(error) => {
                read_all.extend(refuse(error.to_string(), failure::BAD_ANSWER, answered_by(&part)));
            }
        }
    }
    if more {
        let detail =
            format!("the server sent a batch of more than {MAX_BATCH} messages; the rest is dropped");
        read_all.extend(refuse(detail, failure::BAD_ANSWER, None));
    }
    None.into_iter().chain(read_all)
}

fn answered_by(raw: &[u8]) -> Option<RequestId> {
    let mut ids = IdScanner::default();
    ids.feed(raw);
    ids.answers()
}

/// The beginning of some text for a person, on one line.
pub(super) fn excerpt(raw: &[u8]) -> String {
    let bounded = &raw[..raw.len().min(4 * EXCERPT)];
    let text: String = String::from_utf8_lossy(bounded)
        .trim()
        .chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .take(EXCERPT)
        .collect();
    if raw.len() > text.len() + 4 { text + "…" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(raw: &'static str) -> Vec<String> {
        let tell = |event: &FromBackend| match event {
            FromBackend::Message(message) => {
                format!("message {}", message.id().map_or("-", RequestId::as_json))
            }
            FromBackend::RequestFailed { id, reason, .. } => format!("failed {id} {reason}"),
            FromBackend::Malformed { .. } => "malformed".to_owned(),
            FromBackend::Ended(_) => unreachable!("not made here"),
        };
        read(&Bytes::from_static(raw.as_bytes()), 100).map(|event| tell(&event)).collect()
    }

    #[test]
    fn a_message_passes_and_what_is_none_is_reported() {
        assert_eq!(ids(r#"{"jsonrpc":"2.0","id":7,"result":{}}"#), ["message 7"]);
        assert_eq!(ids("Server listening"), ["malformed"]);
    }

    #[test]
    fn a_bad_answer_fails_the_request_that_it_would_have_answered() {
        assert_eq!(ids(r#"{"jsonrpc":"1.0","result":{},"id":7}"#), ["malformed", "failed 7 bad-answer"]);
        assert_eq!(
            ids(r#"{"jsonrpc":"1.0","method":"ping","id":7}"#),
            ["malformed"],
            "the id is the server's own"
        );
    }

    #[test]
    fn a_batch_is_taken_apart() {
        assert_eq!(
            ids(r#"[{"jsonrpc":"2.0","id":1,"result":{}}, 3,{"jsonrpc":"2.0","method":"a"}]"#),
            ["message 1", "malformed", "message -"]
        );
    }

    #[test]
    fn of_a_batch_that_is_too_long_the_rest_is_dropped_once() {
        let batch = Bytes::from(format!("[{}1]", "1,".repeat(1 << 20)));
        assert_eq!(read(&batch, usize::MAX).count(), MAX_BATCH + 1);
    }

    #[test]
    fn an_excerpt_is_short_and_on_one_line() {
        assert_eq!(excerpt(b"  two\nlines\x1b[0m "), "two lines [0m");
        assert!(excerpt(&[b'x'; 4096]).chars().count() <= EXCERPT + 1);
        assert!(excerpt("é".repeat(500).as_bytes()).ends_with('…'));
    }
}
