//! The reference pages: what the gateway and the shim can be told, and what there is to measure. Written from the
//! command lines and the metrics themselves, so that nothing is missing and nothing is wrong.

use std::{collections::BTreeSet, fmt::Write as _};

use clap::{Arg, Args as _, Command};
use mcp_mqtt_operator::metrics as operator;
use mcp_mqtt_sidecar::{
    cli::GatewayFace,
    metrics::{Description, Metrics},
    shim::RunConfig,
};

use crate::Generated;

/// The command that writes these files; a failed check names it.
const COMMAND: &str = "cargo xtask docs";

/// The pages.
pub(crate) fn generate() -> Vec<Generated> {
    let file = |name: &str, content| Generated { path: format!("docs/{name}"), content, command: COMMAND };
    vec![file("configuration.md", configuration()), file("metrics.md", metrics())]
}

const CONFIGURATION: &str = "# Configuration of the gateway

<!-- Written by `cargo xtask docs`. -->

In Kubernetes nobody writes these: the operator derives them from the McpService (`kubectl explain mcps.spec`) and the
chart's values. They are for a gateway without Kubernetes, and for whoever reads a pod's arguments.

Each setting is an argument or an environment variable; the argument wins. Durations are written `500ms`, `30s` or
`1m30s`. Credentials are always files, read anew at every connect. `gateway --print-config` shows what is in effect as a
command line, and starts nothing. A configuration that cannot be used is told in full, every problem of it, and ends
with exit code 64 before anything was started.

";

const SHIM: &str = "
## `shim run`

What the server's container of a stdio service runs.

";

fn configuration() -> String {
    let gateway = table(&GatewayFace::augment_args(Command::new("gateway")));
    let shim = table(&RunConfig::augment_args(Command::new("run")));
    format!("{CONFIGURATION}## `gateway`\n\n{gateway}{SHIM}{shim}")
}

fn table(command: &Command) -> String {
    let mut text = "| Argument | Environment | Default | |\n|---|---|---|---|\n".to_owned();
    for argument in command.get_arguments() {
        row(&mut text, [name(argument), variable(argument), default(argument), help(argument)]);
    }
    text
}

fn row<const N: usize>(text: &mut String, cells: [String; N]) {
    let _ = writeln!(text, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
}

fn name(argument: &Arg) -> String {
    let value = argument.get_value_names().and_then(<[_]>::first).map(|name| format!(" {name}"));
    let value = value.filter(|_| argument.get_action().takes_values()).unwrap_or_default();
    match argument.get_long_and_visible_aliases() {
        Some(names) => names.iter().map(|name| format!("`--{name}{value}`")).collect::<Vec<_>>().join(", "),
        None => format!("`--{value} …`"),
    }
}

fn variable(argument: &Arg) -> String {
    argument.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default()
}

fn default(argument: &Arg) -> String {
    if argument.is_required_set() {
        return "required".to_owned();
    }
    if argument.is_hide_default_value_set() || !argument.get_action().takes_values() {
        return String::new();
    }
    let values: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if values.is_empty() { String::new() } else { format!("`{}`", values.join(" ")).replace("``", "empty") }
}

fn help(argument: &Arg) -> String {
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default().replace('\n', " ");
    let values = argument.get_possible_values();
    if values.is_empty() || !argument.get_action().takes_values() {
        return help;
    }
    let values = values.iter().map(|value| {
        let meaning = value.get_help().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("`{}`{meaning}", value.get_name())
    });
    format!("{help}: {}", values.collect::<Vec<_>>().join(", "))
}

const METRICS: &str = "# Metrics

<!-- Written by `cargo xtask docs`. -->

OpenMetrics text at `/metrics`: the gateway's on port 8079 of its pod (elsewhere where `--admin-address` says), the
operator's on port 8080. Durations are in seconds, sizes in bytes. No label takes a value that a client can invent:
methods that MCP does not know are `other`. A series appears with its first sample. `process_…` are Prometheus' standard
metrics of a process, read at each scrape.

";

const ALERTS: &str = "
The chart has alerts on them (`metrics.prometheusRule`), each with its section in [the runbook](runbook.md), and a
dashboard (`metrics.dashboard`). Its PodMonitor adds the label `mcp_service`.

![The dashboard, while instances are taken away under 64 clients](dashboard.svg)

The dashboard's panels, drawn from what Prometheus saw during `cargo xtask bench rollout --picture`.

";

fn metrics() -> String {
    let head = "| Metric | Type | Labels | |\n|---|---|---|---|\n";
    let mut gateway = head.to_owned();
    for Description { name, kind, labels, help } in Metrics::catalogue() {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        row(&mut gateway, [format!("`{name}`"), kind.to_owned(), labels, help.to_owned()]);
    }
    let mut operator = head.to_owned();
    for cells in of_text(&operator_sample()) {
        row(&mut operator, cells);
    }
    format!("{METRICS}## Gateway\n\n{gateway}{ALERTS}## Operator\n\n{operator}")
}

/// The operator's text with a sample of everything.
fn operator_sample() -> String {
    let metrics = operator::Metrics::new();
    metrics.reconciled(operator::Outcome::Accepted, 0.0);
    metrics.wrote("Pod", "apply");
    metrics.asked_gateway(true);
    metrics.knows("Pod", "*", 0);
    metrics.counted("*", "True", "Ready", 0);
    metrics.troubled("meteo", "weather", operator::Trouble::RollingOut, true);
    metrics.woke(true);
    metrics.encode()
}

/// Name, type, labels and help of each metric in a text with samples of all.
fn of_text(text: &str) -> Vec<[String; 4]> {
    let mut rows = Vec::new();
    for line in text.lines() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) else {
            continue;
        };
        let kind =
            text.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} "))).unwrap_or_default();
        let (kind, suffix) = match kind {
            "counter" => ("counter", "_total"),
            "info" => ("gauge", "_info"),
            other => (other, ""),
        };
        // The name of another metric may begin with this one's.
        let is_sample = |line: &str| {
            let rest = line.strip_prefix(name).and_then(|rest| rest.split(['{', ' ']).next());
            rest.is_some_and(|rest| ["", suffix, "_bucket", "_sum", "_count"].contains(&rest))
        };
        let samples = text.lines().filter(|line| is_sample(line));
        let labels: BTreeSet<String> = samples
            .filter_map(|line| Some(line.split_once('{')?.1.split_once('}')?.0.to_owned()))
            .flat_map(|labels| labels.split(',').map(ToOwned::to_owned).collect::<Vec<_>>())
            .filter_map(|label| Some(label.split_once('=')?.0.to_owned()))
            .filter(|label| label != "le")
            .collect();
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let help = help.trim_end_matches('.').to_owned();
        rows.push([format!("`{name}{suffix}`"), kind.to_owned(), labels, help]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_texts_metrics_are_read_with_their_labels() {
        let text = "# HELP a_b Some.\n# TYPE a_b counter\na_b_total{x=\"1\",y=\"2\"} 0\n# HELP c C.\n# TYPE c gauge\nc 0\n";
        let rows = of_text(text);
        assert_eq!(rows[0], ["`a_b_total`", "counter", "`x`, `y`", "Some"]);
        assert_eq!(rows[1], ["`c`", "gauge", "", "C"]);
    }

    #[test]
    fn a_metric_has_no_labels_of_another_whose_name_begins_with_its_own() {
        let text =
            "# HELP a A.\n# TYPE a gauge\na 0\n# HELP a_b B.\n# TYPE a_b counter\na_b_total{x=\"1\"} 0\n";
        let rows = of_text(text);
        assert_eq!((rows[0][2].as_str(), rows[1][2].as_str()), ("", "`x`"));
    }

    #[test]
    fn what_became_of_held_messages_is_in_the_page() {
        let expected = "| `mcp_mqtt_operator_held_messages_ended_total` | counter | `outcome` |";
        assert!(metrics().contains(expected), "{}", metrics());
    }

    #[test]
    fn every_argument_of_the_gateway_is_in_the_page() {
        let page = configuration();
        for expected in
            ["`--broker-url URL`, `--broker URL`", "`MCP_MQTT_IDLE_TIMEOUT`", "`-- COMMAND …`", "required"]
        {
            assert!(page.contains(expected), "{expected} is not in\n{page}");
        }
    }
}
