//! The `CustomResourceDefinition`s as YAML: `crds/`, to be read and applied, and the chart's copy, which helm takes
//! from the chart's own directory.

use crate::Generated;

/// The command that writes these files; a failed check names it.
const COMMAND: &str = "cargo xtask crds";
/// Named as controller-gen does: group and plural.
const FILE: &str = "mcp-mqtt.io_mcpservices.yaml";

/// The files that are generated from `operator/src/crd`.
pub(crate) fn generate() -> Vec<Generated> {
    let content = mcp_mqtt_operator::crd::crd_yaml();
    ["crds", "charts/mcp-mqtt-operator/files/crds"]
        .map(|directory| Generated {
            path: format!("{directory}/{FILE}"),
            content: content.clone(),
            command: COMMAND,
        })
        .into()
}
