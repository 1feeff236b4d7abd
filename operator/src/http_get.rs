//! A small HTTP client: one GET, one answer, within a time and a size.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{StatusCode, Uri, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::timeout;

/// Asks for one resource at a time.
#[derive(Debug, Clone)]
pub struct HttpGet {
    client: Client<HttpConnector, Empty<Bytes>>,
    patience: Duration,
    max_body: usize,
}

impl HttpGet {
    /// A client that waits `patience` for a whole answer, and takes `max_body` bytes of it.
    pub fn new(patience: Duration, max_body: usize) -> Self {
        // No connection is kept: pods come and go, and their addresses go to others.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        Self { client, patience, max_body }
    }

    /// The body of a 200.
    ///
    /// # Errors
    /// Anything else, as a sentence for a person.
    pub async fn get(&self, url: &Uri) -> Result<Bytes, String> {
        let answer = async {
            let response = self.client.get(url.clone()).await.map_err(|error| describe(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), self.max_body).collect().await;
            let body = body.map(http_body_util::Collected::to_bytes).map_err(|error| error.to_string());
            if status == StatusCode::OK {
                return body;
            }
            Err(format!("it answers {status}: {}", String::from_utf8_lossy(&body.unwrap_or_default()).trim()))
        };
        let answer = timeout(self.patience, answer).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(format!("no answer within {}", humantime::format_duration(self.patience)))
        });
        answer.map_err(|problem| format!("GET {url}: {problem}"))
    }
}

/// An error with its causes: hyper says "client error (Connect)" and keeps the reason below it.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use tokio::net::TcpListener;

    use super::*;

    async fn serve(app: Router) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        url
    }

    async fn fetch(url: &str) -> Result<Bytes, String> {
        HttpGet::new(Duration::from_millis(300), 16).get(&url.parse().unwrap()).await
    }

    #[tokio::test]
    async fn an_answer_is_its_body_and_anything_else_a_sentence() {
        let silent = || async { std::future::pending::<()>().await };
        let app = Router::new()
            .route("/good", get(|| async { "fine" }))
            .route("/bad", get(|| async { (StatusCode::SERVICE_UNAVAILABLE, "not yet") }))
            .route("/long", get(|| async { "x".repeat(17) }))
            .route("/silent", get(silent));
        let url = serve(app).await;
        assert_eq!(fetch(&format!("{url}/good")).await.unwrap(), "fine");
        for (path, says) in [
            ("bad", "503 Service Unavailable: not yet"),
            ("long", "length limit"),
            ("silent", "no answer within 300ms"),
        ] {
            let error = fetch(&format!("{url}/{path}")).await.unwrap_err();
            assert!(error.contains(says) && error.contains(path), "{path}: {error}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_says_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = fetch(&url).await.unwrap_err();
        assert!(error.contains("refused"), "{error}");
    }
}
