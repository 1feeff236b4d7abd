//! Names, labels and annotations of what the operator makes.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// Field manager of every server-side apply.
pub const FIELD_MANAGER: &str = "mcp-mqtt-operator";

/// On everything that belongs to an `McpService`, and the pods' selector: the service's name, shortened.
pub const SERVICE_LABEL: &str = "mcp-mqtt.io/service";
/// On pods: the service's name in full (label values end at 63 characters).
pub const SERVICE_ANNOTATION: &str = "mcp-mqtt.io/service-name";
/// On an `McpService`, with the value `true`: its objects are left as they are until it is taken away.
pub const PAUSED: &str = "mcp-mqtt.io/paused";
/// On pods: which revision of the template they were made from, by Kubernetes' own name.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// On pods: what the end of one costs, by Kubernetes' own name.
pub const POD_DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// On each object that the operator applies: a hash of what it applied.
pub const APPLIED_HASH: &str = "mcp-mqtt.io/applied-hash";
/// On pod templates: a salted hash of the Secrets and `ConfigMaps` that the pods read.
pub const REFERENCES_HASH: &str = "mcp-mqtt.io/references-hash";
/// On pods: the MQTT user name that goes with a `ServiceAccount` token; a volume brings it to the gateway as a file.
pub const BROKER_USERNAME: &str = "mcp-mqtt.io/broker-username";
/// What `podTemplate` must not set.
pub const RESERVED_PREFIX: &str = "mcp-mqtt.io/";

/// End of a service's own server id.
const STANDBY_SUFFIX: &str = "_service";

/// Longest label value, and longest name of what becomes part of one.
const MAX_LABEL: usize = 63;
/// Hexadecimal digits of the hash at the end of a shortened name: 2^32 names in a namespace are not met by chance.
const HASH_DIGITS: usize = 8;

/// `name`, or where it is longer than `max` its beginning and a hash of it: the same for the same name, and
/// a valid DNS label or label value where `name` is a valid object name.
pub fn shorten(name: &str, max: usize) -> String {
    if name.len() <= max {
        return name.to_owned();
    }
    let hash = hex(&Sha256::digest(name.as_bytes()), HASH_DIGITS);
    let head: String = name.chars().take(max - HASH_DIGITS - 1).collect();
    format!("{}-{hash}", head.trim_end_matches(|last: char| !last.is_ascii_alphanumeric()))
}

/// The first `digits` hexadecimal digits.
pub fn hex(bytes: &[u8], digits: usize) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .take(digits)
        .map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0'))
        .collect()
}

/// Name of the Deployment, the `ServiceAccount` and the `PodDisruptionBudget`, and value of [`SERVICE_LABEL`].
pub fn child(service: &str) -> String {
    shorten(service, MAX_LABEL)
}

/// Name of the copy of the default broker's credentials.
pub fn broker_secret(service: &str) -> String {
    const SUFFIX: &str = "-broker";
    format!("{}{SUFFIX}", shorten(service, MAX_LABEL - SUFFIX.len()))
}

/// Server id of the service as a whole, under which it stands in the registry while it sleeps. No Kubernetes name has
/// an underscore, so it is no pod's server id, and none of a pod's workers'.
pub fn standby_id(cluster: &str, namespace: &str, service: &str) -> String {
    format!("{cluster}.{namespace}.{service}{STANDBY_SUFFIX}")
}

/// Server id of an instance of its own.
pub fn pod_id(cluster: &str, namespace: &str, pod: &str) -> String {
    format!("{cluster}.{namespace}.{pod}")
}

/// MQTT client id of the operator: the same for all that take turns under one Lease, so that the broker keeps for the
/// next what came for the last.
pub fn operator_id(cluster: &str, namespace: &str, lease: &str) -> String {
    format!("{cluster}.{namespace}.{lease}_operator")
}

/// The namespace and the service of a [`standby_id`], or the namespace and the pod of a pod's server id
/// (`{cluster}.{namespace}.{pod}`); none: it was not made by an operator of this cluster.
pub fn of_server_id<'a>(cluster: &str, id: &'a str) -> Option<Minted<'a>> {
    let (namespace, name) = id.strip_prefix(cluster)?.strip_prefix('.')?.split_once('.')?;
    match name.strip_suffix(STANDBY_SUFFIX) {
        Some(service) => Some(Minted::Service { namespace, service }),
        None => (!name.contains('_')).then_some(Minted::Pod { namespace, pod: name }),
    }
}

/// Whose server id it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Minted<'a> {
    /// A pod's.
    Pod {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        pod: &'a str,
    },
    /// A service's as a whole.
    Service {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        service: &'a str,
    },
}

/// Which pods belong to the service: never changed once a Deployment has it.
pub fn selector(service: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(SERVICE_LABEL.to_owned(), child(service))])
}

/// Labels of everything that belongs to the service.
pub fn labels(service: &str) -> BTreeMap<String, String> {
    let mut labels = selector(service);
    for (key, value) in [
        ("app.kubernetes.io/name", "mcp-service"),
        ("app.kubernetes.io/instance", child(service).as_str()),
        ("app.kubernetes.io/part-of", "mcp-mqtt"),
        ("app.kubernetes.io/managed-by", FIELD_MANAGER),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_stays_as_it_is() {
        assert_eq!(child("everything"), "everything");
        assert_eq!(broker_secret("everything"), "everything-broker");
    }

    #[test]
    fn a_long_name_is_cut_and_told_apart_by_its_hash() {
        let (one, other) = (child(&"a".repeat(64)), child(&"a".repeat(65)));
        assert_eq!((one.len(), other.len()), (63, 63));
        assert_ne!(one, other);
        assert_eq!(broker_secret(&"a".repeat(253)).len(), 63);
    }

    #[test]
    fn a_cut_leaves_no_dot_before_the_hash() {
        let name = format!("{}.{}", "a".repeat(53), "b".repeat(60));
        assert_eq!(child(&name).len(), 62);
        assert!(child(&name).starts_with(&format!("{}-", "a".repeat(53))));
    }

    #[test]
    fn whose_server_id_it_is_can_be_told_and_a_services_is_no_pods() {
        let id = standby_id("north", "meteo", "wea.ther-7d9f-abcde");
        let service = Minted::Service { namespace: "meteo", service: "wea.ther-7d9f-abcde" };
        assert_eq!(of_server_id("north", &id), Some(service));
        let pod = Minted::Pod { namespace: "meteo", pod: "wea.ther-7d9f-abcde" };
        assert_eq!(of_server_id("north", "north.meteo.wea.ther-7d9f-abcde"), Some(pod));
        for foreign in
            ["northern.meteo.a", "north", "north.meteo", "south.meteo.a", "north.meteo.a_w1", "desk-1"]
        {
            assert_eq!(of_server_id("north", foreign), None, "{foreign}");
        }
    }

    #[test]
    fn hex_is_hexadecimal() {
        assert_eq!(hex(&[0x0f, 0xa0], 4), "0fa0");
    }
}
