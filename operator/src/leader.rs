//! Leadership by a Lease: of several operators one works, and another takes over when it is gone.
//!
//! As in client-go, and for its reasons. Every write goes against the version that was read, so that of two who want
//! the Lease one gets it. A follower counts a Lease's time by its own clock, from when it saw the last renewal: clocks
//! that differ make no second leader. And a leader that cannot renew stops working well before the others may begin.

mod elector;

use std::time::Duration;

use kube::Client;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

use self::elector::Elector;

/// Giving the Lease back at the end may take this long.
const RELEASE: Duration = Duration::from_secs(5);

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

/// A candidate at work on it, perhaps the leader. Dropping it gives nothing back: the Lease ends by itself.
pub struct Leadership {
    state: watch::Receiver<bool>,
    stop: oneshot::Sender<()>,
    task: Task,
}

struct Task(JoinHandle<()>);

impl Leadership {
    /// Becomes a candidate.
    ///
    /// # Errors
    /// The Lease may not be read, made or written. An API server that cannot be reached is none: it will be.
    pub async fn seek(candidate: Candidate) -> Result<Self, kube::Error> {
        let mut elector = Elector::new(candidate);
        let begin = Instant::now();
        let leads = elector.begin().await?;
        let (sender, state) = watch::channel(leads);
        let (stop, stopped) = oneshot::channel();
        let task = Task(tokio::spawn(elector.run(leads.then_some(begin), sender, stopped)));
        Ok(Self { state, stop, task })
    }

    /// Whether this candidate leads.
    pub fn leads(&self) -> bool {
        *self.state.borrow()
    }

    /// Waits until this candidate leads. False: it will not, as it has lost already.
    pub async fn won(&mut self) -> bool {
        self.state.wait_for(|leads| *leads).await.is_ok()
    }

    /// Waits until this candidate leads no more; it will not again.
    pub async fn lost(&mut self) {
        let _ = self.state.wait_for(|leads| !*leads).await;
    }

    /// Gives the Lease back, so that a follower need not wait for its end.
    pub async fn release(mut self) {
        // Its task may be gone; then there is nobody to give anything back.
        let _ = self.stop.send(());
        match timeout(RELEASE, &mut self.task.0).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("the Lease's task ended oddly: {error}"),
            Err(_) => tracing::warn!("the Lease could not be given back in time; it ends by itself"),
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api_client::tests::client_of;

    #[tokio::test]
    async fn a_candidate_that_cannot_reach_the_api_server_waits_for_it() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let seek = Leadership::seek(Candidate {
            client: client_of(nobody),
            namespace: "meteo".to_owned(),
            lease: "of-the-operator".to_owned(),
            identity: "us".to_owned(),
        });
        let mut leadership = timeout(Duration::from_secs(5), seek).await.unwrap().expect("it ends");
        assert!(!leadership.leads());
        assert!(timeout(Duration::from_secs(2), leadership.won()).await.is_err(), "it has given up");
    }
}
