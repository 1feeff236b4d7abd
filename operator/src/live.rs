//! What is kept of what is watched: what is read of it, and no more. A thousand services have a thousand of each, and
//! Kubernetes' own types hold room for a whole pod template in each of them.

pub mod pod;
mod shapes;
pub mod wire;

use std::{borrow::Cow, marker::PhantomData, sync::Arc};

use k8s_openapi::{
    api::apps::v1,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Resource, runtime::reflector::Lookup};

pub use self::shapes::Shapes;
use crate::{controller::ownership, crd::McpService, names::APPLIED_HASH};

/// Who an object is, whose, and whether it is as it was applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Its name.
    pub name: Box<str>,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its uid.
    pub uid: Option<Box<str>>,
    /// Its `resourceVersion`.
    pub version: Option<Box<str>>,
    /// Its generation, where its kind has one.
    pub generation: Option<i64>,
    /// Whether it is being deleted.
    pub leaves: bool,
    /// The `McpServices` that own it: one, or none.
    pub owners: Box<[Owner]>,
    /// The hash of what was applied.
    pub hash: Option<Box<str>>,
    /// The fields that are ours, as [`ownership`] reads them.
    pub fields: Option<Arc<str>>,
}

/// An `McpService` that owns an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: Box<str>,
    /// Its uid.
    pub uid: Box<str>,
}

impl Meta {
    /// Of an object, with shapes that others have too.
    pub fn new(metadata: ObjectMeta, shapes: &mut Shapes) -> Self {
        let owners: Box<[Owner]> =
            metadata.owner_references.into_iter().flatten().filter_map(Owner::of).collect();
        let fields = ownership::text(metadata.managed_fields.unwrap_or_default(), owners.first());
        Self {
            name: metadata.name.unwrap_or_default().into(),
            namespace: metadata.namespace.unwrap_or_default().into(),
            uid: metadata.uid.map(Into::into),
            version: metadata.resource_version.map(Into::into),
            generation: metadata.generation,
            leaves: metadata.deletion_timestamp.is_some(),
            owners,
            hash: metadata.annotations.and_then(|mut all| all.remove(APPLIED_HASH)).map(Into::into),
            fields: fields.map(|fields| shapes.share(&fields)),
        }
    }
}

impl From<ObjectMeta> for Meta {
    fn from(metadata: ObjectMeta) -> Self {
        Self::new(metadata, &mut Shapes::default())
    }
}

impl Owner {
    fn of(reference: OwnerReference) -> Option<Self> {
        let is_service = reference.kind == <McpService as Resource>::kind(&())
            && reference.api_version == <McpService as Resource>::api_version(&());
        is_service.then(|| Self { name: reference.name.into(), uid: reference.uid.into() })
    }
}

/// An object of the kind `K`, with what is read of it beside its metadata.
#[derive(Debug)]
pub struct Live<K, State = ()> {
    /// Who it is.
    pub meta: Meta,
    /// The rest.
    pub state: State,
    kind: PhantomData<fn() -> K>,
}

impl<K, State> Live<K, State> {
    /// From what the API server said.
    pub fn new(meta: Meta, state: State) -> Self {
        Self { meta, state, kind: PhantomData }
    }
}

impl<K, State: Clone> Clone for Live<K, State> {
    fn clone(&self) -> Self {
        Self::new(self.meta.clone(), self.state.clone())
    }
}

impl<K: Resource, State> Lookup for Live<K, State> {
    type DynamicType = K::DynamicType;

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

    fn name(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.meta.name))
    }

    fn namespace(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.meta.namespace))
    }

    // What names an object in a store need not name this state of it.
    fn resource_version(&self) -> Option<Cow<'_, str>> {
        None
    }

    fn uid(&self) -> Option<Cow<'_, str>> {
        None
    }
}

/// The pods' Deployment.
pub type Deployment = Live<v1::Deployment, DeploymentState>;

/// What a Deployment is to be, and what its controller has made of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeploymentState {
    /// `spec.replicas`: whether it is about to shrink.
    pub wanted: Option<i32>,
    /// The generation that its controller has seen.
    pub observed_generation: Option<i64>,
    /// Its pods.
    pub replicas: i32,
    /// Those of its newest state.
    pub updated: i32,
    /// Why there are fewer than wanted: the condition `ReplicaFailure`, while it holds.
    pub failure: Option<Box<str>>,
}
