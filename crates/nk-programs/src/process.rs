//! A started program: its own process group, its output in files, a bound on every wait.
//!
//! Output goes to files and not to pipes, because what a guest leaves running for a moment (a private daemon) may
//! hold the descriptors: a run ends when the program ends, not at end of file.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open, test_kill_process_group,
};

/// How a program ended and what it printed.
#[derive(Debug, Clone)]
pub struct Ended {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// The output, if the program ended with status 0; else an error with all that it said.
    pub fn ok(self) -> Result<String> {
        if self.status.success() {
            return Ok(self.out);
        }
        bail!("ended with {}: {}{}", describe(self.status), tail(&self.out), tail(&self.err))
    }

    /// How it ended, in words.
    #[must_use]
    pub fn how(&self) -> String {
        describe(self.status)
    }
}

/// A started program. Dropping it kills its process group.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pidfd: OwnedFd,
    name: String,
    out: PathBuf,
    err: PathBuf,
    reaped: bool,
}

/// Starts `command` in a process group of its own with its output in `dir` and nothing to read.
pub fn start(command: Command, dir: &Path, name: &str) -> Result<Running> {
    start_reading(command, dir, name, Stdio::null())
}

/// As [`start`], with something to read: a pipe is taken with [`Running::input`].
pub fn start_reading(
    mut command: Command,
    dir: &Path,
    name: &str,
    input: Stdio,
) -> Result<Running> {
    let unique = (0u32..)
        .find(|n| !dir.join(format!("{name}.{n}.out")).exists())
        .context("no free name for the output")?;
    let out = dir.join(format!("{name}.{unique}.out"));
    let err = dir.join(format!("{name}.{unique}.err"));
    command.stdin(input).stdout(File::create(&out)?).stderr(File::create(&err)?);
    let child = command
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    let pid = Pid::from_child(&child);
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(error) => {
            // Our child and not reaped, so the group is still its own.
            let _ = kill_process_group(pid, Signal::KILL);
            return Err(error).context("pidfd_open");
        }
    };
    Ok(Running { child, pidfd, name: name.to_owned(), out, err, reaped: false })
}

impl Running {
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The writing end of the pipe that the program reads, if it was started with one.
    pub fn input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// What the program printed so far.
    #[must_use]
    pub fn out(&self) -> String {
        read(&self.out)
    }

    /// What the program printed so far on stderr.
    #[must_use]
    pub fn err(&self) -> String {
        read(&self.err)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("{} to {}", signal.as_raw(), self.name))
    }

    /// Has the program ended within `limit`? Does not reap it.
    pub fn ended_within(&self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).context("the limit is too long")?;
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("poll of a pidfd"),
            }
        }
    }

    /// Errors if the program has ended already, with what it said.
    pub fn must_live(&mut self) -> Result<()> {
        if self.ended_within(Duration::ZERO)? {
            let ended = self.reap()?;
            bail!("{} ended: {} {}{}", self.name, ended.how(), tail(&ended.out), tail(&ended.err));
        }
        Ok(())
    }

    /// Waits for the end; a program that takes longer than `limit` is killed, and that is an error.
    pub fn finish(mut self, limit: Duration) -> Result<Ended> {
        let in_time = self.ended_within(limit)?;
        let ended = self.reap()?;
        if !in_time {
            let said = format!("{}{}", tail(&ended.out), tail(&ended.err));
            bail!("{} did not end within {:.0} s; it said: {said}", self.name, limit.as_secs_f64());
        }
        Ok(ended)
    }

    /// As [`finish`](Self::finish), but what else is in the group lives on.
    pub fn finish_alone(mut self, limit: Duration) -> Result<Ended> {
        if !self.ended_within(limit)? {
            bail!("{} did not end within {:.0} s", self.name, limit.as_secs_f64());
        }
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(Ended { status, out: read(&self.out), err: read(&self.err) })
    }

    /// As [`finish`](Self::finish), and the status must be 0.
    pub fn ok(self, limit: Duration) -> Result<String> {
        let name = self.name.clone();
        self.finish(limit)?.ok().with_context(|| name)
    }

    /// Asks the program to end, waits, and insists after `limit`. Errors if it had to insist.
    pub fn stop(self, signal: Signal, limit: Duration) -> Result<Ended> {
        self.signal(signal)?;
        self.finish(limit)
    }

    /// Kills the whole group and reaps the leader. Until then its pid cannot mean another process.
    fn reap(&mut self) -> Result<Ended> {
        let group = Pid::from_child(&self.child);
        let _ = kill_process_group(group, Signal::KILL);
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(Ended { status, out: read(&self.out), err: read(&self.err) })
    }

    /// The others of the group are gone, too (the leader has been reaped or is about to be).
    #[must_use]
    pub fn group_is_gone(pid: u32) -> bool {
        i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .is_none_or(|group| test_kill_process_group(group).is_err())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.reap();
        }
    }
}

/// Sends a signal to a process that is not our child. One that is gone already is no error.
pub fn signal_pid(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// A command from words, which is told to end when whoever started it is killed.
#[must_use]
pub fn command<I, S>(words: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).args(words);
    command
}

/// Tries until `limit` has passed; the last error is the answer.
pub fn eventually<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error)
                    .with_context(|| format!("still so after {:.1} s", limit.as_secs_f64()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The last lines of a program's output, for messages.
#[must_use]
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(12)..).unwrap_or_default();
    if last.is_empty() { String::new() } else { format!("\n  {}", last.join("\n  ")) }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => format!("{status:?}"),
    }
}
