//! Queue: whom to ask next, and for how many questions there is room. A silent gateway holds its place until the time for
//! an answer is over, so that each kind has places of its own, and silent ones keep nobody else out.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::live::pod::Pod;

/// A gateway that has owed an answer for so long is asked seldom.
pub(super) const LONG_SILENT: Duration = Duration::from_secs(10);
/// How often it is asked then.
pub(super) const SELDOM: Duration = Duration::from_secs(5);
/// Questions at one time.
const PLACES: usize = 320;
/// Of these, for gateways that are suspected with their node: two lost nodes with 110 pods each are asked at once.
const SUSPECTED_PLACES: usize = 256;
/// For gateways that are asked for their own sake. An answer takes a millisecond, so that thousands are asked in less than
/// their interval of five seconds; each question has its buffers.
const OWN_PLACES: usize = 32;
/// And for those that have been silent for long.
const SELDOM_PLACES: usize = 16;

/// Why a gateway is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// For its node's sake: all places are open to it.
    Representative,
    /// Its node's representative owes an answer.
    Suspected,
    /// For its own.
    Own,
    /// It has been silent for long.
    LongSilent,
}

/// One to be asked.
pub(super) struct Due {
    pub(super) kind: Kind,
    /// When something was noted of it last, and whether it owes an answer since.
    pub(super) last: Option<Instant>,
    pub(super) owes: bool,
    pub(super) uid: String,
    pub(super) pod: Arc<Pod>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Queue {
    due: [VecDeque<Due>; 4],
    /// Those that are asked now.
    asked: HashMap<String, Kind>,
}

impl Queue {
    /// Whether it is asked now.
    pub(super) fn asks(&self, uid: &str) -> bool {
        self.asked.contains_key(uid)
    }

    /// These are to be asked, and no others. Of each kind those that owe no answer go first, and then those that were not
    /// asked for the longest time.
    pub(super) fn fill(&mut self, mut due: Vec<Due>) {
        due.sort_by_key(|due| (due.owes, due.last));
        for queue in &mut self.due {
            queue.clear();
        }
        for due in due {
            self.due[due.kind as usize].push_back(due);
        }
    }

    /// The next one for whom there is a place; it is asked from now on.
    pub(super) fn next(&mut self) -> Option<(String, Arc<Pod>)> {
        let kinds = [
            (Kind::Representative, PLACES),
            (Kind::Suspected, SUSPECTED_PLACES),
            (Kind::Own, OWN_PLACES),
            (Kind::LongSilent, SELDOM_PLACES),
        ];
        if self.asked.len() >= PLACES {
            return None;
        }
        let (kind, _) = kinds
            .into_iter()
            .find(|(kind, places)| !self.due[*kind as usize].is_empty() && self.count(*kind) < *places)?;
        let Due { uid, pod, .. } = self.due[kind as usize].pop_front()?;
        self.asked.insert(uid.clone(), kind);
        Some((uid, pod))
    }

    /// It has answered, or the time is over.
    pub(super) fn done(&mut self, uid: &str) {
        self.asked.remove(uid);
    }

    fn count(&self, kind: Kind) -> usize {
        self.asked.values().filter(|other| **other == kind).count()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn due(kind: Kind, number: usize) -> Due {
        let uid = format!("{kind:?} {number}");
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": uid}})).unwrap();
        Due { kind, last: None, owes: false, uid, pod: Arc::new(pod) }
    }

    fn asked(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.next()).map(|(uid, _)| uid).collect()
    }

    #[test]
    fn silent_ones_leave_places_to_the_others() {
        let mut queue = Queue::default();
        let many = |kind| (0..2 * PLACES).map(move |number| due(kind, number));
        queue.fill(many(Kind::LongSilent).collect());
        assert_eq!(asked(&mut queue).len(), SELDOM_PLACES);
        queue.fill(many(Kind::LongSilent).chain(many(Kind::Own)).collect());
        assert_eq!(asked(&mut queue).len(), OWN_PLACES);
        queue.fill(many(Kind::Own).chain(many(Kind::Suspected)).collect());
        assert_eq!(asked(&mut queue).len(), SUSPECTED_PLACES);
        queue.fill(many(Kind::Own).chain(many(Kind::Representative)).collect());
        let first = asked(&mut queue);
        assert_eq!(first.len(), PLACES - SUSPECTED_PLACES - OWN_PLACES - SELDOM_PLACES);
        assert!(!first.is_empty());
        assert!(first.iter().all(|uid| uid.starts_with("Representative")), "{first:?}");
        queue.done(&first[0]);
        assert!(!queue.asks(&first[0]) && queue.asks(&first[1]));
        assert_eq!(asked(&mut queue).len(), 1);
    }

    #[test]
    fn who_owes_an_answer_waits_for_those_that_do_not() {
        let (now, mut queue) = (Instant::now(), Queue::default());
        let with = |number, last, owes| Due { last, owes, ..due(Kind::Own, number) };
        let later = now + Duration::from_secs(1);
        queue.fill(vec![
            with(1, Some(now), true),
            with(2, Some(later), false),
            with(3, Some(now), false),
            with(4, None, false),
        ]);
        assert_eq!(asked(&mut queue), ["Own 4", "Own 3", "Own 2", "Own 1"]);
    }
}
