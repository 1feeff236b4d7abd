//! The table of values in the chart's README; the prose around it is written by hand.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::Value;

use super::values::Node;

const BEGIN: &str = "<!-- values: written by `cargo xtask chart` from values.yaml -->";
const END: &str = "<!-- /values -->";

/// The README with its table renewed.
///
/// # Errors
/// When it lacks the two lines between which the table goes.
pub(super) fn with_table(prose: &str, values: &[Node]) -> Result<String> {
    let (before, rest) =
        prose.split_once(BEGIN).with_context(|| format!("the README has no line `{BEGIN}`"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("the README has no line `{END}`"))?;
    Ok(format!("{before}{BEGIN}\n{}\n{END}{after}", table(values)))
}

fn table(values: &[Node]) -> String {
    let mut text = String::new();
    let mut section = "";
    for node in values.iter().flat_map(Node::walk) {
        let Some(doc) = &node.doc else { continue };
        if node.section != section {
            section = &node.section;
            let _ = write!(text, "\n### {section}\n\n| Value | Type | Default | |\n|---|---|---|---|\n");
        }
        let default = if node.is_leaf() { format!("`{}`", node.default) } else { String::new() };
        let row = [format!("`{}`", node.path), type_of(node), default, doc.clone()];
        let _ = writeln!(text, "| {} |", row.map(|cell| cell.replace('|', "\\|")).join(" | "));
    }
    text
}

/// The type, or the values where there are only a few.
fn type_of(node: &Node) -> String {
    if let Some(Value::Array(values)) = node.hint.get("enum") {
        return values
            .iter()
            .map(|value| format!("`{value}`"))
            .collect::<Vec<_>>()
            .join(", ")
            .replace('"', "");
    }
    match node.hint.get("type") {
        Some(Value::String(name)) => return name.clone(),
        Some(Value::Array(names)) => {
            return names
                .iter()
                .filter_map(Value::as_str)
                .filter(|name| *name != "null")
                .collect::<Vec<_>>()
                .join(" or ");
        }
        _ => {}
    }
    node.implied_type().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::values::parse;

    #[test]
    fn the_table_stands_between_its_two_lines_and_the_prose_stays() {
        let values =
            parse("# @section One\n# -- Said | so.\n# @schema {\"enum\": [\"x\", \"y\"]}\na: x\n").unwrap();
        let prose = format!("# Title\n{BEGIN}\nold\n{END}\nfoot\n");
        let readme = with_table(&prose, &values).unwrap();
        assert!(readme.starts_with("# Title\n") && readme.ends_with("\nfoot\n"), "{readme}");
        assert!(readme.contains("### One\n"), "{readme}");
        assert!(readme.contains("| `a` | `x`, `y` | `\"x\"` | Said \\| so. |"), "{readme}");
        assert!(!readme.contains("old"), "{readme}");
        assert_eq!(with_table(&readme, &values).unwrap(), readme, "a second run changes nothing");
    }

    #[test]
    fn a_readme_without_the_lines_is_refused() {
        assert!(with_table("# Title\n", &[]).unwrap_err().to_string().contains("has no line"));
    }
}
