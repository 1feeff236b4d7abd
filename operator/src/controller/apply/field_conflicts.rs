//! Somebody else who writes the same fields again and again: mended a few times, then seldom, and told.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::memory::Key;
use crate::{controller::scope::lock, names::FIELD_MANAGER};

/// A person who tries something out is corrected this often before it counts as a contest.
const MENDS: u32 = 3;
/// Then the next one waits this long, and twice as long each time …
const FIRST_WAIT: Duration = Duration::from_secs(30);
/// … up to this; whoever left an object alone for as long is not in a contest.
const LAST_WAIT: Duration = Duration::from_mins(10);

/// How often each object had to be mended lately.
#[derive(Debug, Default)]
pub struct Contests(Mutex<HashMap<Key, Mended>>);

#[derive(Debug, Clone, Copy)]
struct Mended {
    times: u32,
    last: Instant,
}

impl Contests {
    /// Whether the object may be mended now, which is counted; otherwise how long it is left alone.
    pub(super) fn mend(&self, key: &Key, now: Instant) -> Result<(), Duration> {
        let mut all = lock(&self.0);
        all.retain(|_, mended| now.duration_since(mended.last) < LAST_WAIT);
        let times = match all.get(key) {
            None => 0,
            Some(mended) => {
                let wait = wait(mended.times);
                let rest = wait.saturating_sub(now.duration_since(mended.last));
                if !rest.is_zero() {
                    return Err(rest);
                }
                mended.times
            }
        };
        all.insert(key.clone(), Mended { times: times + 1, last: now });
        Ok(())
    }
}

fn wait(times: u32) -> Duration {
    match times.checked_sub(MENDS) {
        None => Duration::ZERO,
        Some(more) => FIRST_WAIT.saturating_mul(2_u32.saturating_pow(more)).min(LAST_WAIT),
    }
}

/// Who wrote the object last, but for us.
pub(super) fn rival(live: &ObjectMeta) -> Option<String> {
    let others = live.managed_fields.iter().flatten().filter(|entry| {
        entry.manager.as_deref() != Some(FIELD_MANAGER)
            && entry.subresource.as_deref().unwrap_or_default().is_empty()
    });
    others.max_by_key(|entry| entry.time.as_ref().map(|time| time.0))?.manager.clone()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_few_changes_are_mended_at_once_and_a_contest_seldom() {
        let contests = Contests::default();
        let key = ("Deployment", "meteo".to_owned(), "weather".to_owned());
        let begin = Instant::now();
        for _ in 0..MENDS {
            assert_eq!(contests.mend(&key, begin), Ok(()));
        }
        assert_eq!(contests.mend(&key, begin), Err(FIRST_WAIT));
        let other = ("Deployment", "meteo".to_owned(), "tides".to_owned());
        assert_eq!(contests.mend(&other, begin), Ok(()));
        let later = begin + FIRST_WAIT;
        assert_eq!(contests.mend(&key, later), Ok(()));
        assert_eq!(contests.mend(&key, later), Err(FIRST_WAIT * 2));
        assert_eq!(contests.mend(&key, later + LAST_WAIT), Ok(()), "it was left alone meanwhile");
        assert_eq!(contests.mend(&key, later + LAST_WAIT), Ok(()));
    }

    #[test]
    fn the_rival_is_who_wrote_last() {
        let live: ObjectMeta = serde_json::from_value(json!({"managedFields": [
            {"manager": FIELD_MANAGER, "operation": "Apply", "time": "2026-01-01T00:00:09Z"},
            {"manager": "kube-controller-manager", "operation": "Update", "subresource": "status", "time": "2026-01-01T00:00:08Z"},
            {"manager": "argocd", "operation": "Apply", "time": "2026-01-01T00:00:07Z"},
            {"manager": "kubectl-edit", "operation": "Update", "time": "2026-01-01T00:00:01Z"},
        ]}))
        .unwrap();
        assert_eq!(rival(&live).as_deref(), Some("argocd"));
        assert_eq!(rival(&ObjectMeta::default()), None);
    }
}
