//! The copy of the default broker's credentials beside a service that uses them: pods cannot mount a Secret of
//! another namespace.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};

use super::metadata;
use crate::{
    controller::validate::{ValidService, broker::Source},
    names,
};

/// Only the keys that become files of the gateway.
pub(super) fn build_broker_secret(service: &ValidService, data: &BTreeMap<String, ByteString>) -> Secret {
    let keys = service.broker.files.iter().filter_map(|file| match &file.source {
        Source::Secret { key, field: None, .. } => data.get_key_value(key),
        _ => None,
    });
    Secret {
        metadata: metadata(service, names::broker_secret(&service.identity.name)),
        data: Some(keys.map(|(key, value)| (key.clone(), value.clone())).collect()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}
