//! What the derived schema gets wrong, or cannot say.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use schemars::{Schema, SchemaGenerator, json_schema};

/// An object that the API server takes as it is; the operator parses it strictly.
pub(super) fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// `"all"` or a list of names. A structural schema has no type for it: the operator judges it.
pub(super) fn all_or_list(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-preserve-unknown-fields": true})
}

/// `nullable`: without it the API server takes a `null` as a field that is not there, which is what people mean
/// by it and what the rules count on.
///
/// Quantities: `cpu: 0.5` is a number in YAML, and Kubernetes takes it in its own kinds; the schema of
/// `Quantity` (integer or string) would refuse it. Kubernetes has the last word when the Deployment is applied.
pub(super) fn mend(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            mend_node(schema);
        }
    }
    crd
}

fn mend_node(schema: &mut JSONSchemaProps) {
    let quantity = schema.x_kubernetes_int_or_string == Some(true)
        && schema.description.as_deref().is_some_and(|text| text.starts_with("Quantity is"));
    if quantity {
        *schema = JSONSchemaProps {
            description: Some("A quantity, such as 500m, 0.5, 2, 64Mi.".to_owned()),
            x_kubernetes_preserve_unknown_fields: Some(true),
            ..JSONSchemaProps::default()
        };
        return;
    }
    schema.nullable = None;
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        mend_node(property);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => mend_node(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(mend_node),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        mend_node(values);
    }
}
