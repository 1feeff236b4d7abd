//! Apply: server-side apply of what was built, under one field manager, and only of what is not so already.

use std::{
    marker::PhantomData,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, GetParams, Patch, PatchParams, Preconditions, ValidationDirective},
    core::PartialObjectMeta,
    runtime::reflector::{ObjectRef, Store},
};
use serde::Serialize;

mod child;
mod error;
mod field_conflicts;
mod memory;
mod objections;

pub use self::{
    child::{Child, ObjectName},
    error::ApplyError,
    field_conflicts::Contests,
    memory::AppliedMemory,
};
use self::{
    memory::{BEHIND, Memory, Record},
    objections::Objections,
};
use super::{
    build::{Applied, Prepared, Resources},
    ownership, scale_in,
    scope::{Scope, lock},
    validate::Identity,
};
use crate::{
    live::{self, Live, Meta},
    names::{self, APPLIED_HASH, FIELD_MANAGER},
    reasons,
};

/// A write that was made, for events and the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// One of [`reasons::EVENT_APPLIED`] and [`reasons::EVENT_DELETED`].
    pub what: &'static str,
    /// Kind of the object.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
}

/// What an apply did, also one that failed half way.
#[derive(Debug, Default)]
pub struct Progress {
    /// The writes.
    pub changes: Vec<Change>,
    /// When to look again: at stores that are behind, at what is contested.
    pub look_again: Option<Duration>,
}

/// Answers that are about the object, or that only people can mend. 500 is among them: a value that has no meaning to
/// the API server (`cpu: lots`) ends in it, and so does an admission webhook that does not answer.
const REFUSALS: [u16; 5] = [400, 403, 413, 422, 500];

/// Applies all of a service's objects, in the order in which they need each other: what its pods are to find there
/// before the Deployment. One that somebody fights over is left alone, and keeps none of the others waiting; nor does one
/// that comes after the Deployment.
///
/// # Errors
/// The first object that could not be applied, with what comes before it applied; or, with all others applied, one that
/// keeps none of them waiting.
pub async fn apply(
    scope: &Scope,
    identity: &Identity,
    resources: Resources<Prepared>,
    progress: &mut Progress,
) -> Result<Resources<Applied>, ApplyError> {
    // No `..`: a new kind does not compile until it is applied here.
    let Resources {
        service_account,
        broker_secret,
        deployment,
        disruption_budget,
        autoscaler,
        scaled_object,
        network_policy,
        state: PhantomData,
    } = resources;
    let stores = &scope.stores;
    let step = Step { scope, identity, progress: Mutex::new(progress) };
    let mut objections = Objections::default();
    let copy = names::broker_secret(&identity.name);
    objections.pass(step.keep(&copy, broker_secret.as_ref(), &stores.secrets).await)?;
    // Before the pods are there.
    let child = names::child(&identity.name);
    if let Some(policies) = &stores.network_policies {
        objections.pass(step.keep(&child, network_policy.as_ref(), policies).await)?;
    }
    if shrinks(&deployment, watched_deployment(scope, &identity.namespace, &identity.name).as_deref()) {
        // Boxed: it is large, and seldom.
        Box::pin(scale_in::weigh(scope, identity)).await;
    }
    // No pod is to run as somebody else. Where `podTemplate` names another account, ours stays unused: the garbage
    // collector takes it with the service.
    if let Some(account) = &service_account {
        objections.pass(step.apply(account, live(&stores.service_accounts, account)).await)?;
    }
    objections.pass(step.apply(&deployment, live(&stores.deployments, &deployment)).await)?;
    let budgets = &stores.disruption_budgets;
    objections.pass(step.keep(&child, disruption_budget.as_ref(), budgets).await)?;
    objections.pass(step.keep(&child, autoscaler.as_ref(), &stores.autoscalers).await)?;
    if let Some(objects) = &stores.scaled_objects {
        objections.pass(step.keep(&child, scaled_object.as_ref(), objects).await)?;
    }
    objections.end()?;
    Ok(Resources {
        service_account,
        broker_secret,
        deployment,
        disruption_budget,
        autoscaler,
        scaled_object,
        network_policy,
        state: PhantomData,
    })
}

/// Whether there are to be fewer pods.
fn shrinks(desired: &Deployment, live: Option<&live::Deployment>) -> bool {
    let desired = desired.spec.as_ref().and_then(|spec| spec.replicas);
    live.is_some_and(|live| live.state.wanted.unwrap_or_default() > desired.unwrap_or_default())
}

/// What the watch knows of the object.
fn live<K, State>(store: &Store<Live<K, State>>, object: &K) -> Option<Meta>
where
    K: Resource<DynamicType = ()> + 'static,
    State: Clone + 'static,
{
    let name = ObjectRef::new(&object.name_any()).within(&object.namespace().unwrap_or_default());
    store.get(&name).map(|live| live.meta.clone())
}

struct Step<'a> {
    scope: &'a Scope,
    identity: &'a Identity,
    progress: Mutex<&'a mut Progress>,
}

/// An object that is not as it should be, and may be written.
struct Due {
    name: String,
    desired: serde_json::Value,
    hash: String,
    /// The version that the watch knows; none: it knows no such object.
    stored: Option<Box<str>>,
    /// What is to be overwritten.
    before: Before,
}

/// What an apply finds in its place.
enum Before {
    /// Nothing, as far as is known: to be created, and nothing to be overwritten.
    Absent,
    /// This version, which is ours to overwrite.
    Version(Option<Box<str>>),
}

/// With this `resourceVersion` an apply creates an object and overwrites none: no object has it (etcd's first write is
/// its second revision), an object that exists is a conflict, and for one that does not it is without meaning.
const ABSENT: &str = "1";

/// When to look again at an object that the watch does not show and the API server does.
const ASKED: Duration = Duration::from_secs(30);

impl Step<'_> {
    /// What need not be: applied where it is wanted, deleted where it is not.
    async fn keep<K>(&self, name: &str, desired: Option<&K>, store: &Store<Live<K>>) -> Result<(), ApplyError>
    where
        K: Child,
    {
        let live = store.get(&ObjectRef::new(name).within(&self.identity.namespace));
        let live = live.map(|live| live.meta.clone());
        match desired {
            Some(desired) => self.apply(desired, live).await,
            None => self.delete::<K>(name, live.as_ref()).await,
        }
    }

    async fn apply<K: Child>(&self, desired: &K, live: Option<Meta>) -> Result<(), ApplyError> {
        let due = self.check(desired, live).await?;
        self.write::<K>(due).await
    }

    /// Whether the object is to be written: it is not as it should be, and is nobody else's.
    async fn check<K: Child>(&self, desired: &K, live: Option<Meta>) -> Result<Option<Due>, ApplyError> {
        let name = desired.name_any();
        let (desired, hash) = with_hash(self.scope, desired);
        let stored = live.as_ref().and_then(|live| live.version.clone());
        let due = Due { name, desired, hash, stored, before: Before::Absent };
        match (self.scope.applied.ask(&self.key(K::KIND, &due.name), live.as_ref(), &due.hash), live) {
            (Memory::Silent, Some(live)) => self.compare::<K>(due, Some(live), false).await,
            // The watch sees only what has our label: the API server has the last word whether there is nothing yet.
            (Memory::Silent, None) => Ok(Some(due)),
            (Memory::Settled, _) => Ok(None),
            (Memory::Behind, _) => {
                self.look_again(BEHIND);
                Ok(None)
            }
            // The watch may stand still: what we applied already must not be applied again.
            (Memory::Stale, _) => {
                let found = self.find::<K>(&due.name).await?;
                self.compare::<K>(due, found, true).await
            }
        }
    }

    /// Whether it is to be written over this; `asked`: the API server was asked for it.
    async fn compare<K: Child>(
        &self,
        mut due: Due,
        live: Option<Meta>,
        asked: bool,
    ) -> Result<Option<Due>, ApplyError> {
        let Some(live) = live else { return Ok(Some(due)) };
        self.check_owner(K::KIND, &live)?;
        if live.hash.as_deref() == Some(&*due.hash) {
            let Some(field) = ownership::first_lost(&live, &due.desired) else {
                if asked {
                    // One of several API servers may be behind what the watch has told us already.
                    self.look_again(ASKED);
                }
                return Ok(None);
            };
            if let Err(wait) = self.scope.contests.mend(&self.key(K::KIND, &due.name), Instant::now()) {
                self.look_again(wait);
                return Err(self.contested::<K>(&due.name, field, wait).await?);
            }
        }
        due.before = Before::Version(live.version);
        Ok(Some(due))
    }

    /// What has this name, as the API server remembers it: a look into its store would cost as much as a write.
    async fn find<K: Child>(&self, name: &str) -> Result<Option<Meta>, ApplyError> {
        let api: Api<K> = Api::namespaced(self.scope.client.clone(), &self.identity.namespace);
        match api.get_metadata_with(name, &GetParams::any()).await {
            Ok(found) => Ok(Some(found.metadata.into())),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
            Err(source) => Err(self.api_error("get", K::KIND, name, source)),
        }
    }

    async fn write<K: Child>(&self, due: Option<Due>) -> Result<(), ApplyError> {
        let Some(mut due) = due else { return Ok(()) };
        let api: Api<K> = Api::namespaced(self.scope.client.clone(), &self.identity.namespace);
        let mut applied = patch(&api, &due).await;
        if matches!(due.before, Before::Absent)
            && applied
                .as_ref()
                .is_err_and(|error| matches!(error, kube::Error::Api(said) if said.is_conflict()))
        {
            // There is one after all.
            let found = self.find::<K>(&due.name).await?;
            match self.compare::<K>(due, found, true).await? {
                Some(still) => due = still,
                None => return Ok(()),
            }
            applied = patch(&api, &due).await;
        }
        let kind = K::KIND;
        let Due { name, hash, stored, before, .. } = due;
        let applied = applied.map_err(|source| self.refused::<K>("apply", &name, source))?;
        self.scope.metrics.wrote(kind, "apply");
        tracing::info!(
            namespace = self.identity.namespace,
            service = self.identity.name,
            kind,
            name,
            "applied"
        );
        let after = applied.metadata.resource_version.map(Into::into);
        let key = self.key(kind, &name);
        if !matches!(before, Before::Version(before) if before == after) {
            lock(&self.progress).changes.push(Change { what: reasons::EVENT_APPLIED, kind, name });
        }
        self.scope.applied.remember(key, Record { hash, before: stored, after, at: Instant::now() });
        Ok(())
    }

    /// After this time at the latest.
    fn look_again(&self, after: Duration) {
        let mut progress = lock(&self.progress);
        progress.look_again = Some(progress.look_again.map_or(after, |sooner| sooner.min(after)));
    }

    fn key(&self, kind: &'static str, name: &str) -> memory::Key {
        (kind, self.identity.namespace.clone(), name.to_owned())
    }

    /// Says who the rival is. Of others' entries the watch keeps nothing: the object is asked for.
    async fn contested<K>(&self, name: &str, field: String, wait: Duration) -> Result<ApplyError, ApplyError>
    where
        K: Child,
    {
        let api: Api<K> = Api::namespaced(self.scope.client.clone(), &self.identity.namespace);
        let live = api
            .get_metadata_opt(name)
            .await
            .map_err(|source| self.api_error("get", K::KIND, name, source))?;
        let rival = live.and_then(|live| field_conflicts::rival(&live.metadata));
        Ok(ApplyError::Contested {
            object: self.object(K::KIND, name),
            field: field.into(),
            rival: rival.map_or_else(|| "somebody".into(), String::into_boxed_str),
            // A sentence that changes each second would be written each time.
            wait: Duration::from_secs(wait.as_secs().div_ceil(30) * 30),
        })
    }

    async fn delete<K: Child>(&self, name: &str, live: Option<&Meta>) -> Result<(), ApplyError> {
        let kind = K::KIND;
        self.scope.applied.drop_record(&self.key(kind, name));
        let Some(live) = live.filter(|live| !live.leaves && self.owns(live)) else {
            return Ok(());
        };
        let api: Api<K> = Api::namespaced(self.scope.client.clone(), &self.identity.namespace);
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                uid: live.uid.as_deref().map(str::to_owned),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(name, &parameters).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => return Ok(()),
            Err(source) => return Err(self.api_error("delete", kind, name, source)),
        }
        self.scope.metrics.wrote(kind, "delete");
        tracing::info!(
            namespace = self.identity.namespace,
            service = self.identity.name,
            kind,
            name,
            "deleted"
        );
        lock(&self.progress).changes.push(Change {
            what: reasons::EVENT_DELETED,
            kind,
            name: name.to_owned(),
        });
        Ok(())
    }

    fn owns(&self, live: &Meta) -> bool {
        live.owners.iter().any(|owner| *owner.uid == *self.identity.owner.uid)
    }

    fn check_owner(&self, kind: &'static str, live: &Meta) -> Result<(), ApplyError> {
        let object = self.object(kind, &live.name);
        if live.leaves {
            return Err(ApplyError::Leaving { object });
        }
        if self.owns(live) {
            return Ok(());
        }
        // Of a service of the same name that was deleted: the garbage collector is on its way.
        let former = live.owners.iter().any(|owner| *owner.name == *self.identity.name);
        Err(if former { ApplyError::Leaving { object } } else { ApplyError::NameTaken { object } })
    }

    fn object(&self, kind: &'static str, name: &str) -> ObjectName {
        ObjectName { kind, namespace: self.identity.namespace.clone(), name: name.to_owned() }
    }

    fn api_error(
        &self,
        verb: &'static str,
        kind: &'static str,
        name: &str,
        source: kube::Error,
    ) -> ApplyError {
        ApplyError::Api { verb, object: self.object(kind, name), source: Box::new(source) }
    }

    /// What the object itself is refused for, told from what passes by itself.
    fn refused<K: Child>(&self, verb: &'static str, name: &str, source: kube::Error) -> ApplyError {
        let object = self.object(K::KIND, name);
        match source {
            kube::Error::Api(status) if is_namespace_leaving(&status) => ApplyError::Leaving { object },
            kube::Error::Api(status) if REFUSALS.contains(&status.code) => {
                ApplyError::Rejected { object, reason: K::REJECTED, message: status.message.clone() }
            }
            source => ApplyError::Api { verb, object, source: Box::new(source) },
        }
    }
}

async fn patch<K: Child>(api: &Api<K>, due: &Due) -> kube::Result<PartialObjectMeta<K>> {
    // Without the API server's second, strict parse, which is for what people type: a field that it does not know is
    // refused all the same, and a podTemplate was parsed strictly before.
    let parameters = PatchParams {
        field_validation: Some(ValidationDirective::Ignore),
        ..PatchParams::apply(FIELD_MANAGER).force()
    };
    if !matches!(due.before, Before::Absent) {
        return api.patch_metadata(&due.name, &parameters, &Patch::Apply(&due.desired)).await;
    }
    let mut desired = due.desired.clone();
    desired["metadata"]["resourceVersion"] = ABSENT.into();
    api.patch_metadata(&due.name, &parameters, &Patch::Apply(&desired)).await
}

/// Whether the namespace is being deleted: all in it goes, and nothing is to come.
fn is_namespace_leaving(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// The object as it is sent, with a hash of itself.
fn with_hash<K: Resource + Serialize>(scope: &Scope, desired: &K) -> (serde_json::Value, String) {
    let mut desired = serde_json::to_value(desired).expect("an object of Kubernetes is plain data");
    // Salted: a Secret's content is in it.
    let hash = scope.salt.hash(desired.to_string().as_bytes());
    let annotations = &mut desired["metadata"]["annotations"];
    if annotations.is_null() {
        *annotations = serde_json::json!({});
    }
    annotations[APPLIED_HASH] = serde_json::Value::String(hash.clone());
    (desired, hash)
}

/// The Deployment, for the status: what the watch knows, which has the counts.
pub fn watched_deployment(scope: &Scope, namespace: &str, service: &str) -> Option<Arc<live::Deployment>> {
    scope.stores.deployments.get(&ObjectRef::new(&names::child(service)).within(namespace))
}
