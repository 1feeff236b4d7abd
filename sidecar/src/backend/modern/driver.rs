//! Moves messages between the bridge and a session of the transport, through the [`Translator`].

use std::{collections::VecDeque, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::{Action, translator::Translator};
use crate::backend::{
    BackendEnd, BackendEvents, BackendSession, FromBackend, FromBridge, Report, SessionId,
    findings::{Findings, Suspicion},
    send_quota::{Outbound, Reserved},
};

/// How long the transport may take to end its session: longer than any of its own deadlines.
const END_TIMEOUT: Duration = Duration::from_secs(15);
/// A request of more bytes keeps its room until it is answered, as it may have to be repeated. As many smaller ones as
/// may be in flight are little.
const LARGE: usize = 4 << 10;
/// A wait that stands for none; the loop is woken by other things.
const LONG: Duration = Duration::from_hours(1);

/// Serves a session to its end, which it reports.
///
/// `server` and `from_server`: the session of the transport.
pub(in crate::backend) async fn serve(
    id: SessionId,
    events: BackendEvents,
    from_bridge: FromBridge,
    (server, from_server): (BackendSession, mpsc::Receiver<Report>),
    findings: Findings,
) {
    let mut pump = Pump {
        id,
        events,
        findings,
        from_server,
        translator: Translator::new(),
        to_server: VecDeque::new(),
        to_bridge: VecDeque::new(),
    };
    let end = if let Some(end) = pump.run(from_bridge, &server).await {
        end
    } else {
        for outbound in pump.to_server.drain(..) {
            let _ = server.say(outbound.message); // last words, as far as they fit
        }
        drop(server);
        pump.wait_for_end().await
    };
    pump.events.report(id, FromBackend::Ended(end), None).await;
}

struct Pump {
    id: SessionId,
    events: BackendEvents,
    findings: Findings,
    from_server: mpsc::Receiver<Report>,
    translator: Translator,
    /// While something waits here, nothing is taken from the bridge: it is bounded by what one message of the
    /// client, and the answers to requests in flight, bring about.
    to_server: VecDeque<Outbound>,
    /// While something waits here, nothing is taken from either side.
    to_bridge: VecDeque<Report>,
}

impl Pump {
    /// Until the session of the transport has ended, or the bridge has dropped ours (`None`).
    async fn run(&mut self, from_bridge: FromBridge, server: &BackendSession) -> Option<BackendEnd> {
        let FromBridge { mut messages, mut dropped } = from_bridge;
        let mut actions = Vec::new();
        loop {
            let deadline = self.translator.next_deadline().map(Instant::from_std);
            let is_idle = self.to_bridge.is_empty();
            // Goes with the first message that comes of the client's.
            let mut reserved = None;
            // Likewise, of the server's.
            let mut room = None;
            tokio::select! {
                biased;
                place = self.events.place(), if !is_idle => {
                    let (place, report) = place.zip(self.to_bridge.pop_front())?;
                    place.send(report);
                    continue;
                }
                place = server.place(), if !self.to_server.is_empty() => {
                    match (place, self.to_server.pop_front()) {
                        (Some(place), Some(outbound)) => place.send(Box::new(outbound)),
                        _ => self.to_server.clear(), // it has ended, and is about to say so
                    }
                    continue;
                }
                report = self.from_server.recv(), if is_idle => match report {
                    Some(Report { event: FromBackend::Ended(end), .. }) => return Some(end),
                    Some(Report { event, room: own, .. }) => {
                        room = own;
                        self.translator.server_event(event, now(), &mut actions);
                    }
                    None => return Some(BackendEnd::Closed),
                },
                message = messages.recv(), if is_idle && self.to_server.is_empty() => match message {
                    Some(outbound) => {
                        let Outbound { message, reserved: own } = *outbound;
                        let kept;
                        (kept, reserved) = if message.raw().len() > LARGE {
                            own.map(Reserved::share).unzip()
                        } else {
                            (None, own)
                        };
                        self.translator.client_message(message, kept, now(), &mut actions);
                    }
                    None => return None,
                },
                _ = &mut dropped, if !is_idle || !self.to_server.is_empty() => return None,
                () = sleep_until(deadline.unwrap_or_else(|| Instant::now() + LONG)), if is_idle => {
                    self.translator.expire(now(), &mut actions);
                }
            }
            for action in actions.drain(..) {
                match action {
                    Action::ToClient(event) => {
                        self.to_bridge.push_back(Report { session: self.id, event, room: room.take() });
                    }
                    Action::ToServer(message) => {
                        self.to_server.push_back(Outbound { message, reserved: reserved.take() });
                    }
                    Action::RevisionChanged => self.findings.suspect(Suspicion::Revision),
                }
            }
        }
    }

    /// The transport's last event; what comes before it is for nobody.
    async fn wait_for_end(&mut self) -> BackendEnd {
        let end = async {
            while let Some(report) = self.from_server.recv().await {
                if let FromBackend::Ended(end) = report.event {
                    return end;
                }
            }
            BackendEnd::Closed
        };
        timeout(END_TIMEOUT, end).await.unwrap_or(BackendEnd::Closed)
    }
}

fn now() -> std::time::Instant {
    std::time::Instant::now()
}
