//! One broker, as the controller has it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use mcp_mqtt_transport::{
    jsonrpc::{Kind, Message, RequestId},
    mqtt::{Ack, Filter, FilterReply, Publication, PublishError, Publisher, Qos, ReasonCode, Received},
    topic::{self, ClientId, ServerId, ServerName},
    user_property::{self, Component},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::AbortHandle,
};
use url::Url;

use super::Setting;
use crate::registry::{
    link::{self, Access, Happening},
    pending::{IN_ALL, MAX_BYTES, WakeError},
    presences::Presences,
    wanted,
};

/// Where what is held is written down, for the operator that comes after this one: retained, below the client id.
const JOURNAL: &str = "mcp-mqtt/held";
/// User property there: when it came, in milliseconds of Unix time.
const SINCE: &str = "MCP-MQTT-SINCE";
/// What may wait for a broker that takes nothing at present: an answer, a line of the journal and an acknowledgement for
/// all that can be held.
const PENDING: usize = 3 * IN_ALL;
/// How long the last words may take.
const FAREWELL: Duration = Duration::from_secs(5);
/// A broker that is away for less is no news.
const WORTH_TELLING: Duration = Duration::from_secs(15);
/// Server name under which the operator sends itself a message, to see whether answers would reach it.
const ECHO: &str = "mcp-mqtt/echo";
/// A message for a service of which we were not told waits this long: the first reconciles take their time.
/// Many clients give a request up after a minute, and are to hear before that that nobody knows of it.
const UNCLAIMED: Duration = Duration::from_secs(30);

/// What the operator writes, by the right that a broker has to give for it: the note by which a refusal is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    Journal,
    Presence,
    Rpc,
    Control,
}

impl Right {
    fn of(topic: &str) -> Self {
        if topic.starts_with(JOURNAL) {
            Self::Journal
        } else if topic.starts_with("$mcp-server/presence/") {
            Self::Presence
        } else if topic.starts_with("$mcp-rpc/") {
            Self::Rpc
        } else {
            Self::Control
        }
    }

    /// Where it must be allowed to write, and what does not work without.
    fn in_words(note: u64) -> (&'static str, &'static str) {
        match note {
            note if note == Self::Journal as u64 => {
                ("mcp-mqtt/held/#", "what is held does not outlive the operator")
            }
            note if note == Self::Presence as u64 => ("$mcp-server/presence/#", "no service can sleep"),
            note if note == Self::Rpc as u64 => ("$mcp-rpc/#", "clients do not hear why they are refused"),
            _ => ("$mcp-server/#", "who wakes a service is not answered"),
        }
    }
}

/// See the module. When it is dropped, what the connection has taken is sent, if there is time, and it is closed.
pub(super) struct Broker {
    task: AbortHandle,
    /// Whether the connection's end is our own doing.
    leaving: Arc<AtomicBool>,
    /// As one of the services that use it refers to it now.
    access: watch::Sender<wanted::Broker>,
    url: Url,
    client_id: String,
    publisher: Option<Publisher>,
    /// What stands in its registry.
    pub(super) presences: Presences,
    why: Option<String>,
    /// Since when it cannot be asked.
    down_since: Instant,
    /// Counts connections, so that no answer on an earlier one is taken for one on this.
    connection: u64,
    pending: VecDeque<Outgoing>,
    /// Errors that are said in a moment.
    pub(super) refusals: usize,
    /// Whether what is said to us reaches us on this connection, and no ACL keeps it from us without a word.
    hears: bool,
    /// By the server id that they are for, each with the time from which it waits here.
    unclaimed: HashMap<String, Vec<(Instant, Unclaimed)>>,
}

/// What a broker is to get, in order.
enum Outgoing {
    Publication(Publication),
    /// For a message of which everything before it was said.
    Ack(Ack),
}

/// A message for a service of which we were not told yet.
#[derive(Debug)]
pub(super) struct Unclaimed {
    pub(super) client: ClientId,
    pub(super) payload: Bytes,
    /// When it came.
    pub(super) since: Instant,
    /// The name of the service that it is for; a line of the journal by an older operator has none.
    pub(super) server_name: Option<ServerName>,
}

/// What the journal has of a message that is held.
pub(super) struct Line<'a> {
    pub(super) payload: &'a Bytes,
    pub(super) since: Instant,
    pub(super) server_name: Option<&'a ServerName>,
}

/// A line of the journal, as it is read.
#[derive(Debug)]
pub(super) enum Journalled {
    /// Not of the journal.
    Other,
    /// Nothing to read: what we write ourselves comes back, too.
    Nothing,
    /// What an operator before us wrote down, and the server id that it was for.
    Message(String, Unclaimed),
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
            url: access.url.clone(),
            client_id,
            publisher: None,
            presences: Presences::new(setting.cluster.clone(), setting.mark.clone()),
            why: Some("no connection yet".to_owned()),
            down_since: Instant::now(),
            connection: 0,
            pending: VecDeque::new(),
            refusals: 0,
            hears: false,
            unclaimed: HashMap::new(),
        }
    }

    pub(super) fn url(&self) -> &Url {
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

    pub(super) fn publisher(&self) -> Option<&Publisher> {
        self.publisher.as_ref()
    }

    /// Why it cannot be asked; none: it can, or could a moment ago.
    pub(super) fn unreachable(&self) -> Option<String> {
        self.why.clone().filter(|_| self.down_since.elapsed() >= WORTH_TELLING)
    }

    /// Whether something is still to be said.
    pub(super) fn is_busy(&self) -> bool {
        let to_say = self.refusals > 0 || !self.pending.is_empty() || !self.unclaimed.is_empty();
        self.publisher.is_some() && to_say
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
    pub(super) fn up(&mut self, publisher: Publisher) -> Option<FilterReply> {
        self.connection += 1;
        self.presences.unlinked();
        self.hears = false;
        // At QoS 0: some brokers drop what is beyond a thousand messages of QoS 1 in one go.
        let presences = Filter::new(topic::server_presence_filter("#"), Qos::AtMostOnce);
        let journal = Filter::new(format!("{JOURNAL}/{}/+/+", self.client_id), Qos::AtLeastOnce);
        let answers = Filter::new(topic::rpc_filter(&self.client_id), Qos::AtLeastOnce);
        let reply = publisher.subscribe_start(vec![presences, journal, answers]);
        self.publisher = Some(publisher);
        self.flush();
        match reply {
            Ok(reply) => Some(reply),
            Err(error) => {
                self.why = Some(error.to_string());
                None
            }
        }
    }

    pub(super) fn down(&mut self, why: String) {
        self.connection += 1;
        self.presences.unlinked();
        self.publisher = None;
        // An acknowledgement is of its connection; on the next, the broker delivers the message again.
        self.pending.retain(|outgoing| matches!(outgoing, Outgoing::Publication(_)));
        if self.why.replace(why).is_none() {
            self.down_since = Instant::now();
        }
    }

    /// The broker's answer to the first subscription.
    pub(super) fn watching(&mut self, connection: u64, answer: Result<Vec<ReasonCode>, PublishError>) {
        if connection != self.connection {
            return;
        }
        let Ok(codes) = answer else { return }; // the connection is over, and says so itself
        match codes.first() {
            Some(code) if code.is_error() => {
                self.why =
                    Some(format!("it does not let {} read $mcp-server/presence/+/#: {code}", self.client_id));
            }
            _ => {
                self.why = None;
                self.presences.subscribed(Instant::now());
            }
        }
        if codes.get(1).is_some_and(|code| code.is_error()) {
            tracing::warn!(
                broker = %self.url,
                "the broker does not let us read {JOURNAL}/{}/#: what is held for services that wake does not outlive \
                 this operator",
                self.client_id
            );
        }
        if codes.get(2).is_some_and(|code| code.is_error()) {
            tracing::warn!(
                broker = %self.url,
                "the broker does not let us read $mcp-rpc/{}/#: what stood on a lost node stays in the registry until \
                 its keep-alive is over",
                self.client_id
            );
        } else if let Some(echo) = self.echo() {
            self.say(echo);
        }
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

    /// The broker refused something.
    pub(super) fn refused(&self, note: u64, reason: ReasonCode) {
        let (filter, consequence) = Right::in_words(note);
        tracing::warn!(
            broker = %self.url,
            "the broker does not let {} write {filter} ({reason}): {consequence}; allow it in the broker's ACL",
            self.client_id
        );
    }

    /// Says it as soon as the broker takes it.
    pub(super) fn say(&mut self, publication: Publication) {
        self.queue(Outgoing::Publication(publication));
    }

    /// A message is taken care of: what there is to say of it was said.
    pub(super) fn acknowledge(&mut self, ack: Ack) {
        self.queue(Outgoing::Ack(ack));
    }

    fn queue(&mut self, outgoing: Outgoing) {
        self.pending.push_back(outgoing);
        if self.pending.len() > PENDING {
            let first = self.pending.iter().position(|it| matches!(it, Outgoing::Publication(_)));
            first.and_then(|index| self.pending.remove(index));
            tracing::warn!(broker = %self.url, "the broker takes nothing: dropped what waited longest");
        }
        self.flush();
    }

    pub(super) fn flush(&mut self) {
        let Some(publisher) = &self.publisher else { return };
        while let Some(outgoing) = self.pending.pop_front() {
            let publication = match outgoing {
                Outgoing::Publication(publication) => publication,
                Outgoing::Ack(ack) => {
                    ack.send();
                    continue;
                }
            };
            match publisher.try_publish_noted(publication.clone(), Right::of(&publication.topic) as u64) {
                Ok(()) => {}
                Err(PublishError::Full | PublishError::Closed) => {
                    return self.pending.push_front(Outgoing::Publication(publication));
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

    /// Writes down what is held, and since when, or (none) that it is no more.
    pub(super) fn write_down(&mut self, standby: &str, client: &ClientId, line: Option<Line<'_>>) {
        let mut user_properties = Vec::new();
        if let Some(Line { since, server_name, .. }) = &line {
            let since = SystemTime::now().checked_sub(since.elapsed()).unwrap_or(UNIX_EPOCH);
            let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            user_properties.push((SINCE.to_owned(), since.to_string()));
            let name =
                server_name.map(|name| (user_property::SERVER_NAME.to_owned(), name.as_str().to_owned()));
            user_properties.extend(name);
        }
        self.say(Publication {
            topic: format!("{JOURNAL}/{}/{standby}/{client}", self.client_id),
            payload: line.map(|line| line.payload.clone()).unwrap_or_default(),
            qos: Qos::AtLeastOnce,
            retain: true,
            user_properties,
        });
    }

    /// What an operator before us wrote down, if this is it.
    pub(super) fn journalled(&self, received: &Received) -> Journalled {
        let below = |topic: &str, level: &str| {
            topic.strip_prefix(level).and_then(|rest| rest.strip_prefix('/')).map(str::to_owned)
        };
        let line = below(&received.topic, JOURNAL).and_then(|rest| below(&rest, &self.client_id));
        let Some(line) = line else { return Journalled::Other };
        let Some((standby, client)) = line.split_once('/') else { return Journalled::Nothing };
        let Ok(client) = ClientId::new(client) else { return Journalled::Nothing };
        if !received.retain || received.payload.is_empty() {
            return Journalled::Nothing;
        }
        let since = user_property::find(&received.user_properties, SINCE);
        let since = since.and_then(|since| since.parse().ok()).map(Duration::from_millis);
        let age = since.and_then(|since| SystemTime::now().duration_since(UNIX_EPOCH + since).ok());
        let since = Instant::now().checked_sub(age.unwrap_or_default()).unwrap_or_else(Instant::now);
        let server_name = user_property::find(&received.user_properties, user_property::SERVER_NAME);
        let server_name = server_name.and_then(|name| ServerName::new(name).ok());
        let message = Unclaimed { client, payload: received.payload.clone(), since, server_name };
        Journalled::Message(standby.to_owned(), message)
    }

    /// At most one of each client, as in the journal. `room`: whether there is any, over all services.
    pub(super) fn keep_unclaimed(&mut self, standby: &str, message: Unclaimed, room: bool, now: Instant) {
        let waiting = self.unclaimed.entry(standby.to_owned()).or_default();
        waiting.retain(|(_, other)| other.client != message.client);
        if message.payload.len() > MAX_BYTES || !room {
            return self.refuse_unclaimed(standby, &message);
        }
        let Unclaimed { client, payload, since, server_name } = &message;
        let line = Line { payload, since: *since, server_name: server_name.as_ref() };
        self.write_down(standby, client, Some(line));
        self.unclaimed.entry(standby.to_owned()).or_default().push((now, message));
    }

    /// How many wait for a service that is not known yet, and their bytes.
    pub(super) fn unclaimed(&self) -> (usize, usize) {
        let all = || self.unclaimed.values().flatten();
        (all().count(), all().map(|(_, message)| message.payload.len()).sum())
    }

    pub(super) fn claim(&mut self, standby: &str) -> Vec<Unclaimed> {
        let waiting = self.unclaimed.remove(standby).unwrap_or_default();
        waiting.into_iter().map(|(_, message)| message).collect()
    }

    /// Nobody knows of that service.
    pub(super) fn forget_unclaimed(&mut self, now: Instant) {
        let mut forgotten = Vec::new();
        self.unclaimed.retain(|standby, messages| {
            let late = messages.extract_if(.., |(waits, _)| now.duration_since(*waits) >= UNCLAIMED);
            forgotten.extend(late.map(|(_, message)| (standby.clone(), message)));
            !messages.is_empty()
        });
        for (standby, message) in forgotten {
            self.refuse_unclaimed(&standby, &message);
        }
    }

    /// Answers a message that nobody is to take, as far as its request can be read and its answer sent.
    fn refuse_unclaimed(&mut self, standby: &str, message: &Unclaimed) {
        let Unclaimed { client, payload, server_name, .. } = message;
        tracing::warn!(standby, %client, "refused: for a service that is not known, or too large or one too many");
        let request = Message::parse(payload.clone(), usize::MAX).ok();
        let id = request.as_ref().and_then(|request| match request.kind() {
            Kind::Request { id, .. } => Some(id),
            _ => None,
        });
        if let (Some(id), Some(name), Ok(standby)) = (id, server_name, ServerId::new(standby)) {
            self.say_refusal((&standby, name), client, id, &WakeError::Unknown);
        }
        self.write_down(standby, client, None);
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
