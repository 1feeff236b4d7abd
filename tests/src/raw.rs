//! An MQTT client that does what it is told, and hears its RPC topic: for what no proper MCP client does.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use mcp_mqtt_transport::{
    mqtt::{ConnectOptions, Connection, Event, Filter, Publication, PublishError, Publisher, Qos, Received},
    topic,
    user_property::{self, Component},
};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::timeout};
use url::Url;

use crate::gateway::{Gateway, PATIENCE};

/// See the module.
#[derive(Debug)]
pub struct Raw {
    /// The connection.
    pub connection: Connection,
    /// Its MQTT client id.
    pub id: String,
    /// Its RPC topic with the gateway.
    pub rpc: String,
    /// The gateway's control topic.
    pub control: String,
    /// The gateway's capability topic.
    pub capability: String,
    /// Of what it publishes.
    pub qos: Qos,
}

impl Raw {
    /// Connects and subscribes its RPC topic.
    ///
    /// # Errors
    /// The broker will not have it.
    pub async fn connect(broker: &Url, id: &str, gateway: &Gateway) -> Result<Self> {
        let raw = Self::connect_deaf(broker, id, gateway).await?;
        raw.subscribe(&raw.rpc, Qos::AtLeastOnce).await?;
        Ok(raw)
    }

    /// Connects, and hears nothing yet.
    ///
    /// # Errors
    /// The broker will not have it.
    pub async fn connect_deaf(broker: &Url, id: &str, gateway: &Gateway) -> Result<Self> {
        let options = ConnectOptions {
            connect_timeout: PATIENCE,
            max_packet_size: 16 << 20,
            ..ConnectOptions::new(broker.clone(), id)
        };
        let connection = Connection::open(&options).await?;
        let instance = gateway.instance();
        Ok(Self {
            connection,
            id: id.to_owned(),
            rpc: topic::rpc(&id.parse()?, &instance.server_id, &instance.server_name),
            control: topic::control(&instance.server_id, &instance.server_name),
            capability: topic::server_capability(&instance.server_id, &instance.server_name),
            qos: Qos::AtLeastOnce,
        })
    }

    /// Subscribes with No Local, and waits for the SUBACK.
    ///
    /// # Errors
    /// It is not granted.
    pub async fn subscribe(&self, filter: &str, qos: Qos) -> Result<()> {
        let filter = Filter { filter: filter.to_owned(), qos, no_local: true };
        let granted = self.connection.publisher.subscribe(vec![filter], PATIENCE).await?;
        ensure!(granted.iter().all(|code| !code.is_error()), "{granted:?}");
        Ok(())
    }

    /// A publish of this client, with both user properties or none.
    pub fn publication(&self, topic: &str, sender: Option<&str>, payload: impl Into<Bytes>) -> Publication {
        let user_properties =
            sender.map(|sender| user_property::of_publish(Component::Client, sender)).unwrap_or_default();
        let topic = topic.to_owned();
        Publication { topic, payload: payload.into(), qos: self.qos, retain: false, user_properties }
    }

    /// Publishes, and waits until the broker has it.
    ///
    /// # Errors
    /// It has not.
    pub async fn send(&self, topic: &str, sender: Option<&str>, payload: impl Into<Bytes>) -> Result<()> {
        let publication = self.publication(topic, sender, payload);
        let publisher = &self.connection.publisher;
        if self.qos == Qos::AtMostOnce {
            return Ok(publisher.try_publish(publication)?);
        }
        Ok(publisher.publish_confirmed(publication, PATIENCE).await?)
    }

    /// Publishes all of these as fast as the broker takes them, in a task of its own: who pours has to read meanwhile
    /// what comes back.
    pub fn pour(&self, publications: Vec<Publication>) -> JoinHandle<Result<()>> {
        let publisher = self.connection.publisher.clone();
        tokio::spawn(async move {
            for publication in publications {
                let bytes = Publisher::packet_size(&publication);
                while let Err(error) = publisher.try_publish(publication.clone()) {
                    ensure!(error == PublishError::Full, "{error}");
                    timeout(PATIENCE, publisher.ready(bytes)).await.context("the broker takes no more")?;
                }
            }
            Ok(())
        })
    }

    /// On its RPC topic.
    ///
    /// # Errors
    /// As [`Raw::send`].
    pub async fn rpc(&self, payload: impl Into<Bytes>) -> Result<()> {
        self.send(&self.rpc, Some(&self.id), payload).await
    }

    /// On the control topic.
    ///
    /// # Errors
    /// As [`Raw::send`].
    pub async fn control(&self, payload: impl Into<Bytes>) -> Result<()> {
        self.send(&self.control, Some(&self.id), payload).await
    }

    /// The next message.
    ///
    /// # Errors
    /// None comes.
    pub async fn receive(&mut self) -> Result<Received> {
        match timeout(PATIENCE, self.connection.events.recv()).await.context("nothing comes")? {
            Some(Event::Received(received)) => Ok(received),
            other => bail!("not a message: {other:?}"),
        }
    }

    /// The next message, as JSON.
    ///
    /// # Errors
    /// None comes, or it is none.
    pub async fn answer(&mut self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.receive().await?.payload)?)
    }

    /// `initialize`, answered, and `initialized`.
    ///
    /// # Errors
    /// It is refused.
    pub async fn open(&mut self, id: u64) -> Result<()> {
        self.control(initialize(id)).await?;
        let answer = self.answer().await?;
        ensure!(answer["id"] == id && answer["result"]["serverInfo"]["name"] == "stub", "{answer}");
        self.rpc(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await
    }

    /// Calls `echo` and gets what it said.
    ///
    /// # Errors
    /// It gets something else.
    pub async fn echo(&mut self, id: u64) -> Result<()> {
        self.rpc(echo(&json!(id), "still here")).await?;
        let answer = self.answer().await?;
        ensure!(answer["id"] == id && answer["result"]["content"][0]["text"] == "still here", "{answer}");
        Ok(())
    }
}

/// An `initialize` request.
pub fn initialize(id: u64) -> String {
    initialize_at(id, "2025-06-18")
}

/// An `initialize` request of another revision.
pub fn initialize_at(id: u64, revision: &str) -> String {
    let client = json!({"name": "raw", "version": "0"});
    let params = json!({"protocolVersion": revision, "capabilities": {}, "clientInfo": client});
    json!({"jsonrpc": "2.0", "id": id, "method": "initialize", "params": params}).to_string()
}

/// A call of a tool.
pub fn call(id: &Value, tool: &str, arguments: &Value) -> String {
    let params = json!({"name": tool, "arguments": arguments});
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}).to_string()
}

/// A call of `echo`.
pub fn echo(id: &Value, message: &str) -> String {
    call(id, "echo", &json!({"message": message}))
}
