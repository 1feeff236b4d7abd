//! Strings as they stand in JSON text that nobody parses as a whole.

use std::borrow::Cow;

/// The text of a JSON string, escapes resolved; nothing of what is no string.
pub fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        return serde_json::from_str(raw).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inner))
}

/// Behind the closing quote of the string that begins here; nothing where it has no end.
pub fn end_of_string(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at + 1);
        }
        at += 2; // a backslash and what it escapes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_its_text_and_ends_behind_its_quote() {
        assert_eq!(string(r#""plain""#).as_deref(), Some("plain"));
        assert_eq!(string(r#""a\u0062\"c""#).as_deref(), Some("ab\"c"));
        for none in ["plain", "1", "", "\"", r#""\x""#] {
            assert_eq!(string(none), None, "{none}");
        }
        for (text, start, end) in [
            (r#""a""#, 0, Some(3)),
            (r#"["a\"b",1]"#, 1, Some(7)),
            (r#""\\""#, 0, Some(4)),
            (r#""a"#, 0, None),
            (r#""\"#, 0, None),
            ("", 0, None),
        ] {
            assert_eq!(end_of_string(text.as_bytes(), start), end, "{text}");
        }
    }
}
