//! Leadership by a Lease: of several operators one works, and another takes over when it is gone.

use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use std::time::Duration;

/// A leader that does not renew its Lease for this long, in seconds, has lost it: a follower takes over within it.
const DURATION_SECONDS: u64 = 15;
/// The leader renews this long, in seconds, before the end.
const GRACE_SECONDS: u64 = 5;
/// Giving the Lease back at the end may take this long.
const RELEASE: Duration = Duration::from_secs(5);

/// A candidate, perhaps the leader.
pub struct Leadership {
    state: watch::Receiver<bool>,
    task: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

impl Leadership {
    /// Becomes a candidate.
    ///
    /// # Errors
    /// The Lease cannot be read or made.
    pub async fn seek(
        client: Client,
        namespace: &str,
        lease: &str,
        identity: &str,
    ) -> Result<Self, LeaseManagerError> {
        let manager = LeaseManagerBuilder::new(client, lease)
            .with_namespace(namespace)
            .with_identity(identity)
            .with_field_manager(format!("mcp-mqtt-operator-{identity}"))
            .with_duration(DURATION_SECONDS)
            .with_grace(GRACE_SECONDS)
            .build()
            .await?;
        let (state, task) = manager.watch().await;
        Ok(Self { state, task })
    }

    /// Waits until this candidate leads.
    pub async fn won(&mut self) {
        self.until(true).await;
    }

    /// Waits until this candidate leads no more.
    pub async fn lost(&mut self) {
        self.until(false).await;
    }

    async fn until(&mut self, leads: bool) {
        // An error means that the manager's task is gone, and the Lease with it: that is the end of leadership,
        // and never its beginning.
        if self.state.wait_for(|state| *state == leads).await.is_err() && leads {
            std::future::pending::<()>().await;
        }
    }

    /// Gives the Lease back, so that a follower need not wait for its end.
    pub async fn release(self) {
        drop(self.state);
        match timeout(RELEASE, self.task).await {
            Ok(Ok(Ok(_))) => tracing::info!("the Lease is given back"),
            Ok(Ok(Err(error))) => {
                tracing::warn!("the Lease could not be given back: {error}; it ends by itself");
            }
            Ok(Err(error)) => tracing::warn!("the Lease's task ended oddly: {error}"),
            Err(_) => tracing::warn!("the Lease could not be given back in time; it ends by itself"),
        }
    }
}
