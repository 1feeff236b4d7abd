//! W3C trace contexts, the spans of requests, and which of them are sampled. Without IO.

use std::{sync::Arc, time::Duration};

use mcp_mqtt_transport::{
    jsonrpc::{Message, RequestId},
    topic::ClientId,
};
use serde::Deserialize;

use crate::{
    backend::SessionId,
    bridge::request::{Method, Outcome},
};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// Longest tracestate that is recorded and passed on, in bytes (W3C: at least 512 have to be).
const MAX_STATE: usize = 8192;
/// Longest name of a tool, prompt or resource that is recorded, in bytes: a client may say anything.
const MAX_TARGET: usize = 256;

/// A place in a trace, as `traceparent` writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Not 0.
    pub trace_id: u128,
    /// Not 0.
    pub span_id: u64,
    /// Whether whoever began the trace wants it recorded.
    pub sampled: bool,
}

/// Which requests get a span.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Of those without a parent that decides: 0 to 1.
    pub ratio: f64,
    /// Whether a parent decides.
    pub follows_parent: bool,
}

/// The span of a request that is in flight.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Ours.
    pub context: Context,
    /// The one that we found in the request.
    pub parent: Option<u64>,
    /// `tracestate`, as we found it.
    pub state: Option<String>,
    /// The tool or prompt that is asked for, or the resource's URI.
    pub target: Option<String>,
    /// The request.
    pub request: RequestId,
    /// Whose request.
    pub client: ClientId,
    /// In which session.
    pub session: SessionId,
}

/// A span that is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// What it was.
    pub span: Arc<Span>,
    /// What was asked.
    pub method: Method,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub elapsed: Duration,
    /// When it ended, after 1970.
    pub ended: Duration,
}

impl Context {
    /// Reads a `traceparent`: `00-{trace id}-{span id}-{flags}`, later versions with more behind it.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |part: &str, length: usize| {
            let lower = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if part.len() == length && lower { u128::from_str_radix(part, 16).ok() } else { None }
        };
        let mut parts = text.split('-');
        let version = hex(parts.next()?, 2)?;
        let (trace_id, span_id) = (hex(parts.next()?, 32)?, hex(parts.next()?, 16)?);
        let flags = hex(parts.next()?, 2)?;
        let more = parts.next().is_some();
        if version == 0xff || (version == 0 && more) || trace_id == 0 || span_id == 0 {
            return None;
        }
        Some(Self { trace_id, span_id: u64::try_from(span_id).ok()?, sampled: flags & 1 == 1 })
    }

    /// Writes a `traceparent`.
    pub fn to_traceparent(self) -> String {
        let Self { trace_id, span_id, sampled } = self;
        format!("00-{trace_id:032x}-{span_id:016x}-{:02x}", u8::from(sampled))
    }
}

impl Sampler {
    /// Whether a request is to have a span.
    fn takes(&self, parent: Option<Context>, trace_id: u128) -> bool {
        match parent {
            Some(parent) if self.follows_parent => parent.sampled,
            // By the trace's id, so that everybody with this ratio decides alike.
            _ => self.ratio >= 1.0 || low_bits_as_fraction(trace_id) < self.ratio,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "53 bits are kept, which are what a double holds")]
fn low_bits_as_fraction(trace_id: u128) -> f64 {
    const BITS: u32 = 53;
    let low = u64::try_from(trace_id & ((1 << BITS) - 1)).unwrap_or_default();
    low as f64 / (1_u64 << BITS) as f64
}

impl Span {
    /// Begins the span of a request, if it is sampled: the span, and the request as the server is to get it.
    pub fn begin(
        sampler: Sampler,
        request: &Message,
        client: &ClientId,
        session: SessionId,
    ) -> Option<(Arc<Self>, Message)> {
        let parent = request.meta_text(TRACEPARENT).and_then(|text| Context::parse(&text));
        let trace_id = parent.map_or_else(|| fastrand::u128(1..), |parent| parent.trace_id);
        if !sampler.takes(parent, trace_id) {
            return None;
        }
        let context = Context { trace_id, span_id: fastrand::u64(1..), sampled: true };
        let state =
            parent.and_then(|_| request.meta_text(TRACESTATE)).filter(|state| state.len() <= MAX_STATE);
        let traceparent = context.to_traceparent();
        let mut texts = vec![(TRACEPARENT, traceparent.as_str())];
        texts.extend(state.as_deref().map(|state| (TRACESTATE, state)));
        let message = request.with_meta_texts(&texts);
        let span = Self {
            context,
            parent: parent.map(|parent| parent.span_id),
            state,
            target: target(request),
            request: request.id()?.clone(),
            client: client.clone(),
            session,
        };
        Some((Arc::new(span), message))
    }
}

/// What the request is about.
fn target(request: &Message) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(alias = "uri")]
        name: String,
    }
    if !matches!(request.method()?, "tools/call" | "prompts/get" | "resources/read") {
        return None;
    }
    let Named { mut name } = request.params_as().ok()??;
    if name.len() > MAX_TARGET {
        name.truncate((0..=MAX_TARGET).rev().find(|at| name.is_char_boundary(*at)).unwrap_or_default());
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(id: &str) -> ClientId {
        ClientId::new(id).unwrap()
    }

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const ALL: Sampler = Sampler { ratio: 1.0, follows_parent: true };

    fn request(meta: &str) -> Message {
        let raw = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"echo","_meta":{meta}}}}}"#
        );
        Message::parse(raw.into(), usize::MAX).unwrap()
    }

    fn begin(sampler: Sampler, meta: &str) -> Option<(Arc<Span>, Message)> {
        Span::begin(sampler, &request(meta), &client("c"), SessionId(1))
    }

    #[test]
    fn a_traceparent_is_read_and_written_as_w3c_has_it() {
        let context = Context::parse(PARENT).unwrap();
        assert_eq!(context.to_traceparent(), PARENT);
        assert!(context.sampled && !Context::parse(&PARENT.replace("-01", "-00")).unwrap().sampled);
        assert_eq!(Context::parse(&format!("cc{}-more", &PARENT[2..])), Some(context), "a later version");
        for bad in [
            "",
            "00",
            &PARENT[..54],
            &PARENT.to_uppercase(),
            &format!("ff{}", &PARENT[2..]),
            &format!("{PARENT}-more"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(Context::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_server_finds_our_span_where_the_clients_was() {
        let (span, message) =
            begin(ALL, &format!(r#"{{"traceparent":"{PARENT}","tracestate":"a=1","baggage":"b=2"}}"#))
                .unwrap();
        let parent = Context::parse(PARENT).unwrap();
        assert_eq!((span.context.trace_id, span.parent), (parent.trace_id, Some(parent.span_id)));
        assert_eq!(message.meta_text("traceparent"), Some(span.context.to_traceparent()));
        assert_ne!(span.context.span_id, parent.span_id);
        assert_eq!(message.meta_text("tracestate").as_deref(), Some("a=1"));
        assert_eq!(message.meta_text("baggage").as_deref(), Some("b=2"));
        assert_eq!(span.target.as_deref(), Some("echo"));
    }

    #[test]
    fn without_a_usable_parent_a_trace_begins_here() {
        for meta in ["{}", r#"{"traceparent":"nonsense","tracestate":"a=1"}"#] {
            let (span, message) = begin(ALL, meta).unwrap();
            assert_eq!((span.parent, span.state.as_deref()), (None, None));
            assert_eq!(message.meta_text("traceparent"), Some(span.context.to_traceparent()));
        }
    }

    #[test]
    fn a_parent_that_is_not_sampled_is_left_alone_and_a_ratio_is_kept() {
        let unsampled = format!(r#"{{"traceparent":"{}"}}"#, PARENT.replace("-01", "-00"));
        assert!(begin(ALL, &unsampled).is_none());
        assert!(begin(Sampler { follows_parent: false, ..ALL }, &unsampled).is_some());
        let half = Sampler { ratio: 0.5, ..ALL };
        let taken = (0..2000).filter(|_| begin(half, "{}").is_some()).count();
        assert!((800..1200).contains(&taken), "{taken} of 2000");
        assert!((0..200).all(|_| begin(Sampler { ratio: 0.0, ..ALL }, "{}").is_none()));
    }

    #[test]
    fn what_a_client_invents_is_cut() {
        let raw = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{{"uri":"{}"}}}}"#,
            "é".repeat(1000)
        );
        let message = Message::parse(raw.into(), usize::MAX).unwrap();
        let (span, _) = Span::begin(ALL, &message, &client("c"), SessionId(1)).unwrap();
        assert!(span.target.as_ref().is_some_and(|target| target.len() <= MAX_TARGET && target.len() > 200));
    }
}
