//! The id of a message that is not kept: found while its bytes go by, wherever in the message it stands.

use mcp_mqtt_transport::jsonrpc::RequestId;
use serde_json::value::RawValue;

/// Longest id and field name that are remembered; ours are far shorter.
const MAX_KEPT: usize = 256;

/// Reads JSON as it goes by and remembers the top level's `id`, and whether there is a `method`. Whatever is no
/// JSON gives no id, or one that nobody waits for.
#[derive(Debug, Default)]
pub struct IdScanner {
    depth: usize,
    text: Text,
    /// Within the top-level object: behind the colon.
    in_value: bool,
    /// The top-level field name or value that goes by.
    kept: Vec<u8>,
    name: Vec<u8>,
    id: Option<RequestId>,
    has_method: bool,
}

/// Where the next byte stands.
#[derive(Debug, Default, PartialEq, Eq)]
enum Text {
    #[default]
    Outside,
    InString,
    Escaped,
}

impl IdScanner {
    /// The next bytes of the message.
    pub fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.step(*byte);
        }
    }

    /// The id of the request that this message answers; none for a message with a method: its id is the server's.
    pub fn answers(self) -> Option<RequestId> {
        if self.has_method { None } else { self.id }
    }

    fn step(&mut self, byte: u8) {
        if self.text != Text::Outside {
            self.keep(byte);
            self.text = match (&self.text, byte) {
                (Text::InString, b'\\') => Text::Escaped,
                (Text::InString, b'"') => Text::Outside,
                _ => Text::InString,
            };
            return;
        }
        match byte {
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                if self.depth == 1 {
                    self.end_field();
                }
                self.depth = self.depth.saturating_sub(1);
            }
            b',' if self.depth == 1 => self.end_field(),
            b':' if self.depth == 1 && !self.in_value => {
                self.name = std::mem::take(&mut self.kept);
                self.in_value = true;
            }
            b'"' => {
                self.text = Text::InString;
                self.keep(byte);
            }
            b' ' | b'\t' | b'\r' | b'\n' => {}
            _ => self.keep(byte),
        }
    }

    fn keep(&mut self, byte: u8) {
        if self.depth == 1 && self.kept.len() < MAX_KEPT {
            self.kept.push(byte);
        }
    }

    fn end_field(&mut self) {
        match self.name.as_slice() {
            br#""id""# => {
                // What was cut off, or is no JSON, is nobody's id.
                let whole = Some(self.kept.as_slice()).filter(|kept| kept.len() < MAX_KEPT);
                let id = whole.and_then(|kept| serde_json::from_slice::<&RawValue>(kept).ok());
                self.id = id.and_then(|id| RequestId::from_json(id.get()).ok());
            }
            br#""method""# => self.has_method = true,
            _ => {}
        }
        self.kept.clear();
        self.name.clear();
        self.in_value = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answers(raw: &str) -> Option<String> {
        let mut ids = IdScanner::default();
        ids.feed(raw.as_bytes());
        ids.answers().map(|id| id.to_string())
    }

    #[test]
    fn the_id_is_found_first_last_and_between_and_only_at_the_top() {
        for raw in [
            r#"{"id":5,"jsonrpc":"2.0","result":{"id":6}}"#,
            r#"{"result":{"id":6,"x":["\"}",{"id":7}]},"jsonrpc":"2.0","id": 5 }"#,
            r#"{ "jsonrpc" : "2.0" , "id" : 5 , "result" : "{\"id\":8,\\" }"#,
        ] {
            assert_eq!(answers(raw).as_deref(), Some("5"), "{raw}");
        }
        assert_eq!(answers(r#"{"id":"a,b","result":1}"#).as_deref(), Some(r#""a,b""#));
    }

    #[test]
    fn nothing_is_answered_by_requests_notifications_and_noise() {
        for raw in [
            r#"{"id":5,"method":"sampling/createMessage","params":{}}"#,
            r#"{"method":"notifications/message","params":{"id":5}}"#,
            r#"{"id":null,"error":{}}"#,
            r#"[{"id":5,"result":{}}]"#,
            "Listening on port 3000",
            r#"{"id":"#,
            r#"{"id":"a":"b","result":1}"#,
            r#"{"id":1x,"result":1}"#,
            "}}}]]]\"",
        ] {
            assert_eq!(answers(raw), None, "{raw}");
        }
    }

    proptest! {
        #[test]
        fn pieces_and_the_whole_give_the_same(raw in r#"[{}\[\]":,\\id5 a-z]{0,60}"#, cut in 0usize..60) {
            let (head, tail) = raw.as_bytes().split_at(cut.min(raw.len()));
            let mut pieces = IdScanner::default();
            pieces.feed(head);
            pieces.feed(tail);
            let mut whole = IdScanner::default();
            whole.feed(raw.as_bytes());
            prop_assert_eq!(pieces.answers(), whole.answers());
        }
    }
}
