//! MCP over MQTT 5: what both sides of the wire share.
//!
//! - [`topic`]: server names and ids, client ids, the six topics
//! - [`user_property`]: the MQTT user properties that the protocol names
//! - [`presence`]: the retained message by which a server is found
//! - [`jsonrpc`]: JSON-RPC envelopes whose payload passes through unparsed
//! - [`mqtt`]: one MQTT connection; the only module that touches the MQTT client library
//! - [`redact`]: what may be told of a text that can hold a secret
//! - [`backoff`]: longer waits after each failure
//! - [`client`]: an MCP client over MQTT: discover, initialize, call

pub mod backoff;
pub mod client;
pub mod jsonrpc;
pub mod mqtt;
pub mod presence;
pub mod redact;
pub mod topic;
pub mod user_property;
