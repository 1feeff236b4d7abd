//! JSON-RPC 2.0 messages as the gateway sees them: the raw bytes are kept, only the envelope is parsed.

mod batch;
mod build;
mod error;
mod id;
mod lazy;
mod meta;
mod parse;
#[cfg(test)]
mod tests;
pub mod text;

use bytes::Bytes;
use serde::Deserialize;

pub use self::{
    batch::Batch,
    error::{ParseError, ParseErrorKind, RpcError, code},
    id::{IdError, MAX_ID_BYTES, ProgressToken, RequestId},
    lazy::{InitializeResult, Progress, ServerInfo},
    parse::MAX_DEPTH,
};

/// One parsed message; cloning is cheap (the payload is shared).
#[derive(Debug, Clone)]
pub struct Message {
    raw: Bytes,
    kind: Kind,
    /// Where `params`, `result` or `error` (by kind) stands in `raw`.
    body: Option<Span>,
}

/// A part of a message's raw bytes. Messages are at most 256 MiB (an MQTT packet), so 32 bits do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
}

/// What a message is, by the fields of its envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `id` and `method`: wants an answer.
    Request {
        /// To answer with.
        id: RequestId,
        /// What is asked.
        method: Box<str>,
    },
    /// `method` without `id`.
    Notification {
        /// What is told.
        method: Box<str>,
    },
    /// `id` with `result` or `error`. An error may carry a null id.
    Response {
        /// The request's; none: null.
        id: Option<RequestId>,
        /// Whether it is an error.
        is_error: bool,
    },
}

impl Message {
    /// Parses the envelope of a message of at most `limit` bytes.
    ///
    /// # Errors
    /// [`ParseError`]: what is wrong, and the id to answer it with when there is one.
    pub fn parse(raw: Bytes, limit: usize) -> Result<Self, ParseError> {
        parse::parse(raw, limit)
    }

    /// The message as it came.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The message as it came, without a copy.
    pub fn into_raw(self) -> Bytes {
        self.raw
    }

    /// What it is.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Its method; a response has none.
    pub fn method(&self) -> Option<&str> {
        match &self.kind {
            Kind::Request { method, .. } | Kind::Notification { method } => Some(method),
            Kind::Response { .. } => None,
        }
    }

    /// Its id; a notification has none, and an error may have none.
    pub fn id(&self) -> Option<&RequestId> {
        match &self.kind {
            Kind::Request { id, .. } => Some(id),
            Kind::Notification { .. } => None,
            Kind::Response { id, .. } => id.as_ref(),
        }
    }

    /// Raw JSON of `params`, of a request or notification that has some.
    pub fn params(&self) -> Option<&str> {
        match &self.kind {
            Kind::Response { .. } => None,
            _ => self.body(),
        }
    }

    /// `params`, deserialised; nothing when there are none.
    ///
    /// # Errors
    /// When they do not fit `T`.
    pub fn params_as<'a, T: Deserialize<'a>>(&'a self) -> Result<Option<T>, serde_json::Error> {
        self.params().map(serde_json::from_str).transpose()
    }

    /// Raw JSON of `result`, of a response that has one.
    pub fn result(&self) -> Option<&str> {
        match &self.kind {
            Kind::Response { is_error: false, .. } => self.body(),
            _ => None,
        }
    }

    /// `error`, of a response that has one.
    pub fn error(&self) -> Option<RpcError> {
        match &self.kind {
            Kind::Response { is_error: true, .. } => Some(RpcError::of_raw(self.body()?)),
            _ => None,
        }
    }

    /// The message as one line for a newline-delimited stream, without the newline at its end.
    /// Inside JSON strings a raw line break cannot stand, so each one is whitespace and becomes a space.
    /// Copies only when there is one.
    pub fn to_line(&self) -> Bytes {
        if memchr::memchr2(b'\n', b'\r', &self.raw).is_none() {
            return self.raw.clone();
        }
        let mut line = self.raw.to_vec();
        for byte in &mut line {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        line.into()
    }

    fn body(&self) -> Option<&str> {
        let span = self.body?;
        std::str::from_utf8(self.raw.get(span.start as usize..span.end as usize)?).ok()
    }
}
