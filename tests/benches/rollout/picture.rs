//! The chart's Grafana dashboard as a picture: its panels and queries, answered by a Prometheus that scraped the cluster
//! while the changes were made.

mod chart;
mod panel;
mod svg;

use std::{fs, path::Path, time::SystemTime};

use anyhow::{Context, Result};
use mcp_mqtt_tests::{
    helm,
    monitoring::{Prometheus, filled},
    platform::Platform,
};
use serde_json::Value;

use self::{
    panel::{Kind, Series},
    svg::Canvas,
};

/// Points of a line.
const POINTS: f64 = 150.0;
/// What rates are taken over: some scrapes, and shorter than a change takes.
const RATE: &str = "10s";

/// What has been recorded since a moment.
pub(crate) struct Recorder {
    prometheus: Prometheus,
    begin: SystemTime,
    marks: Vec<Mark>,
}

/// Something that happened, shown as a line in every panel.
#[derive(Debug, Clone)]
struct Mark {
    what: String,
    at: f64,
}

/// From when to when the lines go (in seconds since 1970), and what happened then.
#[derive(Debug)]
struct Span {
    begin: f64,
    end: f64,
    marks: Vec<Mark>,
}

impl Recorder {
    /// Starts a Prometheus in the cluster's network.
    pub(crate) async fn start(platform: &Platform) -> Result<Self> {
        let prometheus = Prometheus::in_cluster(&platform.kube).await?;
        Ok(Self { prometheus, begin: SystemTime::now(), marks: Vec::new() })
    }

    /// Something happens now.
    pub(crate) fn mark(&mut self, what: &str) -> Result<()> {
        self.marks.push(Mark { what: what.to_owned(), at: seconds(SystemTime::now())? });
        Ok(())
    }

    /// Asks what the dashboard asks, and draws the answers.
    pub(crate) async fn draw(self, path: &Path) -> Result<()> {
        let dashboard = fs::read_to_string(helm::chart().join("files/dashboard.json"))?;
        let dashboard: Value = serde_json::from_str(&dashboard).context("the dashboard")?;
        let span = Span { begin: seconds(self.begin)?, end: seconds(SystemTime::now())?, marks: self.marks };
        let panels = panel::all(&dashboard)?;
        let mut canvas = Canvas::new(dashboard["title"].as_str().unwrap_or_default(), &panels, &span);
        for panel in &panels {
            let mut series = Vec::new();
            for target in &panel.targets {
                let query = filled(&target.query, RATE);
                let samples = match panel.kind {
                    Kind::Row => continue,
                    // Of a moment when there is something to see: at the end nobody calls any more.
                    Kind::Stat => {
                        let at = span.marks.last().map_or(span.end, |mark| mark.at);
                        self.prometheus.query_at(&query, at).await?
                    }
                    Kind::Lines => {
                        let step = (span.end - span.begin) / POINTS;
                        self.prometheus.range(&query, span.begin, span.end, step).await?
                    }
                };
                for sample in &samples {
                    series.push(Series::of(sample, &target.legend)?);
                }
            }
            canvas.draw(panel, &series);
        }
        fs::write(path, canvas.finish()).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Since 1970.
fn seconds(at: SystemTime) -> Result<f64> {
    Ok(at.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64())
}
