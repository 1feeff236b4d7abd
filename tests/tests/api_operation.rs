//! The operator as a process: at rest it writes nothing, one of several works, and it leaves nothing undone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::{
    api::{apps::v1::Deployment, coordination::v1::Lease},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::api::PostParams;
use mcp_mqtt_operator::leader::{Candidate, Leadership};
use mcp_mqtt_tests::{
    cluster::{PATIENCE, Space, eventually, smallest},
    operator::{Operator, TAKEOVER},
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
async fn of_many_candidates_one_leads_at_a_time_and_each_end_has_its_heir() -> Result<()> {
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
