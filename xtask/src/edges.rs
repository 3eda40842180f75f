//! The dependency direction, and where unsafe code may be: both are part of the design, so both are checked.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail};

use crate::workspace::{metadata, root};

/// May a crate contain unsafe code?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unsafe {
    /// It says `forbid(unsafe_code)`.
    Forbidden,
    /// It maps memory, calls the kernel, or is called by C.
    Needed,
}

use Unsafe::{Forbidden, Needed};

/// Every crate of the workspace, what it may use of the workspace, and whether it may be unsafe. A crate that is not
/// here is an error: whoever adds one decides where it stands.
const CRATES: &[(&str, &[&str], Unsafe)] = &[
    ("nk-device", &[], Needed),
    ("nk-guestlib", &["nk-device"], Forbidden),
    ("nk-attach", &[], Needed),
    ("nk-elfcheck", &["nk-device"], Needed),
    ("nk-preload", &["nk-device", "nk-attach", "nk-guestlib", "nk-elfcheck"], Needed),
    ("nk-engine", &["nk-device"], Forbidden),
    // One table of socket options for both sides: the guest asks by it, the host allows by it.
    ("nk-servicelib", &["nk-device", "nk-guestlib"], Needed),
    ("nk-stack-kernel", &["nk-device", "nk-servicelib"], Needed),
    (
        "nk-host",
        &["nk-device", "nk-attach", "nk-engine", "nk-servicelib", "nk-stack-kernel"],
        Needed,
    ),
    // Measures the engine in place: it plays the guests and the NSM.
    ("nk-bench", &["nk-device", "nk-engine", "nk-host"], Forbidden),
    ("nk", &["nk-device", "nk-attach", "nk-elfcheck", "nk-host", "nk-bench"], Needed),
    // Plays guests against the parts of the host.
    (
        "nk-models",
        &["nk-device", "nk-guestlib", "nk-attach", "nk-engine", "nk-servicelib", "nk-host"],
        Needed,
    ),
    // What tests the product from outside uses none of the product's crates.
    ("nk-conformance", &[], Forbidden),
    // Both take ports from the same store.
    ("nk-programs", &["nk-conformance"], Forbidden),
    ("nk-vmtest", &["nk-attach"], Needed),
    // The table of socket options, to say what is meant beside what is found.
    ("xtask", &["nk-programs", "nk-guestlib"], Forbidden),
];

/// Checks the whole table against what cargo says.
pub(crate) fn check() -> Result<()> {
    let packages = metadata()?.get("packages").and_then(|p| p.as_array()).context("no packages")?;
    let ours: BTreeSet<&str> =
        packages.iter().filter_map(|package| package.get("name")?.as_str()).collect();
    let mut wrong = Vec::new();
    for package in packages {
        let name =
            package.get("name").and_then(|n| n.as_str()).context("a package without a name")?;
        let Some((_, allowed, unsafety)) = CRATES.iter().find(|(known, ..)| *known == name) else {
            wrong.push(format!("{name} is not in the table of xtask/src/edges.rs"));
            continue;
        };
        for used in uses(package).filter(|used| ours.contains(used) && !allowed.contains(used)) {
            wrong.push(format!("{name} must not depend on {used}"));
        }
        if *unsafety == Forbidden {
            wrong.extend(unforbidden(package, name)?);
        }
    }
    let gone = CRATES.iter().filter(|(name, ..)| !ours.contains(name));
    wrong.extend(
        gone.map(|(name, ..)| {
            format!("{name} is in the table of xtask/src/edges.rs, but not there")
        }),
    );
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

/// Names of a package's dependencies, but not of those that only its tests use.
fn uses(package: &serde_json::Value) -> impl Iterator<Item = &str> {
    let all = package.get("dependencies").and_then(|d| d.as_array());
    all.into_iter()
        .flatten()
        .filter(|one| one.get("kind").and_then(|kind| kind.as_str()) != Some("dev"))
        .filter_map(|one| one.get("name")?.as_str())
}

/// Libraries and binaries of a package that do not forbid unsafe code (outside of their tests).
fn unforbidden(package: &serde_json::Value, name: &str) -> Result<Vec<String>> {
    let targets = package.get("targets").and_then(|t| t.as_array()).context("no targets")?;
    let mut wrong = Vec::new();
    for target in targets {
        let kind = target.pointer("/kind/0").and_then(|k| k.as_str()).unwrap_or_default();
        if !["lib", "bin", "cdylib", "rlib"].contains(&kind) {
            continue;
        }
        let path =
            target.get("src_path").and_then(|p| p.as_str()).context("a target without a path")?;
        let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
        let forbids = text.lines().any(|line| {
            line == "#![forbid(unsafe_code)]"
                || line == "#![cfg_attr(not(test), forbid(unsafe_code))]"
        });
        if !forbids {
            let shown = path.strip_prefix(&format!("{}/", root().display())).unwrap_or(path);
            wrong.push(format!("{name}: {shown} does not say #![forbid(unsafe_code)]"));
        }
    }
    Ok(wrong)
}
