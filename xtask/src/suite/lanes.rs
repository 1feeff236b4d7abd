//! Lanes: commands that run side by side, each lane one step after the other. What they say is kept and shown whole, so
//! that two suites' lines never mix.

use std::{
    io::{Read, Seek},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context, Result, bail};

use super::line_of;
use crate::progress::Step;

/// Steps one after the other; the commands of one step run at the same time. A step that fails is the lane's last.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) steps: Vec<Vec<Command>>,
}

/// A command that has ended.
#[derive(Debug)]
struct Ended {
    line: String,
    said: String,
    failed: Option<String>,
}

/// Runs the lanes, and shows what each command said when it has ended.
///
/// # Errors
/// All that failed; the others have run to their end.
pub(super) fn run(what: &str, lanes: Vec<Lane>) -> Result<()> {
    let (sender, ended) = mpsc::channel();
    let running: Vec<_> = lanes
        .into_iter()
        .map(|lane| {
            let sender = sender.clone();
            thread::spawn(move || lane.run(&sender))
        })
        .collect();
    drop(sender);
    let mut failed = Vec::new();
    loop {
        let step = Step::start(format!("{what}, side by side"));
        let Ok(Ended { line, said, failed: error }) = ended.recv() else {
            step.done(format!("{what} are through"));
            break;
        };
        step.done(format!("Over: {line}"));
        eprintln!("$ {line}\n{said}");
        failed.extend(error);
    }
    for lane in running {
        if lane.join().is_err() {
            failed.push("a lane panicked".to_owned());
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(())
}

impl Lane {
    fn run(self, ended: &mpsc::Sender<Ended>) {
        for step in self.steps {
            let mut good = true;
            let running: Vec<_> = step
                .into_iter()
                .map(|mut command| {
                    let line = line_of(&command);
                    (line, thread::spawn(move || capture(&mut command)))
                })
                .collect();
            for (line, command) in running {
                let result = command.join().unwrap_or_else(|_| bail!("its thread panicked"));
                let (said, error) = match result {
                    Ok((said, None)) => (said, None),
                    Ok((said, Some(error))) => (said, Some(error)),
                    Err(error) => (String::new(), Some(format!("{error:#}"))),
                };
                good &= error.is_none();
                let failed = error.map(|error| format!("failed ({error}): {line}"));
                // Nobody listens any more only when all is over.
                drop(ended.send(Ended { line, said, failed }));
            }
            if !good {
                return;
            }
        }
    }
}

/// What a command says on both channels, in order, and how it failed, if it did.
fn capture(command: &mut Command) -> Result<(String, Option<String>)> {
    let mut output = tempfile::tempfile().context("no temporary file")?;
    let status = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .status()
        .context("it cannot be run")?;
    output.rewind()?;
    let mut said = Vec::new();
    output.read_to_end(&mut said)?;
    let error = (!status.success()).then(|| status.to_string());
    Ok((String::from_utf8_lossy(&said).into_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_step_that_fails_ends_its_lane_and_no_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let touch = |name: &str| shell(&format!("touch {}", path(name).display()));
        let first =
            Lane { steps: vec![vec![touch("a")], vec![shell("exit 3"), touch("b")], vec![touch("c")]] };
        let second = Lane { steps: vec![vec![touch("d")], vec![touch("e")]] };
        let error = run("They", vec![first, second]).expect_err("one fails").to_string();
        assert!(error.contains("exit status: 3") && error.contains("exit 3"), "{error}");
        let made = ["a", "b", "c", "d", "e"].map(|name| path(name).exists());
        assert_eq!(made, [true, true, false, true, true]);
    }

    #[test]
    fn what_a_command_says_on_both_channels_is_kept_in_order() {
        let (said, error) = capture(&mut shell("echo one; echo two >&2; echo three")).expect("it runs");
        assert_eq!((said.as_str(), error), ("one\ntwo\nthree\n", None));
    }
}
