//! The members of a JSON object or the items of an array, as they stand in the text: nothing is copied, and what they
//! hold is only skipped. The text is JSON already (the envelope's parser has read it); of other text it makes something
//! or nothing, but no panic.

use mcp_mqtt_transport::jsonrpc::text::end_of_string;
pub(in crate::backend) use mcp_mqtt_transport::jsonrpc::text::string;

/// One member of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) struct Member<'a> {
    /// Its name as it stands there, quotes and all.
    pub(in crate::backend) key: &'a str,
    /// Its value.
    pub(in crate::backend) value: &'a str,
    /// Name, colon and value.
    pub(in crate::backend) text: &'a str,
}

impl Member<'_> {
    /// Whether this is its name.
    pub(in crate::backend) fn is(&self, name: &str) -> bool {
        string(self.key).is_some_and(|key| key == name)
    }
}

/// The members of an object in their order; none of what is no object.
pub(in crate::backend) fn members(object: &str) -> impl Iterator<Item = Member<'_>> {
    let mut walk = Walk::new(object, b'{');
    std::iter::from_fn(move || {
        let key = walk.string()?;
        walk.skip(b':')?;
        let value = walk.value()?;
        let start = key.as_ptr().addr() - object.as_ptr().addr();
        let text = object.get(start..walk.at)?;
        Some(Member { key, value, text })
    })
}

/// The items of an array in their order; none of what is no array.
pub(in crate::backend) fn items(array: &str) -> impl Iterator<Item = &str> {
    let mut walk = Walk::new(array, b'[');
    std::iter::from_fn(move || walk.value())
}

/// The last member of this name: the one that parsers keep when there are several.
pub(in crate::backend) fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    members(object).filter(|member| member.is(name)).last().map(|member| member.value)
}

/// A place in a container's text.
struct Walk<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Walk<'a> {
    /// Behind the opening bracket, or at the end when there is none.
    fn new(text: &'a str, opening: u8) -> Self {
        let mut walk = Self { text, at: 0 };
        if walk.skip(opening).is_none() {
            walk.at = text.len();
        }
        walk
    }

    fn peek(&mut self) -> Option<u8> {
        let rest = self.text.as_bytes().get(self.at..)?;
        self.at += rest.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b','))?;
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip(&mut self, expected: u8) -> Option<()> {
        (self.peek()? == expected).then(|| self.at += 1)
    }

    fn string(&mut self) -> Option<&'a str> {
        (self.peek()? == b'"').then_some(())?;
        self.take(end_of_string(self.text.as_bytes(), self.at)?)
    }

    fn value(&mut self) -> Option<&'a str> {
        let bytes = self.text.as_bytes();
        let end = match self.peek()? {
            b'"' => end_of_string(bytes, self.at)?,
            b'{' | b'[' => end_of_container(bytes, self.at)?,
            b'}' | b']' | b':' => return None,
            _ => {
                let rest = bytes.get(self.at..)?;
                let scalar = |byte: &u8| !matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n');
                self.at + rest.iter().take_while(|byte| scalar(byte)).count()
            }
        };
        self.take(end)
    }

    fn take(&mut self, end: usize) -> Option<&'a str> {
        let taken = self.text.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }
}

/// Behind the closing bracket of the object or array that begins here.
fn end_of_container(bytes: &[u8], start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = start;
    loop {
        match bytes.get(at)? {
            b'"' => {
                at = end_of_string(bytes, at)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    #[test]
    fn members_come_as_they_stand() {
        let object =
            "{ \"a\" : [1,{\"b\":\"}\\\"\"}] ,\n\"\\u0063\":\"x\\\\\",\"d\":-1.5e3,\"e\":{}, \"f\":null}";
        let found: Vec<(&str, &str)> = members(object).map(|member| (member.key, member.value)).collect();
        let expected = [
            ("\"a\"", "[1,{\"b\":\"}\\\"\"}]"),
            ("\"\\u0063\"", "\"x\\\\\""),
            ("\"d\"", "-1.5e3"),
            ("\"e\"", "{}"),
            ("\"f\"", "null"),
        ];
        assert_eq!(found, expected);
        assert_eq!(members(object).next().map(|member| member.text), Some("\"a\" : [1,{\"b\":\"}\\\"\"}]"));
        assert_eq!(member(object, "c"), Some("\"x\\\\\""), "an escaped name is the same name");
        assert_eq!(member(r#"{"a":1,"a":2}"#, "a"), Some("2"));
        assert_eq!(items(" [1, [2], \"],\"]").collect::<Vec<_>>(), ["1", "[2]", "\"],\""]);
        for none in ["", "null", "[]", "{}", "\"{\"", "{", "{\"a"] {
            assert_eq!(members(none).count(), 0, "{none}");
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z\\\\\"{}\\[\\],: \n\u{e9}]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z\\\\\"{},:]{0,4}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_a_parser_finds(value in json(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.unwrap();
            let read = |raw: &str| serde_json::from_str::<Value>(raw).unwrap();
            if let Value::Object(object) = &value {
                let found: Map<String, Value> = members(&text)
                    .map(|member| (string(member.key).unwrap().into_owned(), read(member.value)))
                    .collect();
                prop_assert_eq!(&found, object);
            }
            if let Value::Array(array) = &value {
                prop_assert_eq!(&items(&text).map(read).collect::<Vec<_>>(), array);
            }
        }

        #[test]
        fn noise_makes_no_panic(text in "[{}\\[\\]\":,\\\\a1 \u{e9}]{0,40}") {
            let _ = members(&text).count() + items(&text).count();
        }
    }
}
