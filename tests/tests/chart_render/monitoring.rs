//! Alerts and the dashboard: Prometheus' own judgement of the rules, the runbook behind each, and that every metric
//! they name is one that there is.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, ensure};
use mcp_mqtt_tests::{
    binaries::workspace,
    helm::{chart, find, template},
    monitoring::{metric_names, queries},
};
use serde_json::{Value, json};
use tokio::process::Command;

const OPERATOR: &str = "mcp-mqtt-operator";
const ALL: [&str; 4] = [
    "--set",
    "metrics.prometheusRule.enabled=true,metrics.dashboard.enabled=true,metrics.podMonitor.enabled=true",
    "--set",
    "metrics.prometheusRule.runbookUrl=docs/runbook.md",
];

async fn rules() -> Result<Value> {
    Ok(find(&template(&ALL).await?, "PrometheusRule", OPERATOR)?.clone())
}

fn alerts(rules: &Value) -> Vec<&Value> {
    let groups = rules["spec"]["groups"].as_array().into_iter().flatten();
    groups.flat_map(|group| group["rules"].as_array().into_iter().flatten()).collect()
}

/// Runs Prometheus' tool on the rendered rules, which stand as `alerts.yaml` in its directory.
async fn promtool(rules: &Value, arguments: &[&str], directory: &Path) -> Result<String> {
    fs::write(directory.join("alerts.yaml"), serde_json::to_string(&rules["spec"])?)?;
    let output = Command::new("promtool").args(arguments).current_dir(directory).output().await;
    let output = output.context("no promtool: install the Debian package prometheus")?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "promtool {}:\n{said}", arguments.join(" "));
    Ok(said)
}

#[tokio::test]
async fn prometheus_takes_the_rules_and_each_alert_goes_off_when_it_should_and_only_then() -> Result<()> {
    let rules = rules().await?;
    let directory = tempfile::tempdir()?;
    let said = promtool(&rules, &["check", "rules", "alerts.yaml"], directory.path()).await?;
    ensure!(said.contains(&format!("{} rules found", alerts(&rules).len())), "{said}");
    let cases = fs::read_to_string(workspace().join("tests/tests/chart_render/alerts_test.yaml"))?;
    fs::write(directory.path().join("alerts_test.yaml"), &cases)?;
    promtool(&rules, &["test", "rules", "alerts_test.yaml"], directory.path()).await?;
    let cases: Value = serde_yaml::from_str(&cases)?;
    let tests = || cases["tests"].as_array().into_iter().flatten();
    let told = || tests().flat_map(|test| test["alert_rule_test"].as_array().into_iter().flatten());
    for alert in alerts(&rules) {
        let of_it: Vec<bool> = told()
            .filter(|case| case["alertname"] == alert["alert"])
            .map(|case| case["exp_alerts"].as_array().is_some_and(|expected| !expected.is_empty()))
            .collect();
        ensure!(
            of_it.contains(&true) && of_it.contains(&false),
            "{} is not tested both ways",
            alert["alert"]
        );
    }
    Ok(())
}

#[tokio::test]
async fn every_alert_names_its_section_of_the_runbook_and_the_runbook_has_no_other() -> Result<()> {
    let rules = rules().await?;
    let runbook = fs::read_to_string(workspace().join("docs/runbook.md"))?;
    let sections: BTreeSet<&str> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let mut named = BTreeSet::new();
    for alert in alerts(&rules) {
        let name = alert["alert"].as_str().context("a name")?;
        let url = format!("docs/runbook.md#{}", name.to_lowercase());
        ensure!(alert["annotations"]["runbook_url"] == url, "{name}: {}", alert["annotations"]);
        let severity = alert["labels"]["severity"].as_str();
        ensure!(matches!(severity, Some("critical" | "warning" | "info")), "{name}: {severity:?}");
        named.insert(name);
    }
    assert_eq!(named, sections);
    for section in runbook.split("\n## ").skip(1) {
        for part in ["**Means**", "**Look at**", "**Do**"] {
            ensure!(section.contains(part), "no {part} in {}", section.lines().next().unwrap_or_default());
        }
        for link in section.split("](#").skip(1).filter_map(|rest| rest.split(')').next()) {
            ensure!(sections.iter().any(|name| name.to_lowercase() == link), "no section {link}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn without_an_address_of_the_runbook_alerts_name_its_file_and_their_section() -> Result<()> {
    let objects = template(&["--set", "metrics.prometheusRule.enabled=true"]).await?;
    let rules = find(&objects, "PrometheusRule", OPERATOR)?;
    ensure!(!alerts(rules).is_empty(), "no alerts");
    for alert in alerts(rules) {
        ensure!(alert["annotations"].get("runbook_url").is_none(), "{alert}");
        let section = alert["alert"].as_str().context("a name")?.to_lowercase();
        ensure!(alert["annotations"]["runbook"] == format!("docs/runbook.md#{section}"), "{alert}");
        ensure!(alert["annotations"]["summary"].is_string(), "{alert}");
    }
    Ok(())
}

#[tokio::test]
async fn every_metric_of_the_alerts_and_the_dashboard_is_one_that_there_is() -> Result<()> {
    let catalogue = fs::read_to_string(workspace().join("docs/metrics.md"))?;
    let there: BTreeSet<String> = catalogue
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .flat_map(|name| [format!("{name}_bucket"), name])
        .collect();
    ensure!(there.len() > 50, "the tables of docs/metrics.md are written another way now");
    let rules = rules().await?;
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(chart().join("files/dashboard.json"))?)?;
    let expressions =
        alerts(&rules).into_iter().filter_map(|alert| alert["expr"].as_str().map(str::to_owned));
    let mut used = BTreeSet::new();
    for query in expressions.chain(queries(&dashboard)) {
        let names = metric_names(&query);
        ensure!(!names.is_empty(), "no metric in {query}");
        used.extend(names);
    }
    let unknown: Vec<_> = used.difference(&there).collect();
    ensure!(unknown.is_empty(), "there are no such metrics: {unknown:?}");
    Ok(())
}

#[tokio::test]
async fn monitoring_is_there_where_it_is_asked_for_and_nowhere_else() -> Result<()> {
    let none = template::<&str>(&[]).await?;
    for kind in ["PrometheusRule", "ServiceMonitor", "PodMonitor"] {
        assert!(none.iter().all(|object| object["kind"] != kind), "{kind}");
    }
    assert!(find(&none, "ConfigMap", "mcp-mqtt-operator-dashboard").is_err());
    let all = template(&ALL).await?;
    let dashboard = find(&all, "ConfigMap", "mcp-mqtt-operator-dashboard")?;
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
    let text = dashboard["data"]["mcp-mqtt.json"].as_str().context("the dashboard")?;
    assert!(!queries(&serde_json::from_str(text)?).is_empty());
    let monitor = find(&all, "PodMonitor", "mcp-mqtt-operator-gateways")?;
    let label = mcp_mqtt_operator::names::SERVICE_LABEL.replace(['.', '/', '-'], "_");
    assert_eq!(
        monitor["spec"]["podMetricsEndpoints"][0]["relabelings"],
        json!([{"sourceLabels": [format!("__meta_kubernetes_pod_label_{label}")], "targetLabel": "mcp_service"}])
    );
    Ok(())
}

#[tokio::test]
async fn alerts_can_be_left_out_and_labelled_and_go_by_this_releases_operator() -> Result<()> {
    let values = chart().join("ci/production-values.yaml");
    let objects = template(&["--values", &values.to_string_lossy()]).await?;
    let rules = find(&objects, "PrometheusRule", OPERATOR)?;
    assert_eq!(rules["metadata"]["labels"]["prometheus"], "main");
    let names: Vec<&str> = alerts(rules).iter().filter_map(|alert| alert["alert"].as_str()).collect();
    assert!(!names.contains(&"McpTraceSpansDropped") && names.contains(&"McpOperatorDown"), "{names:?}");
    for alert in alerts(rules) {
        assert_eq!(alert["labels"]["team"], "agents");
        let url = alert["annotations"]["runbook_url"].as_str().unwrap_or_default();
        assert!(url.starts_with("https://example.com/runbook.md#mcp"), "{url}");
    }
    let severity = |name: &str| {
        let alert = alerts(rules).into_iter().find(|alert| alert["alert"] == name);
        alert.map(|alert| alert["labels"]["severity"].clone()).unwrap_or_default()
    };
    assert_eq!(
        (severity("McpOperatorDown"), severity("McpMessagesDropped")),
        (json!("critical"), json!("info"))
    );
    let text = rules["spec"].to_string();
    assert!(
        text.contains(r#"mcp_mqtt_operator_leader{namespace=\"mcp-mqtt\", job=\"mcp-mqtt-operator\"}"#),
        "{text}"
    );
    assert!(!text.contains("OPERATOR") && !text.contains("RUNBOOK"), "{text}");
    Ok(())
}

#[tokio::test]
async fn network_policies_let_the_operator_and_prometheus_through() -> Result<()> {
    let values = chart().join("ci/production-values.yaml");
    let objects = template(&["--values", &values.to_string_lossy()]).await?;
    let deployment = find(&objects, "Deployment", OPERATOR)?;
    let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().context("env")?;
    let from = env.iter().find(|variable| variable["name"] == "MCP_MQTT_NETWORK_POLICY_FROM");
    let from: Value =
        serde_json::from_str(from.and_then(|from| from["value"].as_str()).context("no peers")?)?;
    let own = &from[0]["podSelector"]["matchLabels"];
    assert_eq!(from[0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], "mcp-mqtt");
    for (name, value) in own.as_object().context("labels")? {
        assert_eq!(&deployment["spec"]["template"]["metadata"]["labels"][name], value);
    }
    assert_eq!(from[1]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], "monitoring");
    Ok(())
}
