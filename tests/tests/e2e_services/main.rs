//! Services in the cluster, each in a namespace of its own, side by side: what is waited for in one test is worked on
//! in another.

mod calls;
mod conditions;
mod faults;
mod probes;
mod registry;
mod rest;
mod scaling;
mod security;
mod sleeping;

/// The operator that all tests share. Who measures what it does holds it for reading; who kills it, for writing.
static OPERATOR: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());
