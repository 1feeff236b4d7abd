//! What the server says, on its way to the bridge, and the room that it may take up: counted in bytes, since a queue
//! full of large messages is more than a gateway has. Who finds no room waits, and with it the server; so does who is
//! about to read a large message.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};

use super::{FromBackend, SessionId};

/// A message of no more bytes needs no room: a queue full of these is little.
const SMALL: usize = 16 << 10;
/// Bytes of the others, or two of the largest: an eighth of the memory that a gateway has by default.
const QUEUE_BYTES: usize = 16 << 20;
/// How long a server may pause within a message and keep the room for the rest of it from others.
const STALLED: Duration = Duration::from_secs(1);

/// Where backend sessions report to. Bounded: a flooding server waits, the others' order holds.
#[derive(Debug, Clone)]
pub struct BackendEvents {
    queue: mpsc::Sender<Report>,
    room: Arc<Semaphore>,
    /// Bytes of the largest message that is taken.
    largest: usize,
}

/// What a backend session reports. Dropping it gives its room back, so it is to be kept until the event has gone on.
#[derive(Debug)]
pub struct Report {
    /// Whose session.
    pub session: SessionId,
    /// What it is.
    pub event: FromBackend,
    /// Its room, if it needs some.
    pub(super) room: Option<Room>,
}

/// Room for a message. What is made of that message takes it over: who holds some must not wait for more.
#[derive(Debug)]
pub(super) struct Room(OwnedSemaphorePermit);

impl BackendEvents {
    /// Both ends of a queue of so many reports, of servers whose messages have at most `max_message_bytes`.
    pub fn channel(reports: usize, max_message_bytes: usize) -> (Self, mpsc::Receiver<Report>) {
        let largest = max_message_bytes.min(Semaphore::MAX_PERMITS / 2);
        let room = Arc::new(Semaphore::new(QUEUE_BYTES.max(2 * largest)));
        let (queue, receiver) = mpsc::channel(reports);
        (Self { queue, room, largest }, receiver)
    }

    /// A queue before this one: what comes out of it keeps its room on the way here.
    pub(super) fn before(&self, reports: usize) -> (Self, mpsc::Receiver<Report>) {
        let (queue, receiver) = mpsc::channel(reports);
        (Self { queue, ..self.clone() }, receiver)
    }

    /// Reports, once there is room. `room`: what was made for it while it was read.
    pub(super) async fn report(&self, session: SessionId, event: FromBackend, room: Option<Room>) {
        let bytes = match &event {
            FromBackend::Message(message) => message.raw().len(),
            // Short sentences, and the end must not wait for what it ends.
            FromBackend::RequestFailed { .. } | FromBackend::Malformed { .. } | FromBackend::Ended(_) => 0,
        };
        let room = match room {
            _ if bytes <= SMALL => None,
            Some(room) => Some(room.cut_to(bytes)),
            None => self.room(bytes).await,
        };
        let _ = self.queue.send(Report { session, event, room }).await; // the bridge is gone: we are about to end
    }

    /// Waits for a place in the queue; none: the bridge is gone.
    pub(super) async fn place(&self) -> Option<mpsc::Permit<'_, Report>> {
        self.queue.reserve().await.ok()
    }

    /// To be called while a message is read, of which there is so much: what is more than a small one waits here until
    /// there is room for all of it.
    pub(super) async fn make_room(&self, room: &mut Option<Room>, read: usize) {
        if read <= SMALL {
            *room = None;
        } else if room.is_none() {
            *room = self.room(self.largest).await;
        }
    }

    async fn room(&self, bytes: usize) -> Option<Room> {
        // An error that was written anew may be larger than what is taken.
        let permits = u32::try_from(bytes.min(self.largest)).unwrap_or(u32::MAX);
        self.room.clone().acquire_many_owned(permits).await.ok().map(Room) // it is never closed
    }
}

impl Room {
    fn cut_to(mut self, bytes: usize) -> Self {
        drop(self.0.split(self.0.num_permits().saturating_sub(bytes)));
        self
    }
}

/// Waits for more of a message, and meanwhile does not keep its room from others for long.
pub(super) async fn more<T>(room: &mut Option<Room>, read: impl Future<Output = T>) -> T {
    let mut read = pin!(read);
    if room.is_some() {
        if let Ok(read) = timeout(STALLED, &mut read).await {
            return read;
        }
        *room = None;
    }
    read.await
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::FutureExt;
    use mcp_mqtt_transport::jsonrpc::Message;

    use super::*;
    use crate::backend::BackendEnd;

    const MAX: usize = 1 << 20;
    const SESSION: SessionId = SessionId(1);

    fn says(bytes: usize) -> FromBackend {
        let json = format!(r#"{{"jsonrpc":"2.0","method":"m","params":{{"p":"{}"}}}}"#, "x".repeat(bytes));
        FromBackend::Message(Message::parse(Bytes::from(json), usize::MAX).unwrap())
    }

    /// Whether it could be reported at once.
    fn reports(events: &BackendEvents, event: FromBackend) -> bool {
        events.report(SESSION, event, None).now_or_never().is_some()
    }

    #[test]
    fn large_messages_wait_for_room_and_nothing_else_does() {
        let (events, mut receiver) = BackendEvents::channel(256, MAX);
        let (before, _unread) = events.before(256);
        let fit = (0..100).take_while(|_| reports(&events, says(1_000_000))).count();
        assert_eq!(fit, QUEUE_BYTES / 1_000_000);
        assert!(!reports(&before, says(1_000_000)), "a queue before another has no room of its own");
        assert!(reports(&events, says(1000)));
        assert!(reports(&events, FromBackend::Ended(BackendEnd::Closed)));
        drop(receiver.try_recv().unwrap());
        assert!(reports(&events, says(1_000_000)));
        assert!(!reports(&events, says(1_000_000)));
    }

    #[test]
    fn two_of_the_largest_fit_whatever_their_size_and_one_that_is_larger_still_goes() {
        let (events, _receiver) = BackendEvents::channel(256, 32 << 20);
        assert!(reports(&events, says((32 << 20) - 100)));
        assert!(reports(&events, says(40 << 20)));
        assert!(!reports(&events, says(SMALL)));
    }

    #[tokio::test]
    async fn who_reads_a_large_message_waits_before_it_is_there_and_what_was_too_much_is_given_back() {
        let (events, _receiver) = BackendEvents::channel(256, MAX);
        let mut rooms: Vec<Option<Room>> = Vec::new();
        let mut room = None;
        while events.make_room(&mut room, SMALL + 1).now_or_never().is_some() {
            rooms.push(room.take());
        }
        assert_eq!(rooms.len(), QUEUE_BYTES / MAX);
        assert!(events.make_room(&mut room, SMALL).now_or_never().is_some() && room.is_none());
        // One came whole, and is half as large as it could have been; of another no more is kept.
        events.report(SESSION, says(MAX / 2), rooms.pop().unwrap()).await;
        assert!(events.make_room(&mut room, SMALL + 1).now_or_never().is_none());
        events.make_room(&mut rooms[0], 0).await;
        assert!(events.make_room(&mut room, SMALL + 1).now_or_never().is_some() && room.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_pauses_within_a_message_does_not_keep_the_room_from_others() {
        let (events, _receiver) = BackendEvents::channel(256, MAX);
        let mut room = None;
        events.make_room(&mut room, SMALL + 1).await;
        more(&mut room, tokio::time::sleep(STALLED / 2)).await;
        assert!(room.is_some());
        more(&mut room, tokio::time::sleep(STALLED * 2)).await;
        assert!(room.is_none());
    }
}
