//! The API server's audit log: who asked for what, and what came of it.

use std::{
    env,
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::PathBuf,
};

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// A request that has been answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `create`, `patch`, `get` …
    pub verb: String,
    /// The resource, with the subresource behind a slash: `deployments`, `mcpservices/status`.
    pub resource: String,
    /// Namespace of the object; empty: it has none.
    pub namespace: String,
    /// Path and query.
    pub uri: String,
    /// Who asked, by its own words.
    pub user_agent: String,
    /// HTTP status of the answer.
    pub code: u64,
    /// When the answer was complete.
    pub at: Timestamp,
}

impl Request {
    /// Whether it was to change something. A review asks a question, whatever its verb.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch") && !self.resource.ends_with("reviews")
    }

    fn parse(line: &str) -> Option<Self> {
        let event: Value = serde_json::from_str(line).ok()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (event["stage"] == "ResponseComplete").then_some(())?;
        let object = &event["objectRef"];
        let mut resource = text(&object["resource"]);
        if let Some(part) = object["subresource"].as_str() {
            resource = format!("{resource}/{part}");
        }
        Some(Self {
            verb: text(&event["verb"]),
            resource,
            namespace: text(&object["namespace"]),
            uri: text(&event["requestURI"]),
            user_agent: text(&event["userAgent"]),
            code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
            at: event["stageTimestamp"].as_str()?.parse().ok()?,
        })
    }
}

/// The log of a cluster of `cargo xtask cluster`, read on and on.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    read: u64,
}

impl Audit {
    /// From its beginning.
    ///
    /// # Errors
    /// When the cluster is not one of `cargo xtask cluster`.
    pub fn from_start() -> Result<Self> {
        let kubeconfig = PathBuf::from(env::var_os("KUBECONFIG").context("KUBECONFIG is not set")?);
        let path = kubeconfig.parent().context("odd KUBECONFIG")?.join("log/audit.log");
        Ok(Self { path, read: 0 })
    }

    /// From what comes now.
    ///
    /// # Errors
    /// As [`from_start`](Self::from_start), and when there is no log.
    pub fn from_now() -> Result<Self> {
        let mut audit = Self::from_start()?;
        audit.read = audit.path.metadata().context("no audit log")?.len();
        Ok(audit)
    }

    /// What was written since the last call and has this text in it.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn read(&mut self, about: &str) -> Result<Vec<Request>> {
        let mut file =
            File::open(&self.path).with_context(|| format!("no audit log at {}", self.path.display()))?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut lines = BufReader::new(file);
        let (mut found, mut line) = (Vec::new(), String::new());
        loop {
            line.clear();
            let length = lines.read_line(&mut line)?;
            // The last line may be half written.
            if length == 0 || !line.ends_with('\n') {
                return Ok(found);
            }
            self.read += length as u64;
            if line.contains(about) {
                found.extend(Request::parse(&line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"kind":"Event","stage":"ResponseComplete","requestURI":"/apis/mcp-mqtt.io/v1alpha1/namespaces/meteo/mcpservices/weather/status?fieldManager=x","verb":"patch","userAgent":"mcp-mqtt-operator/0.1.0","objectRef":{"resource":"mcpservices","namespace":"meteo","subresource":"status"},"responseStatus":{"code":200},"stageTimestamp":"2026-11-22T22:00:00.123456Z"}"#;

    #[test]
    fn a_line_says_who_asked_for_what() {
        let request = Request::parse(LINE).expect("it is one of the API server's");
        assert_eq!((request.verb.as_str(), request.resource.as_str()), ("patch", "mcpservices/status"));
        assert_eq!((request.namespace.as_str(), request.code), ("meteo", 200));
        assert!(request.is_write());
        let asked =
            LINE.replace("\"patch\"", "\"create\"").replace("mcpservices\"", "subjectaccessreviews\"");
        let asked = asked.replace(r#","subresource":"status""#, "");
        assert!(!Request::parse(&asked).expect("as above").is_write());
        assert_eq!(Request::parse(&LINE.replace("ResponseComplete", "ResponseStarted")), None);
        assert_eq!(Request::parse("{"), None);
    }
}
