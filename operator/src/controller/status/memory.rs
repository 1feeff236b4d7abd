//! The status, written, and known until the watch brings it back.

use std::{collections::HashMap, sync::Mutex};

use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
    core::PartialObjectMeta,
};
use serde_json::json;

use crate::{
    controller::scope::{ServiceRef, lock},
    crd::{McpService, McpServiceStatus},
    names::FIELD_MANAGER,
};

/// Statuses that were written and are not in the stores yet.
#[derive(Debug, Default)]
pub struct StatusMemory(Mutex<HashMap<ServiceRef, Written>>);

#[derive(Debug)]
struct Written {
    /// The version of the service that the store had then; as long as it still has that, it is behind.
    before: Option<String>,
    status: McpServiceStatus,
}

impl StatusMemory {
    /// The status that stands at the API server, as far as we know.
    pub fn last(
        &self,
        service: &ServiceRef,
        metadata: &ObjectMeta,
        watched: Option<&McpServiceStatus>,
    ) -> Option<McpServiceStatus> {
        let mut memory = lock(&self.0);
        match memory.get(service) {
            Some(written) if written.before == metadata.resource_version => Some(written.status.clone()),
            Some(_) => {
                memory.remove(service); // the store has caught up
                watched.cloned()
            }
            None => watched.cloned(),
        }
    }

    /// The service is gone.
    pub fn forget(&self, service: &ServiceRef) {
        lock(&self.0).remove(service);
    }

    fn remember(&self, service: &ServiceRef, before: Option<String>, status: McpServiceStatus) {
        lock(&self.0).insert(service.clone(), Written { before, status });
    }
}

/// Writes the status where it differs from the last one; whether it did.
///
/// # Errors
/// The API server's.
pub async fn patch_status(
    client: &Client,
    memory: &StatusMemory,
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
    let api: Api<PartialObjectMeta<McpService>> = Api::namespaced(client.clone(), namespace);
    let patch = Patch::Merge(json!({"status": with_nulls(status)}));
    api.patch_status(
        &service.name,
        &PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() },
        &patch,
    )
    .await?;
    memory.remember(service, metadata.resource_version.clone(), status.clone());
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
    use serde_json::Value;

    use super::*;

    fn status(sessions: i32) -> McpServiceStatus {
        McpServiceStatus { sessions, ..McpServiceStatus::default() }
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
        memory.remember(&service, Some("4".to_owned()), new.clone());
        assert_eq!(memory.last(&service, &version("4"), Some(&old)), Some(new));
        assert_eq!(memory.last(&service, &version("5"), Some(&old)), Some(old));
    }

    #[test]
    fn what_is_gone_is_null_in_the_patch() {
        assert_eq!(with_nulls(&status(0))["server"], Value::Null);
        assert_eq!(with_nulls(&status(0))["replicas"], json!(0));
    }
}
