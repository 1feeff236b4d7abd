//! Clusters checked on themselves: one goes through its whole life, with every way to die in it.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{Cluster, Event, cgroups, enter, prepare, process};
use crate::{
    images, packages,
    progress::human,
    workspace::{program, this_program},
};

/// A boot takes no longer, once everything is built.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// Moments of a boot at which it is cut short, in milliseconds.
const CUTS: [u64; 6] = [15, 60, 200, 700, 1500, 3000];
/// How long a pod may take to run and a service to answer.
const PATIENCE: Duration = Duration::from_mins(1);

/// A namespace under the strictest pod security, and a broker's Service in it.
const NAMESPACE: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: check, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: Service
metadata: {name: broker, namespace: check}
spec: {selector: {app: broker}, ports: [{port: 1883}]}
";

/// A pod as restricted pod security wants it; `broker` is the one behind the Service.
const RESTRICTED: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: check, labels: {app: NAME}}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  terminationGracePeriodSeconds: 1
  containers:
    - name: mosquitto
      image: mcp-mqtt-mosquitto:dev
      readinessProbe: {tcpSocket: {port: 1883}, periodSeconds: 1}
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
";

/// One that restricted pod security refuses.
const UNRESTRICTED: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: unrestricted, namespace: check}
spec: {containers: [{name: mosquitto, image: 'mcp-mqtt-mosquitto:dev'}]}
";

/// Brings a cluster of its own through everything and says what held.
///
/// # Errors
/// At the first thing that does not hold.
pub(crate) fn check() -> Result<()> {
    let cluster = Cluster::named("check")?;
    packages::require_root("Checking clusters")?;
    prepare()?;
    cluster.down()?;
    let result = life(&cluster).and_then(|()| deaths(&cluster));
    if let Err(error) = result {
        return Err(error.context(format!("the logs are in {}", cluster.state().join("log").display())));
    }
    Ok(())
}

/// What a cluster is good for.
fn life(cluster: &Cluster) -> Result<()> {
    let machine = Machine::look()?;
    claim("a cluster comes up in less than ten seconds", || {
        let started = Instant::now();
        cluster.up()?;
        ensure!(started.elapsed() < READY_WITHIN, "it took {:?}", started.elapsed());
        Ok(())
    })?;
    claim("bringing it up again changes nothing", || {
        let before = cluster.node().context("it has no node")?.pid;
        cluster.up()?;
        let after = cluster.node().context("it has no node any more")?.pid;
        ensure!(before == after, "process {before} became {after}");
        Ok(())
    })?;
    images::ensure_mosquitto(cluster)?;
    claim("a restricted pod runs behind a Service", || {
        apply(cluster, NAMESPACE)?;
        for pod in ["broker", "visitor"] {
            apply(cluster, &RESTRICTED.replace("NAME", pod))?;
        }
        cluster.kubectl(&[
            "wait",
            "--namespace=check",
            "--for=condition=Ready",
            "pod",
            "--all",
            "--timeout=60s",
        ])?;
        Ok(())
    })?;
    claim("an unrestricted pod is refused", || match apply(cluster, UNRESTRICTED) {
        Err(error) if error.to_string().contains("violates PodSecurity") => Ok(()),
        Err(error) => Err(error.context("it was refused for another reason")),
        Ok(()) => bail!("it was taken"),
    })?;
    claim("logs and exec work", || {
        let logs = cluster.kubectl(&["logs", "--namespace=check", "broker"])?;
        ensure!(logs.contains("mosquitto version"), "the log is: {logs}");
        let said = inside(cluster, "visitor", "id -u")?;
        ensure!(said.trim() == "65532", "id says {said}");
        Ok(())
    })?;
    claim("names resolve and Services answer, also to the pod behind them", || {
        let connect = "exec 3<>/dev/tcp/broker.check.svc.cluster.local/1883 && echo connected";
        for pod in ["visitor", "broker"] {
            patiently(|| inside(cluster, pod, connect).map(drop))?;
        }
        let outside = inside(cluster, "visitor", "getent hosts example.com || echo none")?;
        ensure!(outside.trim() == "none", "a name outside resolves: {outside}");
        Ok(())
    })?;
    claim("a command in the cluster's network reaches a Service", || {
        let jsonpath = "--output=jsonpath={.spec.clusterIP}";
        let address = cluster.kubectl(&["get", "service", "broker", "--namespace=check", jsonpath])?;
        let script = format!("exec 3<>/dev/tcp/{address}/1883");
        enter::output(cluster.command("bash")?.args(["-c", &script]), "connecting")?;
        Ok(())
    })?;
    claim("the audit log has what was asked, and by whom", || {
        let log = fs::read_to_string(cluster.audit_log()).context("there is no audit log")?;
        let asked = log
            .lines()
            .any(|line| line.contains(r#""verb":"create""#) && line.contains(r#""userAgent":"kubectl/"#));
        ensure!(asked, "kubectl's creation of a pod is not in it");
        Ok(())
    })?;
    claim("the machine's own network, mounts and kernel settings are as before", || {
        machine.must_be_unchanged()
    })?;
    claim("a cluster that is taken down leaves nothing", || {
        let traces = Traces::note(cluster);
        cluster.down()?;
        traces.must_be_gone(cluster)?;
        machine.must_be_unchanged()
    })
}

/// The ways a cluster ends, and that it comes up and down from each.
fn deaths(cluster: &Cluster) -> Result<()> {
    for cut in CUTS {
        claim(&format!("`cluster up` killed after {cut} ms: `cluster down` leaves nothing"), || {
            let mut up = Command::new(this_program()?)
                .args(["cluster", "up", "--name", cluster.name()])
                .stderr(Stdio::null())
                .spawn()
                .context("cannot run xtask")?;
            std::thread::sleep(Duration::from_millis(cut));
            up.kill().context("cannot kill it")?;
            up.wait().context("cannot wait for it")?;
            let traces = Traces::note(cluster);
            cluster.down()?;
            traces.must_be_gone(cluster)
        })?;
    }
    claim("a component that dies ends the cluster, which says why", || {
        cluster.up()?;
        let pid = process::named(cluster.node().context("it has no node")?, "kube-scheduler")?;
        process::kill(pid);
        patiently(|| match cluster.journal().last() {
            Some(Event::Failed { text }) if text.contains("kube-scheduler was killed") => Ok(()),
            other => bail!("the journal ends with {other:?}"),
        })?;
        patiently(|| if cluster.node().is_none() { Ok(()) } else { bail!("it still runs") })
    })?;
    claim("it comes up again after that, and after its first process is killed", || {
        cluster.up()?;
        process::kill(cluster.node().context("it has no node")?.pid);
        // The kernel takes a moment to end a process, and until then the cluster is up.
        patiently(|| if cluster.node().is_none() { Ok(()) } else { bail!("it still runs") })?;
        cluster.up()?;
        cluster.kubectl(&["get", "--raw", "/readyz"]).map(drop)
    })?;
    claim("taken down, it leaves nothing", || {
        let traces = Traces::note(cluster);
        cluster.down()?;
        traces.must_be_gone(cluster)
    })
}

/// Not a step of its own: what is proven has steps, and they are told as they happen.
fn claim(text: &str, proof: impl FnOnce() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    proof().with_context(|| format!("does not hold: {text}"))?;
    eprintln!("  ⇒ {text} ({})", human(started.elapsed()));
    Ok(())
}

/// Repeats until it goes well, or tells what went wrong last.
fn patiently(mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(100)),
            result => return result,
        }
    }
}

fn apply(cluster: &Cluster, yaml: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new().context("cannot make a file")?;
    fs::write(file.path(), yaml).context("cannot write a file")?;
    // The default service account of a new namespace is there a moment after it.
    let path = file.path().display().to_string();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match cluster.kubectl(&["apply", "--filename", &path]) {
            Err(error) if error.to_string().contains("serviceaccount") && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(100));
            }
            result => return result.map(drop),
        }
    }
}

fn inside(cluster: &Cluster, pod: &str, script: &str) -> Result<String> {
    cluster.kubectl(&["exec", "--namespace=check", pod, "--", "bash", "-c", script])
}

/// What the machine looks like outside of clusters.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    interfaces: BTreeSet<String>,
    routes: String,
    mounts: BTreeSet<String>,
    rules: String,
    settings: Vec<(&'static str, String)>,
}

/// Settings that programs of a node would change.
const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/ip_forward",
    "net/netfilter/nf_conntrack_max",
];

impl Machine {
    fn look() -> Result<Self> {
        let names = fs::read_dir("/sys/class/net").context("cannot list the network interfaces")?;
        let rules = program("nft").args(["list", "ruleset"]).output().context("cannot run nft")?;
        Ok(Self {
            interfaces: names
                .filter_map(|name| Some(name.ok()?.file_name().to_string_lossy().into_owned()))
                .collect(),
            routes: fs::read_to_string("/proc/net/route").context("cannot read the routes")?,
            mounts: mounts()?,
            rules: String::from_utf8_lossy(&rules.stdout).into_owned(),
            settings: SETTINGS
                .into_iter()
                .map(|setting| {
                    (setting, fs::read_to_string(format!("/proc/sys/{setting}")).unwrap_or_default())
                })
                .collect(),
        })
    }

    fn must_be_unchanged(&self) -> Result<()> {
        let now = Self::look()?;
        ensure!(*self == now, "it was {self:#?}\nand is {now:#?}");
        Ok(())
    }
}

fn mounts() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// What a cluster has on the machine while it is up.
struct Traces {
    /// Its processes, with their namespaces: those are gone with the last process in them.
    processes: Vec<u32>,
}

impl Traces {
    fn note(cluster: &Cluster) -> Self {
        let processes = cluster.node().map(process::Node::family).unwrap_or_default();
        Self { processes }
    }

    fn must_be_gone(&self, cluster: &Cluster) -> Result<()> {
        let alive: Vec<String> = self.processes.iter().filter_map(|pid| process::still_runs(*pid)).collect();
        ensure!(alive.is_empty(), "still running: {}", alive.join(", "));
        let state = cluster.state().display().to_string();
        let strays = process::mentioning(&state);
        ensure!(strays.is_empty(), "still running: {}", strays.join(", "));
        let left: Vec<String> = mounts()?.into_iter().filter(|mount| mount.contains(&state)).collect();
        ensure!(left.is_empty(), "still mounted: {}", left.join(", "));
        let left = cgroups::present(&format!("mcp-mqtt-{}", cluster.name()))?;
        ensure!(left.is_empty(), "cgroups are left: {left:?}");
        ensure!(!cluster.state().exists(), "{state} is still there");
        Ok(())
    }
}
