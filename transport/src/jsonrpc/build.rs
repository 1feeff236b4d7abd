//! Messages that we write ourselves.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Kind, Message, RequestId, RpcError, Span, code};

impl Message {
    /// A request.
    ///
    /// # Errors
    /// When `params` cannot be JSON (a map with keys that are no strings).
    pub fn request<P: Serialize + ?Sized>(
        id: RequestId,
        method: &str,
        params: Option<&P>,
    ) -> Result<Self, serde_json::Error> {
        let params = params.map(serde_json::to_string).transpose()?;
        let (raw, body) = Writer::new().id(&id).method(method).body("params", params.as_deref());
        Ok(Self { raw, kind: Kind::Request { id, method: method.into() }, body })
    }

    /// A notification.
    ///
    /// # Errors
    /// When `params` cannot be JSON (a map with keys that are no strings).
    pub fn notification<P: Serialize + ?Sized>(
        method: &str,
        params: Option<&P>,
    ) -> Result<Self, serde_json::Error> {
        let params = params.map(serde_json::to_string).transpose()?;
        let (raw, body) = Writer::new().method(method).body("params", params.as_deref());
        Ok(Self { raw, kind: Kind::Notification { method: method.into() }, body })
    }

    /// The answer to a request; `result` is JSON already.
    pub fn result_of(id: &RequestId, result: &RawValue) -> Self {
        let (raw, body) = Writer::new().id(id).body("result", Some(result.get()));
        Self { raw, kind: Kind::Response { id: Some(id.clone()), is_error: false }, body }
    }

    /// A request whose `params` stand in pieces, which must be JSON when joined: nothing is parsed or copied twice.
    pub fn request_of_parts(id: &RequestId, method: &str, params: &[&str]) -> Self {
        let (raw, body) = Writer::with_room(params).id(id).method(method).parts("params", params);
        Self { raw, kind: Kind::Request { id: id.clone(), method: method.into() }, body }
    }

    /// A notification in the same manner; without parts it has no `params`.
    pub fn notification_of_parts(method: &str, params: &[&str]) -> Self {
        let writer = Writer::with_room(params).method(method);
        let (raw, body) =
            if params.is_empty() { writer.body("params", None) } else { writer.parts("params", params) };
        Self { raw, kind: Kind::Notification { method: method.into() }, body }
    }

    /// The answer to a request in the same manner.
    pub fn result_of_parts(id: &RequestId, result: &[&str]) -> Self {
        let (raw, body) = Writer::with_room(result).id(id).parts("result", result);
        Self { raw, kind: Kind::Response { id: Some(id.clone()), is_error: false }, body }
    }

    /// An error of our own: `data.reason` is a stable word that programs can tell apart.
    pub fn error_response(id: &RequestId, code: i64, message: &str, reason: &str) -> Self {
        let data = serde_json::json!({ "reason": reason });
        Self::error_of(id, &RpcError { code, message: message.to_owned(), data: Some(data) })
    }

    /// [`error_response`](Self::error_response) with [`code::INTERNAL`], the gateway's own code.
    pub fn internal_error(id: &RequestId, message: &str, reason: &str) -> Self {
        Self::error_response(id, code::INTERNAL, message, reason)
    }

    /// The error that answers a request.
    pub fn error_of(id: &RequestId, error: &RpcError) -> Self {
        let error = serde_json::to_string(error).expect("strings and a value are JSON");
        let (raw, body) = Writer::new().id(id).body("error", Some(&error));
        Self { raw, kind: Kind::Response { id: Some(id.clone()), is_error: true }, body }
    }

    /// `notifications/cancelled` for the request of that id.
    pub fn cancelled(id: &RequestId, reason: &str) -> Self {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Params<'a> {
            request_id: &'a RequestId,
            reason: &'a str,
        }
        Self::notification("notifications/cancelled", Some(&Params { request_id: id, reason }))
            .expect("an id and a string are JSON")
    }

    /// `notifications/disconnected`: the sender ends the session.
    pub fn disconnected() -> Self {
        Self::notification::<()>("notifications/disconnected", None).expect("nothing is JSON")
    }
}

/// Writes one envelope, in the order that JSON-RPC's own examples have.
struct Writer(String);

impl Writer {
    fn new() -> Self {
        Self(r#"{"jsonrpc":"2.0""#.to_owned())
    }

    /// Room for these parts and an envelope of the usual length.
    fn with_room(parts: &[&str]) -> Self {
        let mut text = String::with_capacity(128 + parts.iter().map(|part| part.len()).sum::<usize>());
        text.push_str(r#"{"jsonrpc":"2.0""#);
        Self(text)
    }

    fn id(mut self, id: &RequestId) -> Self {
        self.0.push_str(r#","id":"#);
        self.0.push_str(id.as_json());
        self
    }

    fn method(mut self, method: &str) -> Self {
        self.0.push_str(r#","method":"#);
        self.0.push_str(&serde_json::to_string(method).expect("a string is JSON"));
        self
    }

    /// The last field, and where it stands.
    fn body(mut self, name: &str, json: Option<&str>) -> (bytes::Bytes, Option<Span>) {
        let Some(json) = json else {
            self.0.push('}');
            return (self.0.into(), None);
        };
        self.parts(name, &[json])
    }

    /// The same, of pieces.
    fn parts(mut self, name: &str, parts: &[&str]) -> (bytes::Bytes, Option<Span>) {
        self.0.push_str(",\"");
        self.0.push_str(name);
        self.0.push_str("\":");
        let start = self.0.len();
        for part in parts {
            self.0.push_str(part);
        }
        let body = Span::new(start, self.0.len());
        self.0.push('}');
        (self.0.into(), Some(body))
    }
}
