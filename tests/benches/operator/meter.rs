//! Who used how much of the processors, and what the operator asked of the API server.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use k8s_openapi::jiff::Timestamp;
use mcp_mqtt_tests::{
    audit::{Audit, Request},
    baseline,
};
use tokio::{sync::watch, task::JoinHandle};

/// How the operator calls itself towards the API server.
const OPERATOR: &str = "mcp-mqtt-operator/";
/// Writes that are named where there should be none.
const FIRST: usize = 10;
/// Between two looks at the processors' accounts.
const SAMPLE: Duration = Duration::from_millis(100);

/// Processor time by part, from its start to the last look before some moment.
pub(crate) struct Meter {
    parts: Vec<(&'static str, u32)>,
    begin: Instant,
    stop: watch::Sender<bool>,
    task: JoinHandle<Vec<Sample>>,
}

struct Sample {
    at: Instant,
    used: Vec<Duration>,
    busy: Duration,
}

/// What a span of time cost.
pub(crate) struct Cost {
    /// Processor time by part.
    pub(crate) parts: Vec<(&'static str, Duration)>,
    /// Share of the machine's processors that was in use, by whomever.
    pub(crate) busy: f64,
}

impl Meter {
    pub(crate) fn start(parts: Vec<(&'static str, u32)>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let pids: Vec<u32> = parts.iter().map(|(_, pid)| *pid).collect();
        let task = tokio::spawn(async move {
            let mut samples = vec![sample(&pids)];
            while !*stopped.borrow() {
                tokio::time::sleep(SAMPLE).await;
                samples.push(sample(&pids));
            }
            samples
        });
        Self { parts, begin: Instant::now(), stop, task }
    }

    /// What it cost until then.
    pub(crate) async fn until(self, end: Instant) -> Result<Cost> {
        self.stop.send_replace(true);
        let samples = self.task.await?;
        let first = &samples[0];
        let last = samples.iter().rfind(|sample| sample.at <= end + SAMPLE).unwrap_or(first);
        let parts = self.parts.iter().zip(first.used.iter().zip(&last.used));
        let cores = std::thread::available_parallelism()?.get();
        #[expect(clippy::cast_precision_loss, reason = "a handful of processors")]
        let all = (last.at - self.begin).as_secs_f64() * cores as f64;
        Ok(Cost {
            parts: parts.map(|((name, _), (before, after))| (*name, after.saturating_sub(*before))).collect(),
            busy: last.busy.saturating_sub(first.busy).as_secs_f64() / all,
        })
    }
}

fn sample(pids: &[u32]) -> Sample {
    Sample { at: Instant::now(), used: pids.iter().map(|pid| baseline::cpu(*pid)).collect(), busy: busy() }
}

/// Time that all processors together did not idle.
fn busy() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq …; stolen time is nobody's.
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Duration::from_millis(ticks.iter().take(7).sum::<u64>().saturating_sub(idle) * 10)
}

/// What the operator asked of the API server.
#[derive(Default)]
pub(crate) struct Requests {
    /// By verb and resource.
    pub(crate) counts: BTreeMap<String, usize>,
    /// Those that were to change something. The Lease is renewed with no regard to the work.
    pub(crate) writes: usize,
    /// Of these, Events.
    pub(crate) events: usize,
    /// Answered 409.
    pub(crate) conflicts: usize,
    /// The first few of these.
    pub(crate) first: Vec<String>,
    /// When the last write was answered.
    pub(crate) last_write: Option<Timestamp>,
}

impl Requests {
    /// Reads on in the log.
    pub(crate) fn add(&mut self, audit: &mut Audit) -> Result<()> {
        let requests = audit.read(OPERATOR)?;
        for request in
            requests.iter().filter(|it| it.user_agent.starts_with(OPERATOR) && it.resource != "leases")
        {
            self.count(request);
        }
        Ok(())
    }

    fn count(&mut self, request: &Request) {
        *self.counts.entry(format!("{} {}", request.verb, request.resource)).or_default() += 1;
        if request.is_write() {
            self.writes += 1;
            if self.first.len() < FIRST {
                self.first.push(format!("{} {} {}", request.verb, request.uri, request.code));
            }
            self.events += usize::from(request.resource == "events");
            self.conflicts += usize::from(request.code == 409);
            self.last_write = self.last_write.max(Some(request.at));
        }
    }
}
