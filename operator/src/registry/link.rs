//! The operator's connection to one broker: opened, and opened anew with backoff, until nobody uses it any more.
//!
//! The broker keeps its subscriptions for a while after a connection, and what they catch: an `initialize` for a
//! service that sleeps waits there for the next operator. What it delivers is acknowledged only behind what was written
//! down of it, so that an operator's end loses none. It has no will: what stands there is to stay.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{Api, Client, runtime::reflector::Store};
use mcp_mqtt_transport::{
    backoff::Backoff,
    mqtt::{
        CloseReason, ConnectOptions, Connection, Event, Publisher, ReasonCode, Received, Reconnect, TlsFiles,
    },
    redact,
    user_property::{self, Component},
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use super::{
    memory_file::MemoryFile,
    wanted::{Broker, Origin},
};
use crate::{
    controller::{
        resolve::config_map_data,
        validate::{broker::file, references::Kind},
    },
    salt::Salt,
};

/// From TCP connect to CONNACK.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon a dead connection is noticed, at 1.5 times this.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long the broker keeps what comes for an operator that is not there.
const SESSION_EXPIRY: Duration = Duration::from_hours(1);
/// First and longest wait between attempts: what happened while a broker was away is made good within 5 s of its return.
const FIRST_WAIT: Duration = Duration::from_millis(200);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// First and longest time for which the log says nothing of a cause that it has told.
const FIRST_SILENCE: Duration = Duration::from_mins(1);
const LONGEST_SILENCE: Duration = Duration::from_hours(1);
/// What waits to be taken by the controller; beyond it the connection stops reading, and the broker keeps the rest.
pub(super) const HAPPENINGS: usize = 1024;

/// What happens on a connection.
#[derive(Debug)]
pub(super) enum Happening {
    /// It stands, and whether the broker has kept what an earlier one had subscribed.
    Up(Publisher, bool),
    /// A message.
    Received(Received),
    /// What was published there was refused; why.
    Refused(String, ReasonCode),
    /// It does not stand; why.
    Down(String),
}

/// How to get in: as whom, with what.
pub(super) struct Access {
    pub client: Client,
    pub client_id: String,
    /// As one of the services that use it refers to it now.
    pub broker: watch::Receiver<Broker>,
    pub default_secret: Option<Store<Secret>>,
    pub salt: Salt,
}

/// Runs until it is dropped, or the connection ends while it is `leaving`; each happening comes with the broker's key.
pub(super) async fn run(
    access: Access,
    happenings: mpsc::Sender<(String, Happening)>,
    leaving: Arc<AtomicBool>,
) {
    let Broker { key, url, .. } = access.broker.borrow().clone();
    let url = redact::url(url.as_str());
    let mut reconnect = Reconnect::new(FIRST_WAIT, LONGEST_WAIT);
    let mut complaints = Complaints::new();
    loop {
        let why = match access.connect().await {
            Ok((mut connection, _files)) => {
                let since = Instant::now();
                let up = Happening::Up(connection.publisher.clone(), connection.accepted.session_present);
                if happenings.send((key.clone(), up)).await.is_err() {
                    return;
                }
                loop {
                    let received = match connection.events.recv().await {
                        Some(Event::Received(received)) => received,
                        Some(Event::Unusable(_)) => continue,
                        Some(Event::Refused(refused)) => {
                            let refused = Happening::Refused(refused.topic, refused.reason);
                            if happenings.send((key.clone(), refused)).await.is_err() {
                                return;
                            }
                            continue;
                        }
                        Some(Event::Closed(why)) => {
                            let taken_over = reconnect.lost(&why, since);
                            break if taken_over { access.taken_over(&why) } else { why.to_string() };
                        }
                        None => break "the connection ended".to_owned(),
                    };
                    if happenings.send((key.clone(), Happening::Received(received))).await.is_err() {
                        return;
                    }
                }
            }
            Err(why) => why,
        };
        if leaving.load(SeqCst) {
            return;
        }
        if complaints.is_due(&why, Instant::now()) {
            tracing::warn!(broker = %url, "no connection: {why}");
        } else {
            tracing::debug!(broker = %url, "no connection: {why}");
        }
        if happenings.send((key.clone(), Happening::Down(why))).await.is_err() {
            return;
        }
        sleep(reconnect.wait()).await;
    }
}

/// Attempts are many, and a broker may be away for ever: a new cause is told at once, the same one more and more seldom.
struct Complaints {
    why: String,
    next: Instant,
    pause: Backoff,
}

impl Complaints {
    fn new() -> Self {
        let pause = Backoff::new(FIRST_SILENCE, LONGEST_SILENCE);
        Self { why: String::new(), next: Instant::now(), pause }
    }

    fn is_due(&mut self, why: &str, now: Instant) -> bool {
        // Of what was long not so, it is told as of something new.
        if self.why != why || now >= self.next + LONGEST_SILENCE {
            why.clone_into(&mut self.why);
            self.pause.reset();
        } else if now < self.next {
            return false;
        }
        self.next = now + self.pause.wait();
        true
    }
}

impl Access {
    fn taken_over(&self, why: &CloseReason) -> String {
        format!(
            "{why}. The client id is {}: does another operator with the same cluster name and Lease use it, or another \
             MQTT client?",
            self.client_id
        )
    }

    async fn connect(&self) -> Result<(Connection, Vec<MemoryFile>), String> {
        let broker = self.broker.borrow().clone();
        let mut options = ConnectOptions {
            keep_alive: KEEP_ALIVE,
            connect_timeout: CONNECT_TIMEOUT,
            session_expiry: Some(SESSION_EXPIRY),
            manual_acks: true,
            user_properties: user_property::of_connect(
                Component::Server,
                concat!(
                    r#"{"implementation":{"name":"mcp-mqtt-operator","version":""#,
                    env!("CARGO_PKG_VERSION"),
                    r#""}}"#
                ),
            ),
            ..ConnectOptions::new(broker.url, &self.client_id)
        };
        let mut files = Vec::new();
        let mut in_memory = |content: &[u8]| -> Result<Option<std::path::PathBuf>, String> {
            let file = MemoryFile::new(content)
                .map_err(|error| format!("the certificates cannot be handed over: {error}"))?;
            let path = file.path();
            files.push(file);
            Ok(Some(path))
        };
        let mut tls = TlsFiles::default();
        for (name, origin) in &broker.files {
            let content = self.content(origin).await?;
            match *name {
                file::USERNAME => options.username = Some(text(&content)?),
                file::PASSWORD | file::TOKEN => options.password = Some(Bytes::from(text(&content)?)),
                file::CA => tls.ca = in_memory(&content)?,
                file::CERTIFICATE => tls.cert = in_memory(&content)?,
                file::KEY => tls.key = in_memory(&content)?,
                _ => {}
            }
        }
        options.tls = tls;
        let connection = Connection::open(&options).await.map_err(|error| error.to_string())?;
        Ok((connection, files))
    }

    /// Read anew at each connect. Errors name the object, never its content. An object that has changed is not used:
    /// its new content may be somebody else's login, and belongs to another connection.
    async fn content(&self, origin: &Origin) -> Result<Vec<u8>, String> {
        let lacks = |object: &str, key: &str| format!("{object} has no key {key}");
        match origin {
            Origin::Text(text) => Ok(text.clone().into_bytes()),
            Origin::Token => {
                Err("the broker wants a pod's own ServiceAccount token, which the operator does not \
                                  have: to sleep, a service needs a password or a client certificate"
                    .to_owned())
            }
            Origin::Default(key) => {
                let secret = self.default_secret.as_ref().and_then(|store| store.state().into_iter().next());
                let data = secret.as_ref().and_then(|secret| secret.data.as_ref());
                let value = data.and_then(|data| data.get(key)).map(|value| value.0.clone());
                value.ok_or_else(|| lacks("the Secret of the operator's default broker", key))
            }
            Origin::Object { kind, namespace, name, key, hash } => {
                let object = format!("{kind} {namespace}/{name}");
                let failed = |error| format!("{object} cannot be read: {error}");
                let mut data: BTreeMap<String, ByteString> = match kind {
                    Kind::Secret => {
                        let api = Api::<Secret>::namespaced(self.client.clone(), namespace);
                        api.get(name).await.map_err(failed)?.data.unwrap_or_default()
                    }
                    Kind::ConfigMap => {
                        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
                        config_map_data(&api.get(name).await.map_err(failed)?)
                    }
                };
                if self.salt.hash_data(&data) != *hash {
                    return Err(format!("{object} has changed, and the operator has not looked into it yet"));
                }
                data.remove(key).map(|value| value.0).ok_or_else(|| lacks(&object, key))
            }
        }
    }
}

/// A Secret made from a file often ends with a line break that is not part of it.
fn text(content: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(content)
        .map_err(|_| "the user name or password in the broker's Secret is not UTF-8".to_owned())?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_at_once_and_then_more_and_more_seldom() {
        let (mut complaints, start) = (Complaints::new(), Instant::now());
        let told = |complaints: &mut Complaints, why: &str, hours: u32| {
            let attempts = (0..hours * 1800).map(|number| start + LONGEST_WAIT * number);
            attempts.filter(|now| complaints.is_due(why, *now)).count()
        };
        let day = told(&mut complaints, "connection refused", 24);
        assert!((24..60).contains(&day), "{day} times in a day");
        let later = start + Duration::from_hours(24);
        assert!(!complaints.is_due("connection refused", later));
        assert!(complaints.is_due("not authorized", later), "another cause");
        let first = later + FIRST_SILENCE;
        assert!(complaints.is_due("not authorized", first), "a minute, and not an hour");
    }
}
