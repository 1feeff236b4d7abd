//! Requests in flight of one session, in both directions.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use super::SessionEnd;
use crate::jsonrpc::{Message, Progress, RequestId};

/// Progress reports that may wait for a caller; more are passed over, the next one tells as much.
const PROGRESS: usize = 64;

/// Requests of the server that may be in work at once; one more is refused.
pub(super) const FROM_SERVER: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Requests(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    last_id: u64,
    ours: HashMap<u64, Waiting>,
    theirs: HashMap<RequestId, AbortHandle>,
    ended: Option<SessionEnd>,
}

#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Message>,
    progress: Option<mpsc::Sender<Progress>>,
}

/// A request of ours that waits for its answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: u64,
    pub(super) answer: oneshot::Receiver<Message>,
    pub(super) progress: Option<mpsc::Receiver<Progress>>,
}

impl Requests {
    /// Nothing that is done under this lock can fail half-way.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new request of ours.
    pub(super) fn ask(&self, with_progress: bool) -> Result<Asked, SessionEnd> {
        let mut table = self.table();
        if let Some(end) = &table.ended {
            return Err(end.clone());
        }
        table.last_id += 1;
        let id = table.last_id;
        let (sender, answer) = oneshot::channel();
        let (reporter, progress) = if with_progress {
            let (reporter, progress) = mpsc::channel(PROGRESS);
            (Some(reporter), Some(progress))
        } else {
            (None, None)
        };
        table.ours.insert(id, Waiting { answer: sender, progress: reporter });
        Ok(Asked { id, answer, progress })
    }

    /// Nobody waits for it any more. False when it was answered.
    pub(super) fn give_up(&self, id: u64) -> bool {
        self.table().ours.remove(&id).is_some()
    }

    /// An answer of the server. False when nobody waits for it.
    pub(super) fn answered(&self, response: Message) -> bool {
        let Some(id) = response.id().and_then(RequestId::as_u64) else { return false };
        let Some(waiting) = self.table().ours.remove(&id) else { return false };
        waiting.answer.send(response).is_ok()
    }

    /// A progress report of the server.
    pub(super) fn reported(&self, notification: &Message) {
        let Some(id) = notification.progress_token().and_then(|token| token.as_u64()) else { return };
        let reporter = self.table().ours.get(&id).and_then(|waiting| waiting.progress.clone());
        if let (Some(reporter), Some(progress)) = (reporter, notification.progress()) {
            // Full or gone: see PROGRESS.
            let _ = reporter.try_send(progress);
        }
    }

    /// Starts work on a request of the server. False when too much is in work.
    pub(super) fn work(&self, id: &RequestId, start: impl FnOnce() -> AbortHandle) -> bool {
        let mut table = self.table();
        if table.ended.is_some() || table.theirs.len() >= FROM_SERVER {
            return false;
        }
        // Under the lock, so that the work cannot be done before it is noted.
        let task = start();
        if let Some(same) = table.theirs.insert(id.clone(), task) {
            same.abort();
        }
        true
    }

    /// The work is done.
    pub(super) fn worked(&self, id: &RequestId) {
        self.table().theirs.remove(id);
    }

    /// The server does not want it any more.
    pub(super) fn cancelled(&self, id: &RequestId) {
        if let Some(task) = self.table().theirs.remove(id) {
            task.abort();
        }
    }

    /// Ends everything: who waits learns it. False when that was done before.
    pub(super) fn end(&self, reason: SessionEnd) -> bool {
        let mut table = self.table();
        if table.ended.is_some() {
            return false;
        }
        table.ended = Some(reason);
        for task in std::mem::take(&mut table.theirs).into_values() {
            task.abort();
        }
        let ours = std::mem::take(&mut table.ours);
        drop(table);
        drop(ours);
        true
    }

    pub(super) fn ended(&self) -> Option<SessionEnd> {
        self.table().ended.clone()
    }
}
