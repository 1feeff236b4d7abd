//! One binary, three faces. Every face is a function from its configuration to an exit code; it builds the
//! runtime that it needs.

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    app,
    config::GatewayConfig,
    install::{self, InstallConfig},
    shim::{self, DrainConfig, RunConfig},
};

/// The configuration cannot be used (`EX_USAGE` of sysexits.h); nothing was started.
pub const EXIT_USAGE: u8 = 64;

/// MCP over MQTT beside an MCP server.
#[derive(Debug, Parser)]
#[command(name = crate::config::BINARY, version, about)]
pub struct Cli {
    /// Which of the three.
    #[command(subcommand)]
    pub face: Face,
}

/// The faces of the binary.
#[derive(Debug, Subcommand)]
pub enum Face {
    /// Bridge the pod's MCP server to an MQTT broker.
    Gateway(Box<GatewayConfig>),
    /// Inside the server's container: start the MCP server's processes, or ask the gateway to drain.
    #[command(subcommand)]
    Shim(ShimFace),
    /// Copy this binary to where the pod's containers find it.
    Install(InstallConfig),
}

/// What the shim can do.
#[derive(Debug, Subcommand)]
pub enum ShimFace {
    /// Serve the MCP server's processes on a Unix socket (the server container's entrypoint).
    Run(RunConfig),
    /// Ask the gateway to drain and wait until it has (the server container's preStop).
    Drain(DrainConfig),
}

/// Parses the arguments and runs the face they name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let asked_for = !error.use_stderr(); // --help and --version are no errors
            let _ = error.print();
            return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) };
        }
    };
    match cli.face {
        Face::Gateway(config) => app::run(*config),
        Face::Shim(ShimFace::Run(config)) => shim::run(&config),
        Face::Shim(ShimFace::Drain(config)) => shim::drain(&config),
        Face::Install(config) => install::run(&config),
    }
}
