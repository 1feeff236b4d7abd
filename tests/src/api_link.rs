//! Between an operator and the real API server, over plain HTTP: for faults that the API server shows nobody on demand,
//! and that only the operator under test is to see.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Result;
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use kube::Client;
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep},
};

use crate::{cluster, lock};

/// The largest request of an operator.
const MAX_BODY: usize = 4 << 20;
/// How long a request may take to come by.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks whether it has.
const PAUSE: Duration = Duration::from_millis(20);

/// What it does with requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manner {
    /// Hands everything through.
    Open,
    /// Answers nothing, as a machine does that stands still.
    Silent,
    /// Answers 503, as a load balancer does with nobody behind it.
    Refusing,
    /// Hands everything through, and keeps the answer to requests with this verb and path to itself.
    KeepsAnswer(&'static str, String),
    /// Hands everything through but requests with this verb and path, of which nothing is heard again, however it
    /// behaves later: an API server took them that has lost its network.
    Mute(&'static str, String),
}

/// Dropping it ends it.
#[derive(Debug)]
pub struct ApiLink {
    directory: TempDir,
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    manner: watch::Sender<Manner>,
    /// Counts up when everything that is open is to end.
    cuts: watch::Sender<u64>,
    /// Watches from before this cut are answered 410.
    expired: Mutex<Vec<String>>,
    expiring: watch::Sender<bool>,
    /// `PATCH /apis/…`, in order.
    requests: Mutex<Vec<String>>,
}

impl ApiLink {
    /// Opens it.
    ///
    /// # Errors
    /// When there is no cluster.
    pub async fn open() -> Result<Self> {
        let client = cluster::client().await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let directory = tempfile::tempdir()?;
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "link",
            "clusters": [{"name": "link", "cluster": {"server": format!("http://{}", listener.local_addr()?)}}],
            "users": [{"name": "link", "user": {}}],
            "contexts": [{"name": "link", "context": {"cluster": "link", "user": "link"}}],
        });
        std::fs::write(directory.path().join("kubeconfig"), kubeconfig.to_string())?;
        let shared = Arc::new(Shared {
            manner: watch::Sender::new(Manner::Open),
            cuts: watch::Sender::new(0),
            expired: Mutex::default(),
            expiring: watch::Sender::new(false),
            requests: Mutex::default(),
        });
        let app = Router::new().fallback(pass).with_state((client, shared.clone()));
        let task = tokio::spawn(async move { drop(axum::serve(listener, app).await) }).abort_handle();
        Ok(Self { directory, shared, task })
    }

    /// What the operator's KUBECONFIG is to be.
    pub fn kubeconfig(&self) -> std::path::PathBuf {
        Path::new(self.directory.path()).join("kubeconfig")
    }

    /// From now on.
    pub fn behave(&self, manner: Manner) {
        self.shared.manner.send_replace(manner);
    }

    /// Ends every answer that is under way: watches, above all.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Ends every watch, and calls each too old that wants to go on where it was, once. Gives the paths that were told
    /// so, as soon as there are so many.
    ///
    /// # Errors
    /// When nobody watches any more.
    pub async fn expire(&self, watches: usize) -> Result<Vec<String>> {
        lock(&self.shared.expired).clear();
        self.shared.expiring.send_replace(true);
        self.cut();
        let deadline = Instant::now() + PATIENCE;
        while lock(&self.shared.expired).len() < watches {
            anyhow::ensure!(Instant::now() < deadline, "only {:?} were told", lock(&self.shared.expired));
            sleep(PAUSE).await;
        }
        self.shared.expiring.send_replace(false);
        Ok(lock(&self.shared.expired).clone())
    }

    /// What came by, as `PATCH /apis/…?…`.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }

    /// Waits until a request with this verb and this text in its path has come by.
    ///
    /// # Errors
    /// When none does.
    pub async fn requested(&self, verb: &str, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.requests().iter().any(|request| request.starts_with(verb) && request.contains(text)) {
            anyhow::ensure!(Instant::now() < deadline, "no {verb} of {text} came by");
            sleep(PAUSE).await;
        }
        Ok(())
    }
}

impl Drop for ApiLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(State((client, shared)): State<(Client, Arc<Shared>)>, request: Request) -> Response {
    let mut cuts = shared.cuts.subscribe();
    cuts.mark_unchanged();
    let line = format!("{} {}", request.method(), request.uri());
    lock(&shared.requests).push(line.clone());
    let manner = shared.manner.borrow().clone();
    match &manner {
        Manner::Silent => return silence(&shared).await,
        Manner::Refusing => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Manner::Mute(verb, text) if line.starts_with(verb) && line.contains(text.as_str()) => {
            return std::future::pending().await;
        }
        Manner::Open | Manner::KeepsAnswer(..) | Manner::Mute(..) => {}
    }
    if *shared.expiring.borrow() && line.contains("watch=true") {
        let path = request.uri().path().to_owned();
        let mut expired = lock(&shared.expired);
        if !expired.contains(&path) {
            expired.push(path);
            return gone();
        }
    }
    let answer = match forward(&client, request).await {
        Ok(answer) => answer,
        Err(error) => return (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    };
    if let Manner::KeepsAnswer(verb, text) = &manner
        && line.starts_with(verb)
        && line.contains(text.as_str())
    {
        return silence(&shared).await;
    }
    let (head, body) = answer.into_parts();
    let until = Box::pin(async move { drop(cuts.changed().await) });
    Response::from_parts(head, Body::from_stream(body.into_data_stream().take_until(until)))
}

/// Until it is to behave otherwise; then the caller is told that nothing came of it.
async fn silence(shared: &Shared) -> Response {
    let mut manner = shared.manner.subscribe();
    manner.mark_unchanged();
    drop(manner.changed().await);
    StatusCode::GATEWAY_TIMEOUT.into_response()
}

async fn forward(client: &Client, request: Request) -> Result<Response> {
    let (mut head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, MAX_BODY).await?;
    head.headers.remove("host");
    let request = axum::http::Request::from_parts(head, kube::client::Body::from(body.to_vec()));
    let (mut head, body) = client.send(request).await?.into_parts();
    head.headers.remove("transfer-encoding");
    Ok(Response::from_parts(head, Body::new(body)))
}

/// What the API server says of a resource version that it does not have any more.
fn gone() -> Response {
    let status = json!({"type": "ERROR", "object": {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410,
        "message": "too old resource version: 1 (2)",
    }});
    ([("content-type", "application/json")], format!("{status}\n")).into_response()
}
