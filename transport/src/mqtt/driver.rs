//! The task that owns the MQTT library's event loop and does nothing but poll it: it never waits for a queue of
//! ours while it could read, and `poll` is never cancelled in its middle (a half-written packet would be lost).

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use rumqttc::{
    Outgoing,
    v5::{
        ConnectionError, Event as WireEvent, EventLoop, StateError,
        mqttbytes::{
            Error as WireError,
            v5::{DisconnectReasonCode, Packet, PubAckReason, Publish, SubscribeReasonCode, UnsubAckReason},
        },
    },
};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::{
    CloseReason, Event, Events, Publisher, Qos, ReasonCode, Received,
    dial::{self, Dialled},
    events::{self, Fill, Sink},
    outbox::Outbox,
    packet,
    publisher::{Limits, Link},
};

/// How long the broker has to close the connection after DISCONNECT. Until then we keep reading: a socket closed
/// with unread bytes is reset, and the reset can overtake our last publishes and the DISCONNECT itself.
const LINGER: Duration = Duration::from_secs(1);

/// Starts the task of a connection.
pub(super) fn start(dialled: Dialled) -> (Publisher, Events) {
    let Dialled { client, event_loop, accepted } = dialled;
    let receive_maximum = accepted.receive_maximum.min(dial::MAX_IN_FLIGHT);
    let highest_qos = if accepted.maximum_qos == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce };
    let outbox = Outbox::new(client, receive_maximum, highest_qos);
    let limits = Limits::new(&accepted);
    let link = Arc::new(Link::new(outbox, limits));
    let (sink, events) = events::channel(link.clone());
    let driver = Driver {
        event_loop,
        link: link.clone(),
        sink,
        keep_alive: accepted.keep_alive,
        last_ping: Instant::now(),
        progress: Instant::now(),
        watchdog: Box::pin(sleep(accepted.keep_alive)),
        disconnected_at: None,
        dropped: 0,
    };
    tokio::spawn(driver.run());
    (Publisher::new(link), events)
}

struct Driver {
    event_loop: EventLoop,
    link: Arc<Link>,
    sink: Sink,
    keep_alive: Duration,
    last_ping: Instant,
    /// When the last poll began.
    progress: Instant,
    /// Looks at `progress` now and then; arming it for each poll would cost more than the poll.
    watchdog: Pin<Box<Sleep>>,
    /// When DISCONNECT went out.
    disconnected_at: Option<Instant>,
    /// Messages that nobody was there to take.
    dropped: u64,
}

impl Driver {
    async fn run(mut self) {
        let reason = self.drive().await;
        // What the library has and the broker did not acknowledge.
        self.event_loop.clean();
        let handed_over = self.event_loop.pending.drain(..).filter_map(packet::unwired_publish).collect();
        let undelivered = self.link.close(reason.clone(), handed_over);
        if undelivered > 0 || self.dropped > 0 {
            tracing::debug!(%reason, undelivered, dropped = self.dropped, "connection over with messages left");
        }
    }

    async fn drive(&mut self) -> CloseReason {
        loop {
            if let Err(reason) = self.step().await {
                return reason;
            }
            match self.sink.fill() {
                Fill::Room => {}
                _ if self.link.is_disconnecting() || self.link.is_abandoned() => {}
                Fill::Overwhelmed => return CloseReason::Overwhelmed,
                Fill::Pause => {
                    if let Err(reason) = self.pause().await {
                        return reason;
                    }
                }
            }
        }
    }

    /// Polls once and handles what came.
    async fn step(&mut self) -> Result<(), CloseReason> {
        match self.poll().await? {
            Ok(event) => self.handle(event),
            Err(error) => Err(self.over(&error)),
        }
    }

    /// Polls once, and meanwhile watches over the deadlines.
    async fn poll(&mut self) -> Result<Result<WireEvent, ConnectionError>, CloseReason> {
        // The library sends no keep-alive while a flush blocks, so a poll on a link that takes no bytes would last
        // for ever. A poll on a good link ends at the next keep-alive at the latest.
        let patience = self.keep_alive.mul_f32(1.5);
        self.progress = Instant::now();
        let mut poll = pin!(self.event_loop.poll());
        loop {
            let deadline = match self.disconnected_at {
                Some(at) => Some((at + LINGER, CloseReason::Wanted)),
                None => self.link.disconnect_deadline().map(|at| (at, CloseReason::DisconnectTimedOut)),
            };
            if deadline.is_none() && self.link.is_abandoned() {
                return Err(CloseReason::Abandoned);
            }
            tokio::select! {
                biased;
                polled = &mut poll => return Ok(polled),
                // A disconnect was asked for, or the events were dropped: look again.
                () = self.link.woken() => {}
                reason = expiry(deadline) => return Err(reason),
                () = &mut self.watchdog => {
                    let due = self.progress + patience;
                    if Instant::now() >= due {
                        return Err(CloseReason::KeepAlive(patience));
                    }
                    self.watchdog.as_mut().reset(due);
                }
            }
        }
    }

    /// Nobody takes what arrives: leave the rest in the socket until somebody does, and keep the link alive.
    async fn pause(&mut self) -> Result<(), CloseReason> {
        tracing::debug!("reading from the broker paused: what arrived is not taken");
        loop {
            let ping_due = self.last_ping + self.keep_alive;
            tokio::select! {
                () = self.sink.room() => return Ok(()),
                () = self.link.woken() => {
                    if self.link.is_disconnecting() || self.link.is_abandoned() {
                        return Ok(());
                    }
                }
                () = sleep_until(ping_due) => self.ping().await?,
            }
        }
    }

    /// Polls until the library has sent its PINGREQ; it may read some packets before.
    async fn ping(&mut self) -> Result<(), CloseReason> {
        let before = self.last_ping;
        while self.last_ping == before {
            // The answer to the last one stands behind what we do not read.
            self.event_loop.state.await_pingresp = false;
            self.step().await?;
            if self.sink.fill() == Fill::Overwhelmed {
                return Err(CloseReason::Overwhelmed);
            }
        }
        Ok(())
    }

    /// The end of the link. What came in before it, in the same read, is still in the library's queue.
    fn over(&mut self, error: &ConnectionError) -> CloseReason {
        while let Some(event) = self.event_loop.state.events.pop_front() {
            if let Err(reason) = self.handle(event) {
                return reason;
            }
        }
        if self.disconnected_at.is_some() {
            return CloseReason::Wanted;
        }
        close_reason(error, self.keep_alive)
    }

    fn handle(&mut self, event: WireEvent) -> Result<(), CloseReason> {
        match event {
            WireEvent::Incoming(Packet::Publish(publish)) => return self.received(publish),
            WireEvent::Incoming(Packet::PubAck(ack)) => {
                if let Some(refused) = self.link.publish_acked(ack.pkid, puback(ack.reason)) {
                    self.pass_on(Event::Refused(refused));
                }
            }
            WireEvent::Incoming(Packet::SubAck(ack)) => {
                self.link.filters_acked(ack.pkid, ack.return_codes.into_iter().map(suback).collect());
            }
            WireEvent::Incoming(Packet::UnsubAck(ack)) => {
                self.link.filters_acked(ack.pkid, ack.reasons.into_iter().map(unsuback).collect());
            }
            WireEvent::Outgoing(Outgoing::Publish(_) | Outgoing::Subscribe(_) | Outgoing::Unsubscribe(_)) => {
                self.link.taken();
            }
            WireEvent::Outgoing(Outgoing::PingReq) => self.last_ping = Instant::now(),
            WireEvent::Outgoing(Outgoing::Disconnect) => self.disconnected_at = Some(Instant::now()),
            WireEvent::Outgoing(Outgoing::AwaitAck(id)) => {
                // Our numbering along with the library has failed: the packet may never go out.
                return Err(CloseReason::Protocol(format!("packet id {id} was used twice")));
            }
            WireEvent::Incoming(_) | WireEvent::Outgoing(_) => {}
        }
        Ok(())
    }

    fn received(&mut self, publish: Publish) -> Result<(), CloseReason> {
        // A broker that delivers is alive; the answer to our ping may stand behind megabytes that we have not read.
        self.event_loop.state.await_pingresp = false;
        if publish.topic.is_empty() {
            return Err(CloseReason::Protocol("a topic alias, though we allowed none".to_owned()));
        }
        let Ok(topic) = std::str::from_utf8(&publish.topic) else {
            return Err(CloseReason::Protocol("a topic that is not UTF-8".to_owned()));
        };
        let received = Received {
            topic: topic.to_owned(),
            payload: publish.payload,
            retain: publish.retain,
            user_properties: publish
                .properties
                .map(|properties| properties.user_properties)
                .unwrap_or_default(),
        };
        self.pass_on(Event::Received(received));
        Ok(())
    }

    fn pass_on(&mut self, event: Event) {
        // Under a disconnect nobody may be reading; then the rest has nobody to go to.
        let unwanted = self.link.is_disconnecting() && self.sink.fill() != Fill::Room;
        if unwanted || !self.sink.push(event) {
            self.dropped += 1;
        }
    }
}

/// Waits for the deadline, for ever when there is none.
async fn expiry(deadline: Option<(Instant, CloseReason)>) -> CloseReason {
    match deadline {
        Some((at, reason)) => {
            sleep_until(at).await;
            reason
        }
        None => std::future::pending().await,
    }
}

fn close_reason(error: &ConnectionError, keep_alive: Duration) -> CloseReason {
    let ConnectionError::MqttState(state) = error else {
        return CloseReason::Lost(dial::detail(error));
    };
    match state {
        StateError::ServerDisconnect { reason_code: DisconnectReasonCode::SessionTakenOver, .. } => {
            CloseReason::SessionTakenOver
        }
        StateError::ServerDisconnect { reason_code, reason_string } => {
            CloseReason::Disconnected { reason: ReasonCode(*reason_code as u8), text: reason_string.clone() }
        }
        StateError::ConnectionAborted => CloseReason::ClosedByBroker,
        StateError::AwaitPingResp => CloseReason::KeepAlive(keep_alive),
        StateError::Io(_) | StateError::Deserialization(WireError::Io(_)) => {
            CloseReason::Lost(dial::detail(error))
        }
        StateError::Deserialization(WireError::PayloadSizeLimitExceeded { pkt_size, max }) => {
            CloseReason::Protocol(format!("a packet of {pkt_size} bytes, though we allowed {max}"))
        }
        _ => CloseReason::Protocol(dial::detail(error)),
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
