//! What the last probe found of a server, and what speaks against it since.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

/// Why the server has to be asked anew. Only what the answer says counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// It did not know the revision that it was found to speak.
    Revision,
    /// Requests in a row were not answered: it may hang.
    Silence,
    /// `initialize` in a row came to nothing: it may take no new session.
    NoSession,
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Revision => "it did not know the revision that it was found to speak",
            Self::Silence => "requests in a row were not answered",
            Self::NoSession => "`initialize` in a row came to nothing",
        })
    }
}

/// See the module; all clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Findings(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    is_modern: AtomicBool,
    /// By [`Suspicion`].
    suspected: [AtomicBool; 3],
    wake: Notify,
}

impl Findings {
    /// Whether sessions begin without `initialize` (2026-07-28). False until a probe has found so.
    pub(super) fn is_modern(&self) -> bool {
        self.0.is_modern.load(Ordering::Relaxed)
    }

    /// A probe found this, and nothing is suspected any more.
    pub(super) fn found(&self, is_modern: bool) {
        self.0.is_modern.store(is_modern, Ordering::Relaxed);
        for suspected in &self.0.suspected {
            suspected.store(false, Ordering::Relaxed);
        }
    }

    /// Something speaks against what was found.
    pub(super) fn suspect(&self, suspicion: Suspicion) {
        self.0.suspected[suspicion as usize].store(true, Ordering::Relaxed);
        self.0.wake.notify_one();
    }

    /// Whether this speaks against what was found, and nobody has asked since.
    pub(super) fn is_suspected(&self, suspicion: Suspicion) -> bool {
        self.0.suspected[suspicion as usize].load(Ordering::Relaxed)
    }

    /// Resolves when something is suspected, and what weighs most. A doubt about the revision stays until a probe finds
    /// something: sessions of the wrong one come to nothing. One caller at a time.
    pub(super) async fn suspected(&self) -> Suspicion {
        let [revision, silence, no_session] = &self.0.suspected;
        loop {
            if no_session.swap(false, Ordering::Relaxed) {
                return Suspicion::NoSession;
            }
            if silence.swap(false, Ordering::Relaxed) {
                return Suspicion::Silence;
            }
            if revision.load(Ordering::Relaxed) {
                return Suspicion::Revision;
            }
            self.0.wake.notified().await;
        }
    }
}
