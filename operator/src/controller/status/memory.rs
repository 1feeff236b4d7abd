//! The status, written, and known until the watch brings it back.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use kube::{
    Api, Resource,
    api::{ObjectMeta, Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::reflector::Store,
};
use serde_json::json;

use super::defer::START;
use crate::{
    controller::{
        scope::{Guarded, Scope, ServiceRef, lock},
        versions::is_behind,
    },
    crd::{McpService, McpServiceStatus},
    names::FIELD_MANAGER,
};

/// Statuses that were written and are not in the stores yet.
#[derive(Debug, Default)]
pub struct StatusMemory(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    written: HashMap<ServiceRef, Written>,
    /// Since when a start is kept back, by service; see [`START`]. Bounded by the services there are.
    deferred: HashMap<ServiceRef, Instant>,
    /// With so many it is looked which of them the store has by now: nobody may ask for a settled service for long.
    full: usize,
}

/// As many are kept at least.
const FEW: usize = 32;

#[derive(Debug)]
struct Written {
    /// The version of the service that the store had then; see [`is_behind`].
    before: Option<String>,
    /// The version that the API server answered; the store may be behind by more writes than this one.
    after: Option<String>,
    status: McpServiceStatus,
}

impl Written {
    /// Whether the store, which has this version of the service, does not know of it yet.
    fn is_news_to(&self, known: Option<&String>) -> bool {
        is_behind(known.map(String::as_str), self.before.as_deref(), self.after.as_deref())
    }
}

impl StatusMemory {
    /// The status that stands at the API server, as far as we know.
    pub fn last(
        &self,
        service: &ServiceRef,
        metadata: &ObjectMeta,
        watched: Option<&McpServiceStatus>,
    ) -> Option<McpServiceStatus> {
        let memory = &mut lock(&self.0).written;
        match memory.get(service) {
            Some(written) if written.is_news_to(metadata.resource_version.as_ref()) => {
                Some(written.status.clone())
            }
            Some(_) => {
                memory.remove(service); // the store has caught up
                watched.cloned()
            }
            None => watched.cloned(),
        }
    }

    /// How long the stage of a start is still kept back; none: it is to be written now.
    /// `begun`: when the stage began, unless one is kept back already.
    pub fn defer(&self, service: &ServiceRef, begun: Instant, now: Instant) -> Option<Duration> {
        let since = *lock(&self.0).deferred.entry(service.clone()).or_insert(begun);
        START.checked_sub(now.duration_since(since)).filter(|rest| !rest.is_zero())
    }

    /// Nothing is kept back any more.
    pub fn settle(&self, service: &ServiceRef) {
        lock(&self.0).deferred.remove(service);
    }

    /// The service is gone.
    pub fn forget(&self, service: &ServiceRef) {
        let memory = &mut *lock(&self.0);
        memory.written.remove(service);
        memory.deferred.remove(service);
    }

    fn remember(&self, service: &ServiceRef, new: Written, store: &Store<Guarded>) {
        let Memory { written, deferred, full } = &mut *lock(&self.0);
        deferred.remove(service);
        written.insert(service.clone(), new);
        if written.len() > *full {
            written.retain(|service, written| {
                let known = store.get(service);
                known.is_some_and(|known| written.is_news_to(known.meta().resource_version.as_ref()))
            });
            *full = FEW.max(written.len() * 2);
        }
    }
}

/// Writes the status where it differs from the last one; whether it did.
///
/// # Errors
/// The API server's.
pub async fn patch_status(
    scope: &Scope,
    service: &ServiceRef,
    metadata: &ObjectMeta,
    last: Option<&McpServiceStatus>,
    status: &McpServiceStatus,
) -> Result<bool, kube::Error> {
    if last == Some(status) {
        return Ok(false);
    }
    let namespace = service.namespace.as_deref().unwrap_or_default();
    // By its metadata: a service that cannot be read can still be told so.
    let api: Api<PartialObjectMeta<McpService>> = Api::namespaced(scope.client.clone(), namespace);
    let patch = Patch::Merge(json!({"status": with_nulls(status)}));
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let answer = api.patch_status(&service.name, &parameters, &patch).await?;
    let written = Written {
        before: metadata.resource_version.clone(),
        after: answer.metadata.resource_version,
        status: status.clone(),
    };
    scope.statuses.remember(service, written, &scope.stores.services);
    Ok(true)
}

/// In a merge patch a field goes only when it is null.
fn with_nulls(status: &McpServiceStatus) -> serde_json::Value {
    let mut value = json!({"serverName": null, "ready": null, "selector": null, "server": null, "instances": [], "conditions": [], "observedGeneration": null});
    if let (Some(all), Ok(serde_json::Value::Object(set))) =
        (value.as_object_mut(), serde_json::to_value(status))
    {
        all.extend(set);
    }
    value
}

#[cfg(test)]
mod tests {
    use kube::{
        core::DeserializeGuard,
        runtime::{reflector, watcher::Event},
    };
    use serde_json::Value;

    use super::*;
    use crate::controller::fixtures::{self, STDIO};

    fn status(sessions: i32) -> McpServiceStatus {
        McpServiceStatus { sessions, ..McpServiceStatus::default() }
    }

    fn written(before: Option<&str>, after: Option<&str>, status: McpServiceStatus) -> Written {
        let text = |version: Option<&str>| version.map(str::to_owned);
        Written { before: text(before), after: text(after), status }
    }

    #[test]
    fn a_store_that_is_behind_does_not_make_us_write_again() {
        let memory = StatusMemory::default();
        let service = ServiceRef::new("weather").within("meteo");
        let version = |version: &str| ObjectMeta {
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        };
        let (old, new) = (status(0), status(1));
        assert_eq!(memory.last(&service, &version("4"), Some(&old)), Some(old.clone()));
        let (store, mut writer) = reflector::store();
        let mut known = fixtures::service(STDIO);
        known.metadata.resource_version = Some("4".to_owned());
        writer.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(known))));
        for after in [None, Some("6")] {
            memory.remember(&service, written(Some("4"), after, new.clone()), &store);
            assert_eq!(memory.last(&service, &version("4"), Some(&old)), Some(new.clone()));
            assert_eq!(
                memory.last(&service, &version("6"), Some(&old)),
                Some(old.clone()),
                "it has caught up"
            );
        }
    }

    #[test]
    fn a_store_that_is_behind_by_several_writes_does_not_pass_for_the_last_of_them() {
        let memory = StatusMemory::default();
        let service = ServiceRef::new("weather").within("meteo");
        let (store, _writer) = reflector::store();
        // First 1 and then 2 is written, while the store has neither.
        memory.remember(&service, written(Some("4"), Some("5"), status(1)), &store);
        memory.remember(&service, written(Some("4"), Some("6"), status(2)), &store);
        let first = ObjectMeta { resource_version: Some("5".to_owned()), ..ObjectMeta::default() };
        // It has the first one now: whoever wants 1 again has to write it.
        assert_eq!(memory.last(&service, &first, Some(&status(1))), Some(status(2)));
    }

    #[test]
    fn what_the_store_has_by_now_is_forgotten() {
        let memory = StatusMemory::default();
        let (store, mut writer) = reflector::store::<Guarded>();
        let (version, reference) = (
            |number: usize| Some(number.to_string()),
            |number: usize| ServiceRef::new(&format!("weather-{number}")).within("meteo"),
        );
        for number in 0..FEW * 4 {
            let mut service = fixtures::service(STDIO);
            service.metadata.name = Some(reference(number).name);
            service.metadata.resource_version = version(1);
            writer.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(service.clone()))));
            memory.remember(&reference(number), written(Some("1"), Some("2"), status(1)), &store);
            // The last one only is not there yet.
            if number + 1 < FEW * 4 {
                service.metadata.resource_version = version(2);
                writer.apply_watcher_event(&Event::Apply(DeserializeGuard(Ok(service))));
            }
        }
        let written = &lock(&memory.0).written;
        assert!(written.len() <= FEW * 2, "{}", written.len());
        assert!(written.contains_key(&reference(FEW * 4 - 1)));
    }

    #[test]
    fn a_start_is_kept_back_for_a_while_and_each_stage_anew() {
        let (memory, begin) = (StatusMemory::default(), Instant::now());
        let (service, third) = (ServiceRef::new("weather").within("meteo"), START / 3);
        assert_eq!(memory.defer(&service, begin, begin), Some(START));
        assert_eq!(memory.defer(&service, begin + third, begin + third * 2), START.checked_sub(third * 2));
        assert_eq!(memory.defer(&service, begin + third, begin + START), None);
        let (store, _writer) = reflector::store();
        memory.remember(&service, written(Some("4"), Some("5"), status(0)), &store);
        assert_eq!(memory.defer(&service, begin + START, begin + START), Some(START), "it was written");
        memory.settle(&service);
        assert_eq!(
            memory.defer(&service, begin + third * 4, begin + third * 6),
            START.checked_sub(third * 2),
            "it began a while ago"
        );
        memory.forget(&service);
        assert!(lock(&memory.0).deferred.is_empty());
    }

    #[test]
    fn what_is_gone_is_null_in_the_patch() {
        assert_eq!(with_nulls(&status(0))["server"], Value::Null);
        assert_eq!(with_nulls(&status(0))["replicas"], json!(0));
    }
}
