//! One line a step: what is being done, how far it is, how long it took.
//!
//! On a terminal the line moves; elsewhere a line is printed now and then, so that a log stays readable. Everything
//! goes to the standard error, so that a command's own output can be piped.

use std::{
    io::{IsTerminal, Write},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Result;

/// How often a line on a terminal moves.
const FRAME: Duration = Duration::from_millis(120);
/// How often a line is added where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(10);
/// A step that takes less says nothing of its time.
const WORTH_TELLING: Duration = Duration::from_millis(500);

/// A step under way. One that is dropped without [`Step::done`] has failed.
#[derive(Debug)]
pub(crate) struct Step {
    shared: Arc<Shared>,
    title: String,
    started: Instant,
    painter: Option<JoinHandle<()>>,
    told: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    detail: String,
    ended: bool,
}

impl Step {
    /// Starts a step: "Building Kubernetes".
    pub(crate) fn start(title: impl Into<String>) -> Self {
        let title = title.into();
        let shared = Arc::new(Shared::default());
        let started = Instant::now();
        let terminal = std::io::stderr().is_terminal();
        if !terminal {
            eprintln!("· {title}");
        }
        let painter = std::thread::spawn({
            let (shared, title) = (Arc::clone(&shared), title.clone());
            move || paint(&shared, &title, started, terminal)
        });
        Self { shared, title, started, painter: Some(painter), told: false }
    }

    /// Says how far the step is: "1234 of 3119 packages".
    pub(crate) fn detail(&self, detail: impl Into<String>) {
        self.shared.lock().detail = detail.into();
    }

    /// Ends the step well.
    pub(crate) fn done(mut self, result: impl AsRef<str>) {
        self.tell("✓", result.as_ref());
    }

    /// Ends the step with the end of something that began at another time than it, for better or worse.
    pub(crate) fn over(mut self, well: bool, began: Instant, result: impl AsRef<str>) {
        self.started = began;
        self.tell(if well { "✓" } else { "✗" }, result.as_ref());
    }

    fn tell(&mut self, mark: &str, text: &str) {
        self.told = true;
        self.shared.lock().ended = true;
        self.shared.ended.notify_all();
        if let Some(painter) = self.painter.take() {
            // A painter that panicked has painted all it will.
            drop(painter.join());
        }
        let took = self.started.elapsed();
        let erase = if std::io::stderr().is_terminal() { "\r\x1b[2K" } else { "" };
        if took < WORTH_TELLING {
            eprintln!("{erase}{mark} {text}");
        } else {
            eprintln!("{erase}{mark} {text} ({})", human(took));
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.told {
            let title = std::mem::take(&mut self.title);
            self.tell("✗", &title);
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a step from start to end; what it did is told as `done`.
pub(crate) fn step<T>(title: &str, done: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    let step = Step::start(title);
    let result = work(&step)?;
    step.done(done);
    Ok(result)
}

fn paint(shared: &Shared, title: &str, started: Instant, terminal: bool) {
    const FRAMES: [&str; 8] = ["⠋", "⠙", "⠸", "⠴", "⠦", "⠇", "⠏", "⠉"];
    let mut state = shared.lock();
    for frame in FRAMES.iter().cycle() {
        let pause = if terminal { FRAME } else { PLAIN_EVERY };
        state = shared
            .ended
            .wait_timeout_while(state, pause, |state| !state.ended)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        if state.ended {
            return;
        }
        let line = line(title, &state.detail, started.elapsed());
        if terminal {
            eprint!("\r\x1b[2K{frame} {line}");
            // Nothing to do about a terminal that takes no output.
            drop(std::io::stderr().flush());
        } else {
            eprintln!("  {line}");
        }
    }
}

fn line(title: &str, detail: &str, elapsed: Duration) -> String {
    let elapsed = human(elapsed);
    if detail.is_empty() {
        format!("{title} · {elapsed}")
    } else {
        format!("{title} · {detail} · {elapsed}")
    }
}

/// The head of a part of what a command prints, as wide as a terminal.
pub(crate) fn heading(text: &str) -> String {
    format!("── {text} {}", "─".repeat(76_usize.saturating_sub(text.chars().count())))
}

/// A duration as one reads it: `0.4 s`, `12 s`, `4 min 45 s`, `3 h 5 min`.
pub(crate) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f32()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(human(Duration::from_millis(420)), "0.4 s");
        assert_eq!(human(Duration::from_millis(12_700)), "12 s");
        assert_eq!(human(Duration::from_secs(285)), "4 min 45 s");
        assert_eq!(human(Duration::from_mins(185)), "3 h 5 min");
    }

    #[test]
    fn a_line_has_no_empty_parts() {
        assert_eq!(line("Building", "", Duration::from_secs(20)), "Building · 20 s");
        assert_eq!(line("Building", "3 of 4", Duration::from_secs(20)), "Building · 3 of 4 · 20 s");
    }
}
