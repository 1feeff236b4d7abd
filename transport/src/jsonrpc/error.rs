//! Errors: of parsing a message, and the error object of JSON-RPC.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{IdError, Message, RequestId};

/// Error codes. The gateway's own errors are [`INTERNAL`](code::INTERNAL) with a stable word in `data.reason`: the
/// ranges -32000…-32019 and -32020…-32099 are reserved.
pub mod code {
    /// Not JSON.
    pub const PARSE: i64 = -32700;
    /// JSON, but no JSON-RPC message.
    pub const INVALID_REQUEST: i64 = -32600;
    /// The method does not exist.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// The parameters are wrong.
    pub const INVALID_PARAMS: i64 = -32602;
    /// Anything that went wrong on the way.
    pub const INTERNAL: i64 = -32603;
}

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct ParseError {
    /// What is wrong.
    pub kind: ParseErrorKind,
    /// The id of the request that it was meant to be; nothing when it has no usable one, or is no request.
    pub request_id: Option<RequestId>,
}

/// What is wrong with a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseErrorKind {
    /// Over the limit.
    #[error("the message has {size} bytes; the limit is {limit}")]
    TooLarge {
        /// Bytes of the message.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Not UTF-8.
    #[error("not UTF-8 (at byte {0})")]
    NotUtf8(usize),
    /// Nested deeper than [`MAX_DEPTH`](super::MAX_DEPTH).
    #[error("nested deeper than {} levels", super::MAX_DEPTH)]
    TooDeep,
    /// Not JSON.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// A JSON array: a batch, which MCP no longer has.
    #[error("a JSON array: batches are not supported")]
    Batch,
    /// JSON, but no object.
    #[error("not a JSON object")]
    NotAnObject,
    /// An envelope field stands there twice, so that two parsers could read two messages.
    #[error("the field \"{0}\" stands there twice")]
    DuplicateField(&'static str),
    /// `jsonrpc` is missing or not `"2.0"`.
    #[error("\"jsonrpc\" is not \"2.0\"")]
    Version,
    /// `method` is not a string.
    #[error("\"method\" is not a string")]
    Method,
    /// `id` is no id.
    #[error("\"id\" {0}")]
    Id(IdError),
    /// `params` is neither an object nor an array.
    #[error("\"params\" is neither an object nor an array")]
    Params,
    /// `error` is not an object.
    #[error("\"error\" is not an object")]
    Error,
    /// Fields of a request and of a response, or `result` and `error`, at once.
    #[error("\"{0}\" and \"{1}\" exclude each other")]
    Ambiguous(&'static str, &'static str),
    /// Neither `method` nor `result` nor `error`.
    #[error("none of \"method\", \"result\" and \"error\" is there")]
    NoKind,
    /// A result without an id.
    #[error("a result without an id")]
    ResultWithoutId,
}

impl ParseErrorKind {
    /// The JSON-RPC code to answer with.
    pub fn code(&self) -> i64 {
        match self {
            Self::NotUtf8(_) | Self::NotJson(_) => code::PARSE,
            _ => code::INVALID_REQUEST,
        }
    }

    /// A stable word: for `data.reason` and for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "message-too-large",
            Self::NotUtf8(_) => "not-utf8",
            Self::TooDeep => "nested-too-deep",
            Self::NotJson(_) => "not-json",
            Self::Batch => "batch",
            Self::NotAnObject => "not-an-object",
            Self::DuplicateField(_) => "duplicate-field",
            Self::Version => "wrong-version",
            Self::Method => "wrong-method",
            Self::Id(_) => "wrong-id",
            Self::Params => "wrong-params",
            Self::Error => "wrong-error",
            Self::Ambiguous(..) => "ambiguous",
            Self::NoKind => "no-kind",
            Self::ResultWithoutId => "result-without-id",
        }
    }
}

impl ParseError {
    /// The error to answer with, when there is an id to answer.
    pub fn answer(&self) -> Option<Message> {
        let id = self.request_id.as_ref()?;
        Some(Message::error_response(id, self.kind.code(), &self.kind.to_string(), self.kind.reason()))
    }
}

/// The error object of a response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RpcError {
    /// Code.
    #[serde(default)]
    pub code: i64,
    /// Message.
    #[serde(default)]
    pub message: String,
    /// Anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl RpcError {
    /// `data.reason`: the stable word of an error of the gateway itself.
    pub fn reason(&self) -> Option<&str> {
        self.data.as_ref()?.get("reason")?.as_str()
    }

    /// Reads an error object; one with wrong types is kept as its text, so that an error stays an error.
    pub(super) fn of_raw(raw: &str) -> Self {
        serde_json::from_str(raw).unwrap_or_else(|_| Self { code: 0, message: raw.to_owned(), data: None })
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)?;
        if let Some(reason) = self.reason() {
            write!(f, " [{reason}]")?;
        }
        Ok(())
    }
}

impl std::error::Error for RpcError {}
