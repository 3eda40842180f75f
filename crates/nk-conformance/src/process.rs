//! One program run: its own process group, its output in files, a bound on its time.
//!
//! Output goes to files and not to pipes, because what a guest leaves running for a moment (a private
//! daemon) may hold the descriptors: the run ends when the program ends, not at EOF.

use std::fs::{self, File};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// What a program printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    pub trace: String,
    pub errors: String,
    pub status: String,
}

/// A started program. Dropping it kills its process group.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pidfd: OwnedFd,
    stdout: PathBuf,
    stderr: PathBuf,
    deadline: Instant,
    reaped: bool,
}

/// What to start.
#[derive(Debug)]
pub struct Start<'a> {
    /// Words before the program, such as `nk run --`; empty for a native run.
    pub prefix: &'a [String],
    pub program: &'a Path,
    pub arguments: &'a [&'a str],
    /// Working directory, and where the two roles of a case meet.
    pub dir: &'a Path,
    /// Name of this program's output files within `dir`.
    pub label: &'a str,
    pub port: u16,
    pub timeout: Duration,
}

impl Start<'_> {
    pub fn spawn(&self) -> Result<Running> {
        let stdout = self.dir.join(format!("{}.stdout", self.label));
        let stderr = self.dir.join(format!("{}.stderr", self.label));
        let mut words = self.prefix.iter().map(AsRef::as_ref).chain([self.program.as_os_str()]);
        let first = words.next().ok_or_else(|| Error::from(ErrorKind::InvalidInput))?;
        let child = Command::new(first)
            .args(words)
            .args(self.arguments)
            .current_dir(self.dir)
            .env("CASE_DIR", self.dir)
            .env("CASE_PORT", self.port.to_string())
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .process_group(0)
            .spawn()?;
        // The child is not reaped before `Running` is gone, so its pid cannot mean another process.
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        let deadline = Instant::now() + self.timeout;
        Ok(Running { child, pidfd, stdout, stderr, deadline, reaped: false })
    }
}

impl Running {
    /// Waits for the end of the program, kills what is left of its process group, and reads its output.
    pub fn finish(mut self) -> Result<Finished> {
        let in_time = self.wait_for_exit()?;
        let status = self.kill_group_and_reap()?;
        let status = if in_time { describe(status) } else { "killed: out of time".to_owned() };
        let text = |path: &Path| fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned());
        Ok(Finished { trace: text(&self.stdout)?, errors: text(&self.stderr)?, status })
    }

    fn wait_for_exit(&self) -> Result<bool> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(Error::other)?;
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&left)) {
                Ok(n) => return Ok(n > 0),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn kill_group_and_reap(&mut self) -> Result<ExitStatus> {
        // The group's leader is our child and not reaped yet, so the group's number cannot have been given to anybody else.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.kill_group_and_reap();
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) if signal == Signal::ALARM.as_raw() => {
            "killed by its alarm (hung)".to_owned()
        }
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => format!("{status:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(program: &str, arguments: &[&str], label: &str, timeout_ms: u64) -> Finished {
        let dir = std::env::temp_dir();
        let label = format!("nk-conformance-{}-{label}", std::process::id());
        let start = Start {
            prefix: &[],
            program: Path::new(program),
            arguments,
            dir: &dir,
            label: &label,
            port: 1,
            timeout: Duration::from_millis(timeout_ms),
        };
        let finished = start.spawn().unwrap().finish().unwrap();
        for end in ["stdout", "stderr"] {
            fs::remove_file(dir.join(format!("{label}.{end}"))).unwrap();
        }
        finished
    }

    #[test]
    fn output_and_status_are_kept_apart() {
        let finished = start("/bin/sh", &["-c", "echo out; echo err >&2; exit 3"], "status", 5000);
        assert_eq!(finished.trace, "out\n");
        assert_eq!(finished.errors, "err\n");
        assert_eq!(finished.status, "exit 3");
    }

    #[test]
    fn a_hanging_program_and_its_children_are_killed() {
        let begun = Instant::now();
        let finished = start("/bin/sh", &["-c", "sleep 60 & echo $!; sleep 60"], "hang", 300);
        assert_eq!(finished.status, "killed: out of time");
        assert!(begun.elapsed() < Duration::from_secs(30));
        // The child is gone, or at most a zombie for init to reap.
        let stat = format!("/proc/{}/stat", finished.trace.trim());
        let end = Instant::now() + Duration::from_secs(10);
        while fs::read_to_string(&stat).is_ok_and(|s| !s.contains(") Z ")) {
            assert!(Instant::now() < end, "the child lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
