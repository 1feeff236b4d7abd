//! The sending end of a connection.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::Error as CodecError;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};

use super::{
    Accepted, CloseReason, Filter, Publication, PublishError, Qos, ReasonCode, Refused,
    outbox::{Item, Outbox, Wanted, Written},
    packet,
};

/// To send with; cheap to clone. What is queued goes out in order.
#[derive(Debug, Clone)]
pub struct Publisher {
    link: Arc<Link>,
}

/// What publishers, events and the driver share.
pub(super) struct Link {
    outbox: Mutex<Outbox>,
    limits: Limits,
    /// There is room in the outbox again.
    room: Notify,
    /// For the driver: there is something to send, or the events were dropped.
    wake: Notify,
    /// When a disconnect has to be done.
    disconnect_by: Mutex<Option<Instant>>,
    disconnecting: AtomicBool,
    abandoned: AtomicBool,
    closed: watch::Sender<Option<CloseReason>>,
    /// Once closed: what the broker did not acknowledge.
    undelivered: Mutex<Vec<Publication>>,
}

/// What the broker takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    packet_bytes: usize,
    retain: bool,
}

/// The broker's answer to a publish: PUBACK's reason code. Dropping it changes nothing.
#[derive(Debug)]
pub struct PublishReply(oneshot::Receiver<ReasonCode>);

/// The broker's answer to a subscribe or an unsubscribe: one reason code per filter, in order. Dropping it changes nothing.
#[derive(Debug)]
pub struct FilterReply(oneshot::Receiver<Vec<ReasonCode>>);

impl Publisher {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link }
    }

    /// Queues a publish, without waiting for anything.
    ///
    /// # Errors
    /// [`PublishError::Full`], [`TooLarge`](PublishError::TooLarge), [`Invalid`](PublishError::Invalid),
    /// [`Closed`](PublishError::Closed), or [`Refused`](PublishError::Refused) when the broker has said in CONNACK
    /// that it keeps no retained messages. Nothing was sent then.
    pub fn try_publish(&self, publication: Publication) -> Result<(), PublishError> {
        self.push_publication(publication, Wanted::Nothing)
    }

    /// As [`try_publish`](Self::try_publish); a refusal in the PUBACK comes as
    /// [`Event::Refused`](super::Event::Refused) with this note. (At QoS 0 there is no PUBACK.)
    ///
    /// # Errors
    /// As [`try_publish`](Self::try_publish).
    pub fn try_publish_noted(&self, publication: Publication, note: u64) -> Result<(), PublishError> {
        self.push_publication(publication, Wanted::Refusal(note))
    }

    /// Queues a publish at QoS 1, without waiting; the reply is the broker's PUBACK.
    ///
    /// # Errors
    /// As [`try_publish`](Self::try_publish).
    pub fn publish_start(&self, mut publication: Publication) -> Result<PublishReply, PublishError> {
        publication.qos = Qos::AtLeastOnce;
        let (sender, receiver) = oneshot::channel();
        self.push_publication(publication, Wanted::Reply(sender))?;
        Ok(PublishReply(receiver))
    }

    /// Publishes at QoS 1 and waits for room and for the PUBACK.
    ///
    /// # Errors
    /// Any [`PublishError`] but `Full`; [`Refused`](PublishError::Refused) has the broker's reason.
    pub async fn publish_confirmed(
        &self,
        publication: Publication,
        timeout: Duration,
    ) -> Result<(), PublishError> {
        let reply = self
            .with_room(Self::packet_size(&publication), timeout, || self.publish_start(publication.clone()));
        let reason = bounded(timeout, async { reply.await?.await }).await?;
        if reason.is_error() { Err(PublishError::Refused(reason)) } else { Ok(()) }
    }

    /// Queues a subscribe, without waiting; the reply is the broker's SUBACK.
    ///
    /// # Errors
    /// As [`try_publish`](Self::try_publish).
    pub fn subscribe_start(&self, filters: Vec<Filter>) -> Result<FilterReply, PublishError> {
        packet::check_filters(filters.iter().map(|filter| filter.filter.as_str()))?;
        self.link.check_size(packet::subscribe_size(&filters))?;
        let (reply, receiver) = oneshot::channel();
        self.link.push(Item::Subscribe { filters, reply })?;
        Ok(FilterReply(receiver))
    }

    /// Subscribes and waits for room and for the SUBACK: one reason code per filter, in order; each may be a
    /// refusal (see [`ReasonCode::is_error`]).
    ///
    /// # Errors
    /// Any [`PublishError`] but `Full` and `Refused`.
    pub async fn subscribe(
        &self,
        filters: Vec<Filter>,
        timeout: Duration,
    ) -> Result<Vec<ReasonCode>, PublishError> {
        let reply = self
            .with_room(packet::subscribe_size(&filters), timeout, || self.subscribe_start(filters.clone()));
        bounded(timeout, async { reply.await?.await }).await
    }

    /// Queues an unsubscribe, without waiting.
    ///
    /// # Errors
    /// As [`try_publish`](Self::try_publish).
    pub fn unsubscribe(&self, filters: Vec<String>) -> Result<FilterReply, PublishError> {
        packet::check_filters(filters.iter().map(String::as_str))?;
        self.link.check_size(packet::unsubscribe_size(&filters))?;
        let (reply, receiver) = oneshot::channel();
        self.link.push(Item::Unsubscribe { filters, reply })?;
        Ok(FilterReply(receiver))
    }

    /// Sends all that was queued before, then DISCONNECT, and waits until the broker has closed the connection (at
    /// most one second after DISCONNECT went out). Nobody has to read the events meanwhile.
    ///
    /// # Errors
    /// [`PublishError::Timeout`] when DISCONNECT was not out by the deadline; the connection is cut then, and the will
    /// published. [`PublishError::Closed`] when it was over before DISCONNECT went out.
    pub async fn disconnect(&self, deadline: Duration) -> Result<(), PublishError> {
        self.link.start_disconnect(Instant::now() + deadline);
        match self.closed().await {
            CloseReason::Wanted => Ok(()),
            CloseReason::DisconnectTimedOut => Err(PublishError::Timeout(deadline)),
            _ => Err(PublishError::Closed),
        }
    }

    /// Packets that may be queued now before [`PublishError::Full`].
    pub fn capacity(&self) -> usize {
        self.link.outbox().room(0)
    }

    /// Waits until there is room for a packet of so many bytes, or the connection is closed. There may be none again when
    /// this returns; then wait again. A broker that takes nothing ends the connection by its keep alive, so this ends,
    /// too.
    pub async fn ready(&self, bytes: usize) {
        loop {
            let mut room = std::pin::pin!(self.link.room.notified());
            room.as_mut().enable();
            {
                let outbox = self.link.outbox();
                if !outbox.is_open() || outbox.room(bytes) > 0 {
                    return;
                }
            }
            room.await;
        }
    }

    /// Waits until the connection is over, and says why.
    pub async fn closed(&self) -> CloseReason {
        let mut closed = self.link.closed.subscribe();
        match closed.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(Some(reason)) => reason,
            // The link holds the sender, and we hold the link.
            Ok(None) | Err(_) => CloseReason::Lost("its task was aborted".to_owned()),
        }
    }

    /// Whether the connection is over.
    pub fn is_closed(&self) -> bool {
        self.link.closed.borrow().is_some()
    }

    /// What was queued or sent on a connection that is over and that the broker did not acknowledge, in order: each of
    /// these may have arrived or not. (Of QoS 0 only what was not sent.) Taken once, by whoever asks first.
    pub fn take_undelivered(&self) -> Vec<Publication> {
        std::mem::take(&mut *self.link.undelivered.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Bytes that a PUBLISH of this takes on the wire, to compare with the broker's Maximum Packet Size.
    pub fn packet_size(publication: &Publication) -> usize {
        packet::publish_size(publication)
    }

    fn push_publication(&self, publication: Publication, wanted: Wanted) -> Result<(), PublishError> {
        packet::check_publication(&publication)?;
        if publication.retain && !self.link.limits.retain {
            return Err(PublishError::Refused(ReasonCode::RETAIN_NOT_SUPPORTED));
        }
        let item = Item::publish(publication, wanted);
        self.link.check_size(item.size())?;
        self.link.push(item)
    }

    /// Tries until there was room.
    async fn with_room<T>(
        &self,
        bytes: usize,
        within: Duration,
        mut start: impl FnMut() -> Result<T, PublishError>,
    ) -> Result<T, PublishError> {
        let deadline = Instant::now() + within;
        loop {
            match start() {
                Err(PublishError::Full) => {}
                done => return done,
            }
            timeout_at(deadline, self.ready(bytes)).await.map_err(|_| PublishError::Timeout(within))?;
        }
    }
}

async fn bounded<T>(
    within: Duration,
    reply: impl Future<Output = Result<T, PublishError>>,
) -> Result<T, PublishError> {
    timeout(within, reply).await.unwrap_or(Err(PublishError::Timeout(within)))
}

impl Limits {
    pub(super) fn new(accepted: &Accepted) -> Self {
        let packet_bytes = accepted.maximum_packet_size.map_or(packet::MAX_PACKET_BYTES, |limit| {
            usize::try_from(limit).unwrap_or(usize::MAX).min(packet::MAX_PACKET_BYTES)
        });
        Self { packet_bytes, retain: accepted.retain_available }
    }
}

impl Link {
    pub(super) fn new(outbox: Outbox, limits: Limits) -> Self {
        Self {
            outbox: Mutex::new(outbox),
            limits,
            room: Notify::new(),
            wake: Notify::new(),
            disconnect_by: Mutex::new(None),
            disconnecting: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            closed: watch::Sender::new(None),
            undelivered: Mutex::new(Vec::new()),
        }
    }

    /// Nothing that is done under this lock waits or panics half-way.
    pub(super) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_size(&self, size: usize) -> Result<(), PublishError> {
        let limit = self.limits.packet_bytes;
        if size > limit { Err(PublishError::TooLarge { limit, size }) } else { Ok(()) }
    }

    fn push(&self, item: Item) -> Result<(), PublishError> {
        self.outbox().push(item)?;
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn acknowledge(&self, id: u16) {
        self.outbox().acknowledge(id);
        self.wake.notify_one();
    }

    /// Writes what can go, until the output has `enough` bytes. What the last one was, if there was any.
    pub(super) fn write_out(
        &self,
        output: &mut BytesMut,
        enough: usize,
    ) -> Result<Option<Written>, CodecError> {
        let mut last = None;
        {
            let mut outbox = self.outbox();
            while output.len() < enough
                && let Some(written) = outbox.write_next(output)
            {
                last = Some(written?);
            }
        }
        if last.is_some() {
            self.room.notify_waiters();
        }
        Ok(last)
    }

    pub(super) fn publish_acked(&self, id: u16, reason: ReasonCode) -> Option<Refused> {
        self.outbox().publish_acked(id, reason)
    }

    pub(super) fn filters_acked(&self, id: u16, reasons: Vec<ReasonCode>) {
        self.outbox().filters_acked(id, reasons);
    }

    fn start_disconnect(&self, by: Instant) {
        if self.outbox().disconnect() {
            *self.disconnect_by.lock().unwrap_or_else(PoisonError::into_inner) = Some(by);
            self.disconnecting.store(true, SeqCst);
            self.wake.notify_one();
            // Who waits for room learns that there will be none.
            self.room.notify_waiters();
        }
    }

    /// The events were dropped.
    pub(super) fn wake_driver(&self) {
        self.abandoned.store(true, SeqCst);
        self.wake.notify_one();
    }

    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(super) fn is_disconnecting(&self) -> bool {
        self.disconnecting.load(SeqCst)
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(SeqCst)
    }

    pub(super) fn disconnect_deadline(&self) -> Option<Instant> {
        if !self.is_disconnecting() {
            return None;
        }
        *self.disconnect_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn close_reason(&self) -> Option<CloseReason> {
        self.closed.borrow().clone()
    }

    /// The connection is over; everybody who waits learns it. How many publications may not have arrived.
    pub(super) fn close(&self, reason: CloseReason) -> usize {
        let undelivered = self.outbox().close();
        let count = undelivered.len();
        *self.undelivered.lock().unwrap_or_else(PoisonError::into_inner) = undelivered;
        self.closed.send_replace(Some(reason));
        self.room.notify_waiters();
        count
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Future for PublishReply {
    type Output = Result<ReasonCode, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(|_| PublishError::Closed)
    }
}

impl Future for FilterReply {
    type Output = Result<Vec<ReasonCode>, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(|_| PublishError::Closed)
    }
}
