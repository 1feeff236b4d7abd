//! Several watched namespaces, of which one cannot be listed: with it go its Role and its `RoleBinding`.

use std::{env, io::Write, process::Stdio};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
    rbac::v1::{Role, RoleBinding},
};
use kube::{api::PostParams, config::Kubeconfig};
use mcp_mqtt_tests::{
    broker::Mosquitto,
    cluster::{PATIENCE, Space, eventually},
    operator::{Log, Operator, command},
};
use serde_json::json;
use tempfile::NamedTempFile;

use crate::{NAME, asleep, client, echoes, initialize, pod, replicas, sleepy};

/// An operator's own account, which may do all in its namespace and nothing elsewhere.
async fn account(space: &Space) -> Result<NamedTempFile> {
    const OPERATOR: &str = "operator";
    let named = json!({"name": OPERATOR});
    space
        .apply::<ServiceAccount>(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named}))
        .await?;
    let rules = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
    let version = "rbac.authorization.k8s.io/v1";
    space
        .apply::<Role>(json!({"apiVersion": version, "kind": "Role", "metadata": named, "rules": rules}))
        .await?;
    let subject = json!({"kind": "ServiceAccount", "name": OPERATOR, "namespace": space.namespace});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": OPERATOR});
    let binding = json!({
        "apiVersion": version, "kind": "RoleBinding", "metadata": named, "subjects": [subject], "roleRef": role,
    });
    space.apply::<RoleBinding>(binding).await?;
    let request = TokenRequest { spec: TokenRequestSpec::default(), ..TokenRequest::default() };
    let accounts = space.api::<ServiceAccount>();
    let token = accounts.create_token_request(OPERATOR, &PostParams::default(), &request).await?;
    let token = token.status.context("no token")?.token;

    let mut config = Kubeconfig::read_from(env::var("KUBECONFIG")?)?;
    for user in &mut config.auth_infos {
        user.auth_info = Some(serde_json::from_value(json!({"token": token}))?);
    }
    let mut file = NamedTempFile::new()?;
    file.write_all(serde_json::to_string(&config)?.as_bytes())?;
    Ok(file)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_cannot_be_listed_keeps_no_service_of_another_from_waking() -> Result<()> {
    let (space, gone, broker) =
        (Space::new("listed").await?, Space::new("unlisted").await?, Mosquitto::start().await?);
    let account = account(&space).await?;
    let mut command = command(&space, &["--watch-namespaces", &gone.namespace]);
    command.env("KUBECONFIG", account.path()).stdout(Stdio::null());
    let mut operator = Operator::launch(command, Log::Told).await?;
    operator.leading().await?;
    space.create(NAME, &sleepy(&broker)).await?;
    let instance = asleep(&space, &broker).await?;
    let client = client(&broker).await?;
    let wake = async {
        replicas(&space, 1).await?;
        pod(&space, &broker, "weather-1")
    };
    let (session, _pod) = tokio::join!(initialize(&client, &instance), wake);
    echoes(&session?).await?;

    // Readiness says what is not looked after, until it is.
    let answer = operator.get("/readyz").await?;
    let lacks = format!("in the namespace {};", gone.namespace);
    ensure!(answer.contains("503") && answer.contains("McpServices") && answer.contains(&lacks), "{answer}");
    ensure!(!answer.contains(&space.namespace), "that one is listed: {answer}");
    let rights = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "operator"},
        "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": space.namespace}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
    });
    gone.apply::<RoleBinding>(rights).await?;
    let ready =
        async || operator.get("/readyz").await.ok().filter(|answer| answer.starts_with("HTTP/1.1 200"));
    eventually(PATIENCE, ready).await.context("it does not come back")?;
    gone.create(NAME, &sleepy(&broker)).await?;
    gone.condition(NAME, "Ready", "True", "Asleep").await?;
    operator.stop().await?;
    gone.remove().await?;
    space.remove().await
}
