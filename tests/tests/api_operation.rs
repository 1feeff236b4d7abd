//! The operator as a process: at rest it writes nothing, one of several works, and it leaves nothing undone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::http::Request;
use futures::future::try_join_all;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        coordination::v1::Lease,
        core::v1::{Node, Service},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use mcp_mqtt_operator::leader::{Candidate, Leadership};
use mcp_mqtt_tests::{
    cluster::{PATIENCE, Space, eventually, smallest},
    operator::{Operator, TAKEOVER},
    ports::Port,
};
use serde_json::json;

/// How the operator calls itself towards the API server.
const USER_AGENT: &str = "mcp-mqtt-operator/";

/// Writes but for the Lease, which a leader renews.
fn writes(space: &Space) -> Result<Vec<String>> {
    let all = space.audited_writes(USER_AGENT)?;
    Ok(all.into_iter().filter(|write| !write.contains("/leases/")).collect())
}

#[tokio::test]
async fn at_rest_it_writes_nothing_also_after_a_restart() -> Result<()> {
    let space = Space::new("rest").await?;
    space.create("parked", &smallest(0)).await?;
    space.create("wanting", &smallest(2)).await?;
    let operator = Operator::start(&space, &[]).await?;
    space.condition("parked", "Ready", "False", "ScaledToZero").await?;
    space.condition("wanting", "Ready", "False", "ErrImageNeverPull").await?;
    ensure!(!writes(&space)?.is_empty(), "the audit log shows no write at all: this test sees nothing");
    let quiet = async |operator: &Operator, time: Duration| {
        let (before, versions) = (writes(&space)?.len(), space.versions().await?);
        let counted = operator.writes().await?;
        tokio::time::sleep(time).await;
        let audited = writes(&space)?.split_off(before);
        ensure!(audited.is_empty(), "the audit log has {audited:#?}");
        ensure!(operator.writes().await? == counted, "its metrics count writes");
        ensure!(space.versions().await? == versions, "objects changed");
        anyhow::Ok(())
    };
    // The last that comes to be known: there is no broker at that address.
    let told = async || {
        let message = space.condition("parked", "Ready", "False", "ScaledToZero").await.ok()?;
        message.contains("cannot ask the broker").then_some(())
    };
    eventually(PATIENCE, told).await.context("that there is no broker")?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    quiet(&operator, Duration::from_mins(1)).await.context("at rest")?;
    operator.stop().await?;

    let before = writes(&space)?.len();
    let operator = Operator::start(&space, &[]).await?;
    // Longer than it takes to know again that there is no broker.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let audited = writes(&space)?.split_off(before);
    ensure!(audited.is_empty(), "a restart writes {audited:#?}");
    operator.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn under_an_autoscaler_it_never_writes_replicas_and_says_who_does() -> Result<()> {
    let space = Space::new("owned").await?;
    let operator = Operator::start(&space, &[]).await?;
    let mut spec = smallest(1);
    spec["autoscaling"] = json!({"minReplicas": 2, "maxReplicas": 3});
    space.create("weather", &spec).await?;
    let said = space.condition("weather", "Accepted", "True", "Accepted").await?;
    ensure!(
        said.contains("spec.replicas is managed by HorizontalPodAutoscaler weather, from 2 to 3"),
        "{said}"
    );
    // This operator serves no metrics.
    ensure!(said.contains("the autoscaler has no mcp_sessions to go by"), "{said}");
    let replicas = async |wanted: i64| {
        eventually(PATIENCE, async || {
            let service = space.services().get("weather").await.ok()?;
            let deployment = space.api::<Deployment>().get("weather").await.ok()?.spec?.replicas?;
            (service.data["spec"]["replicas"] == wanted && i64::from(deployment) == wanted).then_some(())
        })
        .await
        .with_context(|| format!("it does not come to have {wanted} instances"))
    };
    // The manifest's one is fewer than the autoscaler allows, and what a person scales to is more.
    replicas(2).await?;
    space.patch("weather", json!({"spec": {"replicas": 9}})).await?;
    replicas(3).await?;
    // At none it rests, and somebody else's number of instances is what the operator makes.
    space.patch("weather", json!({"spec": {"replicas": 0}})).await?;
    replicas(0).await?;
    space.condition("weather", "Ready", "False", "ScaledToZero").await?;

    let writes = writes(&space)?;
    let status = |write: &&String| write.contains("/mcpservices/weather/status?");
    ensure!(writes.iter().any(|write| status(&write)), "the audit log shows nothing: {writes:#?}");
    let services: Vec<_> =
        writes.iter().filter(|write| write.contains("/mcpservices/") && !status(write)).collect();
    ensure!(services.is_empty(), "it writes {services:#?}");
    let autoscalers = writes.iter().filter(|write| write.contains("/horizontalpodautoscalers/")).count();
    ensure!(autoscalers == 1, "it writes its autoscaler {autoscalers} times: {writes:#?}");
    let autoscaler = space.api::<HorizontalPodAutoscaler>().get("weather").await?;
    ensure!(
        autoscaler.status.is_some_and(|status| status.last_scale_time.is_some()),
        "it has scaled nothing"
    );
    operator.stop().await?;
    space.remove().await
}

/// The API by which an autoscaler asks for sessions.
const METRICS: &str = "v1beta2.custom.metrics.k8s.io";

/// Leads the API server to an operator on the node, by a Service of the space.
async fn lead_to_operator(space: &Space, service: &str, port: u16) -> Result<APIService> {
    let ports = json!([{"name": "https", "port": 443, "targetPort": port}]);
    space.apply::<Service>(json!({"metadata": {"name": service}, "spec": {"ports": ports}})).await?;
    let api: APIService = serde_json::from_value(json!({
        "metadata": {"name": METRICS},
        "spec": {
            "group": "custom.metrics.k8s.io", "version": "v1beta2",
            "groupPriorityMinimum": 100, "versionPriority": 200,
            "service": {"name": service, "namespace": space.namespace, "port": 443},
        },
    }))?;
    // A run that failed may have left one.
    let parameters = PatchParams::apply("mcp-mqtt-tests").force();
    Ok(Api::<APIService>::all(space.kube.clone()).patch(METRICS, &parameters, &Patch::Apply(&api)).await?)
}

/// Where the API server reaches what runs on the node.
async fn node_address(space: &Space) -> Result<String> {
    let nodes = Api::<Node>::all(space.kube.clone()).list(&ListParams::default()).await?;
    let addresses = nodes.items.into_iter().filter_map(|node| node.status?.addresses).flatten();
    let address = addresses.into_iter().find(|address| address.type_ == "InternalIP");
    Ok(address.context("a node's address")?.address)
}

#[tokio::test]
async fn its_certificate_is_renewed_in_time_and_who_asks_for_sessions_notices_nothing() -> Result<()> {
    /// A new certificate comes every four seconds then.
    const LIFETIME: Duration = Duration::from_secs(12);
    let space = Space::new("renewal").await?;
    let (port, node) = (Port::reserve()?, node_address(&space).await?);
    let apis = Api::<APIService>::all(space.kube.clone());
    lead_to_operator(&space, "sessions", port.number()).await?;
    let lifetime = format!("{}s", LIFETIME.as_secs());
    let arguments = [
        ["--session-metrics-service", "sessions"],
        ["--session-metrics-port", &port.number().to_string()],
        ["--session-metrics-certificate-lifetime", &lifetime],
        ["--pod-ip", &node],
    ];
    let operator = Operator::start(&space, &arguments.concat()).await?;
    space.create("weather", &smallest(0)).await?;
    let path = format!(
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{}/mcpservices.mcp-mqtt.io/weather/mcp_sessions",
        space.namespace
    );
    // As `kubectl get --raw` does, and the autoscaler's controller.
    let ask = async || {
        space.kube.request_text(Request::get(&path).body(Vec::new())?).await.map_err(anyhow::Error::from)
    };
    let answered = async || ask().await.ok();
    let answer = eventually(PATIENCE, answered).await.context("nobody answers")?;
    ensure!(answer.contains(r#""name":"mcp_sessions""#), "{answer}");

    let (begin, mut asked, mut failed, mut trusted) = (Instant::now(), 0, Vec::new(), Vec::new());
    while begin.elapsed() < 3 * LIFETIME {
        asked += 1;
        if let Err(error) = ask().await {
            failed.push(format!("after {:?}: {error:#}", begin.elapsed()));
        }
        let bundle = apis.get(METRICS).await?.spec.and_then(|spec| spec.ca_bundle);
        if trusted.last() != Some(&bundle) {
            trusted.push(bundle);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("asked {asked} times, {} authorities, failed: {failed:#?}", trusted.len());
    ensure!(trusted.len() > 3, "the authority changed {} times only", trusted.len() - 1);
    ensure!(failed.is_empty(), "of {asked} requests these failed: {failed:#?}");
    operator.stop().await?;
    apis.delete(METRICS, &DeleteParams::default()).await?;
    space.remove().await
}

#[tokio::test]
async fn of_two_operators_one_works_and_the_other_takes_over() -> Result<()> {
    let space = Space::new("leader").await?;
    let first = Operator::start(&space, &["--identity", "first"]).await?;
    let mut second = Operator::spawn(&space, &["--identity", "second"]).await?;
    let holder = async || {
        let lease = space.api::<Lease>().get("mcp-mqtt-operator").await.ok()?;
        lease.spec?.holder_identity
    };
    ensure!(eventually(PATIENCE, holder).await? == "first", "the second leads");
    let ready = async || second.get("/readyz").await.ok().filter(|answer| answer.starts_with("HTTP/1.1 200"));
    eventually(PATIENCE, ready).await.context("a follower is not ready")?;
    ensure!(!second.leads(), "both lead");

    // A stop gives the Lease back: nobody waits for its end.
    let begin = Instant::now();
    first.stop().await?;
    second.leading().await?;
    ensure!(
        begin.elapsed() < Duration::from_secs(12),
        "a stopped leader was waited for: {:?}",
        begin.elapsed()
    );
    space.create("weather", &smallest(0)).await?;
    space.appears::<Deployment>("weather").await?;

    // A killed leader is waited for, but not for long.
    let mut third = Operator::spawn(&space, &["--identity", "third"]).await?;
    let begin = Instant::now();
    second.kill().await?;
    tokio::time::timeout(TAKEOVER, third.leading())
        .await
        .context("nobody takes over from a killed leader")??;
    eprintln!("took over from a killed leader after {:?}", begin.elapsed());
    space.patch("weather", json!({"spec": {"replicas": 1}})).await?;
    space.status("weather", |status| status["ready"] == "0/1").await?;
    third.stop().await?;
    space.remove().await
}

#[tokio::test]
async fn of_many_candidates_one_leads_at_a_time_and_each_end_has_its_successor() -> Result<()> {
    const CANDIDATES: usize = 6;
    let space = Space::new("candidates").await?;
    let seek = |number: usize| {
        Leadership::seek(Candidate {
            client: space.kube.clone(),
            namespace: space.namespace.clone(),
            lease: "many".to_owned(),
            identity: format!("candidate-{number}"),
        })
    };
    // It is there, and nobody's: all of them see it free at one time.
    let free =
        Lease { metadata: ObjectMeta { name: Some("many".to_owned()), ..ObjectMeta::default() }, spec: None };
    space.api::<Lease>().create(&PostParams::default(), &free).await?;
    let mut all = try_join_all((0..CANDIDATES).map(seek)).await?;
    // Given back or left, in turn.
    for count in (1..=CANDIDATES).rev() {
        let begin = Instant::now();
        let leader = loop {
            let leaders: Vec<usize> = (0..count).filter(|&index| all[index].leads()).collect();
            ensure!(leaders.len() < 2, "{} lead", leaders.len());
            if let [leader] = leaders[..] {
                break leader;
            }
            ensure!(begin.elapsed() < TAKEOVER, "nobody leads");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        eprintln!("of {count} one leads after {:?}", begin.elapsed());
        // Another one that begins now does not lead, and its end takes nothing from who does.
        let guest = seek(CANDIDATES).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        ensure!(!guest.leads(), "the guest leads, too");
        guest.release().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let leaders: Vec<usize> = (0..count).filter(|&index| all[index].leads()).collect();
        ensure!(leaders == [leader], "the Lease changed hands: {leaders:?} lead, and not {leader}");
        let leader = all.swap_remove(leader);
        if count % 2 == 0 { leader.release().await } else { drop(leader) }
    }
    space.remove().await
}

#[tokio::test]
async fn it_sees_its_own_namespaces_only() -> Result<()> {
    let (mine, other) = (Space::new("mine").await?, Space::new("other").await?);
    let operator = Operator::start(&mine, &[]).await?;
    other.create("weather", &smallest(0)).await?;
    mine.create("weather", &smallest(0)).await?;
    mine.appears::<Deployment>("weather").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(other.api::<Deployment>().get_opt("weather").await?.is_none(), "it works elsewhere");
    operator.stop().await?;
    let both = format!("{},{}", mine.namespace, other.namespace);
    let operator = Operator::start(&mine, &["--watch-namespaces", &both]).await?;
    other.appears::<Deployment>("weather").await?;
    operator.stop().await?;
    mine.remove().await?;
    other.remove().await
}

#[tokio::test]
async fn a_command_line_that_cannot_be_used_ends_at_once_with_its_reason() -> Result<()> {
    let output = tokio::process::Command::new(mcp_mqtt_tests::binaries::operator())
        .args(["run", "--sidecar-image", "i", "--default-broker-url", "http://broker"])
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(64), "{}: {said}", output.status);
    ensure!(said.contains("--default-broker-url: must start with mqtt://"), "{said}");
    Ok(())
}
