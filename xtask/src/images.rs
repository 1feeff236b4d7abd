//! The images: the product's from its own Dockerfiles, and those of the demo and the tests.
//!
//! Each stands as an archive in `target/images`, made again only when something that goes into it has changed, and is
//! imported into a cluster only when that has not got it. Names are short in manifests (`image: mcp-servers:dev`) and
//! `docker.io/library/…` in the archives, which is what the container runtime makes of a short name. The tag is not
//! `latest`, so a kubelet pulls nothing that is there.

mod base;
mod buildah;
mod product;
mod servers;

pub(crate) use self::product::Compilation;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    cluster::Cluster,
    fingerprint::{Fingerprint, Kept, rebuild_if_changed},
    packages,
    progress::{Step, step},
    workspace::{root, target},
};

/// The tag of every image that is built here.
pub(crate) const TAG: &str = "dev";

/// What an image is built from.
#[derive(Debug)]
pub(crate) struct Build {
    /// The Dockerfile.
    pub(crate) dockerfile: PathBuf,
    /// The directory it copies from.
    pub(crate) context: PathBuf,
}

/// Builds what has changed and imports what the cluster has not got: all images of the project.
///
/// # Errors
/// When something is missing on the machine, an image cannot be built, or the cluster is not up.
pub(crate) fn ensure(cluster: &Cluster) -> Result<()> {
    packages::require_root("Building images")?;
    ensure_with(cluster, Compilation::start()?)
}

/// [`ensure`], the product's compilation being under way.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn ensure_with(cluster: &Cluster, product: Compilation) -> Result<()> {
    packages::require_root("Building images")?;
    packages::ensure(&[packages::IMAGES])?;
    // The product last: it is what changes, and what fails to compile while someone works on it.
    import(cluster, "mcp-mqtt-mosquitto", &mosquitto()?)?;
    import(cluster, "mcp-servers", &servers::ensure()?)?;
    product.finish()?;
    for binary in product::BINARIES {
        import(cluster, binary, &product::ensure(binary)?)?;
    }
    Ok(())
}

/// The operator as its image has it: the static binary, compiled where it is not.
///
/// # Errors
/// When it does not compile.
pub(crate) fn operator_binary() -> Result<PathBuf> {
    Compilation::start()?.finish()?;
    Ok(product::binary("mcp-mqtt-operator"))
}

/// The sidecar as its image has it, likewise.
///
/// # Errors
/// When it does not compile.
pub(crate) fn sidecar_binary() -> Result<PathBuf> {
    Compilation::start()?.finish()?;
    Ok(product::binary("mcp-mqtt-sidecar"))
}

/// The broker's image alone: it has a shell, which makes it good for looking around in a cluster.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn ensure_mosquitto(cluster: &Cluster) -> Result<()> {
    packages::ensure(&[packages::IMAGES])?;
    import(cluster, "mcp-mqtt-mosquitto", &mosquitto()?)
}

fn mosquitto() -> Result<PathBuf> {
    let source = root().join("images/mosquitto");
    let fingerprint = Fingerprint::default().text(base::RELEASE).path(&source)?.finish();
    archive("mcp-mqtt-mosquitto", &fingerprint, |step| {
        base::ensure(step)?;
        Ok(Build { dockerfile: source.join("Dockerfile"), context: source.clone() })
    })
}

/// The archive of an image, built where the one there was made of something else.
///
/// `prepare` runs only then; it says what to build from.
///
/// # Errors
/// When the image cannot be built.
pub(crate) fn archive(
    name: &str,
    fingerprint: &str,
    prepare: impl FnOnce(&Step) -> Result<Build>,
) -> Result<PathBuf> {
    let directory = target("images");
    let archive = directory.join(format!("{name}.tar"));
    // One lock for all: they are built in one storage.
    let kept =
        Kept { file: archive.clone(), stamp: archive.with_extension("stamp"), lock: directory.join("lock") };
    rebuild_if_changed(&kept, fingerprint, || {
        step(&format!("Building image {name}"), &format!("Image {name}:{TAG} is built"), |step| {
            let build = prepare(step)?;
            buildah::build(&build, name, &archive, step)
        })
    })?;
    Ok(archive)
}

/// An empty directory to lay out what an image copies.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn fresh_context(name: &str) -> Result<PathBuf> {
    let context = target("images/context").join(name);
    if context.exists() {
        fs::remove_dir_all(&context).with_context(|| format!("cannot remove {}", context.display()))?;
    }
    fs::create_dir_all(&context).with_context(|| format!("cannot make {}", context.display()))?;
    Ok(context)
}

/// Imports an archive, unless the cluster has it in this very state.
fn import(cluster: &Cluster, name: &str, archive: &Path) -> Result<()> {
    // Its state directory goes with the cluster, and so does this record.
    let record = cluster.state().join("images.json");
    let mut imported = read_record(&record);
    let stamp = fs::read_to_string(archive.with_extension("stamp")).unwrap_or_default();
    if imported.get(name) == Some(&stamp) {
        return Ok(());
    }
    step(
        &format!("Importing image {name}"),
        &format!("Image {name}:{TAG} is in {}", cluster.name()),
        |_| cluster.import(archive),
    )?;
    imported.insert(name.to_owned(), stamp);
    let text = serde_json::to_string_pretty(&imported).context("cannot write the record of images")?;
    fs::write(&record, text).with_context(|| format!("cannot write {}", record.display()))
}

fn read_record(file: &Path) -> BTreeMap<String, String> {
    fs::read_to_string(file).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}
