//! The chart on a real cluster: what the API server says of its objects, and releases from install to uninstall.
//!
//! The suite owns the cluster while it runs: a release of the chart that it finds there is uninstalled first.

mod adapter;
mod cycle;
mod dry_run;
mod interrupted;
mod namespaced;
mod previous;
mod site;

/// Releases share the CRD and the cluster's roles: one test at a time.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
