//! From an `McpService` to its objects, and back to its status. A reconcile is a list of steps:
//!
//! [`fetch`] → [`validate`] → [`resolve`] → [`build`] → [`apply`] → [`status`]
//!
//! `validate` and `build` are pure; only they know what an `McpService` means. Each step has its own error.

pub mod apply;
pub mod backlog;
pub mod build;
pub mod events;
pub mod fetch;
pub mod ownership;
pub mod pods;
pub mod problems;
pub mod resolve;
pub mod scale_in;
pub mod scope;
pub mod status;
pub mod triggers;
mod trim;
pub mod validate;
mod versions;
pub mod watches;

#[cfg(test)]
pub(crate) mod fixtures;

use std::{future::Future, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Resource, ResourceExt,
    core::error_boundary::InvalidObject,
    runtime::{
        Config, Controller,
        controller::{Action, Error as ControllerError},
        watcher,
    },
};

use tokio::time::timeout;

use self::{
    apply::{ApplyError, Child, Progress, apply, watched_deployment},
    build::{Applied, Resources, Surroundings, build},
    fetch::{Fetched, fetch},
    problems::Problem,
    resolve::{ResolveError, resolve},
    scope::{Guarded, Scope, ServiceRef, seconds},
    status::{Outcome, Seen, build_status, defer_status, is_mere_progress, is_start, patch_status},
    triggers::triggers,
    validate::{ValidService, ValidateError, for_registry, validate},
    watches::Watches,
};
use crate::{
    crd::McpService,
    metrics::Outcome as Counted,
    names::PAUSED,
    reasons,
    registry::{Asked, wanted::Wanted},
};

/// A service at rest is looked at this often all the same: what a watch missed is found then.
const RESYNC: Duration = Duration::from_mins(10);
/// At the end, for the last Events to be written.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// A reconcile that did not come to its end; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Resolve.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Apply.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Status.
    #[error("the status of McpService {service} cannot be written: {source}")]
    Status {
        /// Which service.
        service: ServiceRef,
        /// What the API server said.
        #[source]
        source: kube::Error,
    },
}

/// Runs the controller until `stop` resolves and the reconciles under way have ended.
pub async fn run(
    scope: Arc<Scope>,
    watches: Watches,
    changed: impl Stream<Item = ServiceRef> + Send + 'static,
    write_events: impl Future<Output = ()> + Send + 'static,
    concurrency: u16,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let Watches { services, children, referred, default_broker_secret, relisted } = watches;
    let noted = scope.clone();
    let services = services.inspect_ok(move |service| noted.backlog.note(ServiceRef::from_obj(service)));
    let mut controller = Controller::for_stream(services, scope.stores.services.clone())
        .with_config(Config::default().concurrency(concurrency))
        .trigger_backoff(watches::AtOnce)
        .reconcile_on(triggers(&scope, children, referred, changed))
        .reconcile_all_on(futures::stream::unfold(relisted, async |mut relisted| {
            relisted.changed().await.ok()?;
            Some(((), relisted))
        }))
        .graceful_shutdown_on(stop);
    if let Some(secret) = default_broker_secret {
        let scope = scope.clone();
        controller = controller.reconcile_all_on(secret.filter_map(move |secret| {
            let changed = secret.map_err(|error| triggers::tell_failed(&scope, &error));
            futures::future::ready(changed.ok().map(drop))
        }));
    }
    let log = scope.clone();
    let run = controller.run(reconcile, error_policy, scope).for_each(move |result| {
        report(&log, result);
        futures::future::ready(())
    });
    let mut write_events = tokio::spawn(write_events);
    run.await;
    // All that could tell anything has gone with it; what was told last is written.
    if timeout(LAST_EVENTS, &mut write_events).await.is_err() {
        write_events.abort();
        tracing::warn!("the last Events are not written: the API server takes too long");
    }
}

/// One service, brought to what it asks for.
async fn reconcile(service: Arc<Guarded>, scope: Arc<Scope>) -> Result<Action, ReconcileError> {
    scope.stores.synced().await;
    let begin = std::time::Instant::now();
    let reference = ServiceRef::from_obj(&*service);
    if service.meta().deletion_timestamp.is_some() {
        scope.forget(&reference);
        return Ok(Action::await_change());
    }
    if let Ok(service) = &service.0 {
        // An answer of the API server that is lost keeps the steps for longer than a wake may take.
        scope.registry.tell_replicas(&reference, service.spec.replicas);
    }
    let mut progress = Progress::default();
    let mut asked = Asked::Unreadable(service.0.as_ref().ok().map(|service| service.spec.replicas));
    let result = match &service.0 {
        // Boxed: it holds a whole pod template.
        Ok(service) => Box::pin(accept(service, &scope, &mut asked, &mut progress)).await,
        Err(invalid) => Err(unreadable(invalid)),
    };
    let refused = result.as_ref().err().and_then(Stop::refusal);
    scope.registry.tell(&reference, asked, refused);
    scope.backlog.done(&reference);
    // What was written is told however the steps ended, and before what came of it.
    events::tell_changes(&scope, &service, &progress.changes);
    let (outcome, counted) = match result {
        Ok(resources) => (Outcome::Accepted(resources), Counted::Accepted),
        Err(Stop::Paused) => (Outcome::Paused, Counted::Accepted),
        Err(Stop::Refused(problem) | Stop::Objected(problem)) => {
            (Outcome::Refused(problem), Counted::Refused)
        }
        Err(Stop::Failed(error)) => {
            scope.metrics.reconciled(Counted::Failed, seconds(begin));
            return Err(error);
        }
    };
    let deferred = status(&scope, &service, &reference, &outcome).await?;
    scope.metrics.reconciled(counted, seconds(begin));
    let sooner = progress.look_again.into_iter().chain(deferred).min();
    if matches!(outcome, Outcome::Refused(_)) {
        // What was refused waits for a change; but quotas, webhooks and others' objects change unseen.
        let pause = scope.failures.pause(&reference);
        return Ok(Action::requeue(sooner.map_or(pause, |sooner| pause.min(sooner))));
    }
    scope.failures.forget(&reference);
    Ok(Action::requeue(sooner.unwrap_or(RESYNC)))
}

/// Why the steps ended early.
enum Stop {
    /// The service is paused: nothing is written but its status.
    Paused,
    /// The service cannot be as it is: told in its status.
    Refused(Problem),
    /// One of the objects around its pods is not as it should be, and they are as it asks for all the same: told in its
    /// status, and to nobody who wakes it.
    Objected(Problem),
    /// Something failed that may pass: tried again.
    Failed(ReconcileError),
}

impl Stop {
    /// What whoever wakes the service is told.
    fn refusal(&self) -> Option<String> {
        match self {
            // Its place is looked after all the same: with the credentials that it has now.
            Self::Paused => Some(format!("{}: the service is paused", reasons::PAUSED)),
            Self::Refused(problem) => Some(problem.quoted()),
            Self::Objected(_) | Self::Failed(_) => None,
        }
    }
}

/// The steps up to apply. What the service is found to ask for is `asked`, however they end.
async fn accept(
    service: &McpService,
    scope: &Scope,
    asked: &mut Asked,
    progress: &mut Progress,
) -> Result<Box<Resources<Applied>>, Stop> {
    let fetched = fetch(scope);
    let valid = match validate(service, &fetched, &scope.settings) {
        Ok(valid) => valid,
        Err(error) => {
            let reference =
                ServiceRef::new(&service.name_any()).within(&service.namespace().unwrap_or_default());
            // It may stand in the registry, asleep, from before this operator's time.
            if !scope.registry.knows(&reference)
                && let Ok(valid) = validate(&for_registry(service), &fetched, &scope.settings)
            {
                // It is refused, whatever comes of this.
                let _ = resolve_asked(scope, &valid, &fetched, asked).await;
            }
            return Err(error.into());
        }
    };
    let references_hash = resolve_asked(scope, &valid, &fetched, asked).await?;
    if is_paused(service) {
        return Err(Stop::Paused);
    }
    let resources = build(
        &valid,
        Surroundings {
            settings: &scope.settings,
            default_broker_secret: fetched.default_broker_secret.as_ref(),
            references_hash: references_hash.as_deref(),
            salt: &scope.salt,
        },
    );
    // Boxed: it holds all of the objects.
    Ok(Box::new(Box::pin(apply(scope, &valid.identity, resources, progress)).await?))
}

/// Resolves what the service refers to, and with that what it asks for of the registry.
async fn resolve_asked(
    scope: &Scope,
    valid: &ValidService,
    fetched: &Fetched,
    asked: &mut Asked,
) -> Result<Option<String>, ResolveError> {
    let resolved = resolve(scope, &valid.identity, &valid.references).await;
    let default_secret = fetched.default_broker_secret.as_ref();
    let wanted = Wanted::of(valid, &scope.settings, &scope.references, default_secret, &scope.salt);
    match (&resolved, wanted) {
        (Ok(_), Some(wanted)) => *asked = Asked::Usable(wanted),
        (Err(ResolveError::Missing(_)), Some(wanted)) => *asked = Asked::Unusable(wanted),
        (Err(ResolveError::Api { .. }), _) | (_, None) => {}
    }
    resolved
}

fn is_paused(service: &McpService) -> bool {
    service.annotations().get(PAUSED).is_some_and(|value| value == "true")
}

/// The last step, the status, and the Events that go with a change of it; when to look again, where it is too early to
/// tell.
async fn status(
    scope: &Scope,
    service: &Guarded,
    reference: &ServiceRef,
    outcome: &Outcome,
) -> Result<Option<Duration>, ReconcileError> {
    let (metadata, readable) = (service.meta(), service.0.as_ref().ok());
    let last = scope.statuses.last(reference, metadata, readable.and_then(|service| service.status.as_ref()));
    let last = last.as_ref();
    let seen = see(scope, service, readable);
    let namespace = reference.namespace.as_deref().unwrap_or_default();
    let applied = scope.applied.age(Deployment::KIND, namespace, &crate::names::child(&reference.name));
    let relook = scope.backlog.relook(scope.stores.services.len());
    if let Some(deferred) = defer_status(outcome, &seen, last, applied, relook) {
        return Ok(Some(deferred));
    }
    let status = build_status(outcome, &seen, last, k8s_openapi::jiff::Timestamp::now());
    if last.is_some_and(|last| is_mere_progress(last, &status)) {
        scope.statuses.settle(reference);
        return Ok(None);
    }
    // A pause is told at once.
    if matches!(outcome, Outcome::Accepted(_)) && is_start(last, &status) {
        let now = std::time::Instant::now();
        // The first stage began with the Deployment, which may be long ago where a thousand came at once.
        let begun = applied.filter(|_| last.is_none()).and_then(|applied| now.checked_sub(applied));
        if let Some(deferred) = scope.statuses.defer(reference, begun.unwrap_or(now), now) {
            return Ok(Some(deferred));
        }
    }
    match patch_status(scope, reference, metadata, last, &status).await {
        Ok(written) => {
            if written {
                scope.metrics.wrote("McpService", "status");
            }
        }
        // It was deleted in the meantime.
        Err(kube::Error::Api(answer)) if answer.is_not_found() => return Ok(None),
        Err(source) => return Err(ReconcileError::Status { service: reference.clone(), source }),
    }
    events::tell_conditions(scope, service, last, &status).await;
    Ok(None)
}

fn see<'a>(scope: &Scope, service: &'a Guarded, readable: Option<&McpService>) -> Seen<'a> {
    let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
    let reference = ServiceRef::from_obj(service);
    let pods = scope.stores.pods.of(&reference);
    Seen {
        deployment: watched_deployment(scope, &namespace, &name),
        pods: Seen::pods(pods, &scope.observations),
        metadata: service.meta(),
        server_name: readable.map(validate::server_name),
        replicas: readable.map_or(0, |service| service.spec.replicas),
        registry: scope.registry.seen(&reference),
        awaits_registry: scope.registry.is_pending(&reference),
        serves_sessions: scope.settings.serves_sessions,
    }
}

fn unreadable(invalid: &InvalidObject) -> Stop {
    Stop::from(ValidateError::Unreadable(invalid.error.clone()))
}

/// What failed is tried again, later each time.
#[expect(clippy::needless_pass_by_value, reason = "kube's signature")]
fn error_policy(service: Arc<Guarded>, error: &ReconcileError, scope: Arc<Scope>) -> Action {
    let pause = scope.failures.pause(&ServiceRef::from_obj(&*service));
    let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
    if matches!(error, ReconcileError::Apply(ApplyError::Leaving { .. })) {
        tracing::info!(namespace, service = name, "{error}"); // it passes by itself: not worth a warning
    } else {
        tracing::warn!(namespace, service = name, retry_in = ?pause, "{error}");
    }
    Action::requeue(pause)
}

/// What the controller itself has to say.
fn report(
    scope: &Scope,
    result: Result<
        (kube::runtime::reflector::ObjectRef<Guarded>, Action),
        ControllerError<ReconcileError, watcher::Error>,
    >,
) {
    match result {
        Ok(_) | Err(ControllerError::ReconcilerFailed(..)) => {} // told by the error policy
        // It was deleted while something of it changed.
        Err(ControllerError::ObjectNotFound(service)) => {
            let service =
                ServiceRef::new(&service.name).within(service.namespace.as_deref().unwrap_or_default());
            scope.forget(&service);
        }
        Err(ControllerError::QueueError(error)) => {
            triggers::tell_failed(scope, &error);
        }
        Err(ControllerError::RunnerError(error)) => tracing::error!("the controller: {error}"),
    }
}

impl From<ValidateError> for Stop {
    fn from(error: ValidateError) -> Self {
        Self::Refused(Problem { reason: error.reason().to_owned(), message: error.to_string() })
    }
}

impl From<ResolveError> for Stop {
    fn from(error: ResolveError) -> Self {
        match &error {
            ResolveError::Missing(_) => Self::Refused(Problem {
                reason: reasons::REFERENCE_NOT_FOUND.to_owned(),
                message: error.to_string(),
            }),
            ResolveError::Api { .. } => Self::Failed(error.into()),
        }
    }
}

impl From<ApplyError> for Stop {
    fn from(error: ApplyError) -> Self {
        let Some(reason) = error.reason() else { return Self::Failed(error.into()) };
        let problem = Problem { reason: reason.to_owned(), message: error.to_string() };
        if error.spares_pods() { Self::Objected(problem) } else { Self::Refused(problem) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::apply::ObjectName;

    #[test]
    fn whoever_wakes_a_service_hears_of_what_concerns_its_pods_and_of_nothing_else() {
        let object = |kind| ObjectName { kind, namespace: "meteo".to_owned(), name: "weather".to_owned() };
        let contested = |kind| {
            let (field, rival, wait) = ("spec".into(), "guard".into(), Duration::from_secs(30));
            Stop::from(ApplyError::Contested { object: object(kind), field, rival, wait }).refusal()
        };
        let rejected = |kind| {
            let (reason, message) = (reasons::DEPLOYMENT_REJECTED, "no".to_owned());
            Stop::from(ApplyError::Rejected { object: object(kind), reason, message }).refusal()
        };
        for companion in ["Secret", "NetworkPolicy", "ServiceAccount"] {
            assert_eq!(contested(companion), None, "{companion}");
            assert!(rejected(companion).is_some(), "{companion}");
        }
        for around in ["PodDisruptionBudget", "HorizontalPodAutoscaler", "ScaledObject"] {
            assert_eq!((contested(around), rejected(around)), (None, None), "{around}");
        }
        let said = contested("Deployment").unwrap();
        assert!(said.starts_with("FieldsContested: guard keeps changing spec of the Deployment"), "{said}");
        assert!(rejected("Deployment").is_some());
    }
}
