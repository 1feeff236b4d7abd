//! Server instances, as their presences show them.

use crate::{
    presence::Online,
    topic::{ServerId, ServerName},
};

/// One instance of a server that is online.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub server_id: ServerId,
    /// Its name, from the topic.
    pub server_name: ServerName,
    /// What its presence says.
    pub online: Online,
}

/// A view of the instances that match one filter, kept up to date.
#[derive(Debug)]
pub struct Watch {}

impl Watch {
    /// The instances that are online now, by name and id.
    pub fn instances(&self) -> Vec<Instance> {
        todo!()
    }

    /// Waits for a change (an instance came, went, or says something else). False when the connection is over.
    pub async fn changed(&mut self) -> bool {
        todo!()
    }

    /// Waits until `condition` holds for the instances, and returns them; none when the connection is over.
    /// The caller bounds the wait.
    pub async fn until(&mut self, condition: impl FnMut(&[Instance]) -> bool) -> Option<Vec<Instance>> {
        let _ = condition;
        todo!()
    }
}
