//! One backend session and what it reported: what the tests of all backends begin with.

use std::time::Duration;

use bytes::Bytes;
use mcp_mqtt_sidecar::backend::{
    Backend, BackendEnd, BackendEvents, BackendSession, FromBackend, Report, SendQuota, SessionId,
};
use mcp_mqtt_transport::jsonrpc::Message;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// One session and what it reported.
pub(crate) struct Client {
    pub(crate) session: BackendSession,
    pub(crate) events: mpsc::Receiver<Report>,
}

impl Client {
    pub(crate) fn open(backend: &Backend) -> Self {
        let (events, receiver) = BackendEvents::channel(64, 1 << 20);
        Self {
            session: backend.open(SessionId(1), &SendQuota::for_messages_of(1 << 20), events),
            events: receiver,
        }
    }

    pub(crate) async fn send(&self, raw: &str) {
        let said = async {
            while self.session.say(message(raw)).is_err() {
                sleep(Duration::from_millis(1)).await; // until there is room
            }
        };
        timeout(PATIENCE, said).await.expect("room");
    }

    pub(crate) async fn event(&mut self) -> FromBackend {
        let Report { session, event, .. } =
            timeout(PATIENCE, self.events.recv()).await.expect("an event").expect("not closed");
        assert_eq!(session, SessionId(1));
        event
    }

    /// The text of the next message.
    pub(crate) async fn raw(&mut self) -> String {
        match self.event().await {
            FromBackend::Message(message) => String::from_utf8(message.into_raw().to_vec()).unwrap(),
            other => panic!("not a message: {other:?}"),
        }
    }

    /// The next event has to be the last.
    pub(crate) async fn end(&mut self) -> BackendEnd {
        match self.event().await {
            FromBackend::Ended(end) => {
                assert!(
                    timeout(PATIENCE, self.events.recv()).await.unwrap().is_none(),
                    "an event after the end"
                );
                end
            }
            other => panic!("not the end: {other:?}"),
        }
    }

    /// Drops the session and waits until it says that it is closed.
    pub(crate) async fn close(self) {
        let Self { session, mut events } = self;
        drop(session);
        while let Some(report) = timeout(PATIENCE, events.recv()).await.unwrap() {
            if let FromBackend::Ended(end) = report.event {
                assert_eq!(end, BackendEnd::Closed);
                return;
            }
        }
        panic!("no end");
    }
}

pub(crate) fn message(raw: &str) -> Message {
    Message::parse(Bytes::copy_from_slice(raw.as_bytes()), usize::MAX).unwrap()
}
