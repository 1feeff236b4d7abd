//! `values.schema.json`: helm refuses values that do not fit it, a misspelt name above all.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::values::Node;

/// The schema's text.
///
/// # Errors
/// When a default does not say its type and no hint does.
pub(super) fn of(values: &[Node]) -> Result<String> {
    let mut properties = properties_of(values)?;
    // Helm's own: what a parent chart hands down to every subchart, and the condition by which it turns this one off.
    properties.insert(
        "global".to_owned(),
        json!({"type": "object", "description": "Helm's own, for subcharts; not read."}),
    );
    properties.insert(
        "enabled".to_owned(),
        json!({"type": "boolean", "description": "For the `condition` of a parent chart; not read."}),
    );
    let mut schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart mcp-mqtt-operator",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    });
    // The order must not depend on which features of serde_json other crates turn on.
    schema.sort_all_objects();
    let text = serde_json::to_string_pretty(&schema).context("the schema cannot be written as JSON")?;
    Ok(text + "\n")
}

fn properties_of(nodes: &[Node]) -> Result<Map<String, Value>> {
    nodes.iter().map(|node| Ok((node.key().to_owned(), schema_of(node)?))).collect()
}

fn schema_of(node: &Node) -> Result<Value> {
    let mut schema = node.hint.clone();
    if !node.is_leaf() {
        schema.insert("type".to_owned(), json!("object"));
        schema.insert("additionalProperties".to_owned(), json!(false));
        schema.insert("properties".to_owned(), Value::Object(properties_of(&node.children)?));
    } else if !schema.contains_key("type") {
        let implied = node.implied_type().with_context(|| {
            format!("the default of `{}` does not say its type: put `# @schema …` above it", node.path)
        })?;
        schema.insert("type".to_owned(), json!(implied));
    }
    if node.is_leaf() {
        schema.insert("default".to_owned(), node.default.clone());
    }
    if let Some(doc) = &node.doc {
        schema.insert("description".to_owned(), json!(doc));
    }
    Ok(Value::Object(schema))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::values::parse;

    fn schema(text: &str) -> Value {
        serde_json::from_str(&of(&parse(text).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn a_default_implies_the_type_and_a_hint_narrows_it() {
        let schema = schema("# -- Port.\n# @schema {\"minimum\": 1}\nport: 80\n# -- On.\non: true\n");
        assert_eq!(
            schema["properties"]["port"],
            json!({"type": "integer", "minimum": 1, "default": 80, "description": "Port."})
        );
        assert_eq!(schema["properties"]["on"]["type"], "boolean");
    }

    #[test]
    fn no_map_takes_a_name_that_it_does_not_know() {
        let schema = schema("a:\n  # -- B.\n  b: x\n");
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["a"]["additionalProperties"], false);
    }

    #[test]
    fn a_parent_chart_may_hand_down_its_globals() {
        assert_eq!(schema("# -- B.\nb: x\n")["properties"]["global"]["type"], "object");
    }

    #[test]
    fn an_empty_map_must_say_what_goes_into_it() {
        let error = of(&parse("# -- A.\na: {}\n").unwrap()).unwrap_err().to_string();
        assert!(error.contains("`a` does not say its type"), "{error}");
    }
}
