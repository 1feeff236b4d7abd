//! The dashboard's panels, and what Prometheus answers to their queries.

use anyhow::{Context, Result};
use serde_json::Value;

/// A panel of the dashboard.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) kind: Kind,
    pub(super) title: String,
    /// Column, row, width and height, in the dashboard's units: 24 columns.
    pub(super) place: [f64; 4],
    pub(super) unit: Unit,
    pub(super) targets: Vec<Target>,
}

/// What of Grafana's panels the dashboard has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A headline.
    Row,
    /// Numbers: the last values.
    Stat,
    /// Lines over time.
    Lines,
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Number,
    Percent,
    PerSecond,
    Seconds,
    BytesPerSecond,
}

/// A query, and how each of its lines is called: `{{label}}` stands for the label's value.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) query: String,
    pub(super) legend: String,
}

/// A line.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: String,
    /// Seconds since 1970, and the value.
    pub(super) points: Vec<(f64, f64)>,
}

/// The panels, as Grafana would show them.
pub(super) fn all(dashboard: &Value) -> Result<Vec<Panel>> {
    dashboard["panels"].as_array().context("panels")?.iter().map(Panel::of).collect()
}

impl Panel {
    fn of(panel: &Value) -> Result<Self> {
        let title = panel["title"].as_str().context("a title")?.to_owned();
        let kind = match panel["type"].as_str() {
            Some("row") => Kind::Row,
            Some("stat") => Kind::Stat,
            Some("timeseries") => Kind::Lines,
            other => anyhow::bail!("{title}: {other:?} cannot be drawn"),
        };
        let unit = match panel["fieldConfig"]["defaults"]["unit"].as_str() {
            None | Some("short") => Unit::Number,
            Some("percentunit") => Unit::Percent,
            Some("ops" | "reqps") => Unit::PerSecond,
            Some("s") => Unit::Seconds,
            Some("Bps") => Unit::BytesPerSecond,
            Some(other) => anyhow::bail!("{title}: values in {other} cannot be written"),
        };
        let targets = panel["targets"].as_array().into_iter().flatten().map(|target| {
            let query = target["expr"].as_str().context("a query")?.to_owned();
            Ok(Target { query, legend: target["legendFormat"].as_str().unwrap_or_default().to_owned() })
        });
        let at = |name: &str| panel["gridPos"][name].as_f64().context("a place");
        let place = [at("x")?, at("y")?, at("w")?, at("h")?];
        Ok(Self { kind, title, place, unit, targets: targets.collect::<Result<_>>()? })
    }
}

impl Series {
    /// One sample of an answer, of a moment (`value`) or of a time (`values`).
    pub(super) fn of(sample: &Value, legend: &str) -> Result<Self> {
        let mut name = legend.to_owned();
        for (label, value) in sample["metric"].as_object().into_iter().flatten() {
            name = name.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap_or_default());
        }
        let one = sample.get("value").into_iter();
        let points = one.chain(sample["values"].as_array().into_iter().flatten()).map(|point| {
            let value = point[1].as_str().context("a value")?.parse().context("a number")?;
            Ok((point[0].as_f64().context("a time")?, value))
        });
        Ok(Self { name, points: points.collect::<Result<_>>()? })
    }

    /// The last value that is a number.
    pub(super) fn last(&self) -> Option<f64> {
        self.points.iter().rev().map(|point| point.1).find(|value| value.is_finite())
    }
}

impl Unit {
    /// As Grafana writes it, nearly.
    pub(super) fn write(self, value: f64) -> String {
        match self {
            Self::Number => short(value),
            Self::Percent => format!("{} %", short(value * 100.0)),
            Self::PerSecond => format!("{}/s", short(value)),
            Self::Seconds if value == 0.0 => "0 s".to_owned(),
            Self::Seconds if value < 0.001 => format!("{} µs", short(value * 1e6)),
            Self::Seconds if value < 1.0 => format!("{} ms", short(value * 1e3)),
            Self::Seconds => format!("{} s", short(value)),
            Self::BytesPerSecond if value >= 1e6 => format!("{} MB/s", short(value / 1e6)),
            Self::BytesPerSecond if value >= 1e3 => format!("{} kB/s", short(value / 1e3)),
            Self::BytesPerSecond => format!("{} B/s", short(value)),
        }
    }
}

/// Three digits that count, and no zeros at the end.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}
