//! The chart's README table and `values.schema.json`, both generated from `values.yaml` and its comments, so that what
//! a value means, what it may be and what it is by default stand in one place.

mod readme;
mod schema;
mod values;

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::generated::Generated;

/// The command that writes these files; a failed check names it.
const COMMAND: &str = "cargo xtask chart";

/// The files that are generated from `charts/mcp-mqtt-operator/values.yaml` under `root`.
///
/// # Errors
/// When a value has no description, has a hint that is none, or its default does not say its type.
pub(crate) fn generate(root: &Path) -> Result<Vec<Generated>> {
    let chart = root.join("charts/mcp-mqtt-operator");
    let path = chart.join("values.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let values = values::parse(&text).with_context(|| format!("{} cannot be documented", path.display()))?;
    let readme = chart.join("README.md");
    let prose = fs::read_to_string(&readme).with_context(|| format!("cannot read {}", readme.display()))?;
    Ok(vec![
        Generated {
            content: readme::with_table(&prose, &values)?,
            path: readme,
            command: COMMAND.to_owned(),
        },
        Generated {
            content: schema::of(&values)?,
            path: chart.join("values.schema.json"),
            command: COMMAND.to_owned(),
        },
    ])
}
