//! The controller.
pub mod build;
pub mod fetch;
pub mod validate;

#[cfg(test)]
pub(crate) mod fixtures;
