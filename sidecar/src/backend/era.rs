//! Which of the two eras of MCP a server speaks.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

/// What the last probe found; all clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Era(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    is_modern: AtomicBool,
    is_doubted: AtomicBool,
    doubt: Notify,
}

impl Era {
    /// Whether sessions begin without `initialize` (2026-07-28). False until a probe has found so.
    pub(super) fn is_modern(&self) -> bool {
        self.0.is_modern.load(Ordering::Relaxed)
    }

    /// A probe found this.
    pub(super) fn found(&self, is_modern: bool) {
        self.0.is_modern.store(is_modern, Ordering::Relaxed);
        self.0.is_doubted.store(false, Ordering::Relaxed);
    }

    /// The server did not know what the probe found it to speak: it has to be asked anew.
    pub(super) fn doubt(&self) {
        self.0.is_doubted.store(true, Ordering::Relaxed);
        self.0.doubt.notify_one();
    }

    /// Resolves when it was doubted and no probe has found anything since. One caller at a time.
    pub(super) async fn doubted(&self) {
        while !self.0.is_doubted.load(Ordering::Relaxed) {
            self.0.doubt.notified().await;
        }
    }
}
