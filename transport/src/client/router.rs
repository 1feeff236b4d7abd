//! The task that takes what arrives and gives it to whom it is for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{SessionEnd, registry::Registry, session::Core};
use crate::{
    mqtt::{Event, Events, Received},
    presence::Online,
    topic::{ServerId, ServerName, Topic},
};

/// Who gets what. The routing task holds it, and nothing in it holds the task: so the last client handle can end it.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) registry: Registry,
    /// Sessions by topic: each by its RPC, its capability and its presence topic.
    routes: Mutex<HashMap<String, Arc<Core>>>,
    /// The largest message that is taken.
    limit: usize,
}

impl Router {
    pub(super) fn new(limit: usize) -> Self {
        Self { registry: Registry::new(), routes: Mutex::default(), limit }
    }

    /// Nothing that is done under this lock can fail half-way.
    fn routes(&self) -> MutexGuard<'_, HashMap<String, Arc<Core>>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the session its topics; the one that had them before is returned.
    pub(super) fn add(&self, session: &Arc<Core>) -> Option<Arc<Core>> {
        let mut routes = self.routes();
        let before = session.topics().into_iter().map(|topic| routes.insert(topic, session.clone()));
        before.last().flatten()
    }

    /// Gives the topics and subscriptions of a session back, unless another session has taken them over.
    pub(super) fn release(&self, session: &Arc<Core>) {
        let mut routes = self.routes();
        let before = routes.len();
        for topic in session.topics() {
            if routes.get(&topic).is_some_and(|other| Arc::ptr_eq(other, session)) {
                routes.remove(&topic);
            }
        }
        let ours = routes.len() < before;
        drop(routes);
        if ours {
            session.unsubscribe();
        }
    }

    /// All sessions; each once.
    pub(super) fn sessions(&self) -> Vec<Arc<Core>> {
        let routes = self.routes();
        routes.iter().filter(|(topic, core)| core.is_rpc(topic)).map(|(_, core)| core.clone()).collect()
    }

    pub(super) async fn run(self: Arc<Self>, mut events: Events) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Received(received) => self.route(received),
                // The one only for what was published with a note, which a client does not; the other is nobody's.
                Event::Refused(_) | Event::Unusable(_) => {}
                Event::Closed(reason) => {
                    for session in self.sessions() {
                        session.end(SessionEnd::Connection(reason.clone()));
                    }
                    self.routes().clear();
                    self.registry.close();
                }
            }
        }
    }

    fn route(&self, received: Received) {
        let session = self.routes().get(&received.topic).cloned();
        match session {
            Some(session) if session.is_presence(&received.topic) => {
                if received.payload.is_empty() && session.end(SessionEnd::Offline) {
                    self.release(&session);
                }
                self.presence(&received);
            }
            Some(session) => {
                if session.take(received.payload, self.limit).is_break() {
                    self.release(&session);
                }
            }
            None => self.presence(&received),
        }
    }

    /// Anything but a presence has nobody to go to: a session that has ended meanwhile.
    fn presence(&self, received: &Received) {
        let Ok(Topic::ServerPresence { server_id, server_name }) = Topic::parse(&received.topic) else {
            return;
        };
        let (Ok(id), Ok(name)) = (ServerId::new(server_id), ServerName::new(server_name)) else { return };
        if received.payload.is_empty() {
            return self.registry.update(id, name, None);
        }
        match Online::parse(&received.payload) {
            Ok(online) => self.registry.update(id, name, Some(online)),
            // Another server's fault, and no use to this client.
            Err(error) => tracing::debug!(topic = received.topic, %error, "presence passed over"),
        }
    }
}
