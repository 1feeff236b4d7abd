//! `params._meta` of a request: single texts in it, read, and written without touching anything else.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Message, Span};

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow, rename = "_meta")]
    meta: Option<&'a RawValue>,
}

impl Message {
    /// A text of `params._meta`.
    pub fn meta_text(&self, name: &str) -> Option<String> {
        let params = self.params()?;
        let meta = serde_json::from_str::<Params<'_>>(params).ok()?.meta?;
        let fields: Fields<'_> = serde_json::from_str(meta.get()).ok()?;
        let (_, value) = fields.0.into_iter().find(|(field, _)| field == name)?;
        serde_json::from_str(value.get()).ok()
    }

    /// The same message with these texts in `params._meta`, in place of what had their names; all else stays as it
    /// stands, byte for byte. Params that are a list, or a `_meta` that is no object, are left alone.
    #[must_use]
    pub fn with_meta_texts(&self, texts: &[(&str, &str)]) -> Self {
        self.spliced(texts).unwrap_or_else(|| self.clone())
    }

    fn spliced(&self, texts: &[(&str, &str)]) -> Option<Self> {
        let whole = std::str::from_utf8(&self.raw).ok()?;
        let written = texts.iter().map(|(name, text)| Some(format!("{}:{}", json(name)?, json(text)?)));
        let written = written.collect::<Option<Vec<_>>>()?.join(",");
        let (at, until, insert) = match self.params() {
            None => {
                let at = whole.find('{')? + 1; // a request has fields: a comma follows
                (at, at, format!("\"params\":{{\"_meta\":{{{written}}}}},"))
            }
            Some(params) if params.starts_with('{') => {
                let begin = Span::of(params, whole).start as usize;
                match serde_json::from_str::<Params<'_>>(params).ok()?.meta {
                    None => {
                        let at = begin + 1;
                        let comma = if params[1..].trim_ascii_start().starts_with('}') { "" } else { "," };
                        (at, at, format!("\"_meta\":{{{written}}}{comma}"))
                    }
                    Some(meta) => {
                        let span = Span::of(meta.get(), whole);
                        let fields: Fields<'_> = serde_json::from_str(meta.get()).ok()?;
                        let kept =
                            fields.0.iter().filter(|(name, _)| texts.iter().all(|(text, _)| text != name));
                        let kept =
                            kept.map(|(name, value)| Some(format!(",{}:{}", json(name)?, value.get())));
                        let kept = kept.collect::<Option<String>>()?;
                        (span.start as usize, span.end as usize, format!("{{{written}{kept}}}"))
                    }
                }
            }
            Some(_) => return None,
        };
        let raw = [&whole[..at], &insert, &whole[until..]].concat();
        Self::parse(Bytes::from(raw), usize::MAX).ok()
    }
}

fn json(text: &str) -> Option<String> {
    serde_json::to_string(text).ok()
}

/// The fields of an object in their order, each value as it stands.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    fields.push((Cow::Owned(name), value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parsed(raw: &str) -> Message {
        Message::parse(Bytes::copy_from_slice(raw.as_bytes()), usize::MAX).unwrap()
    }

    fn text(message: &Message) -> &str {
        std::str::from_utf8(message.raw()).unwrap()
    }

    #[test]
    fn a_text_is_read_from_meta_and_from_nowhere_else() {
        let told = |params: &str| {
            parsed(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"a","params":{params}}}"#))
                .meta_text("traceparent")
        };
        assert_eq!(told(&format!(r#"{{"_meta":{{"traceparent":"{TRACE}"}}}}"#)).as_deref(), Some(TRACE));
        assert_eq!(told(r#"{"_meta":{"trace\u0070arent":"x","traceparent ":1}}"#).as_deref(), Some("x"));
        for none in [
            "{}",
            "[]",
            r#"{"traceparent":"x"}"#,
            r#"{"_meta":{"traceparent":7}}"#,
            r#"{"_meta":["traceparent"]}"#,
        ] {
            assert_eq!(told(none), None, "{none}");
        }
        assert_eq!(parsed(r#"{"jsonrpc":"2.0","id":1,"method":"a"}"#).meta_text("traceparent"), None);
    }

    #[test]
    fn a_text_is_written_and_the_rest_stays_as_it_stands() {
        let table = [
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"a"}"#,
                r#"{"params":{"_meta":{"t":"x"}},"jsonrpc":"2.0","id":1,"method":"a"}"#,
            ),
            (
                r#"{"id":1,"params":{ },"method":"a","jsonrpc":"2.0"}"#,
                r#"{"id":1,"params":{"_meta":{"t":"x"} },"method":"a","jsonrpc":"2.0"}"#,
            ),
            (
                r#"{"id":1,"params":{"n":1.00, "_metal":{}},"method":"a","jsonrpc":"2.0"}"#,
                r#"{"id":1,"params":{"_meta":{"t":"x"},"n":1.00, "_metal":{}},"method":"a","jsonrpc":"2.0"}"#,
            ),
            (
                r#"{"id":1,"params":{"n":{"_meta":{}},"_meta":{"t":"old","progressToken":12345678901234567890123 } },"method":"a","jsonrpc":"2.0"}"#,
                r#"{"id":1,"params":{"n":{"_meta":{}},"_meta":{"t":"x","progressToken":12345678901234567890123} },"method":"a","jsonrpc":"2.0"}"#,
            ),
        ];
        for (before, after) in table {
            assert_eq!(text(&parsed(before).with_meta_texts(&[("t", "x")])), after);
        }
        for alone in [
            r#"{"jsonrpc":"2.0","id":1,"method":"a","params":[1]}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","params":{"_meta":7}}"#,
        ] {
            assert_eq!(text(&parsed(alone).with_meta_texts(&[("t", "x")])), alone);
        }
    }

    proptest! {
        #[test]
        fn whatever_the_params_are_only_the_texts_change(
            fields in proptest::collection::btree_map("[a-z_\"\\\\]{1,6}", "[ -~]{0,8}", 0..4),
            meta in proptest::option::of(proptest::collection::btree_map("[a-zé\"]{1,4}", "[ -~]{0,8}", 0..4)),
            name in "[a-zé\"]{1,4}",
            value in "[ -~é]{0,8}",
        ) {
            let mut params = json!(fields);
            params.as_object_mut().unwrap().remove("_meta");
            if let Some(meta) = meta {
                params["_meta"] = json!(meta);
            }
            let before = json!({"jsonrpc": "2.0", "id": 1, "method": "m", "params": params});
            let message = parsed(&before.to_string()).with_meta_texts(&[(&name, &value)]);
            prop_assert_eq!(message.meta_text(&name), Some(value.clone()));
            let mut expected = before;
            expected["params"]["_meta"][&name] = json!(value);
            prop_assert_eq!(serde_json::from_slice::<Value>(message.raw()).unwrap(), expected);
        }
    }
}
