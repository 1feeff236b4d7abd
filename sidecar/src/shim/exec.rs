//! `shim exec`: becomes the MCP server's command, with the kernel's promise that it gets SIGTERM when the process that
//! started it is gone, however that went. (Set after the fork, which only the child itself can do.)

use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use rustix::process::{Signal, set_parent_process_death_signal};

use super::processes::explain;
use crate::process;

/// `shim exec`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct ExecConfig {
    /// The process that starts this one: when it is gone already, nothing is run.
    #[arg(long, value_name = "PID")]
    pub parent: u32,

    /// How many files the command may open: the process that starts it has raised the limit for itself.
    #[arg(long, value_name = "N")]
    pub open_files: Option<u64>,

    /// The MCP server's command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// What a shell exits with when it cannot run a command.
const CANNOT_RUN: u8 = 127;

/// Does not return unless the command cannot be run.
pub(super) fn exec(config: &ExecConfig) -> ExitCode {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        // It still sees its stdin close.
        eprintln!("the MCP server will not be told when the gateway is killed: {error}");
    }
    if let Some(files) = config.open_files
        && let Err(error) = process::set_open_files(Some(files))
    {
        eprintln!("the MCP server may open more files than is usual: {error}");
    }
    // It may have been killed before the promise was given, which then is never kept.
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    if parent != Some(config.parent) {
        return ExitCode::FAILURE;
    }
    let Some((program, arguments)) = config.command.split_first() else { return ExitCode::FAILURE };
    let error = Command::new(program).args(arguments).exec();
    eprintln!("{}", explain(program, error));
    ExitCode::from(CANNOT_RUN)
}
