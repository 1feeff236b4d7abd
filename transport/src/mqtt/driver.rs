//! The task of a connection: it moves packets between the [`Wire`], the [`Outbox`](super::outbox::Outbox) and the
//! [`Events`], and watches over the deadlines. It never waits for a queue of ours while it could read or write.

use std::{future::poll_fn, io, pin::Pin, sync::Arc, time::Duration};

use rumqttc::v5::mqttbytes::{
    Error as CodecError, QoS,
    v5::{
        Disconnect, DisconnectReasonCode, Packet, PingReq, PubAck, PubAckReason, Publish,
        SubscribeReasonCode, UnsubAckReason,
    },
};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::{
    Ack, CloseReason, Event, Events, Publisher, Qos, ReasonCode, Received, Unusable,
    dial::{self, Dialled},
    events::{self, Sink},
    incoming::Incoming,
    outbox::{Outbox, Written},
    publisher::{Limits, Link},
    wire::{Moved, Wire, WireError},
};

/// How long the broker has to close the connection after DISCONNECT. Until then we keep reading: a socket closed
/// with unread bytes is reset, and the reset can overtake our last publishes and the DISCONNECT itself.
const LINGER: Duration = Duration::from_secs(1);

/// How long an acknowledgement waits for a packet of ours to travel with. A call that takes longer pays a packet of its
/// own; the broker is in no hurry for either, and arming the timer more often would cost what this saves.
const ACK_DELAY: Duration = Duration::from_millis(5);

/// Acknowledgements that wait at most: fewer than a broker lets be in flight to one client (Mosquitto: 20).
const ACK_BATCH: usize = 8;

/// Bytes that are written at one time; more are taken from the outbox when these are out.
const WRITE_BYTES: usize = 64 << 10;

/// How long what arrived may stay where it is, and nothing more be read, before we call the receiver stuck for good.
const PATIENCE: Duration = Duration::from_mins(10);

/// So many keep-alives may pass before the broker has acknowledged what it got: a ping is answered at once, an
/// acknowledgement may stand behind much else.
const ACK_PATIENCE: u32 = 2;

/// How long to look for what a broker said before it stopped reading.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Starts the task of a connection.
pub(super) fn start(dialled: Dialled, manual_acks: bool) -> (Publisher, Events) {
    let Dialled { wire, accepted } = dialled;
    let receive_maximum = accepted.receive_maximum.min(dial::MAX_IN_FLIGHT);
    let highest_qos = if accepted.maximum_qos == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce };
    let outbox = Outbox::new(receive_maximum, highest_qos);
    let limits = Limits::new(&accepted);
    let link = Arc::new(Link::new(outbox, limits));
    let (sink, events) = events::channel(link.clone());
    let now = Instant::now();
    let clock = Clock {
        keep_alive: accepted.keep_alive,
        pinged: now,
        heard: true,
        blocked: None,
        paused: None,
        ack_due: None,
        disconnected: None,
    };
    let timer = Box::pin(sleep_until(now + accepted.keep_alive));
    let driver = Driver {
        wire,
        link: link.clone(),
        sink,
        clock,
        timer,
        manual_acks,
        unsent_acks: 0,
        last: false,
        dropped: 0,
    };
    tokio::spawn(driver.run());
    (Publisher::new(link), events)
}

struct Driver {
    wire: Wire,
    link: Arc<Link>,
    sink: Sink,
    clock: Clock,
    /// Goes off at the next deadline or before it: arming it for each packet would cost more than the packet.
    timer: Pin<Box<Sleep>>,
    /// Whether messages are acknowledged by whoever takes them.
    manual_acks: bool,
    /// Acknowledgements that wait in the wire's output.
    unsent_acks: usize,
    /// DISCONNECT is written, if not yet sent: nothing may follow.
    last: bool,
    /// Messages that nobody was there to take.
    dropped: u64,
}

/// What is due when.
struct Clock {
    keep_alive: Duration,
    /// When the last PINGREQ went out.
    pinged: Instant,
    /// Whether anything came since, or nothing was read.
    heard: bool,
    /// Since when the link takes no bytes.
    blocked: Option<Instant>,
    /// Since when nothing is read, because what was read is not taken.
    paused: Option<Instant>,
    /// When the acknowledgements have to go.
    ack_due: Option<Instant>,
    /// When DISCONNECT went out.
    disconnected: Option<Instant>,
}

impl Clock {
    /// The next time to look at it.
    fn next(&self, disconnect_by: Option<Instant>) -> Instant {
        let end = self.disconnected.map(|at| at + LINGER).or(disconnect_by);
        let blocked = self.blocked.map(|since| since + self.patience());
        let paused = self.paused.map(|since| since + PATIENCE);
        let due = [end, blocked, paused, self.ack_due].into_iter().flatten().min();
        let ping = self.pinged + self.keep_alive;
        due.map_or(ping, |due| due.min(ping))
    }

    /// As long as brokers wait for us (MQTT 5, section 3.1.2.10).
    fn patience(&self) -> Duration {
        self.keep_alive.mul_f32(1.5)
    }
}

impl Driver {
    async fn run(mut self) {
        let reason = self.drive().await;
        let undelivered = self.link.close(reason.clone());
        if undelivered > 0 || self.dropped > 0 {
            tracing::debug!(%reason, undelivered, dropped = self.dropped, "connection over with messages left");
        }
    }

    async fn drive(&mut self) -> CloseReason {
        loop {
            if let Err(reason) = self.step().await {
                return reason;
            }
        }
    }

    /// Does what can be done, then waits for whatever happens first.
    async fn step(&mut self) -> Result<(), CloseReason> {
        // Here and not only below: on a link that is never silent nothing else would have its turn.
        if self.timer.is_elapsed() {
            self.check_deadlines()?;
        }
        if self.link.is_abandoned() && !self.link.is_disconnecting() {
            return Err(CloseReason::Abandoned);
        }
        let reading = self.take_in()?;
        self.send_out()?;
        let next = self.clock.next(self.link.disconnect_deadline());
        if next < self.timer.deadline() {
            self.timer.as_mut().reset(next);
        }
        let moved = tokio::select! {
            biased;
            moved = poll_fn(|cx| self.wire.poll(cx, reading)) => moved,
            // There is something to send, a disconnect was asked for, or the events were dropped.
            () = self.link.woken() => return Ok(()),
            () = self.sink.room(), if !reading => return Ok(()),
            () = &mut self.timer => return Ok(()),
        };
        match moved {
            Ok(Moved::In) => self.clock.heard = true,
            Ok(Moved::Out) => self.sent(),
            Err(error) => return Err(self.over(error).await),
        }
        Ok(())
    }

    /// Handles the packets that are here, as long as there is room for them. Whether more should be read.
    fn take_in(&mut self) -> Result<bool, CloseReason> {
        loop {
            if !self.sink.has_room() && !self.link.is_disconnecting() {
                if self.clock.paused.is_none() {
                    tracing::debug!("reading from the broker paused: what arrived is not taken");
                    self.clock.paused = Some(Instant::now());
                }
                return Ok(false);
            }
            self.clock.paused = None;
            match self.wire.packet() {
                Ok(Some(Incoming::Packet(packet))) => self.handle(packet)?,
                Ok(Some(Incoming::Unusable { id, topic, why, detail })) => {
                    self.pass_over(id, &topic, why, &detail)?;
                }
                Ok(None) => return Ok(true),
                Err(error) => return Err(self.close_reason(&error)),
            }
        }
    }

    /// Writes what the outbox has, and with it the acknowledgements that wait.
    fn send_out(&mut self) -> Result<(), CloseReason> {
        if self.last {
            return Ok(());
        }
        let written =
            self.link.write_out(self.wire.output(), WRITE_BYTES).map_err(|error| codec_error(&error))?;
        if written.is_some() || self.unsent_acks >= ACK_BATCH {
            self.wire.hurry();
        }
        self.last = written == Some(Written::Disconnect);
        if self.wire.is_sending() {
            self.clock.blocked.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// All that was urgent is out, the acknowledgements with it.
    fn sent(&mut self) {
        self.unsent_acks = 0;
        self.clock.ack_due = None;
        self.clock.blocked = None;
        if self.last {
            self.clock.disconnected.get_or_insert_with(Instant::now);
        }
    }

    fn check_deadlines(&mut self) -> Result<(), CloseReason> {
        let now = Instant::now();
        let clock = &mut self.clock;
        let over = |since: Option<Instant>, patience| since.is_some_and(|since| now >= since + patience);
        if over(clock.disconnected, LINGER) {
            return Err(CloseReason::Wanted);
        }
        // It is for DISCONNECT to go out; how long the broker may take to close after it, we decide.
        let disconnect_by = self.link.disconnect_deadline().filter(|_| clock.disconnected.is_none());
        if disconnect_by.is_some_and(|by| now >= by) {
            return Err(CloseReason::DisconnectTimedOut);
        }
        if clock.blocked.is_some() && self.wire.take_progress() {
            clock.blocked = Some(now);
        }
        if over(clock.blocked, clock.patience()) {
            return Err(CloseReason::KeepAlive(clock.patience()));
        }
        if over(clock.paused, PATIENCE) {
            return Err(CloseReason::Overwhelmed);
        }
        // Every deadline that has passed is taken away or put off here: one that stays would keep us spinning.
        if over(Some(clock.pinged), clock.keep_alive) {
            clock.pinged = now;
            if !self.last {
                // The answer to the last one may stand behind megabytes that have not been read, or are still coming.
                if !clock.heard && clock.paused.is_none() {
                    return Err(CloseReason::KeepAlive(clock.keep_alive));
                }
                if clock.paused.is_none() && self.link.outbox().tick(ACK_PATIENCE) {
                    return Err(CloseReason::Unacknowledged(clock.keep_alive * ACK_PATIENCE));
                }
                clock.heard = false;
                PingReq::write(self.wire.output()).map_err(|error| codec_error(&error))?;
                self.wire.hurry();
            }
        }
        if clock.ack_due.is_some_and(|due| now >= due) {
            clock.ack_due = None;
            self.wire.hurry();
        }
        self.timer.as_mut().reset(clock.next(self.link.disconnect_deadline()));
        Ok(())
    }

    /// The end of the link. What came in before it counts.
    async fn over(&mut self, error: WireError) -> CloseReason {
        if matches!(error, WireError::Write(_)) {
            // A broker that has had enough of us closes; why, it may have said before.
            let listen = async {
                loop {
                    if let Err(reason) = self.take_in() {
                        return Some(reason);
                    }
                    if poll_fn(|cx| self.wire.poll_in(cx)).await.is_err() {
                        return None;
                    }
                }
            };
            if let Ok(Some(reason)) = timeout(LAST_WORDS, listen).await {
                return reason;
            }
        }
        self.close_reason(&error)
    }

    fn handle(&mut self, packet: Packet) -> Result<(), CloseReason> {
        match packet {
            Packet::Publish(publish) => return self.received(publish),
            Packet::PubAck(ack) => {
                if let Some(refused) = self.link.publish_acked(ack.pkid, puback(ack.reason)) {
                    self.pass_on(Event::Refused(refused));
                }
            }
            Packet::SubAck(ack) => {
                self.link.filters_acked(ack.pkid, ack.return_codes.into_iter().map(suback).collect());
            }
            Packet::UnsubAck(ack) => {
                self.link.filters_acked(ack.pkid, ack.reasons.into_iter().map(unsuback).collect());
            }
            Packet::PingResp(_) => {}
            Packet::Disconnect(disconnect) => return Err(disconnected(disconnect)),
            unexpected => {
                return Err(CloseReason::Protocol(format!("an unexpected packet: {unexpected:?}")));
            }
        }
        Ok(())
    }

    fn received(&mut self, publish: Publish) -> Result<(), CloseReason> {
        if publish.qos == QoS::ExactlyOnce {
            return Err(CloseReason::Protocol(
                "a message at QoS 2, though we asked for 1 at most".to_owned(),
            ));
        }
        if publish.topic.is_empty() {
            return Err(CloseReason::Protocol("a topic alias, though we allowed none".to_owned()));
        }
        let acked = publish.qos == QoS::AtLeastOnce;
        let Ok(topic) = std::str::from_utf8(&publish.topic) else {
            let topic = String::from_utf8_lossy(&publish.topic);
            let id = acked.then_some(publish.pkid);
            return self.pass_over(id, &topic, Unusable::Malformed, "its topic is not UTF-8");
        };
        let ack = (acked && self.manual_acks).then(|| Ack::new(publish.pkid, self.link.clone()));
        let received = Received {
            topic: topic.to_owned(),
            payload: publish.payload,
            retain: publish.retain,
            user_properties: publish
                .properties
                .map(|properties| properties.user_properties)
                .unwrap_or_default(),
            ack,
        };
        self.pass_on(Event::Received(received));
        if acked && !self.manual_acks { self.acknowledge(publish.pkid) } else { Ok(()) }
    }

    /// A message that nobody can use is acknowledged here, even where that is done by hand: or it would come again.
    fn pass_over(
        &mut self,
        id: Option<u16>,
        topic: &str,
        why: Unusable,
        detail: &str,
    ) -> Result<(), CloseReason> {
        tracing::debug!(topic, "a message that arrived is of no use: {detail}");
        self.pass_on(Event::Unusable(why));
        id.map_or(Ok(()), |id| self.acknowledge(id))
    }

    fn acknowledge(&mut self, id: u16) -> Result<(), CloseReason> {
        if self.last {
            return Ok(());
        }
        PubAck::new(id, None).write(self.wire.output()).map_err(|error| codec_error(&error))?;
        self.unsent_acks += 1;
        self.clock.ack_due.get_or_insert_with(|| Instant::now() + ACK_DELAY);
        Ok(())
    }

    fn pass_on(&mut self, event: Event) {
        // Under a disconnect nobody may be reading; then the rest has nobody to go to.
        let unwanted = self.link.is_disconnecting() && !self.sink.has_room();
        if unwanted || !self.sink.push(event) {
            self.dropped += 1;
        }
    }

    fn close_reason(&self, error: &WireError) -> CloseReason {
        if self.clock.disconnected.is_some() {
            return CloseReason::Wanted;
        }
        match error {
            WireError::Closed => CloseReason::ClosedByBroker,
            WireError::Read(error) | WireError::Write(error) => lost(error),
            WireError::Codec(error) => codec_error(error),
        }
    }
}

fn lost(error: &io::Error) -> CloseReason {
    // A TLS peer that ends without close_notify has closed, too.
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return CloseReason::ClosedByBroker;
    }
    CloseReason::Lost(error.to_string())
}

fn codec_error(error: &CodecError) -> CloseReason {
    CloseReason::Protocol(match error {
        CodecError::PayloadSizeLimitExceeded { pkt_size, max } => {
            format!("a packet of {pkt_size} bytes, though we allowed {max}")
        }
        error => error.to_string(),
    })
}

fn disconnected(disconnect: Disconnect) -> CloseReason {
    match disconnect.reason_code {
        DisconnectReasonCode::SessionTakenOver => CloseReason::SessionTakenOver,
        code => CloseReason::Disconnected {
            reason: ReasonCode(code as u8),
            text: disconnect.properties.and_then(|properties| properties.reason_string),
        },
    }
}

fn puback(reason: PubAckReason) -> ReasonCode {
    ReasonCode(match reason {
        PubAckReason::Success => 0x00,
        PubAckReason::NoMatchingSubscribers => 0x10,
        PubAckReason::UnspecifiedError => 0x80,
        PubAckReason::ImplementationSpecificError => 0x83,
        PubAckReason::NotAuthorized => 0x87,
        PubAckReason::TopicNameInvalid => 0x90,
        PubAckReason::PacketIdentifierInUse => 0x91,
        PubAckReason::QuotaExceeded => 0x97,
        PubAckReason::PayloadFormatInvalid => 0x99,
    })
}

fn suback(reason: SubscribeReasonCode) -> ReasonCode {
    use SubscribeReasonCode as Code;
    ReasonCode(match reason {
        Code::Success(qos) => qos as u8,
        Code::Failure | Code::Unspecified => 0x80,
        Code::ImplementationSpecific => 0x83,
        Code::NotAuthorized => 0x87,
        Code::TopicFilterInvalid => 0x8F,
        Code::PkidInUse => 0x91,
        Code::QuotaExceeded => 0x97,
        Code::SharedSubscriptionsNotSupported => 0x9E,
        Code::SubscriptionIdNotSupported => 0xA1,
        Code::WildcardSubscriptionsNotSupported => 0xA2,
    })
}

fn unsuback(reason: UnsubAckReason) -> ReasonCode {
    ReasonCode(match reason {
        UnsubAckReason::Success => 0x00,
        UnsubAckReason::NoSubscriptionExisted => 0x11,
        UnsubAckReason::UnspecifiedError => 0x80,
        UnsubAckReason::ImplementationSpecificError => 0x83,
        UnsubAckReason::NotAuthorized => 0x87,
        UnsubAckReason::TopicFilterInvalid => 0x8F,
        UnsubAckReason::PacketIdentifierInUse => 0x91,
    })
}
