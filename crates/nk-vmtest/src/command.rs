//! Child processes with their output kept, and an end.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Signal, set_parent_process_death_signal};

use crate::{Error, Result};

/// Runs a command, its output appended to `log`; an error names the command and the end of what it said.
pub(crate) fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(log)?;
    let shown = format!("{command:?}");
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .map_err(|e| Error::Command { command: shown.clone(), said: e.to_string() })?;
    if status.success() {
        return Ok(());
    }
    let said = std::fs::read(log).unwrap_or_default();
    Err(Error::Command { command: shown, said: format!("{status}\n{}", tail(&said)) })
}

/// Runs a command for its output; one that cannot start gives an empty output that failed.
pub(crate) fn output(command: &mut Command) -> Output {
    use std::os::unix::process::ExitStatusExt;
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| Output {
        status: std::process::ExitStatus::from_raw(127 << 8),
        stdout: Vec::new(),
        stderr: e.to_string().into_bytes(),
    })
}

/// What is started does not outlive a test that is killed.
pub(crate) fn dies_along(command: &mut Command) {
    let ask = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
    // SAFETY: one system call, which is async-signal-safe.
    unsafe { command.pre_exec(ask) };
}

/// The last lines of a log.
pub(crate) fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(40)).copied().collect::<Vec<_>>().join("\n")
}
