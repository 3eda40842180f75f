//! Builds cases with the system's C compiler, again only when their source, `case.h` or the flags changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use crate::case::Case;

const FLAGS: &[&str] = &["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror"];
/// Cases make wrong calls on purpose, and few use all of `case.h`.
const FLAGS_QUIET: &[&str] = &[
    "-Wno-unused-function",
    "-Wno-unused-variable",
    "-Wno-nonnull",
    "-Wno-stringop-overflow",
    "-Wno-stringop-overread",
];

/// Compiles one case into `build_dir` and says where its program is.
pub fn compile(case: &Case, include_dir: &Path, build_dir: &Path) -> Result<PathBuf> {
    let program = build_dir.join(&case.name);
    let mut command = Command::new("cc");
    command.args(FLAGS).args(FLAGS_QUIET).args(&case.compiler_flags).arg("-I").arg(include_dir);
    command.arg(&case.source).arg("-pthread");
    let recipe = format!("{command:?}");
    let recipe_path = build_dir.join(format!("{}.recipe", case.name));
    let same_recipe = fs::read_to_string(&recipe_path).is_ok_and(|old| old == recipe);
    if same_recipe && is_newer(&program, &[&case.source, &include_dir.join("case.h")]) {
        return Ok(program);
    }
    // Under another name first: another run may just execute or make the same.
    let made = build_dir.join(format!("{}.{}", case.name, std::process::id()));
    command.arg("-o").arg(&made);
    let output = command.output().context("cannot start cc (Debian: apt install gcc libc6-dev)")?;
    if !output.status.success() {
        bail!("{} does not compile:\n{}", case.name, String::from_utf8_lossy(&output.stderr));
    }
    fs::rename(&made, &program)?;
    fs::write(&recipe_path, recipe)?;
    Ok(program)
}

fn is_newer(program: &Path, sources: &[&Path]) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let Some(built) = modified(program) else { return false };
    sources.iter().all(|source| modified(source).unwrap_or_else(SystemTime::now) < built)
}
