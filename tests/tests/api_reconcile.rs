//! What the operator makes of an `McpService`, at a real API server. No pod has to run for it: the images do not exist.
#![allow(clippy::unwrap_used, reason = "what the tests themselves write is as they write it")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Event, Secret, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use mcp_mqtt_operator::names::{APPLIED_HASH, PAUSED};
use mcp_mqtt_tests::{
    cluster::{PATIENCE, Space, eventually, smallest},
    operator::Operator,
};
use serde_json::{Value, json};

const NAME: &str = "weather";
const HASH: &str = "mcp-mqtt.io/references-hash";

fn with(patch: &Value) -> Value {
    let mut spec = smallest(0);
    spec.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
    spec
}

fn template(deployment: &Deployment) -> Value {
    serde_json::to_value(deployment.spec.as_ref().map(|spec| &spec.template)).unwrap()
}

fn annotation(deployment: &Deployment, key: &str) -> Option<String> {
    template(deployment)["metadata"]["annotations"][key].as_str().map(str::to_owned)
}

fn secret(name: &str, data: &[(&str, &str)]) -> Value {
    let data: BTreeMap<_, _> = data.iter().copied().collect();
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
}

/// Waits until the operator has seen this generation of the service.
async fn observed(space: &Space, generation: i64) -> Result<Value> {
    space.status(NAME, |status| status["observedGeneration"] == generation).await
}

/// Waits until nothing in the namespace changes any more: the pods' own troubles are written down.
async fn at_rest(space: &Space) -> Result<()> {
    let mut last = space.versions().await?;
    let mut calm = 0;
    eventually(PATIENCE, async || {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let now = space.versions().await.ok()?;
        calm = if now == last { calm + 1 } else { 0 };
        last = now;
        (calm >= 5).then_some(())
    })
    .await
    .context("it does not come to rest")
}

#[tokio::test]
async fn a_service_becomes_its_objects_and_takes_them_along_when_it_goes() -> Result<()> {
    let space = Space::new("objects").await?;
    let operator = Operator::start(&space, &[]).await?;
    space.create(NAME, &with(&json!({"replicas": 2}))).await?;
    let deployment: Deployment = space.appears(NAME).await?;
    let account: ServiceAccount = space.appears(NAME).await?;
    let budget: PodDisruptionBudget = space.appears(NAME).await?;
    for owners in [deployment.owner_references(), account.owner_references(), budget.owner_references()] {
        ensure!(owners.len() == 1 && owners[0].kind == "McpService" && owners[0].name == NAME, "{owners:?}");
    }
    ensure!(account.automount_service_account_token == Some(false), "{account:?}");
    space.condition(NAME, "Accepted", "True", "Accepted").await?;
    // The images do not exist: the kubelet says so, and so does the service.
    space.condition(NAME, "Ready", "False", "ErrImageNeverPull").await?;
    let told = |status: &Value| status["conditions"][1]["message"].as_str().unwrap_or_default().to_owned();
    let said = told(&space.status(NAME, |status| told(status).contains("and 1 more")).await?);
    ensure!(
        said.contains("0 of 2 instances ready") && said.contains("and 1 more: container gateway: "),
        "{said}"
    );
    let status = space.status(NAME, |status| status["replicas"] == 2).await?;
    ensure!(
        status["ready"] == "0/2" && status["serverName"] == format!("{}/{NAME}", space.namespace),
        "{status}"
    );
    ensure!(status["selector"] == format!("mcp-mqtt.io/service={NAME}"), "{status}");

    space.services().delete(NAME, &DeleteParams::default()).await?;
    space.disappears::<Deployment>(NAME).await?;
    space.disappears::<ServiceAccount>(NAME).await?;
    space.disappears::<PodDisruptionBudget>(NAME).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn the_disruption_budget_comes_and_goes_with_the_second_replica() -> Result<()> {
    let space = Space::new("budget").await?;
    let operator = Operator::start(&space, &[]).await?;
    space.create(NAME, &with(&json!({"replicas": 1}))).await?;
    space.condition(NAME, "Accepted", "True", "Accepted").await?;
    ensure!(space.api::<PodDisruptionBudget>().get_opt(NAME).await?.is_none(), "one replica has a budget");
    space.patch(NAME, json!({"spec": {"replicas": 2}})).await?;
    space.appears::<PodDisruptionBudget>(NAME).await?;
    space.patch(NAME, json!({"spec": {"replicas": 1}})).await?;
    space.disappears::<PodDisruptionBudget>(NAME).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn the_network_policy_comes_and_goes_with_the_operators_setting() -> Result<()> {
    let space = Space::new("netpol").await?;
    let asker = json!({"podSelector": {"matchLabels": {"app": "asker"}}});
    let operator = Operator::start(&space, &["--network-policy-from", &json!([asker]).to_string()]).await?;
    space.create(NAME, &with(&json!({}))).await?;
    let policy: NetworkPolicy = space.appears(NAME).await?;
    let spec = serde_json::to_value(&policy.spec)?;
    ensure!(spec["podSelector"]["matchLabels"] == json!({"mcp-mqtt.io/service": NAME}), "{spec}");
    ensure!(spec["policyTypes"] == json!(["Ingress"]) && spec["egress"].is_null(), "{spec}");
    let expected = json!([{"from": [asker], "ports": [{"port": 8079, "protocol": "TCP"}]}]);
    ensure!(spec["ingress"] == expected, "{spec}");
    // One that is taken away comes back; one that the operator is not to make any more goes.
    space.api::<NetworkPolicy>().delete(NAME, &DeleteParams::default()).await?;
    eventually(PATIENCE, async || {
        let now = space.api::<NetworkPolicy>().get_opt(NAME).await.ok()??;
        (now.uid() != policy.uid()).then_some(())
    })
    .await?;
    operator.stop().await?;
    let operator = Operator::start(&space, &["--network-policy-from", "null"]).await?;
    space.disappears::<NetworkPolicy>(NAME).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn what_cannot_be_is_told_in_a_condition_and_heals_when_it_is_mended() -> Result<()> {
    let space = Space::new("refused").await?;
    let operator = Operator::start(&space, &[]).await?;
    space.create(NAME, &with(&json!({"podTemplate": {"spec": {"nodeSelectr": {"disk": "ssd"}}}}))).await?;
    let said = space.condition(NAME, "Accepted", "False", "InvalidPodTemplate").await?;
    ensure!(said.contains("spec.podTemplate: unknown field spec.nodeSelectr"), "{said}");
    let said = space.condition(NAME, "Ready", "False", "NotAccepted").await?;
    ensure!(said.contains("see the condition Accepted"), "{said}");
    ensure!(space.api::<Deployment>().get_opt(NAME).await?.is_none(), "it was built all the same");

    let wrong = json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}});
    space.patch(NAME, json!({"spec": {"podTemplate": null, "server": {"resources": wrong}}})).await?;
    let said = space.condition(NAME, "Accepted", "False", "DeploymentRejected").await?;
    ensure!(said.contains("must be less than or equal to cpu limit of 1"), "{said}");

    space.patch(NAME, json!({"spec": {"server": {"resources": {"limits": {"cpu": "lots"}}}}})).await?;
    let said = eventually(PATIENCE, async || {
        let said = space.condition(NAME, "Accepted", "False", "DeploymentRejected").await.ok()?;
        said.contains("quantities must match").then_some(said)
    })
    .await?;
    ensure!(said.contains("Kubernetes refuses the Deployment"), "{said}");

    space.patch(NAME, json!({"spec": {"server": {"resources": null}}})).await?;
    space.condition(NAME, "Accepted", "True", "Accepted").await?;
    space.appears::<Deployment>(NAME).await?;
    space.condition(NAME, "Ready", "False", "ScaledToZero").await?;

    // What ran before stays as it was while the new spec cannot be.
    // Not its version: Kubernetes' own controller may still write its status.
    let applied = async || {
        let deployment = space.api::<Deployment>().get(NAME).await?;
        let hash = deployment.annotations().get(APPLIED_HASH).cloned();
        anyhow::Ok((deployment.uid(), deployment.metadata.generation, hash))
    };
    let before = applied().await?;
    space.patch(NAME, json!({"spec": {"podTemplate": {"spec": {"volumes": [{"nam": "x"}]}}}})).await?;
    space.condition(NAME, "Accepted", "False", "InvalidPodTemplate").await?;
    ensure!(applied().await? == before, "the Deployment changed");
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn an_object_that_cannot_be_read_stops_nothing_for_the_others() -> Result<()> {
    let space = Space::new("malformed").await?;
    // The schema has no type for quantities; this is none.
    let spec =
        with(&json!({"server": {"image": "i", "resources": {"limits": {"cpu": {"not": "a quantity"}}}}}));
    space.create("malformed", &spec).await?;
    let operator = Operator::start(&space, &[]).await?;
    let said = space.condition("malformed", "Accepted", "False", "InvalidSpec").await?;
    ensure!(said.contains("Quantity"), "{said}");
    space.create(NAME, &smallest(0)).await?;
    space.condition(NAME, "Accepted", "True", "Accepted").await?;
    space.patch("malformed", json!({"spec": {"server": {"resources": null}}})).await?;
    space.condition("malformed", "Accepted", "True", "Accepted").await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn an_object_of_somebody_else_is_never_taken_over() -> Result<()> {
    let space = Space::new("taken").await?;
    let operator = Operator::start(&space, &[]).await?;
    let theirs = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME},
        "spec": {
            "replicas": 0, "selector": {"matchLabels": {"app": "theirs"}},
            "template": {"metadata": {"labels": {"app": "theirs"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        },
    });
    let theirs: Deployment = space.apply(theirs).await?;
    space.create(NAME, &smallest(0)).await?;
    let said = space.condition(NAME, "Accepted", "False", "NameTaken").await?;
    ensure!(
        said.contains(&format!("Deployment {}/{NAME} exists and does not belong", space.namespace)),
        "{said}"
    );
    let after = space.api::<Deployment>().get(NAME).await?;
    ensure!(after.metadata.generation == theirs.metadata.generation, "it was changed");
    ensure!(after.labels() == theirs.labels() && after.owner_references().is_empty(), "it was taken");

    // An account has nothing in it that could be in the way.
    let theirs = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "other"}});
    let theirs: ServiceAccount = space.apply(theirs).await?;
    space.create("other", &smallest(0)).await?;
    let said = space.condition("other", "Accepted", "False", "NameTaken").await?;
    ensure!(
        said.contains(&format!("ServiceAccount {}/other exists and does not belong", space.namespace)),
        "{said}"
    );
    let after = space.api::<ServiceAccount>().get("other").await?;
    ensure!(after.metadata.resource_version == theirs.metadata.resource_version, "it was changed");
    let pods = space.api::<Deployment>().get_opt("other").await?;
    ensure!(pods.is_none(), "its pods would run as somebody else");
    space.api::<ServiceAccount>().delete("other", &DeleteParams::default()).await?;
    space.condition("other", "Accepted", "True", "Accepted").await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn what_pods_read_must_exist_and_reaches_them_when_it_changes() -> Result<()> {
    let space = Space::new("references").await?;
    let operator = Operator::start(&space, &[]).await?;
    let spec = with(&json!({
        "server": {
            "image": "i",
            "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "credentials", "key": "token"}}}],
            "envFrom": [{"configMapRef": {"name": "settings"}}, {"secretRef": {"name": "perhaps", "optional": true}}],
        },
    }));
    space.create(NAME, &spec).await?;
    let said = space.condition(NAME, "Accepted", "False", "ReferenceNotFound").await?;
    let namespace = &space.namespace;
    for words in [
        format!(
            "Secret {namespace}/credentials does not exist, and spec.server.env[0] refers to it: create it"
        ),
        format!(
            "ConfigMap {namespace}/settings does not exist, and spec.server.envFrom[0] refers to it: create it"
        ),
    ] {
        ensure!(said.contains(&words), "{said}");
    }
    let settings = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"A": value}});
    space.apply::<ConfigMap>(settings("1")).await?;
    space.apply::<Secret>(secret("credentials", &[("other", "x")])).await?;
    let has_no_key = format!("Secret {namespace}/credentials has no key token");
    space
        .status(NAME, |status| {
            status["conditions"][0]["message"].as_str().is_some_and(|said| said.contains(&has_no_key))
        })
        .await?;

    space.apply::<Secret>(secret("credentials", &[("token", "hunter2")])).await?;
    space.condition(NAME, "Accepted", "True", "Accepted").await?;
    let first: Deployment = space.appears(NAME).await?;
    let mut hash = annotation(&first, HASH).context("no hash")?;
    let mut changed_to = async |what: &str| {
        let now = eventually(PATIENCE, async || {
            let deployment = space.api::<Deployment>().get(NAME).await.ok()?;
            annotation(&deployment, HASH).filter(|now| *now != hash)
        })
        .await
        .with_context(|| format!("{what} does not reach the pods"))?;
        hash = now;
        anyhow::Ok(())
    };
    space.apply::<Secret>(secret("credentials", &[("token", "hunter3")])).await?;
    changed_to("a new content of the Secret").await?;
    space.apply::<ConfigMap>(settings("2")).await?;
    changed_to("a new content of the ConfigMap").await?;
    space.apply::<Secret>(secret("perhaps", &[("a", "b")])).await?;
    changed_to("an optional Secret that appeared").await?;

    // A change of anything but the content, or of anything that nobody reads, reaches nobody.
    at_rest(&space).await?;
    let before = space.api::<Deployment>().get(NAME).await?.metadata.generation;
    let labels = Patch::Merge(json!({"metadata": {"labels": {"note": "new"}}}));
    space.api::<Secret>().patch("credentials", &PatchParams::default(), &labels).await?;
    space.apply::<Secret>(secret("unrelated", &[("a", "b")])).await?;
    at_rest(&space).await?;
    ensure!(space.api::<Deployment>().get(NAME).await?.metadata.generation == before, "the pods are rolled");
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn a_change_that_pods_need_changes_their_template_and_nothing_else_does() -> Result<()> {
    let space = Space::new("rollout").await?;
    let operator = Operator::start(&space, &[]).await?;
    space.create(NAME, &smallest(0)).await?;
    space.condition(NAME, "Accepted", "True", "Accepted").await?;
    let mut last = template(&space.appears::<Deployment>(NAME).await?);
    for (patch, rolls) in [
        (json!({"server": {"image": "registry.example/weather:4"}}), true),
        (json!({"server": {"env": [{"name": "A", "value": "b"}]}}), true),
        (json!({"server": {"args": ["--verbose"]}}), true),
        (json!({"transport": {"stdio": {"command": ["node", "other.js"]}}}), true),
        (json!({"transport": {"stdio": {"prewarm": 1}}}), true),
        (json!({"transport": {"stdio": null, "streamableHttp": {"port": 3001}}}), true),
        (json!({"transport": {"streamableHttp": null, "sse": {"port": 3001}}}), true),
        (json!({"podTemplate": {"spec": {"nodeSelector": {"disk": "ssd"}}}}), true),
        (json!({"gateway": {"maxSessions": 5}}), true),
        (json!({"gateway": {"timeouts": {"call": "70s"}}}), true),
        (json!({"broker": {"url": "mqtt://other.invalid"}}), true),
        (json!({"drain": {"timeoutSeconds": 5}}), true),
        (json!({"description": "new"}), true),
        (json!({"replicas": 1}), false),
        (json!({"replicas": 0}), false),
    ] {
        let changed = space.patch(NAME, json!({ "spec": patch })).await?;
        observed(&space, changed.metadata.generation.context("no generation")?).await?;
        let now = template(&space.api::<Deployment>().get(NAME).await?);
        ensure!(
            (now != last) == rolls,
            "{patch}: {}",
            if rolls { "does not reach the pods" } else { "rolls the pods" }
        );
        last = now;
    }
    // Nor do labels and annotations of the service itself.
    space.patch(NAME, json!({"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}})).await?;
    at_rest(&space).await?;
    ensure!(template(&space.api::<Deployment>().get(NAME).await?) == last, "metadata rolls the pods");
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn what_somebody_changed_by_hand_is_mended() -> Result<()> {
    let space = Space::new("drift").await?;
    let operator = Operator::start(&space, &[]).await?;
    space.create(NAME, &with(&json!({"replicas": 2}))).await?;
    space.appears::<PodDisruptionBudget>(NAME).await?;
    at_rest(&space).await?;
    let by_hand = PatchParams { field_manager: Some("somebody".to_owned()), ..PatchParams::default() };

    let image = json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "server", "image": "registry.example/evil:1"}]}}}});
    let deployments = space.api::<Deployment>();
    deployments.patch(NAME, &by_hand, &Patch::Strategic(image)).await?;
    eventually(PATIENCE, async || {
        let deployment = deployments.get(NAME).await.ok()?;
        let spec = deployment.spec.as_ref()?;
        let image = template(&deployment)["spec"]["containers"][0]["image"].clone();
        (spec.replicas == Some(2) && image == "registry.example/weather:3").then_some(())
    })
    .await
    .context("the Deployment is not mended")?;

    let token = Patch::Merge(json!({"automountServiceAccountToken": true}));
    let accounts = space.api::<ServiceAccount>();
    accounts.patch(NAME, &by_hand, &token).await?;
    eventually(PATIENCE, async || {
        (accounts.get(NAME).await.ok()?.automount_service_account_token == Some(false)).then_some(())
    })
    .await
    .context("the ServiceAccount is not mended")?;

    let budgets = space.api::<PodDisruptionBudget>();
    let gone = budgets.get(NAME).await?.uid();
    budgets.delete(NAME, &DeleteParams::default()).await?;
    eventually(PATIENCE, async || {
        budgets.get_opt(NAME).await.ok()??.uid().filter(|uid| Some(uid) != gone.as_ref())
    })
    .await
    .context("a deleted PodDisruptionBudget is not made anew")?;
    let gone = deployments.get(NAME).await?.uid();
    deployments.delete(NAME, &DeleteParams::default()).await?;
    eventually(PATIENCE, async || {
        deployments.get_opt(NAME).await.ok()??.uid().filter(|uid| Some(uid) != gone.as_ref())
    })
    .await
    .context("a deleted Deployment is not made anew")?;

    // Nor does it take longer where it was made a moment ago: that its watch is behind is believed for 5 s.
    let gone = deployments.get(NAME).await?.uid();
    deployments.delete(NAME, &DeleteParams::default()).await?;
    let begin = Instant::now();
    eventually(PATIENCE, async || {
        deployments.get_opt(NAME).await.ok()??.uid().filter(|uid| Some(uid) != gone.as_ref())
    })
    .await
    .context("a Deployment that was deleted at once is not made anew")?;
    ensure!(begin.elapsed() < Duration::from_secs(3), "made anew only after {:?}", begin.elapsed());

    // What others add stays theirs: `kubectl rollout restart` works by an annotation.
    let restart = json!({"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}}}});
    deployments.patch(NAME, &by_hand, &Patch::Strategic(restart)).await?;
    at_rest(&space).await?;
    let deployment = deployments.get(NAME).await?;
    ensure!(
        annotation(&deployment, "kubectl.kubernetes.io/restartedAt").is_some(),
        "a restart by hand is undone"
    );
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn the_default_brokers_credentials_are_copied_renewed_and_taken_away() -> Result<()> {
    let space = Space::new("broker").await?;
    let credentials = |password: &str| {
        secret("hub", &[("username", "gateway"), ("password", password), ("unrelated", "x")])
    };
    let operator = Operator::start(&space, &["--default-broker-secret", "hub"]).await?;
    space.create(NAME, &smallest(0)).await?;
    let said = space.condition(NAME, "Accepted", "False", "ReferenceNotFound").await?;
    ensure!(said.contains("default broker needs the Secret hub"), "{said}");

    space.apply::<Secret>(credentials("one")).await?;
    let copy: Secret = space.appears("weather-broker").await?;
    let keys: Vec<_> = copy.data.iter().flatten().map(|(key, _)| key.as_str()).collect();
    ensure!(keys == ["password", "username"], "{keys:?}");
    let first = annotation(&space.appears::<Deployment>(NAME).await?, HASH).context("no hash")?;

    space.apply::<Secret>(credentials("two")).await?;
    eventually(PATIENCE, async || {
        let copy = space.api::<Secret>().get("weather-broker").await.ok()?;
        let hash = annotation(&space.api::<Deployment>().get(NAME).await.ok()?, HASH)?;
        (copy.data?.get("password")?.0 == b"two" && hash != first).then_some(())
    })
    .await
    .context("a new password does not reach the copy and the pods")?;

    space.patch(NAME, json!({"spec": {"broker": {"url": "mqtt://own.invalid"}}})).await?;
    space.disappears::<Secret>("weather-broker").await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn a_paused_service_is_left_as_it_is_until_it_goes_on() -> Result<()> {
    let space = Space::new("paused").await?;
    let operator = Operator::start(&space, &[]).await?;
    space.create(NAME, &with(&json!({"replicas": 1}))).await?;
    let before: Deployment = space.appears(NAME).await?;
    space.appears::<ServiceAccount>(NAME).await?;
    space.patch(NAME, json!({"metadata": {"annotations": {PAUSED: "true"}}})).await?;
    let said = space.condition(NAME, "Accepted", "True", "Paused").await?;
    ensure!(said.contains(PAUSED), "{said}");

    let changed = space.patch(NAME, json!({"spec": {"replicas": 2, "description": "news"}})).await?;
    space.api::<ServiceAccount>().delete(NAME, &DeleteParams::default()).await?;
    observed(&space, changed.metadata.generation.context("a generation")?).await?;
    tokio::time::sleep(Duration::from_secs(3)).await; // what is mended is mended at once
    let now: Deployment = space.appears(NAME).await?;
    ensure!(now.metadata.generation == before.metadata.generation, "it is applied: {now:?}");
    ensure!(space.api::<ServiceAccount>().get_opt(NAME).await?.is_none(), "the account is made anew");
    let events = space.api::<Event>().list(&ListParams::default().fields("reason=Paused")).await?;
    ensure!(events.items.len() == 1, "{:?}", events.items);

    space.patch(NAME, json!({"metadata": {"annotations": {PAUSED: null}}})).await?;
    space.condition(NAME, "Accepted", "True", "Accepted").await?;
    space.appears::<ServiceAccount>(NAME).await?;
    eventually(PATIENCE, async || {
        let deployment: Deployment = space.appears(NAME).await.ok()?;
        (deployment.spec?.replicas == Some(2)).then_some(())
    })
    .await
    .context("what was asked for meanwhile is not applied")?;
    operator.stop().await?;
    space.remove().await
}
