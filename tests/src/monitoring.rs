//! Prometheus, and what it is asked by the chart's alerts and its dashboard.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::SocketAddr,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client as Kube, ResourceExt, api::ListParams};
use mcp_mqtt_operator::{http_get::HttpGet, names::SERVICE_LABEL};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    task::JoinHandle,
    time::{Instant, sleep},
};
use url::Url;

use crate::ports::Port;

/// Between two scrapes: rates need a few of them, and tests do not like to wait.
const INTERVAL: &str = "500ms";
/// And in a cluster, whose machine has other things to do.
const SLOW_INTERVAL: &str = "2s";
/// How often it is looked at what there is.
const LOOK: Duration = Duration::from_secs(1);
/// Where gateways and operators are asked.
const GATEWAY_PORT: u16 = 8079;
const OPERATOR_PORT: u16 = 8080;
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
    /// Who keeps the list of what is scraped, where it changes, and where that stands.
    looking: Option<(AbortOnDrop, TempDir)>,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
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
        let jobs = targets
            .iter()
            .map(|target| {
                let at = [json!({"targets": [target.address.to_string()], "labels": target.labels})];
                json!({"job_name": target.job, "static_configs": at})
            })
            .collect();
        Self::scraping(jobs, INTERVAL, targets.len()).await
    }

    /// Starts it in the cluster's network and waits until it scrapes the operator. What there is, is looked for as the
    /// chart's `PodMonitor` and `ServiceMonitor` have it, by ourselves: Debian's Prometheus knows nothing of Kubernetes.
    ///
    /// # Errors
    /// As [`start`](Self::start), or the API server does not answer.
    pub async fn in_cluster(kube: &Kube) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("targets.json");
        fs::write(&file, cluster_targets(kube).await?)?;
        let jobs = vec![json!({
            "job_name": "cluster",
            "file_sd_configs": [{"files": [&file], "refresh_interval": SLOW_INTERVAL}],
        })];
        let looking = tokio::spawn({
            let kube = kube.clone();
            async move {
                loop {
                    sleep(LOOK).await;
                    // One that fails is made good by the next.
                    let Ok(targets) = cluster_targets(&kube).await else { continue };
                    let new = file.with_extension("new");
                    if fs::write(&new, targets).and_then(|()| fs::rename(&new, &file)).is_err() {
                        return;
                    }
                }
            }
        });
        let mut started = Self::scraping(jobs, SLOW_INTERVAL, 1).await?;
        started.looking = Some((AbortOnDrop(looking), directory));
        Ok(started)
    }

    /// Waits until so many targets have been scraped twice.
    async fn scraping(jobs: Vec<Value>, interval: &str, targets: usize) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        // JSON is YAML.
        let configuration = json!({
            "global": {"scrape_interval": interval, "scrape_timeout": interval},
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
        let api = Url::parse(&format!("http://{address}/api/v1/"))?;
        let http = HttpGet::new(PATIENCE, MAX_ANSWER);
        let started = Self { api, http, directory, _process: process, _port: port, looking: None };
        let begun = Instant::now();
        let scraped = format!("count(count_over_time(up[1m]) >= 2 and up == 1) == {targets}");
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
        self.ask("query", &[("query", query)]).await
    }

    /// The samples that a query gave at a moment (in seconds since 1970).
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn query_at(&self, query: &str, at: f64) -> Result<Vec<Value>> {
        self.ask("query", &[("query", query), ("time", &format!("{at:.3}"))]).await
    }

    /// What a query gave from `begin` to `end` (in seconds since 1970), every `step` seconds.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn range(&self, query: &str, begin: f64, end: f64, step: f64) -> Result<Vec<Value>> {
        let [begin, end, step] = [begin, end, step].map(|seconds| format!("{seconds:.3}"));
        let parameters = [("query", query), ("start", &begin), ("end", &end), ("step", &step)];
        self.ask("query_range", &parameters).await
    }

    async fn ask(&self, what: &str, parameters: &[(&str, &str)]) -> Result<Vec<Value>> {
        let mut url = self.api.join(what)?;
        url.query_pairs_mut().extend_pairs(parameters);
        let body = self.http.get(&url.as_str().parse()?).await.map_err(anyhow::Error::msg)?;
        let answer: Value = serde_json::from_slice(&body)?;
        match answer["data"]["result"].as_array() {
            Some(samples) => Ok(samples.clone()),
            None => bail!("{parameters:?}: {answer}"),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

/// Prometheus' list of the gateways and operators in a cluster.
async fn cluster_targets(kube: &Kube) -> Result<String> {
    let kinds = [
        ("gateways", "app.kubernetes.io/managed-by=mcp-mqtt-operator", GATEWAY_PORT),
        ("mcp-mqtt-operator", "app.kubernetes.io/component=operator", OPERATOR_PORT),
    ];
    let mut targets = Vec::new();
    for (job, labels, port) in kinds {
        for pod in Api::<Pod>::all(kube.clone()).list(&ListParams::default().labels(labels)).await? {
            let Some(address) = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()) else {
                continue;
            };
            let labels = json!({
                "job": job,
                "namespace": pod.namespace(),
                "pod": pod.name_any(),
                "mcp_service": pod.labels().get(SERVICE_LABEL).map_or("", String::as_str),
            });
            targets.push(json!({"targets": [format!("{address}:{port}")], "labels": labels}));
        }
    }
    Ok(json!(targets).to_string())
}

/// Every query of a Grafana dashboard, its variables put in as a user who selects everything has them.
pub fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries = targets.filter_map(|target| target["expr"].as_str());
    queries.map(|query| filled(query, "1m")).collect()
}

/// A query with Grafana's variables put in: rates over so long, everything selected.
pub fn filled(query: &str, rate: &str) -> String {
    query.replace("$__rate_interval", rate).replace("$namespace", ".*").replace("$service", ".*")
}

/// The project's metrics that a query names.
pub fn metric_names(query: &str) -> BTreeSet<String> {
    let words = query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("mcp_mqtt_")).map(str::to_owned).collect()
}
