//! `nk run`: becomes the first process of a guest and then the command, in place.
//!
//! Order matters: everything that can be refused is looked at first; the daemon is reached while this process is still in the
//! caller's namespace; then the namespace goes, then the filter is put on, then exec.
//!
//! A program into which GuestLib did not load although the file looked right has no network: its namespace is empty, and the
//! filter, which holds with `--share-net` too, refuses it every IP socket. The daemon sees the exec (it closes the connection on
//! which the guest was made) and reports a process that has not attached some seconds later; it does not kill what may be
//! stopped in a debugger. A GuestLib that loads and cannot attach ends the process itself.

mod command;
mod library;
mod namespace;
mod seccomp;

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nk_attach::{CREATE_NET, CREATE_SHARE_NET, Kind, Message, env};
use nk_host::config::{DEFAULT_SOCKET, NamespaceName};
use nk_host::private;

use crate::Failure;
use crate::ask::{Asker, NoAnswer};

/// nk itself failed.
const STATUS_NK: i32 = 125;
/// Daemons that may be killed over the request for a guest.
const TRIES: u32 = 10;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) net: Option<NamespaceName>,
    pub(crate) name: Option<String>,
    pub(crate) engine: Option<PathBuf>,
    pub(crate) share_net: bool,
    pub(crate) command: Vec<OsString>,
}

fn failed(what: &str, e: impl std::fmt::Display) -> Failure {
    Failure::new(STATUS_NK, format!("{what}: {e}"))
}

/// Where libnetkernel.so is; it loads.
pub(crate) fn find_library() -> Result<String, Failure> {
    let library = library::find()?;
    library::check(&library)?;
    Ok(library.display().to_string())
}

/// Returns only on failure.
pub(crate) fn run(o: &Options) -> Result<(), Failure> {
    let Some(name) = o.command.first() else {
        return Err(Failure::new(STATUS_NK, "no command was given"));
    };
    let program = command::find(name)?;
    let library = library::find()?;
    library::check(&library)?;
    refuse_inherited_sockets()?;
    let netns = match &o.net {
        None => OwnedFd::from(
            File::open("/proc/self/ns/net")
                .map_err(|e| failed("cannot open /proc/self/ns/net", e))?,
        ),
        Some(ns) => ns.open().map_err(|e| {
            failed(
                &format!("cannot open {ns}"),
                format!("{e}; name one of `ip netns list`, or a path"),
            )
        })?,
    };
    let (mut asker, connection) = connect(o.engine.as_deref())?;
    let token = create(o, &mut asker, connection, &netns, name)?;
    drop(netns);
    if !o.share_net {
        namespace::leave()?;
    }
    seccomp::install(rustix::process::geteuid().is_root()).map_err(|e| {
        failed("cannot put on the seccomp filter that keeps the guest off the host's network", e)
    })?;
    exec(&program, o, asker.socket(), token, &library)
}

/// The connection that makes the guest; it is closed by exec, which tells the daemon that the command has started.
fn connect(engine: Option<&Path>) -> Result<(Asker, OwnedFd), Failure> {
    // As long as it takes: whoever stops and starts the daemon need not know who starts guests.
    let try_at = |socket: &Path| {
        let mut asker = Asker::new(socket, None);
        asker.connect().map(|connection| (asker, connection))
    };
    if let Some(p) = engine {
        let p = std::path::absolute(p).map_err(|e| failed("the working directory is gone", e))?;
        return try_at(&p).map_err(|e| {
            let text = format!("{e}; start one with `nk daemon --socket {}`", p.display());
            failed(&format!("no daemon answers at {}", p.display()), text)
        });
    }
    if let Ok(found) = try_at(Path::new(DEFAULT_SOCKET)) {
        return Ok(found);
    }
    let p = private::start().map_err(|e| failed("cannot start a private daemon", e))?;
    try_at(&p).map_err(|e| failed("the private daemon does not answer", e))
}

fn create(
    o: &Options,
    asker: &mut Asker,
    mut connection: OwnedFd,
    netns: &OwnedFd,
    command: &std::ffi::OsStr,
) -> Result<(u64, u64), Failure> {
    let name = o.name.clone().unwrap_or_else(|| {
        let base = Path::new(command).file_name().unwrap_or(command).to_string_lossy();
        let base: String = base
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
            .take(40)
            .collect();
        format!("{base}-{}", std::process::id())
    });
    let mut m = Message::new(Kind::CreateGuest).with_text(&name);
    if o.share_net {
        m.a |= CREATE_SHARE_NET;
    }
    if o.net.is_some() {
        m.a |= CREATE_NET;
    }
    let mut tries = TRIES;
    let reply = loop {
        match asker.ask(&connection, &m, &[netns.as_raw_fd()]) {
            Ok((reply, _)) => break reply,
            Err(NoAnswer::Refused(_, why)) => {
                return Err(failed("the daemon refuses the guest", why));
            }
            Err(NoAnswer::Ended) => {}
            Err(e) => return Err(failed("no answer of the daemon", e)),
        }
        // It was killed over it. Where another is to come, its keeper has the socket.
        tries -= 1;
        let again = (tries > 0).then(|| asker.connect().ok()).flatten();
        connection = again.ok_or_else(|| {
            let what = format!("the daemon at {} ended", asker.socket().display());
            failed(&what, "set NK_LOG=FILE to see why")
        })?;
    };
    // Stays open, close-on-exec, until the command runs.
    std::mem::forget(connection);
    Ok((reply.b, reply.c))
}

/// A socket of the host's stack that came by inheritance would be a way round NetKernel.
fn refuse_inherited_sockets() -> Result<(), Failure> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Ok(()) };
    for e in entries.flatten() {
        let Some(fd) = e.file_name().to_str().and_then(|s| s.parse::<i32>().ok()) else { continue };
        let mut domain = 0i32;
        let mut len = 4u32;
        // SAFETY: four bytes of ours and their length; other descriptors give an error.
        let r = unsafe {
            let out = (&raw mut domain).cast();
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, out, &raw mut len)
        };
        if r == 0 && [libc::AF_INET, libc::AF_INET6, libc::AF_PACKET].contains(&domain) {
            let text = format!(
                "descriptor {fd} is a network socket of the host, which a guest must not have; close it first ({fd}<&- in a shell)"
            );
            return Err(Failure::new(STATUS_NK, text));
        }
    }
    Ok(())
}

fn c_string(bytes: Vec<u8>) -> Result<CString, Failure> {
    CString::new(bytes).map_err(|e| failed("a NUL byte in an argument or variable", e))
}

fn exec(
    program: &CString,
    o: &Options,
    socket: &Path,
    token: (u64, u64),
    library: &Path,
) -> Result<(), Failure> {
    let argv =
        o.command.iter().map(|a| c_string(a.clone().into_vec())).collect::<Result<Vec<_>, _>>()?;
    let ours = ["LD_PRELOAD", env::SOCKET, env::TOKEN, env::LIBRARY];
    let mut preload = library.as_os_str().to_owned();
    let mut envp = Vec::new();
    for (name, value) in std::env::vars_os() {
        if name == "LD_PRELOAD" && !value.is_empty() {
            preload.push(":");
            preload.push(&value);
        }
        if !ours.iter().any(|n| name == *n) {
            envp.push(pair(name.as_bytes(), value.as_bytes())?);
        }
    }
    envp.push(pair(b"LD_PRELOAD", preload.as_bytes())?);
    envp.push(pair(env::SOCKET.as_bytes(), socket.as_os_str().as_bytes())?);
    envp.push(pair(env::TOKEN.as_bytes(), &env::format_token(token.0, token.1))?);
    envp.push(pair(env::LIBRARY.as_bytes(), library.as_os_str().as_bytes())?);
    let pointers =
        |v: &[CString]| v.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (argv_p, envp_p) = (pointers(&argv), pointers(&envp));
    // SAFETY: null-terminated arrays of C strings that live until the call returns, which it does only when it failed.
    unsafe { libc::execve(program.as_ptr(), argv_p.as_ptr(), envp_p.as_ptr()) };
    let e = std::io::Error::last_os_error();
    let e = if e.raw_os_error() == Some(libc::ENOEXEC) {
        command::as_shell_script(program, &argv, &envp)
    } else {
        e
    };
    let status = if e.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
    Err(Failure::new(status, format!("{}: {e}", program.to_string_lossy())))
}

fn pair(name: &[u8], value: &[u8]) -> Result<CString, Failure> {
    c_string([name, b"=", value].concat())
}
