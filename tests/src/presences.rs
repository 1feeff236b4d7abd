//! The retained presences on a broker, message by message: what a watch of the registry makes one of, if it follows fast
//! enough. And a hand that writes there what it likes.

use std::collections::HashSet;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use mcp_mqtt_transport::{
    mqtt::{ConnectOptions, Connection, Event, Filter, Publication, Qos, Received},
    topic::{self, ServerName},
    user_property::UserProperties,
};
use tokio::{task::JoinHandle, time::timeout};
use url::Url;

use crate::cluster::PATIENCE;

/// A connection that registers nothing, hears of the presences of a server name, and may write anywhere.
#[derive(Debug)]
pub struct Presences {
    connection: Connection,
}

impl Presences {
    /// Connects and subscribes: the presences that stand there come first.
    ///
    /// # Errors
    /// The broker will not have it.
    pub async fn of(broker: &Url, name: &ServerName) -> Result<Self> {
        let id = format!("presences-{:08x}", fastrand::u32(..));
        let connection = Connection::open(&ConnectOptions::new(broker.clone(), &id)).await?;
        let filter = Filter::new(topic::server_presence_filter(name.as_str()), Qos::AtLeastOnce);
        connection.publisher.subscribe(vec![filter], PATIENCE).await?;
        Ok(Self { connection })
    }

    /// The next message, whosesoever presence it is. Without a payload: it is cleared.
    ///
    /// # Errors
    /// None comes.
    pub async fn next(&mut self) -> Result<Received> {
        match timeout(PATIENCE, self.connection.events.recv()).await.context("no presence comes")? {
            Some(Event::Received(received)) => Ok(received),
            other => bail!("no presence but {other:?}"),
        }
    }

    /// Waits for a presence on this topic, or that it is cleared.
    ///
    /// # Errors
    /// Nothing of the kind comes.
    pub async fn next_at(&mut self, topic: &str, cleared: bool) -> Result<Received> {
        loop {
            let received = self.next().await?;
            if received.topic == topic && received.payload.is_empty() == cleared {
                return Ok(received);
            }
        }
    }

    /// Writes a presence, or clears one, and waits until the broker has it.
    ///
    /// # Errors
    /// It has not.
    pub async fn write(&self, topic: &str, payload: impl Into<Bytes>, mark: &UserProperties) -> Result<()> {
        let publication = Publication {
            retain: true,
            user_properties: mark.clone(),
            ..Publication::new(topic, payload, Qos::AtLeastOnce)
        };
        Ok(self.connection.publisher.publish_confirmed(publication, PATIENCE).await?)
    }

    /// Ends when there is none any more, be it for a moment, or when nothing more is heard of them. There is one now.
    ///
    /// # Errors
    /// There is none.
    pub async fn gap(mut self) -> Result<JoinHandle<()>> {
        let first = self.next().await?;
        let mut there = HashSet::from([first.topic]);
        Ok(tokio::spawn(async move {
            while !there.is_empty() {
                let Some(Event::Received(Received { topic, payload, .. })) =
                    self.connection.events.recv().await
                else {
                    return;
                };
                if payload.is_empty() {
                    there.remove(&topic);
                } else {
                    there.insert(topic);
                }
            }
        }))
    }
}
