//! Whether an object still is as we applied it, told from its own `managedFields`: whoever changes a field that we
//! applied takes it out of our entry there. So drift is seen without a request, also by an operator that has just
//! started, and no matter how the API server writes the values down (`0.5` or `500m`).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::{Map, Value};

use crate::{
    live::{Meta, Owner},
    names::FIELD_MANAGER,
};

/// Stands for the owner's uid, which is all that tells the fields of one service's Deployment from those of another
/// that is made alike. No JSON has it.
const OWNER: &str = "\u{1}";

/// The fields of our own entry, as JSON: as a tree they take ten times the memory. For [`first_lost`] to read, and the
/// same for all objects that are made alike.
pub fn text(entries: Vec<ManagedFieldsEntry>, owner: Option<&Owner>) -> Option<String> {
    let fields = entries.into_iter().find(is_ours)?.fields_v1?;
    let text = match fields.0 {
        Value::String(text) => text,
        tree => tree.to_string(),
    };
    Some(match owner {
        Some(owner) => text.replace(&*owner.uid, OWNER),
        None => text,
    })
}

/// The first field of `desired` that is not ours in `live`, as a path; none: all are ours.
pub fn first_lost(live: &Meta, desired: &Value) -> Option<String> {
    let owned = live.fields.as_ref().and_then(|text| match live.owners.first() {
        Some(owner) => serde_json::from_str(&text.replace(OWNER, &owner.uid)).ok(),
        None => serde_json::from_str(text).ok(),
    });
    let (Some(Value::Object(owned)), Value::Object(desired)) = (owned, desired) else {
        return Some("all of it".to_owned());
    };
    desired.iter().find_map(|(name, value)| match (name.as_str(), value) {
        // Who an object is cannot be owned.
        ("apiVersion" | "kind", _) => None,
        ("metadata", Value::Object(metadata)) => {
            let identity = |name: &str| matches!(name, "name" | "namespace");
            let rest: Map<String, Value> = metadata
                .iter()
                .filter(|(name, _)| !identity(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            lost_field(&owned, "metadata", &Value::Object(rest))
        }
        _ => lost_field(&owned, name, value),
    })
}

fn lost_field(owned: &Map<String, Value>, name: &str, desired: &Value) -> Option<String> {
    match field(owned, name) {
        None => Some(name.to_owned()),
        Some(owned) => lost(owned, desired).map(|rest| joined(name, &rest)),
    }
}

fn joined(name: &str, rest: &str) -> String {
    if rest.is_empty() { name.to_owned() } else { format!("{name}.{rest}") }
}

fn is_ours(entry: &ManagedFieldsEntry) -> bool {
    entry.manager.as_deref() == Some(FIELD_MANAGER)
        && entry.operation.as_deref() == Some("Apply")
        && entry.subresource.as_deref().unwrap_or_default().is_empty()
}

fn field<'a>(owned: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    owned.get(&format!("f:{name}"))
}

/// What of it is not owned, as a path from here; empty: this itself.
fn lost(owned: &Value, desired: &Value) -> Option<String> {
    let Value::Object(owned) = owned else { return Some(String::new()) };
    if owned.is_empty() {
        return None; // a leaf, or a list or map that is owned as a whole
    }
    match desired {
        Value::Object(desired) => desired.iter().find_map(|(name, value)| match field(owned, name) {
            Some(owned) => lost(owned, value).map(|rest| joined(name, &rest)),
            // The API server writes nothing down for these.
            None if value.is_null() || value.as_array().is_some_and(Vec::is_empty) => None,
            None => Some(name.clone()),
        }),
        Value::Array(desired) => desired.iter().find_map(|item| lost_item(owned, item)),
        _ => None,
    }
}

/// Items of maps stand under `k:{…}` with their key fields, items of sets under `v:…`.
fn lost_item(owned: &Map<String, Value>, item: &Value) -> Option<String> {
    let called = || match item.get("name").and_then(Value::as_str) {
        Some(name) => name.to_owned(),
        None => item.as_str().unwrap_or_default().to_owned(),
    };
    let mut rest = String::new();
    for (name, fields) in owned {
        if let Some(key) = name.strip_prefix("k:") {
            let Ok(Value::Object(key)) = serde_json::from_str(key) else { continue };
            // A key field that we left out has the API server's default there (a port's protocol).
            if key.iter().all(|(field, value)| item.get(field).is_none_or(|own| own == value)) {
                match lost(fields, item) {
                    None => return None,
                    Some(field) => rest = field,
                }
            }
        } else if let Some(value) = name.strip_prefix("v:")
            && serde_json::from_str::<Value>(value).is_ok_and(|value| value == *item)
        {
            return None;
        }
    }
    Some(joined(&called(), &rest))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::json;

    use super::*;

    fn desired() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "weather", "namespace": "meteo", "labels": {"a": "b"}, "ownerReferences": [{"uid": "u", "name": "x"}]},
            "spec": {"replicas": 2, "template": {"spec": {
                "containers": [{"name": "server", "image": "i", "args": ["x"], "ports": [{"containerPort": 80}]}],
                "volumes": [{"name": "v", "emptyDir": {}}],
            }}},
        })
    }

    fn live_of(uid: &str, fields: &Value) -> Meta {
        let owner =
            json!({"apiVersion": "mcp-mqtt.io/v1alpha1", "kind": "McpService", "name": "x", "uid": uid});
        let metadata: ObjectMeta = serde_json::from_value(json!({"ownerReferences": [owner], "managedFields": [
            {"manager": "kubectl-edit", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}}},
            {"manager": FIELD_MANAGER, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": fields},
        ]}))
        .unwrap();
        metadata.into()
    }

    fn live(fields: &Value) -> Meta {
        live_of("u", fields)
    }

    fn owned() -> Value {
        json!({
            "f:metadata": {"f:labels": {"f:a": {}}, "f:ownerReferences": {r#"k:{"uid":"u"}"#: {}}},
            "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {
                "f:containers": {r#"k:{"name":"server"}"#: {
                    ".": {}, "f:name": {}, "f:image": {}, "f:args": {},
                    "f:ports": {r#"k:{"containerPort":80,"protocol":"TCP"}"#: {".": {}, "f:containerPort": {}}},
                }},
                "f:volumes": {r#"k:{"name":"v"}"#: {".": {}, "f:name": {}, "f:emptyDir": {}}},
            }}},
        })
    }

    #[test]
    fn an_object_as_we_applied_it_is_wholly_ours() {
        assert_eq!(first_lost(&live(&owned()), &desired()), None);
    }

    #[test]
    fn every_field_that_somebody_else_changed_is_missed() {
        for (pointer, told) in [
            ("/f:spec/f:replicas", "spec.replicas"),
            ("/f:metadata/f:labels/f:a", "metadata.labels"),
            (r#"/f:metadata/f:ownerReferences/k:{"uid":"u"}"#, "metadata.ownerReferences"),
            (
                r#"/f:spec/f:template/f:spec/f:containers/k:{"name":"server"}"#,
                "spec.template.spec.containers",
            ),
            (
                r#"/f:spec/f:template/f:spec/f:containers/k:{"name":"server"}/f:image"#,
                "spec.template.spec.containers.server.image",
            ),
            (
                r#"/f:spec/f:template/f:spec/f:containers/k:{"name":"server"}/f:args"#,
                "spec.template.spec.containers.server.args",
            ),
            (
                r#"/f:spec/f:template/f:spec/f:volumes/k:{"name":"v"}/f:emptyDir"#,
                "spec.template.spec.volumes.v.emptyDir",
            ),
        ] {
            let mut owned = owned();
            let (parent, child) = pointer.rsplit_once('/').unwrap();
            let removed = owned.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(child);
            assert!(removed.is_some(), "{pointer} is not in the fixture");
            // An emptied node would read as owned as a whole; the API server leaves none behind.
            if owned.pointer(parent).unwrap() == &json!({}) {
                let (above, name) = parent.rsplit_once('/').unwrap();
                owned.pointer_mut(above).unwrap().as_object_mut().unwrap().remove(name);
            }
            assert_eq!(first_lost(&live(&owned), &desired()).as_deref(), Some(told), "{pointer}");
        }
    }

    #[test]
    fn an_object_that_we_never_applied_is_not_ours() {
        assert!(first_lost(&Meta::default(), &desired()).is_some());
    }

    #[test]
    fn objects_that_are_made_alike_have_the_same_text_whoever_owns_them() {
        let of = |uid: &str| {
            let mut owned = owned();
            owned["f:metadata"]["f:ownerReferences"] = json!({format!(r#"k:{{"uid":"{uid}"}}"#): {}});
            live_of(uid, &owned)
        };
        let (one, other) = (of("11-22"), of("33-44"));
        assert_eq!(one.fields, other.fields);
        let mut desired = desired();
        desired["metadata"]["ownerReferences"][0]["uid"] = json!("11-22");
        assert_eq!(first_lost(&one, &desired), None);
        assert_eq!(first_lost(&other, &desired).as_deref(), Some("metadata.ownerReferences.x"));
    }
}
