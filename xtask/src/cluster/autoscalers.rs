//! What scales beside Kubernetes itself: metrics-server and KEDA, built from their Go modules for the suites that meet
//! them. The suites start them; here they are only built, beside the cluster's own binary.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{
    binary,
    go::{self, Build},
};
use crate::{
    fingerprint::{Kept, rebuild_if_changed},
    workspace::root,
};

/// A program of somebody else's.
struct Program {
    /// Name of the file.
    name: &'static str,
    /// The module that pins it, below the project's root.
    module: &'static str,
    /// Its package.
    package: &'static str,
    /// How long the first build takes.
    takes: &'static str,
}

const KEDA_MODULE: &str = "tests/keda";

const PROGRAMS: [Program; 3] = [
    Program {
        name: "metrics-server",
        module: "tests/metrics-server",
        package: "sigs.k8s.io/metrics-server/cmd/metrics-server",
        takes: "about 2 min on two processors",
    },
    Program {
        name: "keda-operator",
        module: KEDA_MODULE,
        package: "github.com/kedacore/keda/v2/cmd/operator",
        takes: "about 7 min on two processors",
    },
    Program {
        name: "keda-adapter",
        module: KEDA_MODULE,
        package: "github.com/kedacore/keda/v2/cmd/adapter",
        takes: "less than a minute",
    },
];

/// KEDA's own CRDs, as they stand in its module.
const KEDA_CRDS: [&str; 4] =
    ["scaledobjects", "scaledjobs", "triggerauthentications", "clustertriggerauthentications"];

/// Builds those that are not what their modules say.
///
/// # Errors
/// When one cannot be built.
pub(crate) fn ensure() -> Result<()> {
    let directory = binary::directory();
    for Program { name, module, package, takes } in PROGRAMS {
        let (source, into) = (root().join(module), directory.join(name));
        let kept = Kept {
            file: into.clone(),
            stamp: into.with_extension("stamp"),
            lock: directory.join("autoscalers.lock"),
        };
        rebuild_if_changed(&kept, &go::fingerprint(&source)?, || {
            go::build(&Build { what: name, takes, source: &source, package, linker_flags: "", into: &into })?;
            if module == KEDA_MODULE {
                write_keda_crds(&directory.join("keda-crds.yaml"))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn write_keda_crds(into: &Path) -> Result<()> {
    let keda = go::directory_of(&root().join(KEDA_MODULE), "github.com/kedacore/keda/v2")?;
    let mut all = String::new();
    for name in KEDA_CRDS {
        let file = keda.join(format!("config/crd/bases/keda.sh_{name}.yaml"));
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        all.push_str(&text);
        all.push('\n');
    }
    fs::write(into, all).with_context(|| format!("cannot write {}", into.display()))
}
