//! JSON-RPC 2.0 messages as the gateway sees them: the raw bytes are kept, only the envelope is parsed.

use bytes::Bytes;

/// A request id exactly as it stood on the wire (`1`, `"a"`), so that it goes back unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(Box<str>);

/// One parsed message; cloning is cheap (the payload is shared).
#[derive(Debug, Clone)]
pub struct Message {
    raw: Bytes,
    kind: Kind,
}

/// What a message is, by the fields of its envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `id` and `method`: wants an answer.
    Request { id: RequestId, method: Box<str> },
    /// `method` without `id`.
    Notification { method: Box<str> },
    /// `id` with `result` or `error`. An error may carry a null id.
    Response { id: Option<RequestId>, is_error: bool },
}
