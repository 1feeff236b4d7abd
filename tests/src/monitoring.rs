//! Prometheus, and what it is asked by the chart's alerts and its dashboard.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::SocketAddr,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use mcp_mqtt_operator::http_get::HttpGet;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};
use url::Url;

use crate::ports::Port;

/// Between two scrapes: rates need a few of them, and tests do not like to wait.
const INTERVAL: &str = "500ms";
/// How long Prometheus may take to start, and to have scraped.
const PATIENCE: Duration = Duration::from_mins(1);
/// One answer of its API.
const MAX_ANSWER: usize = 1 << 20;

/// A Prometheus of a test's own. It is killed when it is dropped.
pub struct Prometheus {
    api: Url,
    http: HttpGet,
    directory: TempDir,
    _process: Child,
    _port: Port,
}

/// What is scraped.
pub struct Target<'a> {
    /// The label `job`.
    pub job: &'a str,
    /// Where `/metrics` is.
    pub address: SocketAddr,
    /// Labels that Kubernetes' discovery would give, as JSON.
    pub labels: Value,
}

impl Prometheus {
    /// Starts it and waits until it has scraped each target twice.
    ///
    /// # Errors
    /// It is not installed, does not start, or gets nothing from a target.
    pub async fn start(targets: &[Target<'_>]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let jobs: Vec<Value> = targets
            .iter()
            .map(|target| {
                let at = [json!({"targets": [target.address.to_string()], "labels": target.labels})];
                json!({"job_name": target.job, "static_configs": at})
            })
            .collect();
        // JSON is YAML.
        let configuration = json!({
            "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL},
            "scrape_configs": jobs,
        });
        let (file, data) = (directory.path().join("prometheus.yaml"), directory.path().join("data"));
        fs::write(&file, configuration.to_string())?;
        let port = Port::reserve()?;
        let address = port.address();
        let log = File::create(directory.path().join("log"))?;
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("no prometheus: install the Debian package prometheus")?;
        let api = Url::parse(&format!("http://{address}/api/v1/query"))?;
        let http = HttpGet::new(PATIENCE, MAX_ANSWER);
        let started = Self { api, http, directory, _process: process, _port: port };
        let begun = Instant::now();
        let scraped = format!("count(count_over_time(up[1m]) >= 2 and up == 1) == {}", targets.len());
        while !started.query(&scraped).await.is_ok_and(|found| !found.is_empty()) {
            ensure!(
                begun.elapsed() < PATIENCE,
                "Prometheus gets no metrics: {:?}\n{}",
                started.query("up").await,
                started.log()
            );
            sleep(Duration::from_millis(100)).await;
        }
        Ok(started)
    }

    /// The samples that a query gives now.
    ///
    /// # Errors
    /// Prometheus refuses it, or does not answer.
    pub async fn query(&self, query: &str) -> Result<Vec<Value>> {
        let mut url = self.api.clone();
        url.query_pairs_mut().append_pair("query", query);
        let body = self.http.get(&url.as_str().parse()?).await.map_err(anyhow::Error::msg)?;
        let answer: Value = serde_json::from_slice(&body)?;
        match answer["data"]["result"].as_array() {
            Some(samples) => Ok(samples.clone()),
            None => bail!("{query}: {answer}"),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

/// Every query of a Grafana dashboard, its variables put in as a user who selects everything has them.
pub fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries = targets.filter_map(|target| target["expr"].as_str());
    queries
        .map(|query| {
            query.replace("$__rate_interval", "1m").replace("$namespace", ".*").replace("$service", ".*")
        })
        .collect()
}

/// The project's metrics that a query names.
pub fn metric_names(query: &str) -> BTreeSet<String> {
    let words = query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("mcp_mqtt_")).map(str::to_owned).collect()
}
