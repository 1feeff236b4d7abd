//! Leadership by a Lease: of several operators one works, and another takes over when it is gone.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

/// A leader that does not renew its Lease for this long, in seconds, has lost it; with the second that a follower takes
/// to force it open, the next one works within 15 s.
const DURATION_SECONDS: u64 = 12;
/// The leader renews this long, in seconds, before the end.
const GRACE_SECONDS: u64 = 4;
/// Giving the Lease back at the end may take this long.
const RELEASE: Duration = Duration::from_secs(5);
/// How often a follower looks whether the Lease was given back.
const LOOK: Duration = Duration::from_secs(2);

/// Who seeks leadership, and by which Lease.
#[derive(Clone)]
pub struct Candidate {
    /// The API server.
    pub client: Client,
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub lease: String,
    /// Its name among the candidates.
    pub identity: String,
}

/// A candidate at work on it, perhaps the leader.
pub struct Leadership {
    candidate: Candidate,
    state: watch::Receiver<bool>,
    task: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

impl Leadership {
    /// Becomes a candidate.
    ///
    /// # Errors
    /// The Lease cannot be read or made.
    pub async fn seek(candidate: Candidate) -> Result<Self, LeaseManagerError> {
        let manager = LeaseManagerBuilder::new(candidate.client.clone(), &candidate.lease)
            .with_namespace(&candidate.namespace)
            .with_identity(&candidate.identity)
            .with_field_manager(format!("mcp-mqtt-operator-{}", candidate.identity))
            .with_duration(DURATION_SECONDS)
            .with_grace(GRACE_SECONDS)
            .build()
            .await?;
        let (state, task) = manager.watch().await;
        Ok(Self { candidate, state, task })
    }

    /// Waits until this candidate leads. The manager itself looks at the Lease again only when that is over; one
    /// that was given back is seen by a look of our own, and then a new manager takes it at once.
    ///
    /// # Errors
    /// As [`seek`](Self::seek).
    pub async fn won(&mut self) -> Result<(), LeaseManagerError> {
        loop {
            let won = timeout(LOOK, self.state.wait_for(|leads| *leads)).await.map(|state| state.is_ok());
            match won {
                Ok(true) => return Ok(()),
                Ok(false) => tokio::time::sleep(LOOK).await, // the manager's task ended: it needs a new one
                Err(_) if !self.given_back().await => continue,
                Err(_) => {}
            }
            *self = Self::seek(self.candidate.clone()).await?;
        }
    }

    async fn given_back(&self) -> bool {
        let api = Api::<Lease>::namespaced(self.candidate.client.clone(), &self.candidate.namespace);
        match api.get_opt(&self.candidate.lease).await {
            Ok(lease) => lease.and_then(|lease| lease.spec).is_none_or(|spec| spec.holder_identity.is_none()),
            Err(error) => {
                tracing::warn!("the Lease cannot be read: {error}");
                false
            }
        }
    }

    /// Waits until this candidate leads no more. A manager whose task is gone renews nothing.
    pub async fn lost(&mut self) {
        let _ = self.state.wait_for(|leads| !*leads).await;
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
