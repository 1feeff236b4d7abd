//! The schema itself; the rules at the real API server are in `tests/`.

use serde_json::{Value, json};

use super::*;

fn schema() -> Value {
    let crd = serde_json::to_value(crd()).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

fn at(pointer: &str) -> Value {
    let path = pointer.split('.').fold(String::from("/properties/spec"), |path, name| {
        if name == "[]" { path + "/items" } else { path + "/properties/" + name }
    });
    schema().pointer(&path).unwrap_or_else(|| panic!("no schema at {pointer}")).clone()
}

/// Each node of the schema that a user can write or read.
fn each_field(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        visit(&path, property);
        each_field(&path, property, visit);
        each_field(&format!("{path}[]"), &property["items"], visit);
    }
}

#[test]
fn every_field_is_documented() {
    let mut bare = Vec::new();
    each_field("", &schema(), &mut |path, field| {
        if !matches!(path, ".metadata" | ".apiVersion" | ".kind")
            && field["description"].as_str().is_none_or(str::is_empty)
        {
            bare.push(path.to_owned());
        }
    });
    assert_eq!(bare, Vec::<String>::new());
}

#[test]
fn the_defaults_stand_in_the_schema() {
    assert_eq!(at("replicas")["default"], json!(1));
    assert_eq!(at("drain.timeoutSeconds")["default"], json!(60));
    assert_eq!(at("drain")["default"], json!({"timeoutSeconds": 60}));
    assert_eq!(at("gateway.maxSessions")["default"], json!(100));
    assert_eq!(at("gateway.timeouts.call")["default"], json!("60s"));
    assert_eq!(at("gateway.log.format")["default"], json!("json"));
    assert_eq!(at("transport.streamableHttp.path")["default"], json!("/mcp"));
    assert_eq!(at("transport.sse.path")["default"], json!("/sse"));
    assert_eq!(at("transport.stdio.prewarm")["default"], json!(0));
    assert_eq!(at("broker.tls.ca.configMapKeyRef.key")["default"], json!("ca.crt"));
}

#[test]
fn quantities_may_be_numbers() {
    let limits = at("server.resources.limits")["additionalProperties"].clone();
    assert_eq!(limits["x-kubernetes-preserve-unknown-fields"], json!(true));
    assert_eq!(limits.get("type"), None);
    let spec: ServerSpec = serde_json::from_value(
        json!({"image": "i", "resources": {"limits": {"cpu": 0.5, "memory": "1Gi", "x/y": 2}}}),
    )
    .unwrap();
    let limits = spec.resources.unwrap().limits.unwrap();
    assert_eq!(limits["cpu"].0, "0.5");
    assert_eq!(limits["x/y"].0, "2");
}

#[test]
fn the_rule_on_mounts_names_every_volume_of_the_operator() {
    let rule = at("server.volumeMounts")["x-kubernetes-validations"][0].clone();
    for volume in crate::controller::build::RESERVED_VOLUMES {
        assert!(rule["rule"].to_string().contains(&format!("'{volume}'")), "{rule}");
        assert!(rule["message"].to_string().contains(volume), "{rule}");
    }
}

#[test]
fn null_means_absent() {
    assert!(!schema().to_string().contains("nullable"));
}

#[test]
fn a_number_in_a_probe_port_stays_a_number() {
    let port = at("server.livenessProbe.httpGet.port");
    assert_eq!(port["x-kubernetes-int-or-string"], json!(true));
}

#[test]
fn the_scale_subresource_points_at_what_autoscalers_need() {
    let crd = serde_json::to_value(crd()).unwrap();
    assert_eq!(
        crd["spec"]["versions"][0]["subresources"]["scale"],
        json!({"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"})
    );
}

#[test]
fn the_yaml_reads_back_as_the_same_definition() {
    let back: Value = serde_yaml::from_str(&crd_yaml()).unwrap();
    assert_eq!(back, serde_json::to_value(crd()).unwrap());
}

#[test]
fn a_client_side_apply_has_room_for_it() {
    // kubectl apply keeps the whole object in an annotation, and annotations end at 256 KiB.
    let size = serde_json::to_string(&crd()).unwrap().len();
    assert!(size < 200 * 1024, "{size} bytes");
}
