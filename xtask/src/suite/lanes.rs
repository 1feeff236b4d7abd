//! Lanes: commands that run side by side, each lane one step after the other. What they say is kept and shown whole, so
//! that two suites' lines never mix. A command that does not end is killed.

use std::{
    io::{Read, Seek},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::line_of;
use crate::{
    cluster::kill_tree,
    progress::{Step, human},
};

/// CI gives all of it an hour and a half: a command that hangs is told of well before that.
pub(super) const LIMIT: Duration = Duration::from_mins(25);
/// Between two looks whether a command has ended.
const LOOK: Duration = Duration::from_millis(50);

/// Steps one after the other; the commands of one step run at the same time. A step that fails is the lane's last.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) steps: Vec<Vec<Task>>,
}

/// A command of a lane.
#[derive(Debug)]
pub(super) struct Task {
    /// What the step calls it while it runs.
    pub(super) name: String,
    pub(super) command: Command,
}

/// What becomes of a command.
#[derive(Debug)]
enum News {
    Began { name: String },
    Ended { name: String, line: String, began: Instant, said: String, failed: Option<String> },
}

/// Runs the lanes, and shows what each command said when it has ended. A command may take `limit`.
///
/// # Errors
/// All that failed; the others have run to their end.
pub(super) fn run(what: &str, lanes: Vec<Lane>, limit: Duration) -> Result<()> {
    let (sender, news) = mpsc::channel();
    let lanes: Vec<_> = lanes
        .into_iter()
        .map(|lane| {
            let sender = sender.clone();
            thread::spawn(move || lane.run(&sender, limit))
        })
        .collect();
    drop(sender);
    let start = Instant::now();
    let (mut running, mut failed) = (Vec::new(), Vec::new());
    let begin = |running: &[String]| {
        let step = Step::start(format!("{what}, side by side"));
        step.detail(running.join(", "));
        step
    };
    let mut step = begin(&running);
    for news in news {
        match news {
            News::Began { name } => {
                running.push(name);
                step.detail(running.join(", "));
            }
            News::Ended { name, line, began, said, failed: error } => {
                step.over(error.is_none(), began, format!("Over: {line}"));
                eprintln!("$ {line}\n{said}");
                failed.extend(error);
                running.retain(|other| *other != name);
                step = begin(&running);
            }
        }
    }
    step.over(failed.is_empty(), start, format!("{what} are through"));
    for lane in lanes {
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
    fn run(self, news: &mpsc::Sender<News>, limit: Duration) {
        for step in self.steps {
            let running: Vec<_> = step
                .into_iter()
                .map(|task| {
                    let news = news.clone();
                    thread::spawn(move || task.run(&news, limit))
                })
                .collect();
            let mut good = true;
            for task in running {
                good &= task.join().unwrap_or(false);
            }
            if !good {
                return;
            }
        }
    }
}

impl Task {
    /// Runs it to its end; whether that was a good one.
    fn run(self, news: &mpsc::Sender<News>, limit: Duration) -> bool {
        let Self { name, mut command } = self;
        let line = line_of(&command);
        let began = Instant::now();
        // Nobody listens any more only when all is over.
        drop(news.send(News::Began { name: name.clone() }));
        let (said, error) = match capture(&mut command, limit) {
            Ok(captured) => captured,
            Err(error) => (String::new(), Some(format!("{error:#}"))),
        };
        let good = error.is_none();
        let failed = error.map(|error| format!("failed ({error}): {line}"));
        drop(news.send(News::Ended { name, line, began, said, failed }));
        good
    }
}

/// What a command says on both channels, in order, and how it failed, if it did.
fn capture(command: &mut Command, limit: Duration) -> Result<(String, Option<String>)> {
    let mut output = tempfile::tempfile().context("no temporary file")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()
        .context("it cannot be run")?;
    let ended = wait(&mut child, limit)?;
    output.rewind()?;
    let mut said = Vec::new();
    output.read_to_end(&mut said)?;
    let error = match ended {
        Some(status) => (!status.success()).then(|| status.to_string()),
        None => Some(format!("killed, as it did not end within {}", human(limit))),
    };
    Ok((String::from_utf8_lossy(&said).into_owned(), error))
}

/// Waits for its end; after the limit it is killed with all that it started, and there is no status.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("it cannot be waited for")? {
            return Ok(Some(status));
        }
        if begin.elapsed() >= limit {
            // Not as a group of its own, which the terminal's Ctrl-C would not reach.
            kill_tree(child.id());
            child.wait().context("it cannot be waited for")?;
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Task {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Task { name: script.to_owned(), command }
    }

    #[test]
    fn a_step_that_fails_ends_its_lane_and_no_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let touch = |name: &str| shell(&format!("touch {}", path(name).display()));
        let first =
            Lane { steps: vec![vec![touch("a")], vec![shell("exit 3"), touch("b")], vec![touch("c")]] };
        let second = Lane { steps: vec![vec![touch("d")], vec![touch("e")]] };
        let error = run("They", vec![first, second], LIMIT).expect_err("one fails").to_string();
        assert!(error.contains("exit status: 3") && error.contains("exit 3"), "{error}");
        let made = ["a", "b", "c", "d", "e"].map(|name| path(name).exists());
        assert_eq!(made, [true, true, false, true, true]);
    }

    #[test]
    fn what_a_command_says_on_both_channels_is_kept_in_order() {
        let mut talker = shell("echo one; echo two >&2; echo three").command;
        let (said, error) = capture(&mut talker, LIMIT).expect("it runs");
        assert_eq!((said.as_str(), error), ("one\ntwo\nthree\n", None));
    }

    #[test]
    fn a_command_that_does_not_end_is_killed_with_all_that_it_started_and_its_words_are_kept() {
        let begin = Instant::now();
        let mut hangs = shell("sleep 600 & echo $!; wait").command;
        let (said, error) = capture(&mut hangs, Duration::from_secs(5)).expect("it runs");
        assert!(begin.elapsed() < Duration::from_mins(1), "{:?}", begin.elapsed());
        assert_eq!(error.as_deref(), Some("killed, as it did not end within 5.0 s"));
        let child = said.trim();
        assert!(child.parse::<u32>().is_ok(), "{said:?}");
        // It may stand there as a zombie until its new parent looks.
        let state = || std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let gone = || state().is_empty() || state().contains(") Z");
        while !gone() {
            assert!(begin.elapsed() < Duration::from_mins(1), "{}", state());
            thread::sleep(LOOK);
        }
    }

    #[test]
    fn a_suite_that_hangs_fails_its_lane_and_lets_the_others_end() {
        let lanes = ["sleep 600", "true"].map(|script| Lane { steps: vec![vec![shell(script)]] });
        let error = run("They", lanes.into(), Duration::from_secs(1)).expect_err("one hangs").to_string();
        assert!(error.contains("did not end within") && error.contains("sleep 600"), "{error}");
    }
}
