//! mcp-mqtt-operator.

use clap::Parser;
use mcp_mqtt_operator::{
    cli::{Cli, Command},
    crd,
};

fn main() {
    match Cli::parse().command {
        Command::Crds => print!("{}", crd::crd_yaml()),
        Command::Run(_) => {}
    }
}
