//! Paths of the workspace, and running commands in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

/// The repository: where `cargo xtask` found this crate, else where it was built.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let xtask =
            std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
        Path::new(&xtask).parent().unwrap_or(Path::new(".")).to_owned()
    })
}

/// What cargo knows about the workspace's packages, without their dependencies'.
pub(crate) fn metadata() -> Result<&'static serde_json::Value> {
    static METADATA: OnceLock<serde_json::Value> = OnceLock::new();
    if let Some(known) = METADATA.get() {
        return Ok(known);
    }
    let output = cargo(&["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cargo metadata")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata: {}", said.trim());
    Ok(METADATA.get_or_init(|| serde_json::from_slice(&output.stdout).unwrap_or_default()))
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> Result<PathBuf> {
    let directory = metadata()?.get("target_directory").and_then(serde_json::Value::as_str);
    Ok(PathBuf::from(directory.context("cargo metadata names no target directory")?))
}

/// A built binary.
pub(crate) fn release(name: &str) -> Result<PathBuf> {
    let path = target()?.join("release").join(name);
    ensure!(path.exists(), "{} is not built: `cargo build --release`", path.display());
    Ok(path)
}

/// cargo, in the repository. The variables that this cargo run has set for us are not passed on: they would make the
/// inner cargo build things anew.
pub(crate) fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).current_dir(root());
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let own = name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if own || name == "CARGO_BIN_NAME" || name == "CARGO_CRATE_NAME" {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command with its output going where ours goes; it must succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| shown.clone())?;
    ensure!(status.success(), "{shown}: {status}");
    Ok(())
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let program = words.first().and_then(|word| word.rsplit('/').next()).unwrap_or_default();
    format!("{program} {}", words.get(1..).unwrap_or_default().join(" "))
}

/// Builds what guests need and what the tests are run by.
pub(crate) fn build_release() -> Result<()> {
    run(&mut cargo(&["build", "--quiet", "--release", "--workspace"]))
}
