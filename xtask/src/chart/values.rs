//! `values.yaml` as a tree: each key with its default and what its comments say of it.
//!
//! The YAML library reads the defaults; the comments are found line by line, which suffices for a file of our own that
//! is block style and indented by two. The two views are compared at the end, so a line that was misread is an error.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// One key of `values.yaml`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// Dotted path: `broker.url`.
    pub(super) path: String,
    /// The title of the `# @section` it stands under.
    pub(super) section: String,
    /// The text of its `# --` comment; every leaf has one.
    pub(super) doc: Option<String>,
    /// Its `# @schema` comment.
    pub(super) hint: Map<String, Value>,
    /// Its default.
    pub(super) default: Value,
    /// The keys below it, where each is documented by itself.
    pub(super) children: Vec<Node>,
}

impl Node {
    /// The last part of its path.
    pub(super) fn key(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }

    /// Whether it is one value to the reader: what may stand below it is not listed by itself.
    pub(super) fn is_leaf(&self) -> bool {
        self.hint.contains_key("type") || self.default.as_object().is_none_or(Map::is_empty)
    }

    /// The type that its default implies, as JSON Schema calls it.
    pub(super) fn implied_type(&self) -> Option<&'static str> {
        match &self.default {
            Value::Bool(_) => Some("boolean"),
            Value::Number(number) if number.is_i64() => Some("integer"),
            Value::Number(_) => Some("number"),
            Value::String(_) => Some("string"),
            Value::Object(map) if !map.is_empty() => Some("object"),
            // Empty or null: it does not say what may stand there.
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// This node and all below it, in the order of the file.
    pub(super) fn walk(&self) -> Vec<&Self> {
        std::iter::once(self).chain(self.children.iter().flat_map(Self::walk)).collect()
    }
}

/// What stands in the comment lines above a key.
#[derive(Debug, Default)]
struct Comments {
    doc: Vec<String>,
    hint: Map<String, Value>,
}

/// Parses the text of `values.yaml`.
///
/// # Errors
/// When it is no YAML, when a leaf has no `# --` comment, or when a hint is neither JSON nor the name of a shape.
pub(super) fn parse(text: &str) -> Result<Vec<Node>> {
    let defaults: Value = serde_yaml::from_str(text).context("it is no YAML")?;
    ensure!(defaults.is_object(), "it is no map");
    let mut section = String::new();
    let mut comments = Comments::default();
    let mut found: Vec<Node> = Vec::new();
    // Keys above the current line, outermost first; and below which indentation lines belong to a leaf's own value.
    let mut parents: Vec<String> = Vec::new();
    let mut leaf: Option<usize> = None;
    for (number, line) in text.lines().enumerate() {
        let at = || format!("line {}", number + 1);
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if content.is_empty() {
            comments = Comments::default();
            continue;
        }
        if leaf.is_some_and(|leaf| indent > leaf) {
            continue;
        }
        if let Some(comment) = content.strip_prefix('#') {
            read_comment(comment.trim_start(), &mut comments, &mut section).with_context(at)?;
            continue;
        }
        let Some((key, _)) = content.split_once(':') else { bail!("{}: neither a key nor a comment", at()) };
        ensure!(indent % 2 == 0 && indent / 2 <= parents.len(), "{}: not indented by two", at());
        parents.truncate(indent / 2);
        parents.push(key.to_owned());
        let Comments { doc, hint } = std::mem::take(&mut comments);
        let default = lookup(&defaults, &parents).with_context(at)?.clone();
        let path = parents.join(".");
        let doc = (!doc.is_empty()).then(|| doc.join(" "));
        let node = Node { path, section: section.clone(), doc, hint, default, children: Vec::new() };
        ensure!(
            node.doc.is_some() || !node.is_leaf(),
            "{}: `{}` has no description: put `# -- …` above it",
            at(),
            node.path
        );
        leaf = node.is_leaf().then_some(indent);
        siblings(&mut found, indent / 2).push(node);
    }
    compare(&found, &defaults)?;
    Ok(found)
}

fn read_comment(comment: &str, comments: &mut Comments, section: &mut String) -> Result<()> {
    if let Some(title) = comment.strip_prefix("@section ") {
        title.trim().clone_into(section);
    } else if let Some(hint) = comment.strip_prefix("@schema ") {
        comments.hint = read_hint(hint.trim())?;
    } else if let Some(text) = comment.strip_prefix("-- ") {
        comments.doc = vec![text.trim().to_owned()];
    } else if !comments.doc.is_empty() && !comment.is_empty() {
        comments.doc.push(comment.trim().to_owned());
    }
    Ok(())
}

/// A hint is a JSON Schema fragment or the name of one of these.
fn read_hint(hint: &str) -> Result<Map<String, Value>> {
    let json = match hint {
        "labels" => r#"{"type": "object", "additionalProperties": {"type": "string"}}"#,
        "strings" => r#"{"type": "array", "items": {"type": "string", "minLength": 1}}"#,
        // Kubernetes' own types are left to the API server, which knows which of its versions is asked.
        "object" => r#"{"type": "object"}"#,
        "objects" => r#"{"type": "array", "items": {"type": "object"}}"#,
        "resources" => {
            r#"{"type": "object", "additionalProperties": false, "properties": {
                "requests": {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
                "limits": {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
                "claims": {"type": "array", "items": {"type": "object"}}}}"#
        }
        other => other,
    };
    serde_json::from_str(json)
        .with_context(|| format!("`@schema {hint}` is neither a JSON object nor a known shape"))
}

fn lookup<'a>(defaults: &'a Value, path: &[String]) -> Result<&'a Value> {
    path.iter()
        .try_fold(defaults, |value, key| value.get(key))
        .with_context(|| format!("`{}` is not where its indentation says", path.join(".")))
}

/// The list that a key of this depth goes to: below the last key of each level above.
fn siblings(found: &mut Vec<Node>, depth: usize) -> &mut Vec<Node> {
    if depth == 0 || found.is_empty() {
        return found;
    }
    let last = found.len() - 1;
    siblings(&mut found[last].children, depth - 1)
}

/// Every default was found by its line, and nothing else was.
fn compare(found: &[Node], defaults: &Value) -> Result<()> {
    let nodes: Vec<&Node> = found.iter().flat_map(Node::walk).collect();
    let documented: BTreeSet<&str> = nodes.iter().map(|node| node.path.as_str()).collect();
    ensure!(documented.len() == nodes.len(), "a key stands there twice");
    let mut expected = BTreeSet::new();
    let whole: BTreeSet<&str> =
        nodes.iter().filter(|node| node.is_leaf()).map(|node| node.path.as_str()).collect();
    collect_paths(defaults, "", &whole, &mut expected);
    let documented = documented.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    let missed: Vec<_> = expected.symmetric_difference(&documented).collect();
    ensure!(missed.is_empty(), "not read as the YAML library reads them: {missed:?}");
    Ok(())
}

fn collect_paths(value: &Value, above: &str, whole: &BTreeSet<&str>, paths: &mut BTreeSet<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
        if !whole.contains(path.as_str()) {
            collect_paths(value, &path, whole, paths);
        }
        paths.insert(path);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SAMPLE: &str = "\
# A header that belongs to no key.

# @section First
# -- How many
# there are.
# @schema {\"minimum\": 0}
count: 3
# Not a description.
nested:
  # -- Its name.
  name: a
  # -- Quantities.
  # @schema resources
  resources:
    limits:
      memory: 1Mi

# @section Second
# -- A list.
# @schema strings
list:
  - one
";

    #[test]
    fn each_key_has_its_default_description_hint_and_section() {
        let values = parse(SAMPLE).unwrap();
        assert_eq!(
            values.iter().map(|node| node.path.as_str()).collect::<Vec<_>>(),
            ["count", "nested", "list"]
        );
        let count = &values[0];
        assert_eq!(count.doc.as_deref(), Some("How many there are."));
        assert_eq!((&count.default, count.section.as_str()), (&json!(3), "First"));
        assert_eq!(Value::Object(count.hint.clone()), json!({"minimum": 0}));
        let nested = &values[1];
        assert_eq!(nested.doc, None);
        assert_eq!(nested.children[1].path, "nested.resources");
        assert_eq!(nested.children[1].default, json!({"limits": {"memory": "1Mi"}}));
        assert!(nested.children[1].children.is_empty(), "a hint with a type covers all below it");
        assert_eq!((values[2].section.as_str(), &values[2].default), ("Second", &json!(["one"])));
    }

    #[test]
    fn a_key_without_a_description_is_refused() {
        let error = format!("{:#}", parse("a: 1\n").unwrap_err());
        assert!(error.contains("line 1: `a` has no description"), "{error}");
    }

    #[test]
    fn a_hint_that_is_none_is_refused() {
        let error = format!("{:#}", parse("# -- A.\n# @schema lables\na: {}\n").unwrap_err());
        assert!(error.contains("line 2") && error.contains("`@schema lables`"), "{error}");
    }

    #[test]
    fn a_key_that_the_line_reader_misses_is_refused() {
        let error = format!("{:#}", parse("# -- A.\na: {b: 1}\n").unwrap_err());
        assert!(error.contains("a.b"), "{error}");
    }
}
