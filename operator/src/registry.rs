//! The broker's side of the services: the place of one that sleeps, and a registry that is true.
//!
//! - [`wanted`], [`feed`]: what the reconciles say, and are told
//! - [`scale_to_zero`], [`pending`]: one service that may sleep, and who waits for it, without IO
//! - [`presences`]: what stands in one broker's registry, without IO
//! - [`controller`]: the one task that knows all services and all brokers
//! - [`instances`]: what the pods and their gateways say of it
//! - `link`, `memory_file`: the connection to one broker, and its certificates
//!
//! Only the leader has it. An unreachable broker concerns the services that use it and no others: nothing here waits
//! for a broker.

pub mod controller;
pub mod feed;
pub mod instances;
mod link;
mod memory_file;
pub mod pending;
pub mod presences;
pub mod scale_to_zero;
pub mod wanted;

pub use self::feed::{Asked, RegistryFeed};
