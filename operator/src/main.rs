//! mcp-mqtt-operator.

use std::process::ExitCode;

use clap::Parser;
use mcp_mqtt_operator::{
    app, check,
    cli::{Cli, Command},
    crd,
};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Crds => {
            print!("{}", crd::crd_yaml());
            ExitCode::SUCCESS
        }
        Command::Check(args) => check::main(args),
        Command::Run(args) => app::main(*args),
    }
}
