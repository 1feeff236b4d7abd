//! A connection to the broker and what belongs to it: what waits to go there, and what its sessions' backends say.
//! A gateway has one of these or several; nothing here knows which.
//!
//! Each has its own queues, so one that stands still holds up its own sessions' backends and no others.

use std::{
    future::pending,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use mcp_mqtt_transport::mqtt::{Connection, Event, Events, PublishError, Publisher};
use tokio::{sync::mpsc, time::sleep};

use super::{
    outbox::{Outbox, Outgoing, Sent, Unsent},
    placement::LinkId,
};
use crate::backend::{BackendEvents, Report};

/// Events of the backend sessions of one connection that may wait: enough that a burst is taken in one go, little
/// enough that a flooding server soon waits.
const BACKEND_EVENTS: usize = 256;
/// The connection's queue is full by bytes when a large message does not fit, though a small one would: it is asked
/// again no sooner than this.
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// See the module.
pub(super) struct Link {
    pub(super) publisher: Publisher,
    /// When it was opened.
    pub(super) since: Instant,
    events: Events,
    outbox: Outbox,
    /// While something waits in the outbox: until it makes sense to try again.
    room: Option<BoxFuture<'static, ()>>,
    backend_events: BackendEvents,
    from_backends: mpsc::Receiver<Report>,
    /// Whose turn it is when both sides have something.
    backends_first: bool,
}

/// What happens on a connection.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// Something came from the broker.
    Event(Event),
    /// A backend of one of its sessions reports.
    FromBackend(Report),
    /// There may be room for what waits.
    Room,
}

impl Link {
    /// `outbox` bounds what may wait for this connection, `max_message_bytes` what a server may say at once.
    pub(super) fn new(
        connection: Connection,
        since: Instant,
        outbox: usize,
        max_message_bytes: usize,
    ) -> Self {
        let (backend_events, from_backends) = BackendEvents::channel(BACKEND_EVENTS, max_message_bytes);
        Self {
            publisher: connection.publisher,
            since,
            events: connection.events,
            outbox: Outbox::new(outbox),
            room: None,
            backend_events,
            from_backends,
            backends_first: false,
        }
    }

    /// Where the backends of its sessions report to.
    pub(super) fn backend_events(&self) -> BackendEvents {
        self.backend_events.clone()
    }

    /// Whether something waits for it.
    pub(super) fn is_busy(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Sends, or keeps for later behind what waits already.
    pub(super) fn send(
        &mut self,
        outgoing: Outgoing,
        transmit: impl FnOnce(&Publisher, &Outgoing) -> Result<Sent, PublishError>,
    ) -> Result<Sent, Unsent> {
        let sent = self.outbox.send(outgoing, |outgoing| transmit(&self.publisher, outgoing));
        self.await_room();
        sent
    }

    /// Sends the first that waits; nothing when none does or there is still no room.
    pub(super) fn retry(
        &mut self,
        transmit: impl FnOnce(&Publisher, &Outgoing) -> Result<Sent, PublishError>,
    ) -> Option<Result<Sent, Unsent>> {
        let sent = self.outbox.retry(|outgoing| transmit(&self.publisher, outgoing));
        self.await_room();
        sent
    }

    /// What still waited when it was lost.
    pub(super) fn into_waiting(self) -> impl Iterator<Item = Outgoing> {
        self.outbox.into_waiting()
    }

    fn await_room(&mut self) {
        if self.is_busy() && self.room.is_none() {
            let publisher = self.publisher.clone();
            self.room = Some(Box::pin(async move {
                sleep(RETRY_PAUSE).await;
                publisher.ready(1).await;
                if publisher.is_closed() {
                    // Its end is an event, behind what had come before; with it the link goes.
                    pending::<()>().await;
                }
            }));
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<LinkEvent> {
        if self.backends_first
            && let Poll::Ready(event) = self.poll_backends(cx)
        {
            self.backends_first = false;
            return Poll::Ready(event);
        }
        if let Poll::Ready(Some(event)) = self.events.poll_recv(cx) {
            self.backends_first = true;
            return Poll::Ready(LinkEvent::Event(event));
        }
        self.poll_backends(cx)
    }

    /// A broker that does not keep up makes the backends wait.
    fn poll_backends(&mut self, cx: &mut Context<'_>) -> Poll<LinkEvent> {
        if let Some(room) = &mut self.room {
            ready!(room.as_mut().poll(cx));
            self.room = None;
            return Poll::Ready(LinkEvent::Room);
        }
        match ready!(self.from_backends.poll_recv(cx)) {
            Some(report) => Poll::Ready(LinkEvent::FromBackend(report)),
            None => Poll::Pending, // not while it holds a sender itself
        }
    }

    /// What is there already, of the kind that came before: a burst is taken in one go.
    pub(super) fn more_like(&mut self, from_backend: bool) -> Option<LinkEvent> {
        if !from_backend {
            return self.events.try_recv().map(LinkEvent::Event);
        }
        if self.is_busy() {
            return None;
        }
        self.from_backends.try_recv().ok().map(LinkEvent::FromBackend)
    }
}

/// The connections of a gateway, by [`LinkId`].
pub(super) struct Links {
    links: Vec<Option<Link>>,
    /// Who is asked first.
    turn: usize,
}

impl Links {
    /// The registering one, and room for so many workers.
    pub(super) fn new(registering: Link, workers: usize) -> Self {
        let mut links = vec![Some(registering)];
        links.resize_with(workers + 1, || None);
        Self { links, turn: 0 }
    }

    pub(super) fn insert(&mut self, id: LinkId, link: Link) {
        self.links[id.0] = Some(link);
    }

    pub(super) fn remove(&mut self, id: LinkId) -> Option<Link> {
        self.links[id.0].take()
    }

    pub(super) fn get(&self, id: LinkId) -> Option<&Link> {
        self.links[id.0].as_ref()
    }

    pub(super) fn get_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links[id.0].as_mut()
    }

    /// This connection, or one that stands in for it: what has to be said can be said on any of them.
    pub(super) fn standing_in_for(&self, id: LinkId) -> Option<LinkId> {
        if self.get(id).is_some() {
            return Some(id);
        }
        self.links.iter().position(Option::is_some).map(LinkId)
    }

    /// Those that stand.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().flatten()
    }

    /// Waits for the next thing that happens on any of them; they take turns. Cancel-safe.
    pub(super) async fn next(&mut self) -> (LinkId, LinkEvent) {
        std::future::poll_fn(|cx| {
            let count = self.links.len();
            for offset in 0..count {
                let at = (self.turn + offset) % count;
                if let Some(link) = &mut self.links[at]
                    && let Poll::Ready(event) = link.poll_next(cx)
                {
                    self.turn = at + 1;
                    return Poll::Ready((LinkId(at), event));
                }
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mcp_mqtt_transport::{
        mqtt::{ConnectOptions, Publication, Qos},
        topic::ClientId,
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    const CONNACK: [u8; 5] = [0x20, 3, 0, 0, 0];
    /// Of nothing, on the topic "t", at QoS 0.
    const PUBLISH: [u8; 6] = [0x30, 4, 0, 1, b't', 0];

    /// A connection that is over, and on which so many messages came before.
    async fn over(messages: usize) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("mqtt://{}", listener.local_addr().unwrap()).parse().unwrap();
        let broker = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0, "CONNECT");
            stream.write_all(&CONNACK).await.unwrap();
            stream.write_all(&PUBLISH.repeat(messages)).await.unwrap();
        };
        let options = ConnectOptions::new(url, "link");
        let (connection, ()) = tokio::join!(Connection::open(&options), broker);
        let connection = connection.unwrap();
        connection.publisher.closed().await;
        connection
    }

    fn publish(publisher: &Publisher, _: &Outgoing) -> Result<Sent, PublishError> {
        publisher.try_publish(Publication::new("t", "x", Qos::AtLeastOnce)).map(|()| Sent::Bytes(1))
    }

    #[tokio::test]
    async fn what_is_sent_between_the_end_of_a_connection_and_the_word_of_it_waits_and_nothing_spins() {
        let link = Link::new(over(3).await, Instant::now(), 10, 1 << 20);
        let mut links = Links::new(link, 0);
        let (id, first) = links.next().await;
        assert!(matches!(first, LinkEvent::Event(Event::Received(_))), "{first:?}");
        let client = ClientId::new("c").unwrap();
        let answer = Outgoing::ToClient { client, payload: Bytes::from_static(b"answer"), owed: true };
        let sent = links.get_mut(id).unwrap().send(answer, publish);
        assert!(matches!(sent, Ok(Sent::Waits)), "{sent:?}");
        for closed in [false, false, true] {
            // Long enough to find room, if there could be any.
            let started = Instant::now();
            while started.elapsed() < 5 * RETRY_PAUSE {
                let Poll::Pending = futures::poll!(links.get_mut(id).unwrap().room.as_mut().unwrap()) else {
                    panic!("there is no room on a connection that is over");
                };
                sleep(RETRY_PAUSE).await;
            }
            match links.next().await.1 {
                LinkEvent::Event(Event::Received(_)) => assert!(!closed),
                LinkEvent::Event(Event::Closed(_)) => assert!(closed),
                other => panic!("{other:?}"),
            }
        }
        let mut lost = links.remove(id).unwrap();
        assert!(lost.retry(publish).is_none());
        assert_eq!(lost.into_waiting().count(), 1);
    }
}
