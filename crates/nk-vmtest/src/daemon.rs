//! A daemon for the test, and the VM guest that it makes.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nk_attach::{CREATE_VM, Kind, Message};
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Pid, Signal, kill_process};

use crate::command::dies_along;
use crate::scenario::VmDevice;
use crate::{Error, Result};

const START_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// `nk daemon` on a socket of its own; stopped when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    nk: PathBuf,
    socket: PathBuf,
    log: PathBuf,
}

/// A VM guest: its device, and the connection that keeps it alive.
#[derive(Debug)]
pub struct VmGuest {
    /// The device.
    pub device: VmDevice,
    _connection: OwnedFd,
}

/// What the daemon counted of a guest.
#[derive(Clone, Debug)]
pub struct Counted(serde_json::Value);

impl Counted {
    /// The number at a JSON pointer.
    #[must_use]
    pub fn number(&self, at: &str) -> Option<u64> {
        self.0.pointer(at)?.as_u64()
    }
}

impl Daemon {
    /// Starts `nk` as a daemon, with its NSM `inline` or as a `process`, and waits until it serves.
    ///
    /// # Errors
    /// It ends, or does not serve within some seconds; the error carries its log.
    pub fn start(nk: &Path, nsm: &str, out: &Path) -> Result<Daemon> {
        let id = std::process::id();
        let socket = out.join(format!("daemon-{id}.sock"));
        let log = out.join("daemon.log");
        let mut command = Command::new(nk);
        command.args(["daemon", "--nsm", nsm, "--socket"]).arg(&socket).stdin(Stdio::null());
        command.stdout(File::create(&log)?).stderr(File::options().append(true).open(&log)?);
        dies_along(&mut command);
        let child = command.spawn().map_err(|e| Error::Command {
            command: nk.display().to_string(),
            said: e.to_string(),
        })?;
        let mut daemon = Daemon { child, nk: nk.to_owned(), socket, log };
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match daemon.connect() {
                Ok(_) => return Ok(daemon),
                Err(_) if daemon.child.try_wait()?.is_none() && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(_) => return Err(daemon.failed("it does not serve its socket")),
            }
        }
    }

    /// The attach socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What `nk guests --json` says of a guest.
    ///
    /// # Errors
    /// The daemon does not answer, or does not know the guest.
    pub fn counted(&self, name: &str) -> Result<Counted> {
        let said = crate::command::output(
            Command::new(&self.nk).args(["guests", "--json", "--engine"]).arg(&self.socket),
        );
        let guests: serde_json::Value = serde_json::from_slice(&said.stdout).map_err(|e| {
            self.failed(&format!("nk guests: {e}: {}", String::from_utf8_lossy(&said.stderr)))
        })?;
        let guest = guests
            .as_array()
            .and_then(|a| a.iter().find(|g| g.get("name").is_some_and(|n| n == name)));
        guest
            .cloned()
            .map(Counted)
            .ok_or_else(|| self.failed(&format!("nk guests does not list {name}")))
    }

    fn connect(&self) -> std::result::Result<OwnedFd, i32> {
        nk_attach::connect(self.socket.as_os_str().as_bytes()).map(own)
    }

    fn failed(&self, what: &str) -> Error {
        let said = std::fs::read(&self.log).unwrap_or_default();
        let said = format!("{what}\n{}", crate::command::tail(&said));
        Error::Command { command: "nk daemon".into(), said }
    }

    /// Makes a VM guest whose sockets live in this process's network namespace.
    ///
    /// # Errors
    /// The daemon refuses; the error carries its reason.
    pub fn create_vm(&self, name: &str) -> Result<VmGuest> {
        let connection =
            self.connect().map_err(|e| Error::Io(std::io::Error::from_raw_os_error(e)))?;
        let namespace = File::open("/proc/self/ns/net")?;
        let guest_eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(std::io::Error::from)?;
        let mut request = Message::new(Kind::CreateGuest).with_text(name);
        request.a = CREATE_VM;
        let raw = connection.as_raw_fd();
        nk_attach::send(raw, &request, &[namespace.as_raw_fd(), guest_eventfd.as_raw_fd()])
            .map_err(|e| Error::Io(std::io::Error::from_raw_os_error(e)))?;
        let (reply, mut fds, _) =
            nk_attach::recv(raw, false).map_err(|e| self.failed(&format!("no reply: {e:?}")))?;
        if reply.status != 0 {
            let why = reply.text().unwrap_or("?").to_owned();
            return Err(self.failed(&format!("a VM guest is refused: {why}")));
        }
        let mut take = |i| fds.take(i).map(own);
        let (Some(memfd), Some(engine_eventfd)) = (take(0), take(1)) else {
            return Err(self.failed("the reply came without descriptors"));
        };
        let device = VmDevice { memfd, engine_eventfd, guest_eventfd };
        Ok(VmGuest { device, _connection: connection })
    }
}

/// What nk-attach gives is open and nobody else's.
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: as said above.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Not yet waited for, so the number is still its.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.child.try_wait() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Both fail only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
