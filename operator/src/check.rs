//! `check`: whether an installed operator works, for `helm test` and for people. It changes nothing.

use std::{process::ExitCode, time::Duration};

use kube::{Api, api::ListParams};
use tokio::time::{Instant, sleep};

use crate::{crd::McpService, http_get::HttpGet};

/// One answer may take this long; the operator's own handlers take microseconds.
const ANSWER: Duration = Duration::from_secs(5);
/// Between two questions while the operator is not ready.
const PAUSE: Duration = Duration::from_millis(500);
/// `/readyz` answers in a few lines; more than this is not the operator.
const MAX_BODY: usize = 64 * 1024;

/// What `check` needs to know.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct CheckArgs {
    /// Where the operator's Service answers: `http://host:port`.
    #[arg(long, value_name = "URL")]
    pub url: http::Uri,

    /// Namespaces that the operator watches, separated by commas; none: all of them.
    #[arg(long, env = "MCP_MQTT_WATCH_NAMESPACES", value_delimiter = ',', value_name = "NAMESPACE")]
    pub watch_namespaces: Vec<String>,

    /// How long to wait for an operator that is not ready yet.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub timeout: Duration,
}

/// Why the operator does not count as working.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The URL has no host, or its path cannot be joined.
    #[error("--url {url} is not of the form http://host:port")]
    Url {
        /// As given.
        url: String,
    },
    /// `/readyz` did not say 200 in time.
    #[error(
        "the operator at {url} was not ready within {}: {last}; see `kubectl describe` and `kubectl logs` of its Deployment",
        humantime::format_duration(*.waited)
    )]
    NotReady {
        /// The address asked.
        url: String,
        /// How long it was asked.
        waited: Duration,
        /// Its last answer.
        last: String,
    },
    /// No way to the API server.
    #[error("no Kubernetes client: {0}; the pod needs the operator's ServiceAccount and its token")]
    Client(#[source] kube::Error),
    /// The CRD is not there, or may not be read.
    #[error(
        "McpServices in {scope} cannot be listed: {source}; is the CRD mcpservices.mcp-mqtt.io installed \
         (crds.enabled), and is the operator's role bound there (rbac.create, watchNamespaces)?"
    )]
    List {
        /// Which namespace, or all.
        scope: String,
        /// What the API server said.
        #[source]
        source: kube::Error,
    },
}

/// [`check`] as a program: what is wrong goes to stderr, and the exit says so.
pub fn main(args: CheckArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("failed: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(check(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Looks at the operator and at what it needs; prints a line for each thing that is as it should be.
///
/// # Errors
/// The first thing that is not.
pub async fn check(args: CheckArgs) -> Result<(), CheckError> {
    let url = ready_url(&args.url)?;
    wait_ready(&url, args.timeout).await?;
    println!("ok: the operator at {url} is ready");
    let client = kube::Client::try_default().await.map_err(CheckError::Client)?;
    let namespaces: Vec<&str> =
        args.watch_namespaces.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
    let mut places: Vec<(String, Api<McpService>)> = namespaces
        .iter()
        .map(|name| (format!("the namespace {name}"), Api::namespaced(client.clone(), name)))
        .collect();
    if places.is_empty() {
        places.push(("all namespaces".to_owned(), Api::all(client)));
    }
    for (scope, api) in places {
        // One suffices: this is about the permission and the CRD, not about the objects.
        let one = ListParams::default().limit(1);
        api.list_metadata(&one).await.map_err(|source| CheckError::List { scope: scope.clone(), source })?;
        println!("ok: McpServices in {scope} can be read");
    }
    Ok(())
}

fn ready_url(base: &http::Uri) -> Result<http::Uri, CheckError> {
    let mut parts = base.clone().into_parts();
    parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/readyz"));
    http::Uri::from_parts(parts)
        .ok()
        .filter(|url| url.host().is_some())
        .ok_or_else(|| CheckError::Url { url: base.to_string() })
}

async fn wait_ready(url: &http::Uri, patience: Duration) -> Result<(), CheckError> {
    let client = HttpGet::new(ANSWER, MAX_BODY);
    let begin = Instant::now();
    loop {
        let Err(last) = client.get(url).await else { return Ok(()) };
        if begin.elapsed() + PAUSE >= patience {
            return Err(CheckError::NotReady { url: url.to_string(), waited: patience, last });
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::StatusCode, routing::get};
    use tokio::net::TcpListener;

    use super::*;

    async fn serve(status: StatusCode, body: &'static str) -> http::Uri {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().route("/readyz", get(move || async move { (status, body) }));
        tokio::spawn(async move { axum::serve(listener, app).await });
        ready_url(&url.parse().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_ready_operator_is_believed() {
        let url = serve(StatusCode::OK, "ok").await;
        wait_ready(&url, Duration::from_secs(5)).await.unwrap();
    }

    #[tokio::test]
    async fn an_operator_that_is_not_ready_is_quoted() {
        let url = serve(StatusCode::SERVICE_UNAVAILABLE, "the watch of McpServices is not synced").await;
        let error = wait_ready(&url, Duration::from_millis(600)).await.unwrap_err().to_string();
        assert!(error.contains("503") && error.contains("is not synced"), "{error}");
    }

    #[tokio::test]
    async fn an_operator_that_is_not_there_is_named_with_the_cause() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let url = ready_url(&format!("http://{address}").parse().unwrap()).unwrap();
        let error = wait_ready(&url, Duration::from_millis(100)).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("refused"), "{error}");
    }

    #[test]
    fn a_url_without_a_host_is_refused() {
        assert!(ready_url(&"/only/a/path".parse().unwrap()).is_err());
        assert_eq!(ready_url(&"http://a:1/".parse().unwrap()).unwrap(), "http://a:1/readyz");
    }
}
