//! What Prometheus wants to know of any process, read when it asks: the gateway's and the operator's.
//!
//! Names and units are those of <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>, the
//! sources those of proc(5).

use std::{fmt, fs, io};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::metrics::Description;

const CPU: &str = "Processor time of the process, in user and system mode";
const VIRTUAL: &str = "Address space of the process";
const RESIDENT: &str = "Memory of the process that is resident";
const STARTED: &str = "When the process started, since 1970";
const OPEN: &str = "File descriptors that are open";
const MAX: &str = "File descriptors that may be open";

/// What there is, for the documentation.
pub(crate) fn catalogue() -> impl Iterator<Item = Description> {
    let describe = |(name, kind, help): (&str, &'static str, &'static str)| Description {
        name: format!("process_{name}"),
        kind,
        labels: &[],
        help,
    };
    [
        ("cpu_seconds_total", "counter", CPU),
        ("virtual_memory_bytes", "gauge", VIRTUAL),
        ("resident_memory_bytes", "gauge", RESIDENT),
        ("start_time_seconds", "gauge", STARTED),
        ("open_fds", "gauge", OPEN),
        ("max_fds", "gauge", MAX),
    ]
    .into_iter()
    .map(describe)
}

/// Adds them to a registry that has no prefix. What the system does not tell is left out.
pub fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(Process { boot: boot_time() }));
}

/// How many files the process may open; nothing when that is not limited.
pub(crate) fn open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Lets the process open so many files.
///
/// # Errors
/// The system refuses.
pub(crate) fn set_open_files(current: Option<u64>) -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current, ..limit })?)
}

/// Lets the process open as many files as it may: by habit the soft limit is 1024, for programs that use `select`, and a
/// gateway has a connection for each request over HTTP, and three descriptors for each process of its own.
pub(crate) fn raise_open_files() {
    if let Err(error) = set_open_files(getrlimit(Resource::Nofile).maximum) {
        tracing::debug!(soft = open_files(), "the limit of open files stays as it is: {error}");
    }
}

#[derive(Debug)]
struct Process {
    /// When the system started, in seconds since 1970.
    boot: Option<f64>,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::parse) {
            let cpu = ConstCounter::new(stat.cpu_seconds);
            tell(&mut encoder, "cpu", CPU, Some(&Unit::Seconds), &cpu)?;
            let (memory, bytes) = (ConstGauge::new(stat.virtual_bytes), Some(&Unit::Bytes));
            tell(&mut encoder, "virtual_memory", VIRTUAL, bytes, &memory)?;
            let memory = ConstGauge::new(stat.resident_bytes);
            tell(&mut encoder, "resident_memory", RESIDENT, bytes, &memory)?;
            if let Some(boot) = self.boot {
                let start = ConstGauge::new(boot + stat.start_seconds);
                tell(&mut encoder, "start_time", STARTED, Some(&Unit::Seconds), &start)?;
            }
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            let open = entries.count().saturating_sub(1); // the one through which they are counted
            tell(&mut encoder, "open_fds", OPEN, None, &ConstGauge::new(gauge(open)))?;
        }
        let max = open_files();
        tell(&mut encoder, "max_fds", MAX, None, &ConstGauge::new(max.map_or(i64::MAX, gauge)))
    }
}

fn tell(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    debug_assert!(matches!(metric.metric_type(), MetricType::Counter | MetricType::Gauge), "{name}");
    // With the dot that the registry adds for all others.
    let (name, help) = (format!("process_{name}"), format!("{help}."));
    let metric_encoder = encoder.encode_descriptor(&name, &help, unit, metric.metric_type())?;
    metric.encode(metric_encoder)
}

fn gauge(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// Of `/proc/self/stat`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    /// After the start of the system.
    start_seconds: f64,
    virtual_bytes: i64,
    resident_bytes: i64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, which may hold any character.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        // Numbered from one in proc(5), where the first behind the name is 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        #[expect(clippy::cast_precision_loss, reason = "2^53 ticks are three million years")]
        let seconds = |ticks: u64| ticks as f64 / clock_ticks_per_second() as f64;
        Some(Self {
            cpu_seconds: seconds(field(14)? + field(15)?),
            start_seconds: seconds(field(22)?),
            virtual_bytes: gauge(field(23)?),
            resident_bytes: gauge(field(24)?.saturating_mul(page_size() as u64)),
        })
    }
}

fn boot_time() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        hint::black_box,
        time::{Instant, SystemTime, UNIX_EPOCH},
    };

    use prometheus_client::encoding::text::encode;

    use super::*;

    fn told() -> String {
        let mut registry = Registry::default();
        register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    fn value(text: &str, name: &str) -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("process_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }

    #[test]
    fn each_value_is_this_process_s_and_moves_with_it() {
        let before = told();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let started = value(&before, "start_time_seconds");
        assert!(started <= now + 1.0 && started > now - 3600.0, "{started} is not shortly before {now}");
        let (resident, virtual_) =
            (value(&before, "resident_memory_bytes"), value(&before, "virtual_memory_bytes"));
        assert!(resident > f64::from(1 << 20) && resident <= virtual_, "{resident} {virtual_}");

        let held = black_box(vec![1_u8; 128 << 20]);
        // Other tests of this process open and close files at the same time: more than they have.
        let files: Vec<File> = (0..256).map(|_| File::open("/proc/self/stat").unwrap()).collect();
        let begun = Instant::now();
        while begun.elapsed().as_millis() < 100 {
            black_box(&held);
        }
        let after = told();
        assert!(value(&after, "resident_memory_bytes") > resident + f64::from(64 << 20), "{before}{after}");
        let cpu = value(&after, "cpu_seconds_total") - value(&before, "cpu_seconds_total");
        assert!(cpu > 0.0, "{before}{after}");
        assert!(value(&after, "open_fds") > value(&before, "open_fds") + 128.0, "{before}{after}");
        assert!(value(&after, "open_fds") <= value(&after, "max_fds"), "{after}");
        assert!((value(&after, "start_time_seconds") - started).abs() < 0.001, "{before}{after}");
        drop(files);
    }

    #[test]
    fn the_catalogue_is_what_is_told() {
        let text = told();
        for Description { name, kind, help, .. } in catalogue() {
            value(&text, name.strip_prefix("process_").unwrap());
            let family = name.strip_suffix("_total").unwrap_or(&name);
            assert!(text.contains(&format!("# TYPE {family} {kind}\n")), "{name} in\n{text}");
            assert!(text.contains(&format!("# HELP {family} {help}.\n")), "{name} in\n{text}");
        }
        assert_eq!(text.matches("# TYPE").count(), catalogue().count(), "{text}");
    }

    #[test]
    fn a_program_s_name_may_hold_anything() {
        let rest = " R 1 1 1 0 -1 0 99 0 0 0 150 50 0 0 20 0 1 0 300 4096 2 0";
        let stat = Stat::parse(&format!("7 (a ) S 1 (b){rest}")).unwrap();
        assert_eq!((stat.cpu_seconds, stat.start_seconds, stat.virtual_bytes), (2.0, 3.0, 4096));
        assert_eq!(stat.resident_bytes, 2 * i64::try_from(page_size()).unwrap());
        assert_eq!(Stat::parse("7 (a) R 1 1"), None);
        assert_eq!(Stat::parse(""), None);
    }
}
