//! One MCP session with one server instance.

use std::{fmt::Debug, future::Future, pin::Pin, time::Duration};

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Instance, RequestError, SessionEnd};
use crate::jsonrpc::{InitializeResult, Message, Progress, RpcError, code};

/// A future that a handler returns.
pub type HandlerFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the client does with what the server asks and tells. Each call runs in a task of its own, so a slow one
/// stalls nobody.
pub trait SessionHandler: Send + Sync + Debug + 'static {
    /// A request of the server: `sampling/createMessage`, `elicitation/create`, `roots/list`.
    /// `ping` is answered without asking.
    fn request<'a>(&'a self, request: &'a Message) -> HandlerFuture<'a, Result<Box<RawValue>, RpcError>> {
        let method = request.method().unwrap_or_default().to_owned();
        Box::pin(async move {
            Err(RpcError {
                code: code::METHOD_NOT_FOUND,
                message: format!("this client does not handle {method}"),
                data: None,
            })
        })
    }

    /// A notification of the server: `*/list_changed`, `notifications/message`, … on either topic, in order of
    /// arrival. It must not block.
    fn notification(&self, notification: &Message) {
        let _ = notification;
    }
}

/// Answers no request and hears no notification.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unhandled;

impl SessionHandler for Unhandled {}

/// One MCP session. Dropping the last clone closes it.
#[derive(Debug, Clone)]
pub struct Session {}

impl Session {
    /// Whom it is with.
    pub fn instance(&self) -> &Instance {
        todo!()
    }

    /// What the server answered to `initialize`.
    pub fn server(&self) -> &InitializeResult {
        todo!()
    }

    /// Sends a request and waits for its result (raw JSON).
    ///
    /// # Errors
    /// [`RequestError`]. After `timeout`, or when this future is dropped, the request is cancelled at the server.
    pub async fn request<P: Serialize + ?Sized>(
        &self,
        method: &str,
        params: Option<&P>,
        timeout: Duration,
    ) -> Result<Box<RawValue>, RequestError> {
        let _ = (method, params, timeout);
        todo!()
    }

    /// As [`request`](Self::request), with a progress token; `on_progress` is called for each report, and each one
    /// starts the timeout anew.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn request_with_progress<P: Serialize + ?Sized>(
        &self,
        method: &str,
        params: Option<&P>,
        timeout: Duration,
        on_progress: impl FnMut(Progress) + Send,
    ) -> Result<Box<RawValue>, RequestError> {
        let _ = (method, params, timeout, on_progress);
        todo!()
    }

    /// Sends any message as it is on the RPC topic: for tests of what a server does with it.
    ///
    /// # Errors
    /// When it cannot be queued.
    pub fn send_raw(&self, message: bytes::Bytes) -> Result<(), RequestError> {
        let _ = message;
        todo!()
    }

    /// Sends a notification on the RPC topic; `notifications/roots/list_changed` goes to the capability topic.
    ///
    /// # Errors
    /// When it cannot be queued.
    pub fn notify<P: Serialize + ?Sized>(
        &self,
        method: &str,
        params: Option<&P>,
    ) -> Result<(), RequestError> {
        let _ = (method, params);
        todo!()
    }

    /// Ends the session: `notifications/disconnected` on RPC, then the subscriptions. Requests in flight end with
    /// [`SessionEnd::Closed`].
    pub fn close(&self) {
        todo!()
    }

    /// Why the session is over; none while it is open.
    pub fn ended(&self) -> Option<SessionEnd> {
        todo!()
    }

    /// Waits until the session is over.
    pub async fn wait_ended(&self) -> SessionEnd {
        todo!()
    }
}
