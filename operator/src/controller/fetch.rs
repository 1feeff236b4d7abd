//! Fetch (IO).
use std::collections::BTreeMap;

use k8s_openapi::ByteString;

/// What validation needs of the cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fetched {
    /// Content of the default broker's Secret.
    pub default_broker_secret: Option<BTreeMap<String, ByteString>>,
}
