//! The candidate itself: it reads, judges and writes the Lease.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::Candidate;
use crate::{api_client::is_refused, names::FIELD_MANAGER};

/// A Lease that is not renewed for this long is anybody's. With the follower's look before, the next leader works
/// within 15 s.
const DURATION: Duration = Duration::from_secs(12);
/// A leader that could not renew for this long works no more.
const RENEW_DEADLINE: Duration = Duration::from_secs(8);
/// How often a leader renews.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How often a follower looks, at least, and a leader tries again that could not renew.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And at most.
const LOOK_LEAST: Duration = Duration::from_millis(100);
/// Writes that others came before, in one attempt.
const CONFLICTS: usize = 3;

/// See the module.
pub(super) struct Elector {
    api: Api<Lease>,
    candidate: Candidate,
    sight: Sight,
    /// As it was written last by us, and is still, as far as we know.
    held: Option<Lease>,
    /// What went wrong last.
    error: Option<String>,
}

impl Elector {
    pub(super) fn new(candidate: Candidate) -> Self {
        let api = Api::namespaced(candidate.client.clone(), &candidate.namespace);
        Self { api, candidate, sight: Sight::default(), held: None, error: None }
    }

    /// The first attempt. Where it cannot be told whose the Lease is, the next ones will.
    ///
    /// # Errors
    /// The API server refuses it, and would again.
    pub(super) async fn begin(&mut self) -> Result<bool, kube::Error> {
        match timeout(RENEW_DEADLINE, self.attempt()).await {
            Ok(Err(error)) if is_refused(&error) => Err(error),
            attempt => Ok(self.told(attempt.ok(), "sought") == Some(true)),
        }
    }

    /// Seeks leadership (unless it was won at that time), has it, and loses it or is to stop.
    pub(super) async fn run(
        mut self,
        won: Option<Instant>,
        state: watch::Sender<bool>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let won = if let Some(won) = won {
            won
        } else {
            tokio::select! {
                won = self.follow() => won,
                // A request that was under way may have come through.
                _ = &mut stopped => return self.give_back().await,
            }
        };
        state.send_replace(true);
        let stops = tokio::select! {
            () = self.lead(won) => false,
            _ = &mut stopped => true,
        };
        state.send_replace(false);
        if stops {
            self.give_back().await;
        }
    }

    /// Until the Lease is ours; since when at least.
    async fn follow(&mut self) -> Instant {
        loop {
            // No longer than it runs; and not all followers at once.
            let pause = self.sight.left.clamp(LOOK_LEAST, LOOK_EVERY);
            sleep(pause.mul_f64(0.9 + fastrand::f64() / 5.0)).await;
            let begin = Instant::now();
            let attempt = timeout(RENEW_DEADLINE, self.attempt()).await;
            if self.told(attempt.ok(), "sought") == Some(true) {
                return begin;
            }
        }
    }

    /// Until the Lease is ours no more, or may not be. Whoever looks at the Lease counts from a write of ours at the
    /// earliest from when that was begun.
    async fn lead(&mut self, won: Instant) {
        let mut deadline = won + RENEW_DEADLINE;
        let mut pause = RENEW_EVERY;
        while Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            sleep(pause.min(left / 2)).await;
            let begin = Instant::now();
            let attempt = timeout_at(deadline, self.attempt()).await;
            match self.told(attempt.ok(), "renewed") {
                Some(true) => (deadline, pause) = (begin + RENEW_DEADLINE, RENEW_EVERY),
                Some(false) => return tracing::error!("the Lease is another's now"),
                None => pause = LOOK_EVERY,
            }
        }
        tracing::error!("the Lease could not be renewed for {RENEW_DEADLINE:?}");
    }

    /// Says what went wrong, once. Whether the Lease is ours; none: it cannot be told.
    fn told(&mut self, attempt: Option<Result<bool, kube::Error>>, what: &str) -> Option<bool> {
        let error = match attempt {
            Some(Ok(ours)) => {
                self.error = None;
                return Some(ours);
            }
            Some(Err(error)) => error.to_string(),
            None => "no answer from the API server".to_owned(),
        };
        if self.error.as_ref() != Some(&error) {
            let Candidate { namespace, lease, .. } = &self.candidate;
            tracing::warn!(
                "the Lease {namespace}/{lease} cannot be {what}: {error}; trying again: does the API server answer, and \
                 may the operator write it?"
            );
        }
        self.error = Some(error);
        None
    }

    /// Renews the Lease, or takes it where it may be taken. Whether it is ours.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        for _ in 0..CONFLICTS {
            let mut lease = self.known().await?.unwrap_or_default();
            if !self.sight.may_take(&lease, &self.candidate.identity, Instant::now()) {
                return Ok(false);
            }
            let is_new = lease.metadata.resource_version.is_none();
            sign(&mut lease, &self.candidate.identity, Timestamp::now());
            let written = if is_new {
                lease.metadata.name = Some(self.candidate.lease.clone());
                let by =
                    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                self.api.create(&by, &lease).await
            } else {
                self.write(&lease).await
            };
            match written {
                Ok(lease) => {
                    self.held = Some(lease);
                    return Ok(true);
                }
                // Somebody wrote it since it was read, or it was deleted.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    async fn give_back(mut self) {
        match self.resign().await {
            Ok(true) => tracing::info!("the Lease is given back"),
            Ok(false) => {}
            Err(error) => tracing::warn!("the Lease could not be given back: {error}; it ends by itself"),
        }
    }

    /// Whether it was ours.
    async fn resign(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.known().await? else { return Ok(false) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.take().as_ref() != Some(&self.candidate.identity) {
            return Ok(false);
        }
        self.write(&lease).await.map(|_| true)
    }

    /// As it was written last by us, else as it stands, if there is one.
    async fn known(&mut self) -> Result<Option<Lease>, kube::Error> {
        match self.held.take() {
            Some(held) => Ok(Some(held)),
            None => self.api.get_opt(&self.candidate.lease).await,
        }
    }

    /// Writes its spec, over the version that was read and no other.
    async fn write(&self, lease: &Lease) -> Result<Lease, kube::Error> {
        let by = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let mut patch = json!({
            "metadata": {"resourceVersion": lease.metadata.resource_version},
            "spec": lease.spec,
        });
        // Null where there is none: a merge takes it away.
        patch["spec"]["holderIdentity"] =
            json!(lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref()));
        self.api.patch(&self.candidate.lease, &by, &Patch::Merge(patch)).await
    }
}

/// Makes the Lease this candidate's, from now on.
fn sign(lease: &mut Lease, identity: &str, now: Timestamp) {
    let spec: &mut LeaseSpec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_deref() != Some(identity) {
        spec.holder_identity = Some(identity.to_owned());
        spec.acquire_time = Some(MicroTime(now));
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count.saturating_add(1)));
    }
    spec.renew_time = Some(MicroTime(now));
    spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
}

/// What a candidate has seen of the Lease.
#[derive(Debug, Default)]
struct Sight {
    /// Its version, and since when.
    seen: Option<(String, Instant)>,
    /// How long it runs yet.
    left: Duration,
}

impl Sight {
    /// Whether the Lease is ours or nobody's, or has not been renewed for as long as it runs.
    fn may_take(&mut self, lease: &Lease, identity: &str, now: Instant) -> bool {
        let version = lease.resource_version().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => now,
        };
        self.seen = Some((version, since));
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds);
        let runs = seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let runs = runs.map_or(DURATION, Duration::from_secs);
        self.left = runs.saturating_sub(now.duration_since(since));
        holder.is_empty() || holder == identity || self.left.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Lease that somebody else signed.
    fn theirs(version: &str) -> Lease {
        let mut lease = Lease::default();
        sign(&mut lease, "other", Timestamp::UNIX_EPOCH);
        lease.metadata.resource_version = Some(version.to_owned());
        lease
    }

    #[test]
    fn a_lease_that_somebody_renews_is_theirs_whatever_the_time_in_it() {
        let (mut sight, mut now) = (Sight::default(), Instant::now());
        for version in ["1", "2", "3"] {
            assert!(!sight.may_take(&theirs(version), "us", now), "by its own clock it lapsed in 1970");
            now += DURATION.saturating_sub(LOOK_EVERY);
            assert!(!sight.may_take(&theirs(version), "us", now), "not yet");
        }
        assert!(sight.may_take(&theirs("3"), "us", now + LOOK_EVERY), "nobody renews it");
        assert_eq!(sight.left, Duration::ZERO);
    }

    #[test]
    fn a_lease_of_nobodys_and_ones_own_may_be_taken_at_once() {
        let (mut sight, now) = (Sight::default(), Instant::now());
        assert!(sight.may_take(&Lease::default(), "us", now), "there was none");
        assert!(sight.may_take(&theirs("1"), "other", now), "of the same name, before it was started anew");
        let mut given_back = theirs("2");
        given_back.spec.get_or_insert_default().holder_identity = None;
        assert!(sight.may_take(&given_back, "us", now));
    }

    #[test]
    fn a_leader_stops_before_the_next_may_begin() {
        assert!(RENEW_DEADLINE + LOOK_EVERY < DURATION);
        assert!(RENEW_EVERY + 2 * LOOK_EVERY < RENEW_DEADLINE, "one failure is no reason to give up");
    }

    #[test]
    fn who_takes_it_over_counts_and_who_renews_it_does_not() {
        let mut lease = theirs("1");
        sign(&mut lease, "us", Timestamp::MAX);
        sign(&mut lease, "us", Timestamp::MAX);
        let spec = lease.spec.expect("signed");
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("us"), Some(1)));
        assert_eq!(spec.acquire_time, Some(MicroTime(Timestamp::MAX)));
    }
}
