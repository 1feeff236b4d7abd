//! What the tour measured.

use std::{fmt, time::Duration};

use crate::progress::human;

/// What the tour measured.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// From `kubectl apply` to the first presence in the registry.
    pub(super) apply_to_registered: Duration,
    /// From `kubectl apply` to the first tool's answer.
    pub(super) apply_to_answer: Duration,
    /// The first call of a new session.
    pub(super) first_call: Duration,
    /// Median of the calls after it.
    pub(super) median_call: Duration,
    /// The most memory any gateway uses, in bytes; none: the kubelet has not measured it yet.
    pub(super) gateway_memory: Option<u64>,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kubectl apply → first registered instance   {}", human(self.apply_to_registered))?;
        writeln!(f, "kubectl apply → first answer                {}", human(self.apply_to_answer))?;
        writeln!(f, "first call of a session                     {}", millis(self.first_call))?;
        writeln!(f, "median call                                 {}", millis(self.median_call))?;
        match self.gateway_memory {
            #[expect(clippy::cast_precision_loss, reason = "memory is far below 2^52 bytes")]
            Some(bytes) => write!(
                f,
                "gateway memory, the largest of all          {:.1} MiB",
                bytes as f64 / f64::from(1 << 20)
            ),
            None => write!(f, "gateway memory                              not measured by the kubelet yet"),
        }
    }
}

fn millis(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}
