//! `nk daemon`: sets up logging, the attach socket and the server.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use nk_host::config::{Config, DEFAULT_SOCKET, Placement};
use nk_host::keeper::{self, Keeper};
use nk_host::server::{Server, Setup};
use nk_host::spawn::THIS;
use nk_host::{private, sys};

use crate::{Failure, NsmPlacement};

/// How long a daemon that hands over may take to end.
const HAND_OVER_MAX: Duration = Duration::from_secs(10);
/// The configuration is wrong: no reason to try again (EX_CONFIG of sysexits.h, which the systemd unit knows).
const STATUS_CONFIG: i32 = 78;

pub(crate) fn daemon(
    config: Option<&Path>,
    socket: Option<PathBuf>,
    nsm: Option<NsmPlacement>,
    replace: bool,
    private_dir: Option<PathBuf>,
) -> Result<(), Failure> {
    crate::log::start();
    let mut config = match config {
        Some(f) => Config::read(f).map_err(|e| Failure::new(STATUS_CONFIG, e.to_string()))?,
        None => Config::default(),
    };
    if let Some(p) = nsm {
        let placement = match p {
            NsmPlacement::Inline => Placement::Inline,
            NsmPlacement::Process => Placement::Process,
        };
        config.place(placement).map_err(|e| Failure::new(1, format!("--nsm: {e}")))?;
    }
    let fds = sys::raise_fd_limit();
    tracing::debug!(fds, "descriptor limit");
    if let Some(dir) = private_dir {
        sys::name_thread(c"nk");
        if std::env::var_os("NK_NSM").is_some_and(|v| v == "process") {
            config.place(Placement::Process).map_err(|e| Failure::new(1, e))?;
        }
        let listener = nk_host::spawn::passed()?;
        let path = keeper::socket_path(&dir.join(private::SOCKET_NAME));
        let keeper = Keeper::start(&path, Some(&dir)).context("cannot start the keeper")?;
        // Its end removes the directory, however this process ends.
        return serve(Setup {
            listener,
            config,
            private: true,
            keeper: Some(keeper),
            entries: Vec::new(),
            resolver: THIS,
        });
    }
    let path = socket.or_else(|| config.socket.clone()).unwrap_or_else(|| DEFAULT_SOCKET.into());
    let path = std::path::absolute(path)?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| {
            format!("cannot make {}; give --socket, or run it as root", dir.display())
        })?;
    }
    let keeper_path = keeper::socket_path(&path);
    let found = match Keeper::find(&keeper_path) {
        Err(e) if replace && e.raw_os_error() == Some(libc::EADDRINUSE) => {
            take_over(&path, &keeper_path, &config)
        }
        found => found.map_err(|e| unusable(&e, &path, &keeper_path)),
    }?;
    let (listener, keeper, entries) = match found {
        Some((keeper, mut entries)) => {
            let kept = entries.iter_mut().find(|e| e.class == keeper::CLASS_ATTACH);
            let kept = kept.and_then(|e| e.fds.pop()).filter(|_| path.exists());
            let listener = kept.map_or_else(|| listen(&path, &config), Ok)?;
            (listener, keeper, entries)
        }
        None => {
            let listener = listen(&path, &config)?;
            let keeper = Keeper::start(&keeper_path, None).context("cannot start the keeper")?;
            (listener, keeper, Vec::new())
        }
    };
    tracing::info!(socket = %path.display(), "serving");
    let keeper = Some(keeper);
    serve(Setup { listener, config, private: false, keeper, entries, resolver: THIS })
}

fn serve(setup: Setup) -> Result<(), Failure> {
    let mut server = Server::new(setup)?;
    server.run()?;
    // Nothing is undone: where another daemon takes over, it goes on with all of it.
    std::process::exit(0)
}

fn unusable(e: &std::io::Error, path: &Path, keeper_path: &Path) -> Failure {
    match e.raw_os_error() {
        Some(libc::EADDRINUSE) => serves_already(path),
        _ => Failure::new(1, format!("{}: {e}", keeper_path.display())),
    }
}

/// Has the daemon that serves end, and takes what it leaves. What can be found wrong is found before.
fn take_over(
    path: &Path,
    keeper_path: &Path,
    config: &Config,
) -> Result<Option<(Keeper, Vec<keeper::Entry>)>, Failure> {
    for (name, n) in config.nsms() {
        nk_host::nsm::kernel_stack(Box::new(nk_host::broker::Broker::new()), None, n.io)
            .map_err(|e| Failure::new(1, format!("NSM {name:?}: {e}")))?;
    }
    let order = format!("hand-over {}", nk_host::server::common_version());
    crate::ask::request(path, nk_attach::Kind::Order, &order).map_err(|why| {
        let text = format!("the daemon at {} does not hand over: {why}", path.display());
        Failure::new(1, text)
    })?;
    let end = Instant::now() + HAND_OVER_MAX;
    loop {
        match Keeper::find(keeper_path) {
            Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(2));
            }
            found => return found.map_err(|e| unusable(&e, path, keeper_path)),
        }
    }
}

fn serves_already(path: &Path) -> Failure {
    let text = format!("a daemon serves {} already; stop it, or give --socket", path.display());
    Failure::new(1, text)
}

/// Listens at the path; takes the place of a socket that nobody serves any more.
fn listen(path: &Path, config: &Config) -> Result<OwnedFd, Failure> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;
    if fs::symlink_metadata(path).is_ok() {
        match nk_attach::connect(path.as_os_str().as_bytes()) {
            Ok(fd) => {
                nk_attach::close_raw(fd);
                return Err(serves_already(path));
            }
            Err(libc::ECONNREFUSED) => {
                sys::remove_socket(path).with_context(|| {
                    format!("cannot remove the old {}; give --socket", path.display())
                })?;
            }
            Err(e) => {
                let e = std::io::Error::from_raw_os_error(e);
                return Err(Failure::new(1, format!("{}: {e}", path.display())));
            }
        }
    }
    // By default every user may connect: what each may do there is decided by its credentials.
    let mode = config.socket_mode.map_or(0o666, |m| m.0);
    let fd = sys::listen_at(path, 0o600)
        .with_context(|| format!("cannot listen at {}; give --socket", path.display()))?;
    let gid = config.socket_group.as_deref().and_then(sys::group);
    std::os::unix::fs::chown(path, None, gid)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("socket_mode, socket_group: {}", path.display()))?;
    Ok(fd)
}

pub(crate) fn nsm() -> Result<(), Failure> {
    crate::log::start();
    Ok(nk_host::nsm::run()?)
}

pub(crate) fn resolver() -> Result<(), Failure> {
    crate::log::start();
    Ok(nk_host::names::run()?)
}

pub(crate) fn keeper(socket: PathBuf, private: Option<PathBuf>) -> Result<(), Failure> {
    Ok(keeper::process::run(socket, private)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_nobody_serves_is_replaced() {
        let dir = std::env::temp_dir().join(format!("nk-daemon-{}", std::process::id()));
        fs::create_dir(&dir).expect("a directory");
        let path = dir.join("somebodys");
        fs::write(&path, "data").expect("a file");
        let refused = listen(&path, &Config::default()).expect_err("not its own");
        assert!(refused.text.contains("no socket"), "{}", refused.text);
        assert_eq!(fs::read_to_string(&path).expect("still there"), "data");
        let path = dir.join("old");
        drop(sys::listen_at(&path, 0o600).expect("listen"));
        let served = listen(&path, &Config::default()).expect("in its place");
        let refused = listen(&path, &Config::default()).expect_err("served");
        assert!(refused.text.contains("already"), "{}", refused.text);
        drop(served);
        fs::remove_dir_all(&dir).expect("removed");
    }
}
