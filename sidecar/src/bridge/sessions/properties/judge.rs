//! What the world sees of the table's actions, and whether it may be.

use super::*;

impl Scene {
    /// Does what the table asks for, and judges it.
    pub(super) fn perform(&mut self) {
        while !self.out.is_empty() {
            for action in std::mem::take(&mut self.out) {
                self.judge(action);
            }
        }
    }

    fn judge(&mut self, action: Action) {
        let world = &mut self.world;
        match action {
            Action::Subscribe { via, session, client } => {
                assert!(via == LinkId::REGISTERING || world.standing.contains(&via), "placed on a lost one");
                let before = world.subscribed.insert(client.to_string(), via);
                assert!(before.is_none_or(|before| before == via), "heard on two connections");
                world.suback_due.push(session);
            }
            Action::Unsubscribe { via, client } => {
                let subscribed = world.subscribed.remove(client.as_str());
                assert_eq!(subscribed, Some(via), "unsubscribed what was not subscribed");
            }
            Action::ToClient { via, client, .. }
                if world.subscribed.get(client.as_str()).is_some_and(|heard_by| *heard_by != via) =>
            {
                panic!("{client} is told by another connection than hears it: the words come back")
            }
            Action::ToClient { client, message, .. } => self.judge_for_client(&client, &message),
            Action::ToBackend { session, message } => {
                let (owner, got) = world.backends.get_mut(&session).expect("nothing outlives its session");
                match message.kind() {
                    Kind::Notification { method } => {
                        if let Some(number) = number_of(method) {
                            let told_by = world.numbered_for[&number].as_ref();
                            assert_eq!(told_by, Some(&*owner), "{number} crossed over");
                            let last = world.last_told.insert(session, number);
                            assert!(last < Some(number), "{session:?} was told {number} after {last:?}");
                        }
                    }
                    Kind::Response { id: Some(id), .. } => {
                        let key = (session, id.as_u64().unwrap());
                        let answers = world.server_answered.entry(key).or_default();
                        *answers += 1;
                        let asked = world.server_asked.get(&key).copied().unwrap_or_default();
                        assert!(*answers <= asked, "{key:?}: {answers} answers to {asked} requests");
                    }
                    _ => {}
                }
                if let Kind::Request { id, .. } = message.kind() {
                    let id = id.as_u64().unwrap();
                    assert!(
                        world.asked.contains_key(&(owner.clone(), id)),
                        "{id} is not a request of {owner}"
                    );
                    if std::mem::take(&mut world.busy) {
                        self.sessions.backend_busy(session, &message, self.now, &mut self.out);
                    } else {
                        got.push(id);
                    }
                }
            }
            Action::Opened { client, .. } => {
                assert!(world.subscribed.contains_key(client.as_str()), "open, and deaf");
                world.open.insert(client.to_string());
            }
            Action::Ended { session, client, reason, .. } => {
                let (owner, got) = world.backends.remove(&session).expect("ends once");
                world.past.insert(session, got);
                assert_eq!(owner, client.as_str());
                world.suback_due.retain(|due| *due != session);
                world.server_asks.remove(&owner);
                world.open.remove(&owner);
                if reason == EndReason::ConnectionLost {
                    world.subscribed.remove(&owner); // with the connection
                }
                // Its server is gone, and with it whoever could wait for an answer there.
                world.server_asked.retain(|(of, _), _| *of != session);
                world.last_published.remove(&owner);
                if matches!(reason, EndReason::ClientLeft | EndReason::BrokerLost) {
                    // Nobody waits any more; an answer from now on would be one too many.
                    for (key, asked) in &mut world.asked {
                        if key.0 == owner && !world.refused.contains(key) {
                            *asked = world.answered.get(key).copied().unwrap_or_default();
                        }
                    }
                }
            }
            Action::Broadcast { .. }
            | Action::Resolved { .. }
            | Action::Dropped { .. }
            | Action::Refused { .. } => {}
        }
    }

    fn judge_for_client(&mut self, client: &ClientId, message: &Message) {
        let world = &mut self.world;
        world.last_published.insert(client.to_string(), message.clone());
        match message.kind() {
            Kind::Response { id: Some(id), .. } => {
                let key = (client.to_string(), id.as_u64().unwrap());
                let answers = world.answered.entry(key.clone()).or_default();
                *answers += 1;
                let asked = world.asked.get(&key).copied().unwrap_or_default();
                assert!(*answers <= asked, "{key:?}: {answers} answers to {asked} requests");
            }
            Kind::Request { id, .. } => {
                world.server_asks.entry(client.to_string()).or_default().push(id.as_u64().unwrap());
            }
            Kind::Notification { method } => {
                if let Some(number) = number_of(method) {
                    let told_for = world.numbered_for[&number].as_deref();
                    assert_eq!(told_for, Some(client.as_str()), "{number} crossed over");
                    let last = world.last_heard.insert(client.to_string(), number);
                    assert!(last < Some(number), "{client} heard {number} after {last:?}");
                }
            }
            Kind::Response { id: None, .. } => {}
        }
    }
}

/// The number of a `numbered/…` notification.
fn number_of(method: &str) -> Option<u64> {
    method.strip_prefix("numbered/")?.parse().ok()
}
