//! One binary, three faces. Every face is a function from its configuration to an exit code; it builds the
//! runtime that it needs.

use std::{ffi::OsString, process::ExitCode};

use clap::{Args, Command, Parser, Subcommand};

use crate::{
    app,
    config::GatewayConfig,
    install::{self, InstallConfig},
    shim::{self, DrainConfig, ExecConfig, RunConfig},
};

mod problems;

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
    /// Bridge an MCP server to an MQTT broker: the pod's own, one at a URL, or a command after `--`.
    Gateway(Box<GatewayFace>),
    /// Inside the server's container: start the MCP server's processes, or ask the gateway to drain.
    #[command(subcommand)]
    Shim(ShimFace),
    /// Copy this binary to where the pod's containers find it.
    Install(InstallConfig),
}

/// The gateway's command line.
#[derive(Debug, Args)]
pub struct GatewayFace {
    /// What it is to do.
    #[command(flatten)]
    pub config: GatewayConfig,

    /// Show the effective configuration as a command line, and start nothing.
    #[arg(long)]
    pub print_config: bool,
}

/// What the shim can do.
#[derive(Debug, Subcommand)]
pub enum ShimFace {
    /// Serve the MCP server's processes on a Unix socket (the server container's entrypoint).
    Run(RunConfig),
    /// Ask the gateway to drain and wait until it has (the server container's preStop).
    Drain(DrainConfig),
    /// Become the MCP server's command, and end with the process that started this one.
    #[command(hide = true)]
    Exec(ExecConfig),
}

/// Parses the arguments and runs the face they name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            let asked_for = !error.use_stderr(); // --help and --version are no errors
            if !asked_for && args.get(1).is_some_and(|face| face == "gateway") {
                let command = GatewayFace::augment_args(Command::new("gateway"));
                return app::unusable(&problems::find(command, args.into_iter().skip(2), app::judge));
            }
            let _ = error.print();
            return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) };
        }
    };
    match cli.face {
        Face::Gateway(face) if face.print_config => app::print_config(&face.config),
        Face::Gateway(face) => app::run(face.config),
        Face::Shim(ShimFace::Run(config)) => shim::run(&config),
        Face::Shim(ShimFace::Drain(config)) => shim::drain(&config),
        Face::Shim(ShimFace::Exec(config)) => shim::exec(&config),
        Face::Install(config) => install::run(&config),
    }
}
