//! One broker, as the controller has it.

mod journal;
mod outgoing;
mod rights;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use mcp_mqtt_transport::{
    backoff::Backoff,
    jsonrpc::RequestId,
    mqtt::{Ack, Filter, FilterReply, Publication, PublishError, Publisher, Qos, ReasonCode},
    redact,
    topic::{self, ClientId, ServerId, ServerName},
    user_property::{self, Component},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::AbortHandle,
};

use self::{
    journal::JOURNAL,
    outgoing::{Item, Outgoing},
    rights::Told,
};
pub(super) use self::{
    journal::{Journalled, Line, Unclaimed},
    rights::Right,
};
use super::Setting;
use crate::registry::{
    link::{self, Access, Happening},
    pending::WakeError,
    presences::{Presences, TooMuch},
    scale_to_zero::after_refusals,
    wanted,
};

/// Note of all that is published: a refusal is told by its topic.
const REFUSALS: u64 = 0;
/// A registry that has more than may be known is not asked again for so long: the answer may be endless.
const OVERFLOW: Duration = Duration::from_mins(5);
/// How long the last words may take.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long a broker that nobody uses any more stays connected for what is still to be said: what is kept there for
/// services that are not known is answered by then. One that always finds something more to ask is left all the same.
const UNUSED: Duration = Duration::from_secs(90);
/// A broker that is away for less is no news.
const WORTH_TELLING: Duration = Duration::from_secs(15);
/// Server name under which the operator sends itself a message, to see whether answers would reach it.
const ECHO: &str = "mcp-mqtt/echo";

/// See the module. When it is dropped, what the connection has taken is sent, if there is time, and it is closed.
pub(super) struct Broker {
    task: AbortHandle,
    /// Whether the connection's end is our own doing.
    leaving: Arc<AtomicBool>,
    /// As one of the services that use it refers to it now.
    access: watch::Sender<wanted::Broker>,
    /// As it may be told.
    url: String,
    client_id: String,
    publisher: Option<Publisher>,
    /// What stands in its registry.
    pub(super) presences: Presences,
    why: Option<String>,
    /// Since when it cannot be asked.
    down_since: Instant,
    /// Whether its registry had more than may be known, and has not told all of it since: it may have as much again.
    overflowed: bool,
    /// Counts connections, so that no answer on an earlier one is taken for one on this.
    connection: u64,
    /// Whether it may have more subscriptions than the services know of: the broker has kept those of an earlier one.
    resumed: bool,
    pending: Outgoing,
    /// What it did not allow on this connection.
    told: Told,
    watches: Watches,
    /// Errors that are said in a moment.
    pub(super) refusals: usize,
    /// Whether what is said to us reaches us on this connection, and no ACL keeps it from us without a word.
    hears: bool,
    /// Since when nobody has used it.
    unused: Option<Instant>,
    /// By the server id that they are for, each with the time until which it waits here.
    unclaimed: HashMap<String, Vec<(Instant, Unclaimed)>>,
}

/// What the operator wants to read from the first, and the broker has not let it.
struct Watches {
    missing: Vec<Right>,
    /// When it is asked again, after a refusal.
    next: Option<Instant>,
    pause: Backoff,
}

impl Watches {
    fn begin() -> Self {
        let missing = vec![Right::ReadPresences, Right::ReadJournal, Right::ReadAnswers];
        Self { missing, next: None, pause: after_refusals() }
    }

    fn retry(&mut self, now: Instant) {
        self.next = Some(now + self.pause.wait());
    }
}

impl Broker {
    pub(super) fn open(
        setting: &Setting,
        access: &wanted::Broker,
        happenings: mpsc::Sender<(String, Happening)>,
    ) -> Self {
        let client_id = if access.is_default {
            setting.client_id.clone()
        } else {
            format!("{}_{}", setting.client_id, access.key.get(..8).unwrap_or_default())
        };
        let leaving = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = watch::channel(access.clone());
        let link = Access {
            client: setting.client.clone(),
            client_id: client_id.clone(),
            broker: receiver,
            default_secret: setting.default_secret.clone(),
            salt: setting.salt.clone(),
        };
        Self {
            task: tokio::spawn(link::run(link, happenings, leaving.clone())).abort_handle(),
            leaving,
            access: sender,
            url: redact::url(access.url.as_str()),
            client_id,
            publisher: None,
            presences: Presences::new(setting.cluster.clone(), setting.mark.clone()),
            why: Some("no connection yet".to_owned()),
            down_since: Instant::now(),
            overflowed: false,
            connection: 0,
            resumed: false,
            pending: Outgoing::default(),
            told: Told::new(),
            watches: Watches::begin(),
            refusals: 0,
            hears: false,
            unused: None,
            unclaimed: HashMap::new(),
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Whether the next connect goes by this reference.
    pub(super) fn goes_by(&self, access: &wanted::Broker) -> bool {
        *self.access.borrow() == *access
    }

    /// The next connect goes by this reference: of a service that uses the broker, and whose Secret is there.
    pub(super) fn go_by(&self, access: &wanted::Broker) {
        self.access.send_replace(access.clone());
    }

    pub(super) fn client_id(&self) -> &str {
        &self.client_id
    }

    pub(super) fn connection(&self) -> u64 {
        self.connection
    }

    pub(super) fn resumed(&self) -> bool {
        self.resumed
    }

    pub(super) fn publisher(&self) -> Option<&Publisher> {
        self.publisher.as_ref()
    }

    /// Why it cannot be asked; none: it can, or could a moment ago.
    pub(super) fn unreachable(&self) -> Option<String> {
        self.why.clone().filter(|_| self.down_since.elapsed() >= WORTH_TELLING)
    }

    /// Whether it stays connected: it is used, or something is still to be said and there is time for that.
    pub(super) fn stays(&mut self, used: bool, now: Instant) -> bool {
        if used {
            self.unused = None;
            return true;
        }
        let since = *self.unused.get_or_insert(now);
        self.is_busy() && now.duration_since(since) < UNUSED
    }

    /// Whether something is still to be said.
    fn is_busy(&self) -> bool {
        let to_say = self.refusals > 0 || !self.pending.is_empty() || !self.unclaimed.is_empty();
        self.publisher.is_some() && to_say
    }

    /// Whether it takes what is said, and has taken all that was.
    pub(super) fn takes(&self) -> bool {
        self.publisher.is_some() && self.pending.is_empty()
    }

    /// Whether answers of instances reach us.
    pub(super) fn hears(&self) -> bool {
        self.hears
    }

    /// Something has come on our own topic.
    pub(super) fn heard(&mut self) {
        self.hears = true;
    }

    /// It stands: asks for all presences, for what was written down, and for what instances answer.
    pub(super) fn up(&mut self, publisher: Publisher, resumed: bool) -> Option<FilterReply> {
        self.connection += 1;
        self.resumed = resumed;
        self.hears = false;
        self.overflowed = false;
        self.told.clear();
        self.watches = Watches::begin();
        self.publisher = Some(publisher);
        let reply = self.watch();
        self.flush();
        reply
    }

    /// Asks again for what the broker refused to let us read, when it is time.
    pub(super) fn watch_again(&mut self, now: Instant) -> Option<FilterReply> {
        self.watches.next.take_if(|next| *next <= now)?;
        self.watch()
    }

    fn watch(&mut self) -> Option<FilterReply> {
        let publisher = self.publisher.as_ref()?;
        let presences = self.watches.missing.contains(&Right::ReadPresences);
        let filters = self.watches.missing.iter().map(|right| self.filter(*right)).collect();
        let reply = publisher.subscribe_start(filters);
        if presences {
            self.presences.unlinked();
        }
        match reply {
            Ok(reply) => Some(reply),
            Err(error) => {
                if presences {
                    self.why = Some(error.to_string());
                }
                self.watches.retry(Instant::now());
                None
            }
        }
    }

    fn filter(&self, right: Right) -> Filter {
        match right {
            Right::ReadJournal => Filter::new(format!("{JOURNAL}/{}/+/+", self.client_id), Qos::AtLeastOnce),
            Right::ReadAnswers => Filter::new(topic::rpc_filter(&self.client_id), Qos::AtLeastOnce),
            // At QoS 0: some brokers drop what is beyond a thousand messages of QoS 1 in one go.
            _ => Filter::new(topic::server_presence_filter("#"), Qos::AtMostOnce),
        }
    }

    pub(super) fn down(&mut self, why: String) {
        self.connection += 1;
        self.presences.unlinked();
        self.publisher = None;
        self.pending.forget_acks();
        if self.why.replace(why).is_none() {
            self.down_since = Instant::now();
        }
    }

    /// The broker's answer to what we want to read.
    pub(super) fn watching(&mut self, connection: u64, answer: Result<Vec<ReasonCode>, PublishError>) {
        if connection != self.connection {
            return;
        }
        let Ok(codes) = answer else { return }; // the connection is over, and says so itself
        let now = Instant::now();
        let codes = codes.into_iter().chain(std::iter::repeat(ReasonCode::UNSPECIFIED_ERROR));
        for (right, code) in std::mem::take(&mut self.watches.missing).into_iter().zip(codes) {
            if code.is_error() {
                let why = self.refused(right, &self.filter(right).filter, code);
                if right == Right::ReadPresences {
                    self.why = Some(why);
                }
                self.watches.missing.push(right);
                continue;
            }
            match right {
                // They came before this answer: it is asked again when it is time.
                Right::ReadPresences if self.presences.are_too_many() => self.watches.missing.push(right),
                Right::ReadPresences => {
                    self.why.take_if(|_| !self.overflowed);
                    self.presences.subscribed(now);
                }
                Right::ReadAnswers => {
                    if let Some(echo) = self.echo() {
                        self.say(echo);
                    }
                }
                _ => {}
            }
        }
        if !self.watches.missing.is_empty() && self.watches.next.is_none() {
            self.watches.retry(now);
        }
    }

    /// Whether it has just told all presences there are.
    pub(super) fn settle(&mut self, now: Instant) -> bool {
        let settled = self.presences.settle(now);
        if settled && std::mem::take(&mut self.overflowed) {
            self.why = None;
        }
        settled
    }

    /// Whether it is the one that the operator was given, and no service's own.
    pub(super) fn is_default(&self) -> bool {
        self.access.borrow().is_default
    }

    /// Its registry has more than may be known: it is as good as away, and asked anew in a while.
    pub(super) fn overflowed(&mut self, much: TooMuch) {
        self.presences.give_up();
        let why = format!("{much}: are they all of instances that exist?");
        tracing::warn!(broker = %self.url, "the broker is left alone for {OVERFLOW:?}: {why}");
        self.overflowed = true;
        if self.why.replace(why).is_none() {
            self.down_since = Instant::now();
        }
        self.resumed = true; // the services begin anew, and what they have subscribed stays
        if let Some(publisher) = &self.publisher {
            // What comes all the same is not taken in.
            let _ = publisher.unsubscribe(vec![self.filter(Right::ReadPresences).filter]);
        }
        if !self.watches.missing.contains(&Right::ReadPresences) {
            self.watches.missing.push(Right::ReadPresences);
        }
        self.watches.next = Some(Instant::now() + OVERFLOW);
    }

    /// A message to ourselves.
    fn echo(&self) -> Option<Publication> {
        let (client, id) = (ClientId::new(&self.client_id).ok()?, ServerId::new(&self.client_id).ok()?);
        let name = ServerName::new(ECHO).ok()?;
        Some(Publication {
            user_properties: user_property::of_publish(Component::Server, &self.client_id),
            ..Publication::new(topic::rpc(&client, &id, &name), Bytes::new(), Qos::AtLeastOnce)
        })
    }

    /// Says it as soon as the broker takes it.
    pub(super) fn say(&mut self, publication: Publication) {
        self.queue(Item::Publication(publication));
    }

    /// A message is taken care of: what there is to say of it was said.
    pub(super) fn acknowledge(&mut self, ack: Ack) {
        self.queue(Item::Ack(ack));
    }

    fn queue(&mut self, item: Item) {
        if self.pending.push(item) > 0 {
            tracing::warn!(broker = %self.url, "the broker takes nothing: dropped what waited longest");
        }
        self.flush();
    }

    pub(super) fn flush(&mut self) {
        let Some(publisher) = &self.publisher else { return };
        while let Some(item) = self.pending.pop() {
            let publication = match item {
                Item::Publication(publication) => publication,
                Item::Ack(ack) => {
                    ack.send();
                    continue;
                }
            };
            match publisher.try_publish_noted(publication.clone(), REFUSALS) {
                Ok(()) => {}
                Err(PublishError::Full | PublishError::Closed) => {
                    return self.pending.put_back(publication);
                }
                Err(error) => {
                    tracing::warn!(broker = %self.url, topic = publication.topic, "not sent: {error}");
                }
            }
        }
    }

    /// A retained message in the name of this server id.
    pub(super) fn say_presence(&mut self, id: &ServerId, name: &ServerName, mark: &str, payload: Bytes) {
        let mut user_properties = user_property::of_publish(Component::Server, id.as_str());
        user_properties.push((user_property::OWNER.to_owned(), mark.to_owned()));
        self.say(Publication {
            topic: topic::server_presence(id, name),
            payload,
            qos: Qos::AtLeastOnce,
            retain: true,
            user_properties,
        });
    }

    /// Answers a client's request in a service's name, with an error.
    pub(super) fn say_refusal(
        &mut self,
        (standby, server_name): (&ServerId, &ServerName),
        client: &ClientId,
        id: &RequestId,
        refusal: &WakeError,
    ) {
        let (topic, answer) = (topic::rpc(client, standby, server_name), refusal.answer(id).into_raw());
        self.say(Publication {
            user_properties: user_property::of_publish(Component::Server, standby.as_str()),
            ..Publication::new(topic, answer, Qos::AtLeastOnce)
        });
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let (task, publisher) = (self.task.clone(), self.publisher.take());
        let runtime = Handle::try_current();
        if let (Some(publisher), Ok(runtime)) = (publisher, runtime) {
            self.leaving.store(true, SeqCst);
            runtime.spawn(async move {
                // Whether it could be done in time makes no difference any more.
                let _ = publisher.disconnect(FAREWELL).await;
                task.abort();
            });
        } else {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests;
