//! The bridge.
pub mod action;
pub mod broadcast;
pub mod core;
pub mod flights;
pub mod refusal;
pub mod session;
pub mod sessions;
#[cfg(test)]
mod shorthand;
