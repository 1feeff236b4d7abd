//! The shim: the server container's entrypoint where the transport is stdio. It starts the user's command once
//! per MCP session and hands the process's pipes to the gateway, so it is not on the data path.
//!
//! - [`control`]: what gateway and shim say to each other
//! - [`processes`]: child processes: started, ended with all they started, reaped
//! - [`prewarm`]: idle processes kept ready
//! - [`exec`]: what the gateway starts processes by where it does so itself
//! - [`drain`]: `shim drain`, the server container's preStop

use std::{ffi::OsString, io, path::PathBuf, process::ExitCode, time::Duration};

use tokio::runtime::{Builder, Runtime};

use self::{
    drain::Outcome,
    processes::{Processes, Reap},
    server::Server,
};
use crate::{
    config::{GATEWAY_SOCKET, LogFormat, SHIM_SOCKET},
    telemetry,
};

pub use self::exec::ExecConfig;

pub mod control;
pub mod drain;
mod exec;
mod orphans;
pub mod prewarm;
pub mod processes;
mod server;

/// `shim run`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct RunConfig {
    /// Unix socket on which processes are handed out; one left by a former life is replaced.
    #[arg(long, env = "MCP_MQTT_SHIM_SOCKET", default_value = SHIM_SOCKET, value_name = "PATH")]
    pub socket: PathBuf,

    /// Idle processes kept ready for the next sessions.
    #[arg(long, env = "MCP_MQTT_PREWARM", default_value_t = 0, value_name = "N")]
    pub prewarm: u16,

    /// Processes at one time, idle ones included; a session beyond it is refused.
    #[arg(long, env = "MCP_MQTT_MAX_PROCESSES", default_value_t = 1000, value_name = "N")]
    pub max_processes: u32,

    /// How long a process may take to leave after its stdin closed, and again after SIGTERM, before it is killed.
    #[arg(long, env = "MCP_MQTT_STOP_GRACE", default_value = "2s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub stop_grace: Duration,

    /// Log format; the server's own stderr goes to the same place.
    #[arg(long, env = "MCP_MQTT_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Log filter: a level (`info`) or directives.
    #[arg(long, env = "MCP_MQTT_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,

    /// The MCP server's command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `shim drain`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct DrainConfig {
    /// The gateway's drain socket.
    #[arg(long, env = "MCP_MQTT_DRAIN_SOCKET", default_value = GATEWAY_SOCKET, value_name = "PATH")]
    pub socket: PathBuf,

    /// How long to wait for the drain; longer than the gateway's own deadline.
    #[arg(long, env = "MCP_MQTT_DRAIN_WAIT", default_value = "75s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub timeout: Duration,
}

/// Serves processes until SIGTERM.
pub fn run(config: &RunConfig) -> ExitCode {
    telemetry::init(config.log_format, &config.log);
    let max_processes = usize::try_from(config.max_processes).unwrap_or(usize::MAX);
    let served = runtime().and_then(|runtime| {
        runtime.block_on(async {
            let processes = Processes::new(config.command.clone(), max_processes, Reap::Everything);
            processes.adopt()?;
            let server = Server {
                socket: config.socket.clone(),
                processes,
                prewarm: usize::from(config.prewarm),
                max_processes,
                grace: config.stop_grace,
            };
            server.serve().await
        })
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the shim cannot serve the MCP server's processes: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Becomes the command.
pub fn exec(config: &ExecConfig) -> ExitCode {
    exec::exec(config)
}

/// Asks the gateway to drain. A gateway that is not there is drained: a preStop must not hold up a pod's end.
pub fn drain(config: &DrainConfig) -> ExitCode {
    let outcome = runtime().map(|runtime| {
        runtime.block_on(drain::drain(&config.socket, config.timeout, |line| eprintln!("{line}")))
    });
    match outcome {
        Ok(Outcome::Drained) => ExitCode::SUCCESS,
        Ok(Outcome::Gone(why)) => {
            eprintln!("nothing to drain: the gateway is gone ({why})");
            ExitCode::SUCCESS
        }
        Ok(Outcome::TimedOut) => {
            eprintln!(
                "the gateway has not drained within {:?}; requests in flight may be lost",
                config.timeout
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("cannot ask the gateway to drain: {error}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
