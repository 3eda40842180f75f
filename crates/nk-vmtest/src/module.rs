//! Builds what goes into the guest: the GuestLib core for the kernel, `netkernel.ko`, and the test programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{output, run_logged};
use crate::packages::GuestKernel;
use crate::{Error, Result};

const TARGET: &str = "x86_64-unknown-none";

/// Builds the `no_std` crates for a target without an operating system, with the toolchain as it is: this proves that the
/// core needs neither `std` nor `alloc`. (The module's own build adds the kernel's code model, see [`build_module`].)
///
/// # Errors
/// rustup or cargo fails.
pub fn build_core_none(root: &Path, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)?;
    let log = out.join("core-none.log");
    let installed =
        output(Command::new("rustup").args(["target", "list", "--installed"]).current_dir(root));
    if !String::from_utf8_lossy(&installed.stdout).lines().any(|l| l == TARGET) {
        run_logged(Command::new("rustup").args(["target", "add", TARGET]).current_dir(root), &log)?;
    }
    run_logged(
        cargo(root)
            .args(["build", "--target", TARGET, "-p", "nk-device", "-p", "nk-guestlib"])
            .arg("--target-dir")
            .arg(out.join("core-none")),
        &log,
    )
}

fn cargo(root: &Path) -> Command {
    let mut c = Command::new("cargo");
    c.current_dir(root);
    // Set by a cargo that runs us (xtask) for its own build; they must not reach another one.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
        c.env_remove(name);
    }
    c
}

/// Builds `netkernel.ko` for the kernel, outside the source tree.
///
/// # Errors
/// A tool fails; the error carries the end of its output.
pub fn build_module(root: &Path, kernel: &GuestKernel, out: &Path) -> Result<PathBuf> {
    let log = out.join("module.log");
    let have_source =
        output(Command::new("rustup").args(["component", "list", "--installed"]).current_dir(root));
    if !String::from_utf8_lossy(&have_source.stdout).lines().any(|l| l.starts_with("rust-src")) {
        run_logged(
            Command::new("rustup").args(["component", "add", "rust-src"]).current_dir(root),
            &log,
        )?;
    }
    let build = out.join("kmod");
    std::fs::create_dir_all(&build)?;
    let source = root.join("kmod");
    for entry in std::fs::read_dir(&source)? {
        let path = entry?.path();
        let is_source = path.extension().is_some_and(|e| e == "c" || e == "h");
        let name = path.file_name().unwrap_or_default();
        if is_source || name == "Kbuild" {
            copy_if_changed(&path, &build.join(name))?;
        }
    }
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(&source)
        .arg(format!("KDIR={}", kernel.build.display()))
        .arg(format!("BUILD={}", build.display()))
        .arg(format!("CORE_TARGET={}", out.join("core-kernel").display()));
    // make's own variables from a make above us would change what this one does.
    make.env_remove("MAKEFLAGS").env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    run_logged(&mut make, &log)?;
    let module = build.join("netkernel.ko");
    if module.exists() {
        return Ok(module);
    }
    Err(Error::Command {
        command: "make".into(),
        said: "succeeded, but made no netkernel.ko".into(),
    })
}

/// kbuild goes by time stamps, so an unchanged source must keep its own.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let content = std::fs::read(from)?;
    if std::fs::read(to).ok().as_ref() != Some(&content) {
        std::fs::write(to, content)?;
    }
    Ok(())
}

/// Compiles a test program: static, which a preloaded library could not reach, or dynamic.
///
/// # Errors
/// gcc fails.
pub fn build_program(source: &Path, name: &str, is_static: bool, out: &Path) -> Result<PathBuf> {
    let program = out.join(name);
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-Wall", "-Wextra", "-Werror"]);
    if is_static {
        gcc.arg("-static");
    }
    run_logged(gcc.arg("-o").arg(&program).arg(source), &out.join("programs.log"))?;
    Ok(program)
}
