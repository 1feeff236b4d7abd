//! Whether an object still is as we applied it, told from its own `managedFields`: whoever changes a field that we
//! applied takes it out of our entry there. So drift is seen without a request, also by an operator that has just
//! started, and no matter how the API server writes the values down (`0.5` or `500m`).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use serde_json::{Map, Value};

use crate::names::FIELD_MANAGER;

/// Keeps nothing but our own entry: the others are the larger part of many objects.
pub fn trim(metadata: &mut ObjectMeta) {
    if let Some(entries) = &mut metadata.managed_fields {
        entries.retain(is_ours);
    }
}

/// Whether every field of `desired` is still ours in `live`.
pub fn owns_all(live: &ObjectMeta, desired: &Value) -> bool {
    let fields = live
        .managed_fields
        .iter()
        .flatten()
        .find(|entry| is_ours(entry))
        .and_then(|entry| entry.fields_v1.as_ref());
    let Some(Value::Object(owned)) = fields.map(|fields| &fields.0) else { return false };
    let Value::Object(desired) = desired else { return false };
    desired.iter().all(|(name, value)| match (name.as_str(), value) {
        // Who an object is cannot be owned.
        ("apiVersion" | "kind", _) => true,
        ("metadata", Value::Object(metadata)) => {
            let identity = |name: &str| matches!(name, "name" | "namespace");
            let rest: Map<String, Value> = metadata
                .iter()
                .filter(|(name, _)| !identity(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            field(owned, "metadata").is_some_and(|owned| owns(owned, &Value::Object(rest)))
        }
        _ => field(owned, name).is_some_and(|owned| owns(owned, value)),
    })
}

fn is_ours(entry: &ManagedFieldsEntry) -> bool {
    entry.manager.as_deref() == Some(FIELD_MANAGER)
        && entry.operation.as_deref() == Some("Apply")
        && entry.subresource.as_deref().unwrap_or_default().is_empty()
}

fn field<'a>(owned: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    owned.get(&format!("f:{name}"))
}

fn owns(owned: &Value, desired: &Value) -> bool {
    let Value::Object(owned) = owned else { return false };
    if owned.is_empty() {
        return true; // a leaf, or a list or map that is owned as a whole
    }
    match desired {
        Value::Object(desired) => owns_object(owned, desired),
        Value::Array(desired) => desired.iter().all(|item| owns_item(owned, item)),
        _ => true,
    }
}

fn owns_object(owned: &Map<String, Value>, desired: &Map<String, Value>) -> bool {
    desired.iter().all(|(name, value)| match field(owned, name) {
        Some(owned) => owns(owned, value),
        // The API server writes nothing down for these.
        None => value.is_null() || value.as_array().is_some_and(Vec::is_empty),
    })
}

/// Items of maps stand under `k:{…}` with their key fields, items of sets under `v:…`.
fn owns_item(owned: &Map<String, Value>, item: &Value) -> bool {
    owned.iter().any(|(name, fields)| {
        if let Some(key) = name.strip_prefix("k:") {
            let Ok(Value::Object(key)) = serde_json::from_str(key) else { return false };
            // A key field that we left out has the API server's default there (a port's protocol).
            key.iter().all(|(field, value)| item.get(field).is_none_or(|own| own == value))
                && owns(fields, item)
        } else if let Some(value) = name.strip_prefix("v:") {
            serde_json::from_str::<Value>(value).is_ok_and(|value| value == *item)
        } else {
            false
        }
    })
}

#[cfg(test)]
mod tests {
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

    fn live(fields: &Value) -> ObjectMeta {
        serde_json::from_value(json!({"managedFields": [
            {"manager": "kubectl-edit", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}}},
            {"manager": FIELD_MANAGER, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": fields},
        ]}))
        .unwrap()
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
        assert!(owns_all(&live(&owned()), &desired()));
    }

    #[test]
    fn every_field_that_somebody_else_changed_is_missed() {
        for pointer in [
            "/f:spec/f:replicas",
            "/f:metadata/f:labels/f:a",
            r#"/f:metadata/f:ownerReferences/k:{"uid":"u"}"#,
            r#"/f:spec/f:template/f:spec/f:containers/k:{"name":"server"}"#,
            r#"/f:spec/f:template/f:spec/f:containers/k:{"name":"server"}/f:image"#,
            r#"/f:spec/f:template/f:spec/f:containers/k:{"name":"server"}/f:args"#,
            r#"/f:spec/f:template/f:spec/f:volumes/k:{"name":"v"}/f:emptyDir"#,
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
            assert!(!owns_all(&live(&owned), &desired()), "{pointer}");
        }
    }

    #[test]
    fn an_object_that_we_never_applied_is_not_ours() {
        assert!(!owns_all(&ObjectMeta::default(), &desired()));
    }

    #[test]
    fn only_our_own_entry_is_kept() {
        let mut live = live(&owned());
        trim(&mut live);
        assert_eq!(live.managed_fields.as_ref().unwrap().len(), 1);
        assert!(owns_all(&live, &desired()));
    }
}
