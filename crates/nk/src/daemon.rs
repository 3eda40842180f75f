//! `nk daemon`: sets up logging, the attach socket and the server.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nk_host::config::{Config, DEFAULT_SOCKET, Placement};
use nk_host::server::{Server, Setup};
use nk_host::{private, sys};

use crate::{Failure, NsmPlacement};

fn log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .try_init();
}

pub(crate) fn daemon(
    config: Option<&Path>,
    socket: Option<PathBuf>,
    nsm: Option<NsmPlacement>,
    private_dir: Option<PathBuf>,
) -> Result<(), Failure> {
    log();
    let mut config = match config {
        Some(f) => Config::read(f)?,
        None => Config::default(),
    };
    if let Some(p) = nsm {
        let placement = match p {
            NsmPlacement::Inline => Placement::Inline,
            NsmPlacement::Process => Placement::Process,
        };
        config.nsm.entry("kernel".into()).or_default().placement = placement;
    }
    let fds = sys::raise_fd_limit();
    tracing::debug!(fds, "descriptor limit");
    if let Some(dir) = private_dir {
        let listener = sys::own(private::LISTEN_FD);
        let r = serve(listener, config, true);
        private::remove(&dir);
        return r;
    }
    let path = socket.or_else(|| config.socket.clone()).unwrap_or_else(|| DEFAULT_SOCKET.into());
    let listener = listen(&path)?;
    tracing::info!(socket = %path.display(), "serving");
    serve(listener, config, false)
}

fn serve(listener: OwnedFd, config: Config, private: bool) -> Result<(), Failure> {
    let mut server = Server::new(Setup { listener, config, private })?;
    Ok(server.run()?)
}

/// Listens at the path; takes the place of a socket that nobody serves any more.
fn listen(path: &Path) -> Result<OwnedFd, Failure> {
    use std::os::unix::ffi::OsStrExt;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    if fs::symlink_metadata(path).is_ok() {
        match nk_attach::connect(path.as_os_str().as_bytes()) {
            Ok(fd) => {
                nk_attach::close_raw(fd);
                let text = format!(
                    "a daemon serves {} already; stop it, or give --socket",
                    path.display()
                );
                return Err(Failure::new(1, text));
            }
            Err(libc::ECONNREFUSED) => {
                fs::remove_file(path)
                    .with_context(|| format!("cannot remove the old {}", path.display()))?;
            }
            Err(e) => {
                let e = std::io::Error::from_raw_os_error(e);
                return Err(Failure::new(1, format!("{}: {e}", path.display())));
            }
        }
    }
    // Every user may connect: what each may do there is decided by its credentials.
    let fd = sys::listen_at(path, 0o666)
        .with_context(|| format!("cannot listen at {}; give --socket", path.display()))?;
    Ok(fd)
}

pub(crate) fn nsm() -> Result<(), Failure> {
    Err(Failure::new(1, "`nk nsm` is started by `nk daemon --nsm process`"))
}

pub(crate) fn keeper() -> Result<(), Failure> {
    Err(Failure::new(1, "`nk keeper` is started by `nk daemon`"))
}
