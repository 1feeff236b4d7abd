//! Permissions, the CRD, the broker for a first try, and what the chart says after an install.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use mcp_mqtt_operator::crd::{self, McpService};
use mcp_mqtt_tests::helm::{chart, find, helm_ok, template, template_as, values_files};
use serde_json::{Value, json};

const OPERATOR: &str = "mcp-mqtt-operator";

fn kinds(objects: &[Value]) -> BTreeSet<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    objects
        .iter()
        .map(|object| {
            (text(&object["kind"]), text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
        })
        .collect()
}

#[test]
fn every_permission_says_why_it_is_needed() -> Result<()> {
    let mut rules = 0;
    for file in ["_rules.tpl", "rbac.yaml", "sessionmetrics.yaml", "_leader.tpl"] {
        let text = fs::read_to_string(chart().join("templates").join(file))?;
        let mut above = "";
        for (number, line) in text.lines().map(str::trim).enumerate() {
            if line.starts_with("- apiGroups:") {
                rules += 1;
                assert!(above.starts_with("# "), "{file}:{}: a rule without its reason above it", number + 1);
            }
            above = line;
        }
    }
    assert!(rules > 15, "only {rules} rules were found: are they written another way now?");
    Ok(())
}

#[tokio::test]
async fn no_permission_is_a_wildcard_or_lets_the_operator_raise_its_own() -> Result<()> {
    for file in values_files()? {
        let objects = template(&["--values", &file.to_string_lossy()]).await?;
        for role in
            objects.iter().filter(|object| object["kind"].as_str().is_some_and(|kind| kind.ends_with("Role")))
        {
            let text = role["rules"].to_string();
            for word in [
                "\"*\"",
                "escalate",
                "bind",
                "impersonate",
                "rbac.authorization.k8s.io",
                "pods/exec",
                "nodes",
            ] {
                assert!(!text.contains(word), "{}: {word}", role["metadata"]["name"]);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn watching_all_namespaces_takes_a_cluster_role_and_a_role_of_its_own() -> Result<()> {
    let objects = template::<&str>(&[]).await?;
    let binding = find(&objects, "ClusterRoleBinding", OPERATOR)?;
    assert_eq!(binding["roleRef"]["name"], OPERATOR);
    assert_eq!(
        binding["subjects"],
        json!([{"kind": "ServiceAccount", "name": OPERATOR, "namespace": "mcp-mqtt"}])
    );
    let own = find(&objects, "Role", "mcp-mqtt-operator-own")?;
    for rule in own["rules"].as_array().context("rules")? {
        let creates = rule["verbs"] == json!(["create"]);
        assert_ne!(creates, rule["resourceNames"].is_array(), "what can be bound by name is: {rule}");
    }
    Ok(())
}

#[tokio::test]
async fn watching_some_namespaces_takes_no_right_over_the_cluster() -> Result<()> {
    let file = chart().join("ci/namespaced-values.yaml");
    let objects = template(&["--values", &file.to_string_lossy()]).await?;
    let roles: BTreeSet<_> = kinds(&objects).into_iter().filter(|(kind, ..)| kind.contains("Role")).collect();
    let expected = ["tools", "agents"].map(|namespace| (namespace, OPERATOR));
    let expected = expected.into_iter().chain([("mcp-mqtt", "mcp-mqtt-operator-own")]);
    let expected: BTreeSet<_> = expected
        .flat_map(|(namespace, name)| {
            ["Role", "RoleBinding"].map(|kind| (kind.to_owned(), namespace.to_owned(), name.to_owned()))
        })
        .collect();
    assert_eq!(roles, expected);
    Ok(())
}

#[tokio::test]
async fn the_broker_secret_can_be_read_by_its_name_only() -> Result<()> {
    let with = template(&["--set", "broker.url=mqtts://a,broker.secret=credentials,watchNamespaces={tools}"])
        .await?;
    let own = find(&with, "Role", "mcp-mqtt-operator-own")?;
    let rule = own["rules"]
        .as_array()
        .context("rules")?
        .iter()
        .find(|rule| rule["resourceNames"] == json!(["credentials"]));
    assert_eq!(rule.context("no rule for it")?["verbs"], json!(["get", "list", "watch"]));
    let without = template::<&str>(&[]).await?;
    let own = find(&without, "Role", "mcp-mqtt-operator-own")?;
    assert!(!own["rules"].to_string().contains("credentials"));
    Ok(())
}

#[tokio::test]
async fn people_who_may_edit_a_namespace_may_edit_its_services_and_viewers_may_only_look() -> Result<()> {
    let objects = template::<&str>(&[]).await?;
    let view = find(&objects, "ClusterRole", "mcp-mqtt-operator-view")?;
    assert_eq!(view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"], "true");
    assert!(
        view["rules"]
            .as_array()
            .context("rules")?
            .iter()
            .all(|rule| rule["verbs"] == json!(["get", "list", "watch"]))
    );
    let edit = find(&objects, "ClusterRole", "mcp-mqtt-operator-edit")?;
    assert!(edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"].is_null());
    let none = template(&["--set", "rbac.aggregateClusterRoles=false"]).await?;
    assert!(find(&none, "ClusterRole", "mcp-mqtt-operator-view").is_err());
    Ok(())
}

#[tokio::test]
async fn the_crd_is_the_operators_own_and_stays_unless_told_otherwise() -> Result<()> {
    let name = "mcpservices.mcp-mqtt.io";
    let kept = template::<&str>(&[]).await?;
    let rendered = find(&kept, "CustomResourceDefinition", name)?;
    assert_eq!(rendered["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    // As the type, so that 100 and 100.0 are one; and not by assert_eq, which would print 80 KB twice.
    let typed: CustomResourceDefinition = serde_json::from_value(rendered.clone())?;
    assert!(typed.spec == crd::crd().spec, "the chart's copy is stale: run `cargo xtask crds`");
    let dropped = template(&["--set", "crds.keep=false"]).await?;
    assert!(find(&dropped, "CustomResourceDefinition", name)?["metadata"]["annotations"].is_null());
    let none = template(&["--set", "crds.enabled=false"]).await?;
    assert!(find(&none, "CustomResourceDefinition", name).is_err());
    Ok(())
}

#[tokio::test]
async fn the_broker_for_a_first_try_becomes_the_default_and_says_what_it_is_not() -> Result<()> {
    let objects = template(&["--set", "mosquitto.enabled=true"]).await?;
    let name = "mcp-mqtt-mosquitto";
    let deployment = find(&objects, "Deployment", name)?;
    for metadata in [
        &deployment["metadata"],
        &deployment["spec"]["template"]["metadata"],
        &find(&objects, "Service", name)?["metadata"],
    ] {
        let warning =
            metadata["annotations"]["mcp-mqtt.io/not-for-production"].as_str().context("no warning")?;
        assert!(warning.contains("not for production"), "{warning}");
    }
    let configuration =
        find(&objects, "ConfigMap", name)?["data"]["mosquitto.conf"].as_str().context("conf")?.to_owned();
    assert!(configuration.lines().any(|line| line == "set_tcp_nodelay true"), "{configuration}");
    let operator = find(&objects, "Deployment", OPERATOR)?["spec"]["template"]["spec"].to_string();
    assert!(operator.contains("mqtt://mcp-mqtt-mosquitto.mcp-mqtt.svc:1883"), "{operator}");
    let more = template(&["--set", "mosquitto.enabled=true,mosquitto.extraConfig=log_type all"]).await?;
    let checksum = |objects: &[Value]| -> Result<Value> {
        Ok(find(objects, "Deployment", name)?["spec"]["template"]["metadata"]["annotations"]["checksum/config"].clone())
    };
    assert_ne!(checksum(&objects)?, checksum(&more)?, "a new configuration restarts the broker");
    let labels = deployment["spec"]["template"]["metadata"]["labels"].as_object().context("labels")?;
    for changes in ["helm.sh/chart", "app.kubernetes.io/version"] {
        assert!(!labels.contains_key(changes), "each upgrade of the chart restarts the broker: {labels:?}");
    }
    Ok(())
}

async fn notes(set: &str) -> Result<String> {
    let directory = chart().to_string_lossy().into_owned();
    let arguments =
        ["install", "mcp-mqtt", &directory, "--dry-run=client", "--namespace", "mcp-mqtt", "--set", set];
    let text = helm_ok(&arguments).await?;
    Ok(text.split_once("\nNOTES:\n").context("no NOTES")?.1.to_owned())
}

#[tokio::test]
async fn the_notes_give_a_manifest_that_can_be_pasted_and_the_command_that_watches_it() -> Result<()> {
    for set in ["mosquitto.enabled=true", "watchNamespaces={tools}", "broker.url=mqtts://b:8883"] {
        let notes = notes(set).await?;
        let (_, rest) = notes.split_once("kubectl apply -f - <<'END'\n").context("no kubectl apply")?;
        let (manifest, after) = rest.split_once("\nEND\n").context("no end")?;
        let service: McpService = serde_yaml::from_str(manifest).with_context(|| manifest.to_owned())?;
        let broker = service.spec.broker.is_some();
        assert_eq!(
            broker,
            set.starts_with("watch"),
            "a manifest brings a broker exactly where there is no default: {set}"
        );
        let namespace = service.metadata.namespace.context("namespace")?;
        assert_eq!(namespace, if set.starts_with("watch") { "tools" } else { "default" });
        assert!(after.contains(&format!("kubectl get mcps --namespace {namespace} --watch")), "{after}");
        assert!(notes.contains("helm test mcp-mqtt --namespace mcp-mqtt"), "{notes}");
    }
    Ok(())
}

#[tokio::test]
async fn the_notes_warn_of_what_will_surprise() -> Result<()> {
    for (set, warning) in [
        ("mosquitto.enabled=true", "NOT FOR PRODUCTION"),
        ("crds.keep=true", "there is no default broker"),
        ("rbac.create=false,serviceAccount.name=mine", "bind the roles"),
        ("crds.keep=false", "will delete every McpService in the cluster"),
        ("replicaCount=0", "no operator runs"),
        ("watchNamespaces={tools}", "not by their sessions"),
        (
            "sidecar.image.pullPolicy=Always",
            "no registry in image.repository=mcp-mqtt-operator and sidecar.image",
        ),
    ] {
        let notes = notes(set).await?;
        assert!(notes.contains(warning), "{set}: {notes}");
    }
    let images = "image.repository=r.example.com/operator,sidecar.image.repository=r.example.com/sidecar";
    let notes = notes(&format!("broker.url=mqtts://b:8883,{images}")).await?;
    assert!(!notes.contains("WARNING"), "{notes}");
    Ok(())
}

#[tokio::test]
async fn the_packaged_chart_renders_the_same_and_leaves_the_tests_values_out() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let into = directory.path().to_string_lossy().into_owned();
    helm_ok(&["package", &chart().to_string_lossy(), "--destination", &into]).await?;
    let package = directory.path().join("mcp-mqtt-operator-0.2.0.tgz");
    let packaged = template_as::<&str>("mcp-mqtt", &package, &[]).await?;
    assert_eq!(packaged, template::<&str>(&[]).await?);
    find(&packaged, "CustomResourceDefinition", "mcpservices.mcp-mqtt.io")?;
    let unpacked = helm_ok(&["show", "all", &package.to_string_lossy()]).await?;
    assert!(unpacked.contains("## Values") && !unpacked.contains("A newcomer without a broker"));
    Ok(())
}
