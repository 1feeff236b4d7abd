//! A batch taken apart: JSON-RPC's array of messages, which of MCP's revisions only 2025-03-26 has.

use std::fmt;

use bytes::Bytes;
use serde::{
    Deserializer,
    de::{DeserializeSeed, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// A part shares the memory of its batch, unless that would keep more than so much, in bytes, for the sake of little.
const SHARED: usize = 16 << 10;

/// The messages of a batch, as they came; none of them is parsed.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// The first ones.
    pub parts: Vec<Bytes>,
    /// There are more.
    pub more: bool,
}

impl Batch {
    /// Reads at most the first `most` parts of a JSON array: a few bytes can be a million of them.
    ///
    /// # Errors
    /// It is not JSON, or no array.
    pub fn read(raw: &Bytes, most: usize) -> Result<Self, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(raw);
        let batch = First { raw, most }.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(batch)
    }
}

struct First<'a> {
    raw: &'a Bytes,
    most: usize,
}

impl<'a> DeserializeSeed<'a> for First<'a> {
    type Value = Batch;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Batch, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'a> Visitor<'a> for First<'a> {
    type Value = Batch;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a batch")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut parts: A) -> Result<Batch, A::Error> {
        let mut batch = Batch { parts: Vec::new(), more: false };
        while batch.parts.len() < self.most {
            let Some(part) = parts.next_element::<&'a RawValue>()? else { return Ok(batch) };
            let part = part.get().as_bytes();
            let keeps_much = self.raw.len() > SHARED && part.len() < self.raw.len() / 2;
            batch.parts.push(if keeps_much {
                Bytes::copy_from_slice(part)
            } else {
                self.raw.slice_ref(part)
            });
        }
        while parts.next_element::<IgnoredAny>()?.is_some() {
            batch.more = true;
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(raw: &str, most: usize) -> Option<(Vec<String>, bool)> {
        let batch = Batch::read(&Bytes::copy_from_slice(raw.as_bytes()), most).ok()?;
        let text = |part: &Bytes| String::from_utf8(part.to_vec()).unwrap();
        Some((batch.parts.iter().map(text).collect(), batch.more))
    }

    #[test]
    fn the_first_parts_are_as_they_came_and_the_rest_is_only_known_to_be_there() {
        let parts = |parts: &[&str], more| Some((parts.iter().map(|&part| part.to_owned()).collect(), more));
        assert_eq!(read(r#" [ {"a" : [1]} ,2] "#, 2), parts(&[r#"{"a" : [1]}"#, "2"], false));
        assert_eq!(read("[1,2,3,4]", 2), parts(&["1", "2"], true));
        assert_eq!(read("[]", 2), parts(&[], false));
        for none in ["", "{}", "[1", "[1,2,3,]", "[1,2,3 4]", "[1]2", "[1,2,\u{1}]"] {
            assert_eq!(read(none, 2), None, "{none}");
        }
        let deep = format!("[{0}{1},{0}{1}]", "[".repeat(100_000), "]".repeat(100_000));
        assert!(read(&deep, 1).is_some_and(|(_, more)| more), "without recursion");
    }

    #[test]
    fn a_small_part_does_not_keep_a_large_batch() {
        let raw = Bytes::from(format!(r#"["{}",7]"#, "x".repeat(2 * SHARED)));
        let batch = Batch::read(&raw, 2).unwrap();
        let is_shared = |part: &Bytes| raw.as_ptr_range().contains(&part.as_ptr());
        assert_eq!(batch.parts.iter().map(is_shared).collect::<Vec<_>>(), [true, false]);
    }
}
