//! Tests at start that the broker will have us, with the rights that a server needs and no others:
//!
//! | right | topics | how it is tested |
//! |---|---|---|
//! | write | presence | the empty presence, retained: its PUBACK |
//! | read, write | RPC | a message for nobody, heard by us: its PUBACK, and that it comes |
//! | read | control, client presence, client capability | the SUBACK |
//! | write | capability | not: no message there is without effect |
//!
//! A worker needs of these what concerns clients: RPC, client presence and client capability.
//!
//! Brokers say no in different ways: a reason code in SUBACK or PUBACK, silence, or the end of the connection.
//! Mosquitto grants a subscription that its ACL forbids and then stays silent; so what we may write ourselves is also
//! waited for. On control a server need not be allowed to write: a refusal of that proves nothing, but a message
//! that was taken and does not come is worth a remark.

use std::{pin::pin, time::Duration};

use mcp_mqtt_transport::{
    jsonrpc::Message,
    mqtt::{CloseReason, Connection, Event, Filter, Publication, PublishError, Qos, ReasonCode, Received},
    topic::{self, ClientId, ServerId, ServerName},
    user_property::{self, Component},
};
use tokio::time::{Instant, sleep_until};

use super::Failure;
use crate::status::reason;

/// For each answer of the broker.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// For the message that proves nothing when it does not come.
const CONTROL_ECHO_TIMEOUT: Duration = Duration::from_secs(1);
/// Messages of clients that may come meanwhile; they find an instance by a presence that does not stand yet.
const EARLY: usize = 256;
/// And their bytes: the largest that is taken, twice.
const EARLY_BYTES: usize = 8 << 20;
/// What is added to our id for the id of a client that is not there.
const NOBODY: &str = "-self-test";
/// Method of the message to ourselves.
const METHOD: &str = "notifications/self-test";

/// What is needed for the test.
#[derive(Debug)]
pub struct SelfTest<'a> {
    /// The connection's MQTT client id.
    pub client_id: &'a str,
    /// Whom the topics name.
    pub server_id: &'a ServerId,
    /// The server name in use.
    pub server_name: &'a ServerName,
    /// Of the subscriptions.
    pub qos: Qos,
    /// What the registering connection needs beside.
    pub registration: Option<OfRegistration>,
}

/// What the registering connection needs beside.
#[derive(Debug, Default)]
pub struct OfRegistration {
    /// The empty presence; none: another presence stands there, and has to stay until ours takes its place.
    pub offline: Option<Publication>,
    /// Whether to write to control, too.
    pub control_echo: bool,
}

/// The broker will have us; for a registration, control is subscribed.
#[derive(Debug)]
pub struct Report {
    /// What came meanwhile.
    pub early: Vec<Received>,
    /// What a person should know.
    pub remark: Option<String>,
}

/// It will not.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub failure: Failure,
    /// The broker closed the connection on something that a server need not be allowed.
    pub by_control_echo: bool,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, by_control_echo: false }
    }
}

impl SelfTest<'_> {
    /// Subscribes (control, for a registration) and tests.
    ///
    /// # Errors
    /// What the broker forbids, and how that was seen.
    pub async fn run(self, connection: &mut Connection) -> Result<Report, Failed> {
        // Not our own id: where clients have a right to the topics of their own ids, we would pass as a client.
        let nobody = ClientId::new(&format!("{}{NOBODY}", self.client_id)).map_err(|error| Failure {
            reason: reason::BROKER_SETTINGS_INVALID,
            message: format!("the client id {} is too long to test with: it {error}", self.client_id),
        })?;
        let control = topic::control(self.server_id, self.server_name);
        let rpc = topic::rpc(&nobody, self.server_id, self.server_name);
        let of_clients = [rpc.clone(), topic::client_presence(&nobody), topic::client_capability(&nobody)];
        let early = Early::default();
        let mut test = Test { connection, early, seen: None, server_id: self.server_id };

        let of_server = self.registration.as_ref().map(|_| control.clone());
        let filters: Vec<String> = of_server.into_iter().chain(of_clients.iter().cloned()).collect();
        let wanted =
            filters.iter().map(|filter| Filter { filter: filter.clone(), qos: self.qos, no_local: false });
        let granted = test.connection.publisher.subscribe_start(wanted.collect());
        let step = Step::subscribe(&filters[0]);
        let granted = test.answer(&step, granted).await?;
        for (filter, code) in filters.iter().zip(granted) {
            if code.is_error() {
                return Err(Step::subscribe(filter).refused(code).into());
            }
        }

        if let Some(offline) = self.registration.as_ref().and_then(|own| own.offline.as_ref()) {
            let step = Step::publish(&offline.topic, "a retained message");
            test.publish(&step, offline.clone()).await?;
        }

        let step = Step::publish(&rpc, "a message");
        test.publish(&step, self.message(&rpc)).await?;
        if !test.comes(&rpc, ANSWER_TIMEOUT).await.map_err(|why| step.closed(&why))? {
            return Err(step.silent().into());
        }
        let unsubscribed = test.connection.publisher.unsubscribe(of_clients.to_vec());
        drop(unsubscribed); // these were for the test alone; nothing depends on the answer

        let mut remark = None;
        if self.registration.as_ref().is_some_and(|own| own.control_echo)
            && test.control_echo(&control, self.message(&control)).await? == Echo::Silent
        {
            remark = Some(format!(
                "but a message that the broker took on {control} did not come back: if `initialize` stays without an \
                 answer, let the gateway read that topic"
            ));
        }
        Ok(Report { early: test.early.messages, remark })
    }

    fn message(&self, topic: &str) -> Publication {
        let message = Message::notification::<()>(METHOD, None).expect("no parameters");
        Publication {
            topic: topic.to_owned(),
            payload: message.into_raw(),
            qos: Qos::AtLeastOnce,
            retain: false,
            user_properties: user_property::of_publish(Component::Server, self.server_id.as_str()),
        }
    }
}

/// What became of the message on control.
#[derive(Debug, PartialEq, Eq)]
enum Echo {
    Came,
    /// Not allowed: proves nothing.
    Refused,
    Silent,
}

/// What came before the registration stands; bounded, as a client may send whatever it likes.
#[derive(Debug, Default)]
struct Early {
    messages: Vec<Received>,
    bytes: usize,
}

impl Early {
    fn keep(&mut self, received: Received) {
        let bytes = self.bytes + received.weight();
        if self.messages.len() >= EARLY || bytes > EARLY_BYTES {
            let topic = received.topic;
            return tracing::warn!(topic, "dropped: too much comes before the registration stands");
        }
        self.bytes = bytes;
        self.messages.push(received);
    }
}

/// A test that runs.
struct Test<'a> {
    connection: &'a mut Connection,
    early: Early,
    /// Topic of the last message of ours that came.
    seen: Option<String>,
    server_id: &'a ServerId,
}

impl Test<'_> {
    async fn publish(&mut self, step: &Step<'_>, publication: Publication) -> Result<(), Failure> {
        let reply = self.connection.publisher.publish_start(publication);
        let code = self.answer(step, reply).await?;
        if code.is_error() { Err(step.refused(code)) } else { Ok(()) }
    }

    /// Waits for the broker's answer to a step.
    async fn answer<T>(
        &mut self,
        step: &Step<'_>,
        started: Result<impl Future<Output = Result<T, PublishError>>, PublishError>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut answer = pin!(match started {
            Ok(answer) => answer,
            // Closed already: the events tell why.
            Err(PublishError::Closed) => return Err(step.closed(&self.close_reason().await)),
            Err(error) => return Err(step.impossible(&error)),
        });
        loop {
            tokio::select! {
                answer = &mut answer => match answer {
                    Ok(answer) => return Ok(answer),
                    Err(PublishError::Closed) => return Err(step.closed(&self.close_reason().await)),
                    Err(error) => return Err(step.impossible(&error)),
                },
                // What arrives must be read, or the answer would not be.
                event = self.connection.events.recv() => self.take(event).map_err(|why| step.closed(&why))?,
                () = sleep_until(deadline) => return Err(step.unanswered()),
            }
        }
    }

    /// Whether our message on this topic comes back in time.
    async fn comes(&mut self, topic: &str, patience: Duration) -> Result<bool, CloseReason> {
        let deadline = Instant::now() + patience;
        loop {
            if self.seen.as_deref() == Some(topic) {
                return Ok(true);
            }
            tokio::select! {
                event = self.connection.events.recv() => self.take(event)?,
                () = sleep_until(deadline) => return Ok(false),
            }
        }
    }

    async fn control_echo(&mut self, control: &str, message: Publication) -> Result<Echo, Failed> {
        let by_control_echo = |failure| Failed { failure, by_control_echo: true };
        let step = Step::publish(control, "a message");
        let reply = self.connection.publisher.publish_start(message);
        match self.answer(&step, reply).await {
            Ok(code) if code.is_error() || code == ReasonCode::NO_MATCHING_SUBSCRIBERS => Ok(Echo::Refused),
            Ok(_) => {
                let came = self.comes(control, CONTROL_ECHO_TIMEOUT).await;
                let came = came.map_err(|why| by_control_echo(step.closed(&why)))?;
                Ok(if came { Echo::Came } else { Echo::Silent })
            }
            Err(failure) => Err(by_control_echo(failure)),
        }
    }

    fn take(&mut self, event: Option<Event>) -> Result<(), CloseReason> {
        match event {
            Some(Event::Received(received)) => {
                let sender = user_property::find(&received.user_properties, user_property::MQTT_CLIENT_ID);
                if sender == Some(self.server_id.as_str()) {
                    self.seen = Some(received.topic);
                } else {
                    self.early.keep(received);
                }
                Ok(())
            }
            // The one only for what has a note; the other is no message of ours.
            Some(Event::Refused(_) | Event::Unusable(_)) => Ok(()),
            Some(Event::Closed(why)) => Err(why),
            None => Err(CloseReason::ClosedByBroker),
        }
    }

    /// The reason of a close that is already known to have happened.
    async fn close_reason(&mut self) -> CloseReason {
        loop {
            let event = self.connection.events.recv().await;
            if let Err(why) = self.take(event) {
                return why;
            }
        }
    }
}

/// A step of the test, in words.
#[derive(Debug)]
struct Step<'a> {
    verb: &'static str,
    what: &'static str,
    topic: &'a str,
}

impl<'a> Step<'a> {
    fn subscribe(topic: &'a str) -> Self {
        Self { verb: "read", what: "our subscription", topic }
    }

    fn publish(topic: &'a str, what: &'static str) -> Self {
        Self { verb: "write", what, topic }
    }

    fn refused(&self, code: ReasonCode) -> Failure {
        let Self { verb, what, topic } = self;
        let (reason, next) = next_step(code);
        Failure {
            reason,
            message: format!("the broker refused {what} to {topic}: {code}. {next} (needed here: {verb})"),
        }
    }

    fn closed(&self, why: &CloseReason) -> Failure {
        let Self { verb, what, topic } = self;
        let (reason, next) = match why {
            CloseReason::Disconnected { reason, .. } => next_step(*reason),
            CloseReason::SessionTakenOver => (
                reason::BROKER_SESSION_TAKEN_OVER,
                "Is the same pod running in another cluster with the same cluster name?",
            ),
            CloseReason::Lost(_) | CloseReason::KeepAlive(_) | CloseReason::Unacknowledged(_) => {
                (reason::BROKER_CONNECTION_LOST, "Trying again")
            }
            CloseReason::Protocol(_) => (
                reason::BROKER_CONNECTION_LOST,
                "The broker, or a proxy before it, does what MQTT 5 does not allow: look for a newer version of it. Trying \
                 again",
            ),
            _ => next_step(ReasonCode::TOPIC_NAME_INVALID),
        };
        Failure { reason, message: format!("on {what} to {topic}: {why}. {next} (needed here: {verb})") }
    }

    fn unanswered(&self) -> Failure {
        let Self { what, topic, .. } = self;
        let (reason, next) = next_step(ReasonCode::TOPIC_NAME_INVALID);
        Failure {
            reason,
            message: format!(
                "the broker did not acknowledge {what} to {topic} within {ANSWER_TIMEOUT:?}. {next}"
            ),
        }
    }

    fn silent(&self) -> Failure {
        let Self { what, topic, .. } = self;
        let (reason, next) = next_step(ReasonCode::NOT_AUTHORIZED);
        Failure {
            reason,
            message: format!(
                "the broker took {what} to {topic} but did not deliver it to our subscription. {next} (needed here: \
                 read and write)"
            ),
        }
    }

    fn impossible(&self, error: &PublishError) -> Failure {
        let Self { what, topic, .. } = self;
        Failure { reason: reason::BROKER_REFUSED_CONNECTION, message: format!("{what} to {topic}: {error}") }
    }
}

fn next_step(code: ReasonCode) -> (&'static str, &'static str) {
    match code {
        ReasonCode::NOT_AUTHORIZED => (
            reason::BROKER_NOT_AUTHORIZED,
            "The broker's ACL has to allow this server: write its presence, capability and RPC topics; read its control \
             and RPC topics and $mcp-client/#",
        ),
        _ => (
            reason::BROKER_REFUSED_TOPICS,
            "The broker has to allow topics that begin with $mcp-: some refuse every topic with a $ by default",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_early_is_bounded_by_number_and_by_bytes() {
        let received = |bytes: usize| Received {
            topic: "t".to_owned(),
            payload: vec![b'x'; bytes].into(),
            retain: false,
            user_properties: Vec::new(),
            ack: None,
        };
        let mut early = Early::default();
        for _ in 0..3 {
            early.keep(received(EARLY_BYTES / 2 - 1));
        }
        assert_eq!(early.messages.len(), 2);
        let mut early = Early::default();
        early.keep(received(EARLY_BYTES));
        for _ in 0..=EARLY {
            early.keep(received(1));
        }
        assert_eq!(early.messages.len(), EARLY);
    }

    #[test]
    fn what_ends_a_step_is_told_with_its_own_next_step() {
        let disconnected = |reason| CloseReason::Disconnected { reason, text: None };
        let table = [
            (
                CloseReason::Protocol("a packet".to_owned()),
                reason::BROKER_CONNECTION_LOST,
                "or a proxy before it",
            ),
            (CloseReason::Lost("reset".to_owned()), reason::BROKER_CONNECTION_LOST, "Trying again"),
            (CloseReason::ClosedByBroker, reason::BROKER_REFUSED_TOPICS, "begin with $mcp-"),
            (CloseReason::SessionTakenOver, reason::BROKER_SESSION_TAKEN_OVER, "another cluster"),
            (disconnected(ReasonCode::NOT_AUTHORIZED), reason::BROKER_NOT_AUTHORIZED, "ACL"),
        ];
        for (why, expected, next) in table {
            let failure = Step::publish("topic", "a message").closed(&why);
            assert_eq!(failure.reason, expected, "{why}");
            assert!(failure.message.contains(next), "{}", failure.message);
            assert_eq!(failure.message.contains("$mcp-"), next.contains("$mcp-") || next == "ACL", "{why}");
        }
    }
}
