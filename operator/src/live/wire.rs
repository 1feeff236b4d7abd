//! What is read of what the API server sends. The rest, a whole pod template or a tree of everybody's `managedFields`, is
//! passed over and never in memory.

use std::{borrow::Cow, collections::BTreeMap, fmt, fmt::Write as _, marker::PhantomData};

use k8s_openapi::{
    api::apps,
    apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, ObjectMeta, OwnerReference, Time},
};
use kube::Resource;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, MapAccess, Visitor},
};
use serde_json::Value;

use super::{DeploymentState, Live, Meta, Shapes};
use crate::names::FIELD_MANAGER;

/// What comes from a watch, and what is kept of it.
pub trait Wire {
    /// What is kept.
    type Kept;

    /// Keeps what is read.
    fn keep(self, shapes: &mut Shapes) -> Self::Kept;
}

/// An object's metadata, as the API server sends it alone.
#[derive(Debug, Deserialize)]
#[serde(bound = "")]
pub struct Metadata<K> {
    #[serde(default, deserialize_with = "metadata")]
    metadata: ObjectMeta,
    #[serde(skip)]
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Metadata<K> {
    fn clone(&self) -> Self {
        Self { metadata: self.metadata.clone(), kind: PhantomData }
    }
}

impl<K> Wire for Metadata<K> {
    type Kept = Live<K>;

    fn keep(self, shapes: &mut Shapes) -> Live<K> {
        Live::new(Meta::new(self.metadata, shapes), ())
    }
}

impl<K: Resource> Resource for Metadata<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn metadata_api() -> bool {
        true
    }

    fn kind(of: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &Self::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &Self::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A Deployment.
#[derive(Debug, Clone, Resource, Deserialize)]
#[resource(inherit = "apps::v1::Deployment")]
pub struct Deployment {
    #[serde(default, deserialize_with = "metadata")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Option<DeploymentSpec>,
    #[serde(default)]
    status: Option<DeploymentStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct DeploymentSpec {
    replicas: Option<i32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeploymentStatus {
    observed_generation: Option<i64>,
    replicas: Option<i32>,
    updated_replicas: Option<i32>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    message: Option<String>,
}

impl Wire for Deployment {
    type Kept = super::Deployment;

    fn keep(self, shapes: &mut Shapes) -> super::Deployment {
        let status = self.status.unwrap_or_default();
        let failure = status
            .conditions
            .into_iter()
            .flatten()
            .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True");
        let state = DeploymentState {
            wanted: self.spec.and_then(|spec| spec.replicas),
            observed_generation: status.observed_generation,
            replicas: status.replicas.unwrap_or_default(),
            updated: status.updated_replicas.unwrap_or_default(),
            failure: failure.map(|failure| failure.message.unwrap_or_default().into()),
        };
        Live::new(Meta::new(self.metadata, shapes), state)
    }
}

/// Metadata without what nobody reads here, and of `managedFields` our own entry, its fields as text.
///
/// # Errors
/// What is no metadata.
pub(super) fn metadata<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    let read = Read::deserialize(from)?;
    let ours = read.managed_fields.into_iter().flatten().filter(|entry| {
        entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.operation.as_deref() == Some("Apply")
    });
    let managed_fields: Vec<ManagedFieldsEntry> = ours.map(Entry::kept).collect();
    Ok(ObjectMeta {
        name: read.name,
        namespace: read.namespace,
        uid: read.uid,
        resource_version: read.resource_version,
        generation: read.generation,
        creation_timestamp: read.creation_timestamp,
        deletion_timestamp: read.deletion_timestamp,
        labels: read.labels,
        annotations: read.annotations,
        owner_references: read.owner_references,
        managed_fields: (!managed_fields.is_empty()).then_some(managed_fields),
        ..ObjectMeta::default()
    })
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Read {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
    managed_fields: Option<Vec<Entry>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Entry {
    manager: Option<String>,
    operation: Option<String>,
    subresource: Option<String>,
    fields_v1: Option<Fields>,
}

impl Entry {
    fn kept(self) -> ManagedFieldsEntry {
        ManagedFieldsEntry {
            manager: self.manager,
            operation: self.operation,
            subresource: self.subresource,
            fields_v1: self.fields_v1.map(|fields| FieldsV1(Value::String(fields.0))),
            ..ManagedFieldsEntry::default()
        }
    }
}

/// Objects within objects, as JSON again: as a tree they take ten times the memory.
struct Fields(String);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut text = String::new();
        Node(&mut text).deserialize(from)?;
        Ok(Self(text))
    }
}

struct Node<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an object of managedFields")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut between = '{';
        while let Some(name) = map.next_key::<String>()? {
            // A `Value` writes itself as JSON, with its quotes.
            let _ = write!(self.0, "{between}{}:", Value::from(name));
            map.next_value_seed(Node(self.0))?;
            between = ',';
        }
        self.0.push_str(if between == '{' { "{}" } else { "}" });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn our_own_fields_are_kept_as_they_came_and_nobody_elses() {
        let fields = json!({
            "f:metadata": {"f:ownerReferences": {r#"k:{"uid":"u"}"#: {}}},
            "f:spec": {"f:containers": {r#"k:{"name":"a\"b"}"#: {".": {}, "f:image": {}}}, "f:replicas": {}},
        });
        let read: Metadata<apps::v1::Deployment> = serde_json::from_value(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 3},
            "metadata": {"name": "weather", "generation": 4, "managedFields": [
                {"manager": "kubectl", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}}},
                {"manager": FIELD_MANAGER, "operation": "Apply", "time": "2026-01-01T00:00:00Z", "fieldsV1": fields},
            ]},
        }))
        .unwrap();
        assert_eq!((read.metadata.name.as_deref(), read.metadata.generation), (Some("weather"), Some(4)));
        let managed = read.metadata.managed_fields.unwrap();
        let [entry] = managed.as_slice() else { panic!("not one entry") };
        let Some(FieldsV1(Value::String(text))) = &entry.fields_v1 else { panic!("no text") };
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), fields);
    }

    #[test]
    fn of_a_deployment_its_counts_are_read_and_why_it_has_no_pods() {
        let read = |conditions: Value| {
            let deployment: Deployment = serde_json::from_value(json!({
                "metadata": {"name": "weather", "generation": 2},
                "spec": {"replicas": 3, "selector": {}, "template": {"spec": {"containers": []}}},
                "status": {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1, "conditions": conditions},
            }))
            .unwrap();
            deployment.keep(&mut Shapes::default())
        };
        let failure = |status: &str| {
            json!([
                {"type": "Progressing", "status": "True", "message": "it progresses"},
                {"type": "ReplicaFailure", "status": status, "message": "exceeded quota: small"},
            ])
        };
        let live = read(failure("True"));
        assert_eq!((live.meta.generation, live.state.observed_generation), (Some(2), Some(2)));
        assert_eq!((live.state.wanted, live.state.replicas, live.state.updated), (Some(3), 2, 1));
        assert_eq!(live.state.failure.as_deref(), Some("exceeded quota: small"));
        assert_eq!(read(failure("False")).state.failure, None);
    }
}
