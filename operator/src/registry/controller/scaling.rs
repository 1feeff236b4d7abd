//! To none and to one: how many instances a service has is also for people and the autoscaler to say, so what is written
//! holds only for the number on which it was decided.

use std::time::Duration;

use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::timeout;

use super::{Done, RegistryController};
use crate::{
    api_client::is_refused, controller::scope::ServiceRef, crd::McpService, names::FIELD_MANAGER,
    registry::scale_to_zero::Obstacle,
};

/// For the API server to answer, all in all.
const ANSWER: Duration = Duration::from_secs(10);
/// Attempts, where something else of the service is written each time. The state machine makes another one later.
const ATTEMPTS: usize = 4;

/// A service's number of instances, from one to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    from: i32,
    to: i32,
}

impl RegistryController {
    /// One after the other: the API server may take two at once in any order.
    pub(super) fn scale(&mut self, reference: &ServiceRef, from: i32, to: i32) {
        let Some(service) = self.services.get_mut(reference) else { return };
        let step = Step { from, to };
        if service.scaling {
            service.scale_next = Some(step);
            return;
        }
        service.scaling = true;
        let api: Api<McpService> =
            Api::namespaced(self.setting.client.clone(), reference.namespace.as_deref().unwrap_or_default());
        tracing::info!(service = %reference, replicas = to, "{}", if to == 0 { "to sleep" } else { "wakes" });
        let (known, reference) = (self.version(reference, from), reference.clone());
        self.done.push(Box::pin(async move {
            let result = match timeout(ANSWER, write(&api, &reference.name, step, known)).await {
                Ok(Ok(written)) => Ok(written),
                Ok(Err(error)) => Err((words(&error), is_refused(&error))),
                Err(_) => Err((format!("no answer within {ANSWER:?}"), false)),
            };
            let result = result.map_err(|(why, hopeless)| Obstacle {
                why: format!("the API server does not scale it: {why}"),
                hopeless,
            });
            Done::Scaled(reference, to, result)
        }));
    }

    /// The version of the service, as the watch has it, if it has so many instances there.
    fn version(&self, reference: &ServiceRef, replicas: i32) -> Option<String> {
        let service = self.setting.watched.of(reference)?.stores.services.get(reference)?;
        let service = service.0.as_ref().ok().filter(|service| service.spec.replicas == replicas)?;
        service.resource_version()
    }

    /// `result`: whether it was written; if not, somebody else has scaled the service meanwhile.
    pub(super) fn scaled(&mut self, reference: &ServiceRef, replicas: i32, result: Result<bool, Obstacle>) {
        match &result {
            Ok(true) => self.setting.metrics.wrote("McpService", "scale"),
            Ok(false) => {
                tracing::info!(service = %reference, replicas, "somebody else has scaled it meanwhile");
            }
            Err(Obstacle { why, .. }) => tracing::warn!(service = %reference, replicas, "{why}"),
        }
        let next = self.services.get_mut(reference).and_then(|service| {
            service.scaling = false;
            service.scale_next.take()
        });
        if let Some(Step { from, to }) = next {
            return self.scale(reference, from, to);
        }
        self.with(reference, |machine, now, out| match result {
            Ok(false) => machine.outrun(replicas, now, out),
            Ok(true) => machine.scaled(replicas, Ok(()), now, out),
            Err(obstacle) => machine.scaled(replicas, Err(obstacle), now, out),
        });
    }
}

/// Whether it was written. `known`: the version that is known to have as many instances as it is to be changed from.
async fn write(
    api: &Api<McpService>,
    name: &str,
    Step { from, to }: Step,
    mut known: Option<String>,
) -> Result<bool, kube::Error> {
    for _ in 0..ATTEMPTS {
        let version = if let Some(version) = known.take() {
            version
        } else {
            let service = api.get(name).await?;
            if service.spec.replicas != from {
                return Ok(false);
            }
            service.resource_version().unwrap_or_default()
        };
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"replicas": to}});
        match api.patch_scale(name, &parameters, &Patch::Merge(patch)).await {
            // Something of it has changed, its status most often: was it this?
            Err(kube::Error::Api(status)) if status.is_conflict() => {}
            answer => return answer.map(|_| true),
        }
    }
    Ok(false)
}

/// The API server's own words, where they are its.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use kube::{Client, client::Body};
    use serde_json::Value;

    use super::*;
    use crate::controller::fixtures;

    /// An API server that has one service: its version, and its number of instances.
    #[derive(Debug)]
    struct Server {
        version: u32,
        replicas: i32,
        /// Writes of somebody else that come just before the next requests to scale: of the number of instances, or (none)
        /// of something else.
        others: Vec<Option<i32>>,
        requests: usize,
    }

    impl Server {
        fn answer(&mut self, request: &http::Request<Body>, body: &Value) -> (u16, Value) {
            self.requests += 1;
            if request.method() == http::Method::GET {
                let mut service = serde_json::to_value(fixtures::service(fixtures::STDIO)).unwrap();
                service["metadata"]["resourceVersion"] = json!(self.version.to_string());
                service["spec"]["replicas"] = json!(self.replicas);
                return (200, service);
            }
            if let Some(other) = self.others.pop() {
                self.version += 1;
                self.replicas = other.unwrap_or(self.replicas);
            }
            let meant = body["metadata"]["resourceVersion"].as_str();
            if meant.is_some_and(|meant| meant != self.version.to_string()) {
                let conflict =
                    json!({"kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409});
                return (409, conflict);
            }
            self.version += 1;
            self.replicas = i32::try_from(body["spec"]["replicas"].as_i64().unwrap()).unwrap();
            let metadata = json!({"name": "weather", "resourceVersion": self.version.to_string()});
            (200, json!({"metadata": metadata, "spec": {"replicas": self.replicas}}))
        }
    }

    /// Whether it was written, how many instances there are then, and what it took.
    async fn write_beside(others: &[Option<i32>], known: Option<&str>) -> (bool, i32, usize) {
        let others = others.iter().rev().copied().collect();
        let server = Arc::new(Mutex::new(Server { version: 7, replicas: 1, others, requests: 0 }));
        let serving = server.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let serving = serving.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await?;
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let request = http::Request::from_parts(head, Body::empty());
                let (code, answer) = serving.lock().unwrap().answer(&request, &body);
                let answer = Body::from(answer.to_string().into_bytes());
                Ok::<_, tower::BoxError>(http::Response::builder().status(code).body(answer).unwrap())
            }
        });
        let api = Api::namespaced(Client::new(service, "meteo"), "meteo");
        let step = Step { from: 1, to: 0 };
        let written = write(&api, "weather", step, known.map(str::to_owned)).await.unwrap();
        let server = server.lock().unwrap();
        (written, server.replicas, server.requests)
    }

    #[tokio::test]
    async fn what_somebody_else_has_asked_for_meanwhile_is_left_alone() {
        assert_eq!(write_beside(&[], Some("7")).await, (true, 0, 1), "one request, most often");
        assert_eq!(write_beside(&[], None).await, (true, 0, 2));
        assert_eq!(write_beside(&[Some(5)], Some("7")).await, (false, 5, 2));
        assert_eq!(write_beside(&[None, Some(5)], None).await, (false, 5, 5));
    }

    #[tokio::test]
    async fn what_somebody_else_has_written_of_the_rest_makes_no_difference() {
        assert_eq!(write_beside(&[None], Some("7")).await, (true, 0, 3));
        assert_eq!(write_beside(&[None; 2], None).await, (true, 0, 6));
        let without_end = write_beside(&[None; 9], Some("7")).await;
        assert_eq!((without_end.0, without_end.1), (false, 1), "it is tried again later");
    }
}
