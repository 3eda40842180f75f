//! Private daemons: where they live, how one is started, and how the leftovers of a killed one are cleared away.
//!
//! Each has a directory of its own below a base directory of its user: `$XDG_RUNTIME_DIR/netkernel`, else
//! `/tmp/netkernel-UID`. The socket is made and listened on by whoever starts the daemon, so a connection can be made at once
//! and a directory without a listener behind its socket is always a leftover.

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::sys;

/// Name of the attach socket in a private daemon's directory.
pub const SOCKET_NAME: &str = "nk.sock";
fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The calling user's base directory.
#[must_use]
pub fn base() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(d) if Path::new(&d).is_absolute() && Path::new(&d).is_dir() => {
            Path::new(&d).join("netkernel")
        }
        _ => PathBuf::from(format!("/tmp/netkernel-{}", uid())),
    }
}

/// Processes of root may run as other users later (a server that drops its rights), and must reach the socket to attach
/// after an exec: the directory can be passed, not listed, and the guest's token is what admits. Others' are theirs alone.
fn modes() -> (u32, u32) {
    if uid() == 0 { (0o711, 0o666) } else { (0o700, 0o600) }
}

/// Somebody else may have made it first, in /tmp.
fn is_own(base: &Path) -> io::Result<bool> {
    let m = fs::symlink_metadata(base)?;
    Ok(m.is_dir() && m.uid() == uid() && m.mode() & 0o022 == 0)
}

fn make_base() -> io::Result<PathBuf> {
    let dir = base();
    match DirBuilder::new().mode(modes().0).create(&dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    if !is_own(&dir)? {
        return Err(io::Error::other(format!(
            "{} is not a directory of this user alone: remove it, or set XDG_RUNTIME_DIR",
            dir.display()
        )));
    }
    // XDG_RUNTIME_DIR itself may be closed to others; that cannot be helped here.
    let _ = fs::set_permissions(&dir, fs::Permissions::from_mode(modes().0));
    Ok(dir)
}

/// The attach sockets of this user's private daemons that are alive.
#[must_use]
pub fn sockets() -> Vec<PathBuf> {
    let base = base();
    if !is_own(&base).unwrap_or(false) {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(base) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|e| e.path().join(SOCKET_NAME))
        .filter(|p| sys::try_connect(p).is_ok())
        .collect();
    found.sort();
    found
}

/// The attach sockets of all users' private daemons, for root.
#[must_use]
pub fn sockets_of_all_users() -> Vec<PathBuf> {
    let below = |dir: &str, keep: fn(&str) -> bool| -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
        entries
            .flatten()
            .filter(|e| keep(&e.file_name().to_string_lossy()))
            .map(|e| e.path())
            .collect()
    };
    let mut bases = below("/tmp", |n| n.starts_with("netkernel-"));
    bases.extend(below("/run/user", |_| true).into_iter().map(|d| d.join("netkernel")));
    let mut found: Vec<PathBuf> = bases
        .iter()
        .filter_map(|b| fs::read_dir(b).ok())
        .flat_map(|entries| entries.flatten().map(|e| e.path().join(SOCKET_NAME)))
        .filter(|p| sys::try_connect(p).is_ok())
        .collect();
    found.sort();
    found
}

/// Removes directories whose daemon is gone.
fn clear_leftovers(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for e in entries.flatten() {
        let name = e.file_name();
        let name = name.to_string_lossy();
        // ".new-PID": being made by PID, which may have died over it.
        let stale = match name.strip_prefix(".new-") {
            Some(pid) => !Path::new("/proc").join(pid).exists(),
            None => sys::try_connect(&e.path().join(SOCKET_NAME)).is_err_and(|e| {
                matches!(e.raw_os_error(), Some(libc::ECONNREFUSED | libc::ENOENT))
            }),
        };
        if stale {
            remove(&e.path());
        }
    }
}

/// Removes a private daemon's directory and its socket, and nothing else.
pub fn remove(dir: &Path) {
    let _ = fs::remove_file(dir.join(SOCKET_NAME));
    let _ = fs::remove_file(crate::keeper::socket_path(&dir.join(SOCKET_NAME)));
    let _ = fs::remove_dir(dir);
}

/// Starts a private daemon, detached from this process in every way, and returns the path of its attach socket.
///
/// # Errors
/// When the directory, the socket or the process cannot be made.
pub fn start() -> io::Result<PathBuf> {
    let base = make_base()?;
    clear_leftovers(&base);
    let pid = std::process::id();
    let (dir_mode, socket_mode) = modes();
    let new = base.join(format!(".new-{pid}"));
    DirBuilder::new().mode(dir_mode).create(&new)?;
    let listener =
        sys::listen_at(&new.join(SOCKET_NAME), socket_mode).inspect_err(|_| remove(&new))?;
    let (a, _) = sys::random()?;
    let dir = base.join(format!("{pid}-{a:016x}"));
    fs::rename(&new, &dir).inspect_err(|_| remove(&new))?;
    spawn(&listener, &dir).inspect_err(|_| remove(&dir))?;
    Ok(dir.join(SOCKET_NAME))
}

/// Runs `nk daemon --private` behind the listening socket.
fn spawn(listener: &OwnedFd, dir: &Path) -> io::Result<()> {
    let dir = CString::new(dir.as_os_str().as_bytes())?;
    let log = match std::env::var_os("NK_LOG") {
        Some(p) => CString::new(std::path::absolute(p)?.as_os_str().as_bytes())?,
        None => c"/dev/null".to_owned(),
    };
    let argv =
        [c"nk".as_ptr(), c"daemon".as_ptr(), c"--private".as_ptr(), dir.as_ptr(), std::ptr::null()];
    crate::spawn::detached(crate::spawn::THIS, listener.as_raw_fd(), &argv, Some(&log))
}
