//! Which connection carries a session. Without IO.
//!
//! A session is placed once, on the least loaded worker that stands, and stays there: so its order holds. The
//! registering connection carries sessions when there is no worker at all, by configuration or because all of them
//! are lost: whoever finds the presence is to be served, and a pool that is down is no reason to turn clients away
//! from an instance that could serve them. Those sessions stay as well; the next ones go to the workers that came
//! back.

/// A connection to the broker, by its place in the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub usize);

impl LinkId {
    /// The one that registers; the workers follow.
    pub const REGISTERING: Self = Self(0);
}

/// The sessions of each connection.
#[derive(Debug)]
pub struct Placement {
    /// By [`LinkId`].
    links: Vec<Load>,
}

#[derive(Debug, Clone, Default)]
struct Load {
    stands: bool,
    sessions: usize,
}

impl Placement {
    /// The registering connection stands, and none of this many workers yet.
    pub fn new(workers: usize) -> Self {
        let mut links = vec![Load::default(); workers + 1];
        links[0].stands = true;
        Self { links }
    }

    /// A connection stands, or no longer does.
    pub fn set_standing(&mut self, link: LinkId, stands: bool) {
        self.links[link.0].stands = stands;
    }

    /// Where the next session belongs.
    pub fn place(&self) -> LinkId {
        let workers = self.links.iter().enumerate().skip(1).filter(|(_, load)| load.stands);
        let least = workers.min_by_key(|(_, load)| load.sessions);
        least.map_or(LinkId::REGISTERING, |(link, _)| LinkId(link))
    }

    /// A session began there.
    pub fn joined(&mut self, link: LinkId) {
        self.links[link.0].sessions += 1;
    }

    /// A session ended there.
    pub fn left(&mut self, link: LinkId) {
        self.links[link.0].sessions -= 1;
    }

    /// Sessions there.
    pub fn sessions(&self, link: LinkId) -> usize {
        self.links[link.0].sessions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_go_to_the_least_loaded_worker_and_to_the_registering_connection_only_for_want_of_one() {
        let mut placement = Placement::new(2);
        let next = |placement: &mut Placement| {
            let link = placement.place();
            placement.joined(link);
            link.0
        };
        assert_eq!(next(&mut placement), 0, "no worker stands yet");
        placement.set_standing(LinkId(1), true);
        placement.set_standing(LinkId(2), true);
        assert_eq!([next(&mut placement), next(&mut placement), next(&mut placement)], [1, 2, 1]);
        placement.left(LinkId(1));
        placement.left(LinkId(1));
        assert_eq!(next(&mut placement), 1);
        placement.set_standing(LinkId(1), false);
        placement.left(LinkId(1));
        assert_eq!(next(&mut placement), 2, "lost: not to be placed on, though it is empty");
        placement.set_standing(LinkId(1), true);
        assert_eq!([next(&mut placement), next(&mut placement)], [1, 1], "back, and behind");
        assert_eq!((placement.sessions(LinkId(0)), placement.sessions(LinkId(2))), (1, 2));
    }

    #[test]
    fn without_workers_one_connection_carries_all() {
        assert_eq!(Placement::new(0).place(), LinkId::REGISTERING);
    }
}
