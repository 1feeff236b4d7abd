//! `/healthz`, `/readyz` and `/metrics`: read-only.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use tokio::net::TcpListener;

use crate::{
    controller::scope::lock,
    metrics::Metrics,
    serving::{self, OPENMETRICS, Pulse},
};

/// What keeps the operator from being ready; empty: nothing does.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Mutex<Vec<String>>>);

impl Readiness {
    /// Not ready, for this reason.
    pub fn pending(what: &str) -> Self {
        Self(Arc::new(Mutex::new(vec![what.to_owned()])))
    }

    /// What is pending now; empty: ready.
    pub fn set(&self, pending: Vec<String>) {
        *lock(&self.0) = pending;
    }

    fn answer(&self) -> (StatusCode, String) {
        let pending = lock(&self.0);
        if pending.is_empty() {
            (StatusCode::OK, "ready\n".to_owned())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", pending.join("\n")))
        }
    }
}

/// The port cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} (--admin-address): {source}")]
pub struct AdminError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// What is shown; all clones are one.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Of a leader: that its watches are there.
    pub readiness: Readiness,
    /// The leader's.
    pub pulse: Pulse,
    /// All metrics.
    pub metrics: Arc<Metrics>,
}

/// Binds the address and serves in the background, for as long as the process lives.
///
/// # Errors
/// The address is taken, or not ours.
pub async fn serve(address: SocketAddr, shown: Shown) -> Result<SocketAddr, AdminError> {
    let failed = |source| AdminError { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let app = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(async |State(shown): State<Shown>| shown.readiness.answer()))
        .route(
            "/metrics",
            get(async |State(shown): State<Shown>| ([(CONTENT_TYPE, OPENMETRICS)], shown.metrics.encode())),
        )
        .with_state(shown);
    tokio::spawn(serving::admin(listener, app));
    Ok(bound)
}

/// A leader that stands still would keep the Lease for ever.
async fn healthz(State(shown): State<Shown>) -> (StatusCode, String) {
    serving::health(&shown.pulse, "the task that keeps the registry")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http_get::HttpGet;

    fn shown() -> Shown {
        let readiness = Readiness::pending("waiting for the Lease");
        Shown { readiness, pulse: Pulse::default(), metrics: Arc::new(Metrics::new()) }
    }

    #[tokio::test]
    async fn readiness_names_what_is_pending() {
        let shown = shown();
        let Shown { readiness, pulse, .. } = shown.clone();
        let address = serve(([127, 0, 0, 1], 0).into(), shown).await.unwrap();
        let http = HttpGet::new(Duration::from_secs(5), 65536);
        let url = |path: &str| format!("http://{address}{path}").parse().unwrap();
        let error = http.get(&url("/readyz")).await.unwrap_err();
        assert!(error.contains("503") && error.contains("waiting for the Lease"), "{error}");
        readiness.set(Vec::new());
        assert_eq!(http.get(&url("/readyz")).await.unwrap(), "ready\n");
        assert_eq!(http.get(&url("/healthz")).await.unwrap(), "ok\n", "a follower has no work");
        pulse.be_silent_for(Duration::from_mins(2));
        let error = http.get(&url("/healthz")).await.unwrap_err();
        assert!(error.contains("503") && error.contains("has stood still for 120 s"), "{error}");
        pulse.beat();
        assert_eq!(http.get(&url("/healthz")).await.unwrap(), "ok\n");
        assert!(
            String::from_utf8(http.get(&url("/metrics")).await.unwrap().to_vec())
                .unwrap()
                .contains("mcp_mqtt_operator_leader")
        );
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named_with_its_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let error = serve(taken.local_addr().unwrap(), shown()).await.unwrap_err();
        assert!(error.to_string().contains("--admin-address"), "{error}");
    }
}
