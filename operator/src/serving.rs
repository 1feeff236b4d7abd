//! What the operator's servers have in common: they begin again after a failure.

use std::{fmt::Display, time::Duration};

pub use mcp_mqtt_sidecar::{
    pulse::Pulse,
    serving::{ConnectionError, OPENMETRICS, accept, admin, health},
};
use tokio::time::sleep;

/// Between two tries of what did not work.
const RETRY: Duration = Duration::from_secs(30);
/// How often the servers look whether the API server still has what was written for them: whoever applies the chart's
/// objects anew may take it away.
pub const LOOK: Duration = Duration::from_mins(1);

/// Serves for as long as it is polled: what fails is told (`what` is not done because of it), and tried again.
pub async fn keep_serving<E: Display>(what: &str, mut serve: impl AsyncFnMut() -> Result<(), E>) {
    loop {
        if let Err(error) = serve().await {
            tracing::warn!(retry_in = ?RETRY, "{what}: {error}");
            sleep(RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_again_after_a_while() {
        let mut tries = Vec::new();
        let begin = tokio::time::Instant::now();
        let serving = keep_serving("it is not served", async || {
            tries.push(begin.elapsed());
            Err("no")
        });
        assert!(timeout(RETRY * 5 / 2, serving).await.is_err());
        assert_eq!(tries, [Duration::ZERO, RETRY, RETRY * 2]);
    }
}
