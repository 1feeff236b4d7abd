//! Packages come with services: a broker, a Prometheus, a containerd. The project starts what it needs itself, in
//! namespaces and on ports of its own, so none of theirs is to run on a machine because of it.

use std::{
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::workspace::{find_program, program};

/// Debian asks this program whether a service may be started.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// By this a policy is known as ours.
const MARK: &str = "# Of cargo xtask, while it installs packages: no service is started.";

/// While it stands, no package that is installed starts its service.
#[derive(Debug)]
pub(super) struct Held {
    /// None: the machine has a policy of its own.
    policy: Option<PathBuf>,
}

impl Held {
    /// Until it is dropped.
    ///
    /// # Errors
    /// When the policy cannot be written.
    pub(super) fn start() -> Result<Self> {
        Self::at(Path::new(POLICY))
    }

    fn at(policy: &Path) -> Result<Self> {
        // Of an installation that was killed.
        if fs::read_to_string(policy).is_ok_and(|text| text.contains(MARK)) {
            fs::remove_file(policy).with_context(|| format!("cannot remove {}", policy.display()))?;
        }
        let mut file = match fs::File::options().write(true).create_new(true).mode(0o755).open(policy) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(Self { policy: None }),
            Err(error) => return Err(error).with_context(|| format!("cannot write {}", policy.display())),
        };
        let held = Self { policy: Some(policy.to_owned()) };
        file.write_all(script(std::process::id()).as_bytes())
            .with_context(|| format!("cannot write {}", policy.display()))?;
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(policy) = &self.policy {
            // Another's, which has taken its place, stays. One of ours that stays forbids nothing once we have ended.
            if fs::read_to_string(policy).is_ok_and(|text| text == script(std::process::id())) {
                drop(fs::remove_file(policy));
            }
        }
    }
}

/// 101 forbids, 0 allows: whatever is installed after this process has ended, however it did, is no business of ours.
fn script(process: u32) -> String {
    format!("#!/bin/sh\n{MARK}\nkill -0 {process} 2>/dev/null && exit 101\nexit 0\n")
}

/// Whether a package is installed, by the name of itself: its services are the machine's own then.
pub(super) fn is_there(package: &str) -> bool {
    let query = program("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]).output();
    query.is_ok_and(|answer| answer.stdout == b"installed")
}

/// Keeps the services of packages that have just been installed from starting with the machine.
///
/// # Errors
/// When systemd cannot be told.
pub(super) fn disable(packages: &[&str]) -> Result<()> {
    if packages.is_empty() || find_program("systemctl").is_none() {
        return Ok(());
    }
    let listed = program("dpkg").arg("--listfiles").args(packages).output().context("cannot run dpkg")?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let units = units(&listed);
    if units.is_empty() {
        return Ok(());
    }
    let output = program("systemctl").arg("disable").args(&units).output().context("cannot run systemctl")?;
    if !output.status.success() {
        anyhow::bail!("systemctl disable: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The services among a package's files; one with an `@` is a template, which nothing starts.
fn units(files: &str) -> Vec<&str> {
    files
        .lines()
        .filter_map(|file| file.strip_prefix("/usr").unwrap_or(file).strip_prefix("/lib/systemd/system/"))
        .filter(|unit| unit.ends_with(".service") && !unit.contains(['/', '@']))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, process::Command};

    use super::*;

    /// By a shell: a file cannot be executed while another test's new process still has it open for writing.
    fn answer(policy: &Path) -> Option<i32> {
        let status = Command::new("sh").arg(policy).args(["mosquitto", "start"]).status();
        status.expect("the policy runs").code()
    }

    #[test]
    fn services_are_forbidden_while_it_stands_and_nothing_stays() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let policy = directory.path().join("policy-rc.d");
        let held = Held::at(&policy)?;
        assert_eq!(answer(&policy), Some(101));
        assert_eq!(policy.metadata()?.permissions().mode() & 0o111, 0o111, "it can be executed");
        drop(held);
        assert!(!policy.exists());
        Ok(())
    }

    #[test]
    fn a_policy_of_the_machines_own_is_left_alone() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let policy = directory.path().join("policy-rc.d");
        fs::write(&policy, "#!/bin/sh\nexit 0\n")?;
        drop(Held::at(&policy)?);
        assert_eq!(fs::read_to_string(&policy)?, "#!/bin/sh\nexit 0\n");
        Ok(())
    }

    #[test]
    fn what_a_killed_installation_left_forbids_nothing_and_is_replaced() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let policy = directory.path().join("policy-rc.d");
        let mut ended = Command::new("true").spawn()?;
        ended.wait()?;
        let held = Held::at(&policy)?;
        fs::write(&policy, script(ended.id()))?;
        assert_eq!(answer(&policy), Some(0));
        std::mem::forget(held);
        let held = Held::at(&policy)?;
        assert_eq!(answer(&policy), Some(101));
        drop(held);
        assert!(!policy.exists());
        Ok(())
    }

    #[test]
    fn the_services_of_a_package_are_found_among_its_files() {
        let files = "/lib/systemd/system/mosquitto.service\n/usr/lib/systemd/system/prometheus.service\n\
                     /lib/systemd/system/x@.service\n/lib/systemd/system/a.timer\n/usr/sbin/mosquitto\n\
                     /lib/systemd/system/b.service.d/c.service\n";
        assert_eq!(units(files), ["mosquitto.service", "prometheus.service"]);
    }
}
