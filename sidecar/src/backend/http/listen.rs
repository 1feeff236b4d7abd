//! The stream that a server opens towards its client: requests and notifications that belong to no request.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    exchange::{Shared, pause},
    sse_parser::SseParser,
    wire::{Failure, Reply},
};
use crate::backend::BackendEnd;

/// A stream that stood at least this long was no failure.
const STOOD: Duration = Duration::from_secs(5);

impl Shared {
    /// Keeps the stream open for as long as the server offers one. `Err`: the session is over.
    pub(super) async fn hear(&self) -> Result<(), BackendEnd> {
        let mut parser = SseParser::new(self.max);
        let mut failures = 0;
        let mut has_stood = false;
        loop {
            let opened = Instant::now();
            match self.wire.get(parser.last_event_id()).await {
                Ok(Reply::Stream(body)) => {
                    has_stood = true;
                    parser.restart();
                    let end = self.read_stream(body, &mut parser, None, false).await;
                    tracing::debug!(session = self.id.0, ?end, "the server's stream ended");
                    failures = if opened.elapsed() >= STOOD { 0 } else { failures + 1 };
                }
                Ok(Reply::Json(_) | Reply::Accepted) => return Ok(()), // it has none
                // Before a stream was ever there, 404 can mean that there is no such route.
                Err(Failure::SessionLost(why)) if !has_stood => {
                    tracing::debug!(session = self.id.0, "the server offers no stream: {why}");
                    return Ok(());
                }
                Err(Failure::SessionLost(why)) => return Err(BackendEnd::SessionLost(why)),
                Err(Failure::Refused(why)) => return Err(BackendEnd::BackendLost(why)),
                Err(failed) if failed.may_pass() => {
                    tracing::debug!(session = self.id.0, ?failed, "the server's stream has to wait");
                    failures += 1;
                }
                Err(Failure::Rejected { told, .. }) if parser.last_event_id().is_some() => {
                    tracing::debug!(session = self.id.0, "the server's stream begins anew: {told}");
                    parser.forget();
                    failures += 1;
                }
                Err(Failure::Rejected { told, .. } | Failure::Broken(told)) => {
                    tracing::debug!(session = self.id.0, "the server offers no stream: {told}");
                    return Ok(()); // 405, as a rule
                }
            }
            sleep(pause(parser.retry(), failures)).await;
        }
    }
}
