//! One binary, three faces: `gateway`, `shim`, `install`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mcp_mqtt_sidecar::cli::run(std::env::args_os())
}
