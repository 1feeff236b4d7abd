//! An instance, as far as it is read: its state, and what its containers have come to.

use k8s_openapi::{api::core, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use serde::Deserialize;

/// A pod.
#[derive(Debug, Clone, PartialEq, Resource, Deserialize)]
#[resource(inherit = "core::v1::Pod")]
pub struct Pod {
    /// Who it is.
    #[serde(default, deserialize_with = "super::wire::metadata")]
    pub metadata: ObjectMeta,
    /// What the kubelet says of it.
    pub status: Option<PodStatus>,
}

/// What the kubelet says of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// `Pending`, `Running` …
    pub phase: Option<String>,
    /// Its address.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    /// Its node's address.
    #[serde(rename = "hostIP")]
    pub host_ip: Option<String>,
    /// Its conditions.
    pub conditions: Option<Vec<PodCondition>>,
    /// Its init containers, native sidecars among them.
    pub init_container_statuses: Option<Vec<ContainerStatus>>,
    /// Its containers.
    pub container_statuses: Option<Vec<ContainerStatus>>,
}

/// A condition of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PodCondition {
    /// Which one.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// For a person.
    pub message: Option<String>,
}

/// What a container has come to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStatus {
    /// Its name.
    pub name: String,
    /// How often it was started anew.
    #[serde(default)]
    pub restart_count: i32,
    /// What it does.
    pub state: Option<ContainerState>,
    /// What became of it the last time.
    pub last_state: Option<ContainerState>,
}

/// What a container does: one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct ContainerState {
    /// It runs.
    pub running: Option<Running>,
    /// It has ended.
    pub terminated: Option<Terminated>,
    /// It is to start.
    pub waiting: Option<Waiting>,
}

/// It runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Running {}

/// It has ended.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Terminated {
    /// Its exit code.
    pub exit_code: i32,
    /// Why, in a word.
    pub reason: Option<String>,
    /// Its last words (`terminationMessagePath`).
    pub message: Option<String>,
}

/// It is to start.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Waiting {
    /// Why it has not, in a word.
    pub reason: Option<String>,
    /// And in a sentence.
    pub message: Option<String>,
}
