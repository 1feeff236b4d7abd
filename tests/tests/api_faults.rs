//! The operator when the cluster fails it: an API server that is gone, a leader killed in the middle, watches that are
//! too old, somebody else who writes the same fields, namespaces on their way out, quotas and admission that refuse.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    admissionregistration::v1::{
        ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
    },
    apps::v1::Deployment,
    core::v1::{Namespace, ResourceQuota, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use mcp_mqtt_tests::{
    api_link::{ApiLink, Manner},
    cluster::{PATIENCE, Space, eventually, smallest},
    operator::{Operator, TAKEOVER},
};
use serde_json::json;

const NAME: &str = "weather";
/// How the operator calls itself towards the API server.
const USER_AGENT: &str = "mcp-mqtt-operator/";
/// The API server is gone for this long: longer than a Lease lives, and than a request is waited for.
const OUTAGE: Duration = Duration::from_mins(1);
/// Then all that happened meanwhile is made good: no watch waits for longer than 5 s.
const AFTER_OUTAGE: Duration = Duration::from_secs(20);
/// What is contested is left alone for half a minute at first; nothing else is to wait for that.
const PAUSE: Duration = Duration::from_secs(15);
/// No write for so long, and there will be none.
const CALM: Duration = Duration::from_secs(5);

fn by(manager: &str) -> PatchParams {
    PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() }
}

async fn accepted(space: &Space, name: &str) -> Result<String> {
    space.condition(name, "Accepted", "True", "Accepted").await
}

/// Waits until the Deployment has so many replicas, whoever wants it so.
async fn replicas(space: &Space, wanted: i32) -> Result<()> {
    let api = space.api::<Deployment>();
    eventually(PATIENCE, async || (api.get(NAME).await.ok()?.spec?.replicas == Some(wanted)).then_some(()))
        .await
        .with_context(|| format!("the Deployment has not {wanted} replicas"))
}

/// The operator's applies of a kind of object in this namespace.
fn applies(space: &Space, resource: &str) -> Result<usize> {
    let text = format!("/{resource}/");
    Ok(space.audited_writes(USER_AGENT)?.iter().filter(|write| write.contains(&text)).count())
}

/// Waits until the operator has written nothing for a while.
async fn calm(space: &Space) -> Result<()> {
    let others = |writes: Vec<String>| writes.iter().filter(|write| !write.contains("/leases/")).count();
    let (mut last, mut since) = (0, Instant::now());
    eventually(PATIENCE, async || {
        let now = others(space.audited_writes(USER_AGENT).ok()?);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() > CALM).then_some(())
    })
    .await
    .context("the operator goes on writing")
}

#[tokio::test]
async fn what_happened_while_the_api_server_was_silent_is_made_good_once_it_is_back() -> Result<()> {
    outage("silent", Manner::Silent, false).await
}

#[tokio::test]
async fn what_happened_while_the_api_server_refused_is_made_good_once_it_is_back() -> Result<()> {
    outage("refusing", Manner::Refusing, false).await
}

#[tokio::test]
async fn a_leader_ends_when_the_api_server_is_gone_and_its_next_life_waits_for_it() -> Result<()> {
    outage("next-life", Manner::Refusing, true).await
}

async fn outage(test: &str, manner: Manner, elects: bool) -> Result<()> {
    let (space, link) = (Space::new(test).await?, ApiLink::open().await?);
    // In a pod, the next life of the process has the same name.
    let arguments: &[_] = if elects { &["--identity", "first"] } else { &["--leader-election", "false"] };
    let mut operator = Operator::spawn_behind(&link, &space, arguments).await?;
    space.create(NAME, &smallest(0)).await?;
    accepted(&space, NAME).await?;
    calm(&space).await?;

    link.behave(manner.clone());
    link.cut();
    space
        .api::<Deployment>()
        .patch(NAME, &by("somebody"), &Patch::Merge(json!({"spec": {"replicas": 1}})))
        .await?;
    space.api::<ServiceAccount>().delete(NAME, &DeleteParams::default()).await?;
    space.create("tides", &smallest(0)).await?;
    let begin = Instant::now();
    if elects {
        operator.ended().await?;
        operator = Operator::spawn_behind(&link, &space, arguments).await?;
    }
    tokio::time::sleep(OUTAGE.saturating_sub(begin.elapsed())).await;
    ensure!(space.api::<Deployment>().get_opt("tides").await?.is_none(), "the API server was not gone");

    link.behave(Manner::Open);
    let begin = Instant::now();
    accepted(&space, "tides").await.with_context(|| format!("{manner:?}"))?;
    replicas(&space, 0).await?;
    space.appears::<ServiceAccount>(NAME).await?;
    ensure!(begin.elapsed() < AFTER_OUTAGE, "made good only after {:?}", begin.elapsed());
    eprintln!("{manner:?}: made good {:?} after the API server was back", begin.elapsed());
    calm(&space).await?;
    ensure!(applies(&space, "deployments")? == 3, "more than one apply for each: {:?}", link.requests());
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn an_answer_that_never_comes_holds_up_its_service_for_half_a_minute_at_most() -> Result<()> {
    let (space, link) = (Space::new("mute").await?, ApiLink::open().await?);
    let operator = Operator::spawn_behind(&link, &space, &["--leader-election", "false"]).await?;
    let path = format!("/namespaces/{}/deployments/{NAME}", space.namespace);
    link.behave(Manner::Mute("PATCH", path.clone()));
    space.create(NAME, &smallest(0)).await?;
    link.requested("PATCH", &path).await?;
    // From now on another API server of the same cluster answers.
    link.behave(Manner::Open);
    let begin = Instant::now();
    accepted(&space, NAME).await?;
    eprintln!("made {:?} after a request was lost", begin.elapsed());
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn a_leader_that_is_cut_off_gives_way_and_the_next_one_goes_on() -> Result<()> {
    let (space, link) = (Space::new("cut-off").await?, ApiLink::open().await?);
    let mut first = Operator::spawn_behind(&link, &space, &["--identity", "first"]).await?;
    first.leading().await?;
    let mut second = Operator::spawn(&space, &["--identity", "second"]).await?;
    link.behave(Manner::Silent);
    link.cut();
    tokio::time::timeout(TAKEOVER, second.leading()).await.context("nobody takes over")??;
    space.create(NAME, &smallest(0)).await?;
    accepted(&space, NAME).await?;
    link.behave(Manner::Open);
    first.ended().await.context("it still believes that it leads")?;
    calm(&space).await?;
    ensure!(applies(&space, "deployments")? == 1, "both work");
    second.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn a_leader_killed_in_mid_reconcile_is_followed_and_nothing_is_done_twice() -> Result<()> {
    let (space, link) = (Space::new("killed").await?, ApiLink::open().await?);
    let mut first = Operator::spawn_behind(&link, &space, &["--identity", "first"]).await?;
    first.leading().await?;
    let mut second = Operator::spawn(&space, &["--identity", "second"]).await?;
    // The Deployment is made, and the leader does not live to hear of it.
    let path = format!("/namespaces/{}/deployments/{NAME}", space.namespace);
    link.behave(Manner::KeepsAnswer("PATCH", path.clone()));
    space.create(NAME, &smallest(0)).await?;
    link.requested("PATCH", &path).await?;
    let deployment: Deployment = space.appears(NAME).await?;
    ensure!(space.services().get(NAME).await?.data["status"].is_null(), "it was through already");
    first.kill().await?;
    let begin = Instant::now();
    tokio::time::timeout(TAKEOVER, second.leading()).await.context("nobody takes over")??;
    accepted(&space, NAME).await?;
    eprintln!("the follower was through {:?} after the leader's end", begin.elapsed());
    calm(&space).await?;
    let after = space.api::<Deployment>().get(NAME).await?;
    ensure!(after.uid() == deployment.uid() && after.metadata.generation == Some(1), "{:?}", after.metadata);
    for resource in ["deployments", "serviceaccounts"] {
        ensure!(applies(&space, resource)? == 1, "{resource} were applied twice");
    }
    second.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn watches_that_are_too_old_are_opened_anew_and_miss_nothing() -> Result<()> {
    // Of McpServices, Deployments, ServiceAccounts, PodDisruptionBudgets, autoscalers, Pods, Secrets, ConfigMaps.
    const WATCHES: usize = 8;
    let (space, link) = (Space::new("expired").await?, ApiLink::open().await?);
    let operator = Operator::spawn_behind(&link, &space, &["--leader-election", "false"]).await?;
    space.create(NAME, &smallest(0)).await?;
    accepted(&space, NAME).await?;
    calm(&space).await?;
    let before = applies(&space, "deployments")?;

    let expired = link.expire(WATCHES).await?;
    ensure!(expired.iter().any(|path| path.ends_with("/deployments")), "{expired:?}");
    calm(&space).await?;
    ensure!(applies(&space, "deployments")? == before, "a new list is no change");

    // What happens while no watch is open is in the next list.
    link.behave(Manner::Refusing);
    link.cut();
    space.api::<Deployment>().delete(NAME, &DeleteParams::default()).await?;
    space.disappears::<Deployment>(NAME).await?;
    link.behave(Manner::Open);
    let deployments = space.api::<Deployment>();
    eventually(PATIENCE, async || deployments.get_opt(NAME).await.ok()?)
        .await
        .context("the Deployment is not made anew")?;
    space.create("tides", &smallest(0)).await?;
    accepted(&space, "tides").await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn a_watch_that_stands_still_makes_nobody_apply_again() -> Result<()> {
    let (space, link) = (Space::new("still").await?, ApiLink::open().await?);
    let operator = Operator::spawn_behind(&link, &space, &["--leader-election", "false"]).await?;
    space.create(NAME, &smallest(0)).await?;
    accepted(&space, NAME).await?;
    calm(&space).await?;
    // Of lists and watches of Deployments no word comes; everything else goes on.
    link.behave(Manner::KeepsAnswer("GET", "/deployments?".to_owned()));
    link.cut();
    space.create("tides", &smallest(0)).await?;
    space.appears::<Deployment>("tides").await?;
    // For longer than an operator waits for a watch.
    calm(&space).await?;
    space.api::<ServiceAccount>().delete("tides", &DeleteParams::default()).await?;
    space.appears::<ServiceAccount>("tides").await?;
    calm(&space).await?;
    ensure!(applies(&space, "deployments")? == 2, "it was applied again: {:?}", link.requests());
    link.behave(Manner::Open);
    accepted(&space, "tides").await?;
    calm(&space).await?;
    ensure!(applies(&space, "deployments")? == 2, "it was applied again once the watch was back");
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn somebody_who_writes_the_same_fields_is_told_of_and_not_fought() -> Result<()> {
    let space = Space::new("contest").await?;
    let operator = Operator::start(&space, &[]).await?;
    space.create(NAME, &smallest(0)).await?;
    accepted(&space, NAME).await?;
    let rival = Patch::Merge(json!({"spec": {"replicas": 2}}));
    let api = space.api::<Deployment>();
    let said = eventually(PATIENCE, async || {
        // It does so as soon as it sees that somebody else has changed it.
        if api.get(NAME).await.ok()?.spec?.replicas == Some(0) {
            api.patch(NAME, &by("other-autoscaler"), &rival).await.ok()?;
        }
        let service = space.services().get(NAME).await.ok()?;
        let accepted = service.data["status"]["conditions"][0].clone();
        (accepted["reason"] == "FieldsContested").then(|| accepted["message"].to_string())
    })
    .await
    .context("nobody is told")?;
    ensure!(said.contains("other-autoscaler keeps changing spec.replicas of the Deployment"), "{said}");
    let before = applies(&space, "deployments")?;
    tokio::time::sleep(CALM).await;
    ensure!(applies(&space, "deployments")? == before, "it fights on");
    replicas(&space, 2).await?;

    // What the service itself asks for is applied all the same.
    space.patch(NAME, json!({"spec": {"server": {"image": "registry.example/weather:4"}}})).await?;
    replicas(&space, 0).await?;
    accepted(&space, NAME).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn a_contest_over_one_object_keeps_none_of_the_others_waiting() -> Result<()> {
    let space = Space::new("companion").await?;
    let operator = Operator::start(&space, &["--network-policy-from", r#"[{"podSelector": {}}]"#]).await?;
    space.create(NAME, &smallest(0)).await?;
    accepted(&space, NAME).await?;
    let policies = space.api::<NetworkPolicy>();
    // Whether it lets everybody in, as the other one wants it.
    let open = async || Some(policies.get(NAME).await.ok()?.spec?.ingress?.first()?.from.is_none());
    let rival = Patch::Merge(json!({"spec": {"ingress": [{}]}}));
    let said = eventually(PATIENCE, async || {
        if open().await == Some(false) {
            policies.patch(NAME, &by("guard"), &rival).await.ok()?;
        }
        let service = space.services().get(NAME).await.ok()?;
        let accepted = service.data["status"]["conditions"][0].clone();
        (accepted["reason"] == "FieldsContested").then(|| accepted["message"].to_string())
    })
    .await
    .context("nobody is told")?;
    ensure!(said.contains("guard keeps changing spec.ingress of the NetworkPolicy"), "{said}");
    let mends = applies(&space, "networkpolicies")?;

    // A new image, more instances and with them a new object.
    let (image, begin) = ("registry.example/weather:4", Instant::now());
    space.patch(NAME, json!({"spec": {"replicas": 2, "server": {"image": image}}})).await?;
    replicas(&space, 2).await?;
    let spec = serde_json::to_value(space.api::<Deployment>().get(NAME).await?.spec)?;
    ensure!(spec["template"]["spec"]["containers"][0]["image"] == image, "{spec}");
    let budget: PodDisruptionBudget = space.appears(NAME).await?;
    ensure!(begin.elapsed() < PAUSE, "only after {:?}", begin.elapsed());
    space.condition(NAME, "Accepted", "False", "FieldsContested").await?;
    // What was deleted comes back, and what is contested stays as the other one has it.
    space.api::<PodDisruptionBudget>().delete(NAME, &DeleteParams::default()).await?;
    eventually(PATIENCE, async || {
        let uid = space.api::<PodDisruptionBudget>().get_opt(NAME).await.ok()??.uid();
        (uid != budget.uid()).then_some(())
    })
    .await
    .context("a deleted PodDisruptionBudget is not made anew")?;
    ensure!(open().await == Some(true) && applies(&space, "networkpolicies")? == mends, "it fights on");
    ensure!(applies(&space, "deployments")? == 2, "the Deployment is applied again and again");

    // After a pause it tries once more, and nobody is in the way.
    accepted(&space, NAME).await?;
    ensure!(open().await == Some(false) && applies(&space, "networkpolicies")? == mends + 1, "not mended");
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn a_namespace_that_is_deleted_takes_all_along_and_nobody_else() -> Result<()> {
    let (going, staying) = (Space::new("going").await?, Space::new("staying").await?);
    let both = format!("{},{}", going.namespace, staying.namespace);
    let operator = Operator::start(&staying, &["--watch-namespaces", &both]).await?;
    for name in ["one", "two", "three"] {
        going.create(name, &smallest(0)).await?;
        accepted(&going, name).await?;
    }
    Api::<Namespace>::all(going.kube.clone()).delete(&going.namespace, &DeleteParams::default()).await?;
    let namespaces = Api::<Namespace>::all(going.kube.clone());
    eventually(PATIENCE, async || namespaces.get_opt(&going.namespace).await.ok()?.is_none().then_some(()))
        .await
        .context("the namespace does not go")?;
    calm(&going).await?;
    staying.create(NAME, &smallest(0)).await?;
    accepted(&staying, NAME).await?;
    operator.stop().await?;
    staying.remove().await
}

#[tokio::test]
async fn what_a_quota_refuses_is_told_and_made_when_there_is_room() -> Result<()> {
    let space = Space::new("quota").await?;
    let quota = |deployments: &str| {
        json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none-left"},
            "spec": {"hard": {"count/deployments.apps": deployments}},
        })
    };
    space.apply::<ResourceQuota>(quota("0")).await?;
    let quotas = space.api::<ResourceQuota>();
    let counted = async || quotas.get("none-left").await.ok()?.status?.hard;
    eventually(PATIENCE, counted).await.context("the quota is not counted")?;
    let operator = Operator::start(&space, &[]).await?;
    space.create(NAME, &smallest(0)).await?;
    let said = space.condition(NAME, "Accepted", "False", "DeploymentRejected").await?;
    ensure!(said.contains("exceeded quota: none-left"), "{said}");
    space.apply::<ResourceQuota>(quota("5")).await?;
    accepted(&space, NAME).await?;
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn what_admission_refuses_is_told_in_its_own_words_and_made_when_it_is_taken() -> Result<()> {
    let space = Space::new("admission").await?;
    let name = space.namespace.clone();
    let here = json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
    let deployments = json!([{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}]);
    let policy: ValidatingAdmissionPolicy = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": deployments},
            "validations": [{"expression": "'team' in object.metadata.labels", "message": "each Deployment names its team"}],
        },
    }))?;
    let binding: ValidatingAdmissionPolicyBinding = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector": here}},
    }))?;
    let policies = Api::<ValidatingAdmissionPolicy>::all(space.kube.clone());
    let bindings = Api::<ValidatingAdmissionPolicyBinding>::all(space.kube.clone());
    policies.create(&PostParams::default(), &policy).await?;
    bindings.create(&PostParams::default(), &binding).await?;
    refuses(&space).await.context("the policy does not take effect")?;
    let operator = Operator::start(&space, &[]).await?;
    space.create(NAME, &smallest(0)).await?;
    let said = space.condition(NAME, "Accepted", "False", "DeploymentRejected").await?;
    ensure!(said.contains("each Deployment names its team"), "{said}");

    // A webhook that does not answer, after a policy that says no.
    let webhook: ValidatingWebhookConfiguration = serde_json::from_value(json!({
        "metadata": {"name": name},
        "webhooks": [{
            "name": "silent.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
            "timeoutSeconds": 2, "clientConfig": {"url": "https://127.0.0.1:1/"},
            "namespaceSelector": here, "rules": deployments,
        }],
    }))?;
    let webhooks = Api::<ValidatingWebhookConfiguration>::all(space.kube.clone());
    webhooks.create(&PostParams::default(), &webhook).await?;
    bindings.delete(&name, &DeleteParams::default()).await?;
    policies.delete(&name, &DeleteParams::default()).await?;
    let status = space
        .status(NAME, |status| status["conditions"][0]["message"].to_string().contains("silent.example.com"));
    let status = status.await?;
    ensure!(status["conditions"][0]["reason"] == "DeploymentRejected", "{status}");
    webhooks.delete(&name, &DeleteParams::default()).await?;
    accepted(&space, NAME).await?;
    operator.stop().await?;
    space.remove().await
}

/// Waits until a Deployment is refused here.
async fn refuses(space: &Space) -> Result<()> {
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "probe"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        },
    }))?;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let api = space.api::<Deployment>();
    eventually(PATIENCE, async || api.create(&dry, &deployment).await.is_err().then_some(())).await
}
