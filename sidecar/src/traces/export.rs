//! Sends finished spans to a collector (OTLP over HTTP, JSON), in batches, on a thread of its own: neither a slow
//! collector nor the writing of JSON is felt on the data path. What finds no room or no collector is counted.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method as HttpMethod, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use mcp_mqtt_transport::redact;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use url::Url;

use super::{
    otlp,
    span::{Finished, Sampler, Span},
};
use crate::{
    bridge::request::{Method, Outcome},
    https::{self, Client},
    metrics::Metrics,
};

/// Spans that may wait, spans in one export, and how long the first of them waits: the defaults of OpenTelemetry's
/// batch processor.
const QUEUE: usize = 2048;
const BATCH: usize = 512;
const BATCH_WAIT: Duration = Duration::from_secs(5);
/// How long one export may take (also OpenTelemetry's).
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last export may hold up the gateway's end.
const LAST_EXPORT: Duration = Duration::from_secs(3);
/// How much of a collector's answer is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// Where the traces go below the base endpoint.
const PATH: &str = "v1/traces";

/// Takes finished spans; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracer {
    finished: mpsc::Sender<Finished>,
    sampler: Sampler,
    metrics: Metrics,
}

/// The exporter's thread.
#[derive(Debug)]
pub struct Exporter {
    done: oneshot::Receiver<()>,
}

/// What the environment says, in OpenTelemetry's own variables.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    endpoint: Uri,
    headers: HeaderMap,
    resource: Vec<(String, String)>,
    ca: Option<PathBuf>,
    sampler: Sampler,
}

/// Traces cannot be exported as the configuration wants it; each begins with what it is about. Values of headers are
/// not shown: they are often secrets.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The endpoint.
    #[error("--otlp-endpoint is no http:// or https:// URL of a collector without credentials in it")]
    Endpoint,
    /// One of the variables.
    #[error("{0} {1}")]
    Variable(&'static str, &'static str),
    /// TLS.
    #[error("OTEL_EXPORTER_OTLP_CERTIFICATE: {0}")]
    Tls(String),
    /// No thread.
    #[error("the exporter of traces cannot be started: {0}")]
    Thread(#[from] io::Error),
}

impl Settings {
    /// Reads the variables by `variable`; nothing when the SDK is disabled there.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn read(
        base: &Url,
        identity: &[(&str, &str)],
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, TracesError> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let endpoint = if let Some(own) = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            Url::parse(&own)
                .map_err(|_| TracesError::Variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "is no URL"))?
        } else {
            let mut url = base.clone();
            url.set_path(&format!("{}/{PATH}", base.path().trim_end_matches('/')));
            url
        };
        let usable = matches!(endpoint.scheme(), "http" | "https")
            && endpoint.host().is_some()
            && endpoint.username().is_empty()
            && endpoint.password().is_none();
        let endpoint =
            usable.then(|| endpoint.as_str().parse().ok()).flatten().ok_or(TracesError::Endpoint)?;
        let mut resource: HashMap<String, String> = HashMap::new();
        resource.extend(identity.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        resource.extend(pairs(&variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default()));
        resource.extend(variable("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name)));
        let mut resource: Vec<_> = resource.into_iter().collect();
        resource.sort_unstable();
        Ok(Some(Self {
            endpoint,
            headers: headers(variable)?,
            resource,
            ca: variable("OTEL_EXPORTER_OTLP_CERTIFICATE").map(PathBuf::from),
            sampler: sampler(variable)?,
        }))
    }
}

fn headers(variable: impl Fn(&str) -> Option<String>) -> Result<HeaderMap, TracesError> {
    const NAME: &str = "OTEL_EXPORTER_OTLP_HEADERS";
    let mut headers = HeaderMap::new();
    for (name, value) in pairs(&variable(NAME).unwrap_or_default()) {
        let bad = TracesError::Variable(NAME, "holds what is no header: it has to be name=value,name=value");
        let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else {
            return Err(bad);
        };
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

fn sampler(variable: impl Fn(&str) -> Option<String>) -> Result<Sampler, TracesError> {
    const NAME: &str = "OTEL_TRACES_SAMPLER";
    const RATIO: &str = "OTEL_TRACES_SAMPLER_ARG";
    let name = variable(NAME).unwrap_or_else(|| "parentbased_always_on".to_owned());
    let follows_parent = name.starts_with("parentbased_");
    let ratio = match name.strip_prefix("parentbased_").unwrap_or(&name) {
        "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => variable(RATIO)
            .map_or(Ok(1.0), |ratio| ratio.parse::<f64>())
            .ok()
            .filter(|ratio| (0.0..=1.0).contains(ratio))
            .ok_or(TracesError::Variable(RATIO, "is no number from 0 to 1"))?,
        _ => {
            let known =
                "is none of always_on, always_off, traceidratio, and these with parentbased_ before them";
            return Err(TracesError::Variable(NAME, known));
        }
    };
    Ok(Sampler { ratio, follows_parent })
}

/// `name=value,name=value`, percent-encoded (W3C baggage without its properties).
fn pairs(text: &str) -> Vec<(String, String)> {
    let decoded = |text: &str| {
        let mut decoded = Vec::new();
        let mut bytes = text.trim().bytes();
        while let Some(byte) = bytes.next() {
            let mut ahead = bytes.clone();
            let digits = [ahead.next(), ahead.next()]
                .map(|digit| digit.and_then(|digit| char::from(digit).to_digit(16)));
            match (byte, digits) {
                (b'%', [Some(high), Some(low)]) => {
                    decoded.push(u8::try_from(high * 16 + low).unwrap_or_default());
                    bytes = ahead;
                }
                _ => decoded.push(byte),
            }
        }
        String::from_utf8_lossy(&decoded).into_owned()
    };
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

impl Tracer {
    /// Starts the exporter.
    ///
    /// # Errors
    /// Its certificates cannot be used, or there is no thread to be had.
    pub fn start(settings: Settings, metrics: Metrics) -> Result<(Self, Exporter), TracesError> {
        let client = https::client(settings.ca.as_deref()).map_err(TracesError::Tls)?;
        let (finished, queue) = mpsc::channel(QUEUE);
        let (tell, done) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (counted, sampler) = (metrics.clone(), settings.sampler);
        thread::Builder::new().name("traces".to_owned()).spawn(move || {
            runtime.block_on(export_all(queue, &client, &settings, &counted));
            let _ = tell.send(()); // nobody waits for it
        })?;
        Ok((Self { finished, sampler, metrics }, Exporter { done }))
    }

    /// What is sampled.
    pub fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// A span is over.
    pub fn finish(&self, span: Arc<Span>, method: Method, outcome: Outcome, elapsed: Duration) {
        let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.finished.try_send(Finished { span, method, outcome, elapsed, ended }).is_err() {
            self.metrics.spans_dropped.inc();
        }
    }
}

impl Exporter {
    /// Waits until everything is out, for as long as that may hold up the end. All tracers must be gone.
    pub async fn finish(self) {
        if timeout(LAST_EXPORT, self.done).await.is_err() {
            tracing::warn!("the last spans were not taken by the collector in time");
        }
    }
}

async fn export_all(
    mut queue: mpsc::Receiver<Finished>,
    client: &Client<Full<Bytes>>,
    settings: &Settings,
    metrics: &Metrics,
) {
    let mut failing = false;
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        // The first is waited for, the others while it waits.
        match queue.recv().await {
            Some(first) => batch.push(first),
            None => return,
        }
        let fill = async {
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                if queue.recv_many(&mut batch, room).await == 0 {
                    return; // the last ones
                }
            }
        };
        let _ = timeout(BATCH_WAIT, fill).await; // or what there is
        let number = batch.len() as u64;
        match export(client, settings, &batch).await {
            Ok(()) => {
                metrics.spans_exported.inc_by(number);
                if std::mem::take(&mut failing) {
                    tracing::info!("the collector takes spans again");
                }
            }
            Err(why) => {
                metrics.spans_dropped.inc_by(number);
                if !std::mem::replace(&mut failing, true) {
                    let endpoint = redact::url(&settings.endpoint.to_string());
                    tracing::warn!(endpoint, "spans cannot be exported, and are dropped: {why}");
                }
            }
        }
        batch.clear();
    }
}

async fn export(client: &Client<Full<Bytes>>, settings: &Settings, spans: &[Finished]) -> Result<(), String> {
    let mut request = Request::new(Full::new(Bytes::from(otlp::body(&settings.resource, spans))));
    *request.method_mut() = HttpMethod::POST;
    *request.uri_mut() = settings.endpoint.clone();
    *request.headers_mut() = settings.headers.clone();
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let exchange = async {
        let response = client.request(request).await.map_err(|error| https::innermost(&error))?;
        let status = response.status();
        // Read to its end, so that the connection can be used again.
        let _ = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        if status.is_success() { Ok(()) } else { Err(format!("HTTP {status}")) }
    };
    timeout(EXPORT_TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {EXPORT_TIMEOUT:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(base: &str, variables: &[(&str, &str)]) -> Result<Option<Settings>, TracesError> {
        let find = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Settings::read(
            &base.parse().unwrap(),
            &[("service.name", "gateway"), ("service.instance.id", "i")],
            find,
        )
    }

    #[test]
    fn the_variables_are_opentelemetrys_own() {
        let plain = read("http://collector:4318", &[]).unwrap().unwrap();
        assert_eq!(plain.endpoint.to_string(), "http://collector:4318/v1/traces");
        assert_eq!(plain.sampler, Sampler { ratio: 1.0, follows_parent: true });
        let settings = read(
            "https://collector:4318/otlp/",
            &[
                ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s%20ecret, x-a=1"),
                ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=pro%64,service.name=low"),
                ("OTEL_SERVICE_NAME", "high"),
                ("OTEL_TRACES_SAMPLER", "traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ],
        );
        let settings = settings.unwrap().unwrap();
        assert_eq!(settings.endpoint.to_string(), "https://collector:4318/otlp/v1/traces");
        assert_eq!(settings.headers["api-key"], "s ecret");
        assert!(!format!("{settings:?}").contains("s ecret"), "{settings:?}");
        let resource: Vec<_> = settings.resource.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        let expected =
            [("deployment.environment", "prod"), ("service.instance.id", "i"), ("service.name", "high")];
        assert_eq!(resource, expected);
        assert_eq!(settings.sampler, Sampler { ratio: 0.25, follows_parent: false });
        assert_eq!(settings.ca.as_deref(), Some("/ca.pem".as_ref()));
        let own = read("http://a", &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b/x")]).unwrap().unwrap();
        assert_eq!(own.endpoint.to_string(), "http://b/x");
        assert!(read("http://a", &[("OTEL_SDK_DISABLED", "true")]).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_used_is_named_and_no_secret_shown() {
        for (base, name, value, told) in [
            ("ftp://a", "X", "", "--otlp-endpoint"),
            ("http://me:hunter2@a", "X", "", "--otlp-endpoint"),
            ("http://a", "OTEL_TRACES_SAMPLER", "jaeger", "OTEL_TRACES_SAMPLER is none of"),
            ("http://a", "OTEL_EXPORTER_OTLP_HEADERS", "a b=hunter2", "OTEL_EXPORTER_OTLP_HEADERS holds"),
        ] {
            let error = read(base, &[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(told) && !error.contains("hunter2"), "{error}");
        }
        let ratio = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "7")];
        assert!(read("http://a", &ratio).unwrap_err().to_string().contains("from 0 to 1"));
    }
}
