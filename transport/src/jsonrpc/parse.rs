//! The envelope parser.

use std::fmt;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    Kind, Message, ParseError, ParseErrorKind, RequestId, Span,
    text::{end_of_string, string},
};

/// Deepest nesting of arrays and objects that passes: what `serde_json` itself takes. Servers that parse recursively
/// would break on more.
pub const MAX_DEPTH: usize = 127;

/// The fields of an envelope, each as it stands in the message.
#[derive(Default)]
struct Envelope<'a> {
    version: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    method: Option<&'a RawValue>,
    params: Option<&'a RawValue>,
    result: Option<&'a RawValue>,
    error: Option<&'a RawValue>,
    duplicate: Option<&'static str>,
}

pub(super) fn parse(raw: Bytes, limit: usize) -> Result<Message, ParseError> {
    let (kind, body) = read(&raw, limit)?;
    Ok(Message { raw, kind, body })
}

fn read(raw: &[u8], limit: usize) -> Result<(Kind, Option<Span>), ParseError> {
    let refuse = |kind| Err(ParseError { kind, request_id: None });
    if raw.len() > limit {
        return refuse(ParseErrorKind::TooLarge { size: raw.len(), limit });
    }
    let text = match std::str::from_utf8(raw) {
        Ok(text) => text,
        Err(error) => {
            let kind = ParseErrorKind::NotUtf8(error.valid_up_to());
            let request_id = id_of_unreadable(&String::from_utf8_lossy(raw));
            return Err(ParseError { kind, request_id });
        }
    };
    match text.trim_ascii_start().as_bytes().first() {
        Some(b'{') => {}
        Some(b'[') => return refuse(ParseErrorKind::Batch),
        Some(b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => return refuse(ParseErrorKind::NotAnObject),
        _ => return refuse(ParseErrorKind::NotJson("it does not begin with '{'".to_owned())),
    }
    if too_deep(raw) {
        return Err(ParseError { kind: ParseErrorKind::TooDeep, request_id: id_of_unreadable(text) });
    }
    let envelope: Envelope<'_> = match serde_json::from_str(text) {
        Ok(envelope) => envelope,
        Err(error) => return refuse(ParseErrorKind::NotJson(error.to_string())),
    };
    envelope.judge(text).map_err(|kind| ParseError { kind, request_id: envelope.request_id() })
}

impl Envelope<'_> {
    fn judge(&self, text: &str) -> Result<(Kind, Option<Span>), ParseErrorKind> {
        if let Some(field) = self.duplicate {
            return Err(ParseErrorKind::DuplicateField(field));
        }
        if self.version.is_none_or(|version| string(version.get()).as_deref() != Some("2.0")) {
            return Err(ParseErrorKind::Version);
        }
        let of = |part: Option<&RawValue>| part.map(|part| Span::of(part.get(), text));
        if let Some(method) = self.method {
            if self.result.is_some() {
                return Err(ParseErrorKind::Ambiguous("method", "result"));
            }
            if self.error.is_some() {
                return Err(ParseErrorKind::Ambiguous("method", "error"));
            }
            let method: Box<str> = string(method.get()).ok_or(ParseErrorKind::Method)?.into();
            let params = self.params.filter(|params| params.get() != "null");
            if params.is_some_and(|params| !params.get().starts_with(['{', '['])) {
                return Err(ParseErrorKind::Params);
            }
            let kind = match self.id {
                Some(id) => {
                    let id = RequestId::from_json(id.get()).map_err(ParseErrorKind::Id)?;
                    Kind::Request { id, method }
                }
                None => Kind::Notification { method },
            };
            return Ok((kind, of(params)));
        }
        let (body, is_error) = match (self.result, self.error) {
            (Some(_), Some(_)) => return Err(ParseErrorKind::Ambiguous("result", "error")),
            (Some(result), None) => (result, false),
            (None, Some(error)) if error.get().starts_with('{') => (error, true),
            (None, Some(_)) => return Err(ParseErrorKind::Error),
            (None, None) => return Err(ParseErrorKind::NoKind),
        };
        let id = match self.id.map(RawValue::get) {
            None | Some("null") if is_error => None,
            None => return Err(ParseErrorKind::ResultWithoutId),
            Some(id) => Some(RequestId::from_json(id).map_err(ParseErrorKind::Id)?),
        };
        Ok((Kind::Response { id, is_error }, of(Some(body))))
    }

    /// The id to answer an error with: a response is never answered, however wrong it is.
    fn request_id(&self) -> Option<RequestId> {
        let response = self.method.is_none() && (self.result.is_some() || self.error.is_some());
        if response || self.duplicate == Some("id") {
            return None;
        }
        RequestId::from_json(self.id?.get()).ok()
    }
}

/// The id to answer with an error when the message itself cannot pass. Depth does no harm here: raw values are passed
/// over without recursion.
fn id_of_unreadable(text: &str) -> Option<RequestId> {
    let envelope: Envelope<'_> = serde_json::from_str(text).ok()?;
    if envelope.id?.get().contains(char::REPLACEMENT_CHARACTER) {
        return None; // not what its sender would know
    }
    envelope.request_id()
}

impl Span {
    pub(super) fn new(start: usize, end: usize) -> Self {
        let narrow = |n| u32::try_from(n).unwrap_or(u32::MAX);
        Self { start: narrow(start), end: narrow(end) }
    }

    /// Where `part`, a slice of `whole`, stands in it.
    pub(super) fn of(part: &str, whole: &str) -> Self {
        let start = part.as_ptr().addr() - whole.as_ptr().addr();
        Self::new(start, start + part.len())
    }
}

/// Whether arrays and objects are nested deeper than [`MAX_DEPTH`]. Right for any JSON; what is no JSON is for the
/// parser to refuse.
fn too_deep(raw: &[u8]) -> bool {
    // Each level takes two bytes: most messages are too short to be too deep.
    if raw.len() <= 2 * MAX_DEPTH {
        return false;
    }
    let mut depth = 0_usize;
    let mut bytes = raw;
    while let Some((&byte, mut rest)) = bytes.split_first() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => rest = end_of_string(bytes, 0).map(|end| &bytes[end..]).unwrap_or_default(),
            _ => {}
        }
        bytes = rest;
    }
    false
}

impl<'de> Deserialize<'de> for Envelope<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EnvelopeVisitor)
    }
}

struct EnvelopeVisitor;

impl<'de> Visitor<'de> for EnvelopeVisitor {
    type Value = Envelope<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON-RPC message")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut envelope = Envelope::default();
        while let Some(field) = map.next_key::<Field>()? {
            // A raw value, so that what we ignore is checked to be JSON as well.
            let value: &'de RawValue = map.next_value()?;
            let (slot, name) = match field {
                Field::Version => (&mut envelope.version, "jsonrpc"),
                Field::Id => (&mut envelope.id, "id"),
                Field::Method => (&mut envelope.method, "method"),
                Field::Params => (&mut envelope.params, "params"),
                Field::Result => (&mut envelope.result, "result"),
                Field::Error => (&mut envelope.error, "error"),
                Field::Other => continue,
            };
            if slot.replace(value).is_some() {
                envelope.duplicate.get_or_insert(name);
            }
        }
        Ok(envelope)
    }
}

/// The names of an envelope's fields; serde resolves escapes in them (`"\u0069d"` is `id`).
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    #[serde(rename = "jsonrpc")]
    Version,
    Id,
    Method,
    Params,
    Result,
    Error,
    #[serde(other)]
    Other,
}
