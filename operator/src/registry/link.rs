//! The operator's connection to one broker: opened, and opened anew with backoff, until nobody uses it any more.
//!
//! The broker keeps its subscriptions for a while after a connection, and what they catch: an `initialize` for a
//! service that sleeps waits there for the next operator. What it delivers is acknowledged only behind what was written
//! down of it, so that an operator's end loses none. It has no will: what stands there is to stay.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{Api, Client, runtime::reflector::Store};
use mcp_mqtt_transport::{
    mqtt::{ConnectOptions, Connection, Event, Publisher, ReasonCode, Received, TlsFiles},
    user_property::{self, Component},
};
use tokio::{sync::mpsc, time::sleep};

use super::{
    memory_file::MemoryFile,
    wanted::{Broker, Origin},
};
use crate::controller::validate::{broker::file, references::Kind};

/// From TCP connect to CONNACK.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon a dead connection is noticed, at 1.5 times this.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long the broker keeps what comes for an operator that is not there.
const SESSION_EXPIRY: Duration = Duration::from_hours(1);
/// First and longest wait between attempts: what happened while a broker was away is made good within 5 s of its return.
const FIRST_WAIT: Duration = Duration::from_millis(200);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// What waits to be taken by the keeper; beyond it the connection stops reading, and the broker keeps the rest.
pub(super) const HAPPENINGS: usize = 1024;

/// What happens on a connection.
#[derive(Debug)]
pub(super) enum Happening {
    /// It stands.
    Up(Publisher),
    /// A message.
    Received(Received),
    /// Something of ours was refused; its note, and why.
    Refused(u64, ReasonCode),
    /// It does not stand; why.
    Down(String),
}

/// How to get in: as whom, with what.
pub(super) struct Access {
    pub client: Client,
    pub client_id: String,
    pub broker: Broker,
    pub default_secret: Option<Store<Secret>>,
}

/// Runs until it is dropped, or the connection ends while it is `leaving`; each happening comes with the broker's key.
pub(super) async fn run(
    access: Access,
    happenings: mpsc::Sender<(String, Happening)>,
    leaving: Arc<AtomicBool>,
) {
    let key = access.broker.key.clone();
    let mut wait = FIRST_WAIT;
    loop {
        let why = match access.connect().await {
            Ok((mut connection, _files)) => {
                wait = FIRST_WAIT;
                if happenings.send((key.clone(), Happening::Up(connection.publisher.clone()))).await.is_err()
                {
                    return;
                }
                loop {
                    let received = match connection.events.recv().await {
                        Some(Event::Received(received)) => received,
                        Some(Event::Refused(refused)) => {
                            let refused = Happening::Refused(refused.note, refused.reason);
                            if happenings.send((key.clone(), refused)).await.is_err() {
                                return;
                            }
                            continue;
                        }
                        Some(Event::Closed(why)) => break why.to_string(),
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
        tracing::warn!(broker = %access.broker.url, "no connection: {why}");
        if happenings.send((key.clone(), Happening::Down(why))).await.is_err() {
            return;
        }
        sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

impl Access {
    async fn connect(&self) -> Result<(Connection, Vec<MemoryFile>), String> {
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
            ..ConnectOptions::new(self.broker.url.clone(), &self.client_id)
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
        for (name, origin) in &self.broker.files {
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

    /// Read anew at each connect. Errors name the object, never its content.
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
            Origin::Object { kind, namespace, name, key } => {
                let object = format!("{kind} {namespace}/{name}");
                let failed = |error| format!("{object} cannot be read: {error}");
                let value: Option<ByteString> = match kind {
                    Kind::Secret => {
                        let api = Api::<Secret>::namespaced(self.client.clone(), namespace);
                        let secret = api.get(name).await.map_err(failed)?;
                        secret.data.and_then(|mut data| data.remove(key))
                    }
                    Kind::ConfigMap => {
                        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
                        let map = api.get(name).await.map_err(failed)?;
                        let text = map.data.and_then(|mut data| data.remove(key));
                        text.map(|text| ByteString(text.into_bytes()))
                            .or_else(|| map.binary_data.and_then(|mut data| data.remove(key)))
                    }
                };
                value.map(|value| value.0).ok_or_else(|| lacks(&object, key))
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
