//! The project's own binaries, as cargo built them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Names the sidecar's binary, for a measurement of the one that is shipped.
const SIDECAR_BINARY: &str = "MCP_MQTT_SIDECAR_BINARY";

/// The sidecar (gateway, shim, installer) of the profile that the running test was built with, unless another is named.
pub fn sidecar() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        std::env::var_os(SIDECAR_BINARY).map_or_else(|| built("mcp-mqtt-sidecar"), PathBuf::from)
    })
}

/// The operator.
pub fn operator() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| built("mcp-mqtt-operator"))
}

/// The stdio MCP server of the tests, whose tools do what a test asks for.
pub fn stub_server() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| built("stub-server"))
}

/// `cargo xtask`.
pub fn xtask() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| built("xtask"))
}

/// The root of the checkout.
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Builds a binary (a moment's work when nothing changed) and gives its path. Cargo builds only the binaries of
/// the package under test, and these belong to others.
fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a process knows its executable");
    // target/<profile>/deps/<test> or target/<profile>/<binary>
    let profile = test
        .ancestors()
        .find(|dir| dir.join(".cargo-lock").exists())
        .expect("tests run from a cargo target directory");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo set for this test would make build scripts that watch it run anew, and everything above them.
    for (variable, _) in std::env::vars_os() {
        let of_this_package =
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        if variable.to_str().is_some_and(|name| of_this_package.iter().any(|prefix| name.starts_with(prefix)))
        {
            cargo.env_remove(variable);
        }
    }
    cargo.current_dir(workspace()).args(["build", "--quiet", "--offline", "--bin", name]);
    // With the features of the running test: with others, tests that run at the same time would replace each other's.
    if cfg!(feature = "cluster") {
        cargo.args(["--features", "mcp-mqtt-tests/cluster"]);
    }
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo starts");
    assert!(status.success(), "cargo could not build {name}: {status}");
    profile.join(name)
}
