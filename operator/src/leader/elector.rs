//! The candidate itself: it reads, judges and writes the Lease.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, ResourceExt, api::PostParams};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::Candidate;

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

    /// Seeks leadership, has it, loses it; and once more, until it is to stop.
    pub(super) async fn run(mut self, state: watch::Sender<bool>, mut stopped: oneshot::Receiver<()>) {
        loop {
            if !*state.borrow() {
                tokio::select! {
                    () = self.follow() => {}
                    _ = &mut stopped => return,
                }
                state.send_replace(true);
            }
            tokio::select! {
                () = self.lead() => {}
                _ = &mut stopped => {
                    state.send_replace(false);
                    return self.give_back().await;
                }
            }
            self.held = None;
            state.send_replace(false);
        }
    }

    /// Until the Lease is ours.
    async fn follow(&mut self) {
        loop {
            // No longer than it runs; and not all followers at once.
            let pause = self.sight.left.clamp(LOOK_LEAST, LOOK_EVERY);
            sleep(pause.mul_f64(0.9 + fastrand::f64() / 5.0)).await;
            let attempt = timeout(RENEW_DEADLINE, self.attempt()).await;
            if self.told(attempt.ok(), "sought") == Some(true) {
                return;
            }
        }
    }

    /// Until the Lease is ours no more, or may not be.
    async fn lead(&mut self) {
        let mut deadline = Instant::now() + RENEW_DEADLINE;
        let mut pause = RENEW_EVERY;
        while Instant::now() < deadline {
            sleep(pause).await;
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
            tracing::warn!("the Lease cannot be {what}: {error}");
        }
        self.error = Some(error);
        None
    }

    /// Renews the Lease, or takes it where it may be taken. Whether it is ours.
    pub(super) async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let name = self.candidate.lease.clone();
        let parameters = self.parameters();
        for _ in 0..CONFLICTS {
            let known = match self.held.take() {
                Some(held) => Some(held),
                None => self.api.get_opt(&name).await?,
            };
            let mut lease = known.unwrap_or_default();
            if !self.sight.may_take(&lease, &self.candidate.identity, Instant::now()) {
                return Ok(false);
            }
            let is_new = lease.metadata.resource_version.is_none();
            sign(&mut lease, &self.candidate.identity, Timestamp::now());
            let written = if is_new {
                lease.metadata.name = Some(name.clone());
                self.api.create(&parameters, &lease).await
            } else {
                self.api.replace(&name, &parameters, &lease).await
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
            Ok(()) => tracing::info!("the Lease is given back"),
            Err(error) => tracing::warn!("the Lease could not be given back: {error}; it ends by itself"),
        }
    }

    async fn resign(&mut self) -> Result<(), kube::Error> {
        let name = &self.candidate.lease;
        let known = match self.held.take() {
            Some(held) => Some(held),
            None => self.api.get_opt(name).await?,
        };
        let Some(mut lease) = known else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.take().as_ref() != Some(&self.candidate.identity) {
            return Ok(());
        }
        self.api.replace(name, &self.parameters(), &lease).await.map(drop)
    }

    fn parameters(&self) -> PostParams {
        let field_manager = Some(format!("mcp-mqtt-operator-{}", self.candidate.identity));
        PostParams { field_manager, ..PostParams::default() }
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
