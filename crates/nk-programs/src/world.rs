//! The surroundings of one test: a temporary directory, a daemon of its own, and how programs become guests.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nk_conformance::ports::Ports;
use rustix::process::Signal;

use crate::leaks;
use crate::process::{self, Running, eventually};

/// Where one program of a test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Plain,
    Guest,
}

/// Which of a test's two programs is a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    pub server: Side,
    pub client: Side,
}

impl Mode {
    pub const NATIVE: Mode = Mode { server: Side::Plain, client: Side::Plain };
    pub const GUEST_SERVER: Mode = Mode { server: Side::Guest, client: Side::Plain };
    pub const GUEST_CLIENT: Mode = Mode { server: Side::Plain, client: Side::Guest };
    pub const BOTH_GUESTS: Mode = Mode { server: Side::Guest, client: Side::Guest };

    #[must_use]
    pub fn name(self) -> &'static str {
        match (self.server, self.client) {
            (Side::Plain, Side::Plain) => "native",
            (Side::Guest, Side::Plain) => "guest server",
            (Side::Plain, Side::Guest) => "guest client",
            (Side::Guest, Side::Guest) => "both guests",
        }
    }
}

/// Where the NSM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nsm {
    #[default]
    Inline,
    Separate,
}

/// What all tests of a run have in common.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The `nk` binary; none: everything runs natively, to try the tests themselves.
    pub nk: Option<PathBuf>,
    pub nsm: Nsm,
    /// How the NSM calls the kernel: `io` of its configuration; none: as it does by default.
    pub io: Option<String>,
    /// Guests start private daemons instead of sharing the test's.
    pub private: bool,
    /// Words before the daemon's command, such as `taskset`.
    pub host_prefix: Vec<String>,
    /// Leave the temporary directories.
    pub keep: bool,
    /// A tenth of the connections and of the time of the safety tests.
    pub quick: bool,
    /// How often the tests that kill each part do it; none: as often as they do by themselves.
    pub kills: Option<u32>,
    /// More of the daemon's configuration: guests.
    pub config: String,
    /// What comes before its first section.
    pub config_head: String,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    pub running: Running,
    pub socket: PathBuf,
}

/// One test's surroundings. Dropping it removes the directory; [`close`](World::close) also checks for leaks.
#[derive(Debug)]
pub struct World {
    pub dir: PathBuf,
    pub options: Options,
    daemon: Option<Daemon>,
    files_before: BTreeSet<String>,
    idle_daemon: Option<leaks::DaemonState>,
    /// In the place of what the options say of the one NSM.
    nsms: Option<String>,
    /// Of the guests to be started; none: the name that `nk run` makes.
    guest_name: Option<String>,
}

/// The guest that each daemon's configuration gives no names.
pub const NAMELESS: &str = "nameless";

static SERIAL: AtomicU32 = AtomicU32::new(0);

impl World {
    /// Makes the directory and, where there are guests that share one, starts the daemon.
    pub fn new(options: &Options) -> Result<Self> {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!(
            "{}{}-{serial}",
            leaks::WORLD_NAME,
            std::process::id()
        ));
        fs::create_dir_all(leaks::runtime_dir(&dir)).with_context(|| dir.display().to_string())?;
        let mut world = World {
            files_before: leaks::files(&dir),
            dir,
            options: options.clone(),
            daemon: None,
            idle_daemon: None,
            nsms: None,
            guest_name: None,
        };
        if options.nk.is_some() && !options.private {
            world.start_daemon()?;
            world.idle_daemon = Some(world.warmed_up()?);
        }
        Ok(world)
    }

    /// How a daemon of this kind is when it has served and has no guest any more. All are started alike, so it is found out once:
    /// to wait for a guest's end takes longer than many a test.
    fn warmed_up(&self) -> Result<leaks::DaemonState> {
        type Kind = (Nsm, Option<String>, Option<String>, Vec<String>);
        static KNOWN: Mutex<Vec<(Kind, leaks::DaemonState)>> = Mutex::new(Vec::new());
        let options = &self.options;
        let (io, nsms) = (options.io.clone(), self.nsms.clone());
        let kind = (options.nsm, io, nsms, options.host_prefix.clone());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, state)) = known.iter().find(|(of, _)| *of == kind) {
            return Ok(state.clone());
        }
        self.warm_up()?;
        let state = leaks::DaemonState::of(self)?;
        known.push((kind, state.clone()));
        Ok(state)
    }

    /// One short guest, so that what the daemon opens once and keeps is open before anything is counted.
    fn warm_up(&self) -> Result<()> {
        let port = free_port()?;
        let url = format!("http://127.0.0.1:{port}/");
        let curl = self.start("warm-up", Side::Guest, &["/usr/bin/curl", "-s", "-m", "5", &url])?;
        let ended = curl.finish(Duration::from_secs(15)).context("the first guest")?;
        if ended.status.code() != Some(7) {
            bail!(
                "curl to a closed port should end with 7 (refused): {} {}",
                ended.how(),
                ended.err
            );
        }
        Ok(())
    }

    /// The daemon's socket, where the test has a daemon.
    #[must_use]
    pub fn daemon(&self) -> Option<&Daemon> {
        self.daemon.as_ref()
    }

    /// Ends the daemon and starts one with this configuration of guests and NSMs.
    pub fn configure(&mut self, nsms: &str) -> Result<()> {
        let daemon = self.daemon.take().context("this test has no daemon")?;
        daemon.running.signal(Signal::TERM)?;
        daemon.running.finish_alone(Duration::from_secs(10)).context("the daemon's end")?;
        self.nsms = Some(nsms.to_owned());
        self.start_daemon()?;
        self.idle_daemon = Some(self.warmed_up()?);
        Ok(())
    }

    /// Guests that are started from now on have this name.
    pub fn name_guests(&mut self, name: Option<&str>) {
        self.guest_name = name.map(str::to_owned);
    }

    /// Starts the daemon on this test's socket (again, where a test killed it).
    pub fn start_daemon(&mut self) -> Result<()> {
        let nk = self.nk()?.to_owned();
        let socket = self.dir.join("nk.sock");
        let config = self.dir.join("nk.toml");
        let placement = if self.options.nsm == Nsm::Inline { "inline" } else { "process" };
        let socket_text = socket.display().to_string();
        let mut text = format!(
            "socket = {socket_text:?}\n{}\n[nsm.kernel]\nplacement = \"{placement}\"\n",
            self.options.config_head
        );
        if let Some(io) = &self.options.io {
            text.push_str(&format!("io = {io:?}\n"));
        }
        if let Some(nsms) = &self.nsms {
            text = format!("socket = {socket_text:?}\n\n{nsms}");
        }
        text.push_str(&format!("\n[guest.{NAMELESS}]\nnames = false\n"));
        text.push_str(&self.options.config);
        fs::write(&config, text)?;
        let mut words = self.options.host_prefix.clone();
        words.extend([nk, "daemon".into(), "--config".into(), config.display().to_string()]);
        let mut command = process::command(words);
        self.surround(&mut command);
        let mut running = process::start(command, &self.dir, "daemon")?;
        eventually(Duration::from_secs(10), || {
            if running.ended_within(Duration::ZERO)? {
                bail!("the daemon ended: {}", process::tail(&running.err()));
            }
            self.control_at(&socket, &["guests"]).map(drop)
        })
        .or_else(|error| running.must_live().and(Err(error)))
        .context("nk daemon")?;
        self.daemon = Some(Daemon { running, socket });
        Ok(())
    }

    /// kill -9 of the daemon process; the keeper goes on.
    pub fn kill_daemon(&mut self) -> Result<()> {
        let daemon = self.daemon.take().context("there is no daemon to kill")?;
        // Only the process itself: the keeper must not be taken along.
        daemon.running.signal(Signal::KILL)?;
        daemon.running.finish_alone(Duration::from_secs(10))?;
        Ok(())
    }

    /// Another daemon takes over from the one that serves (`nk daemon --replace`).
    pub fn replace_daemon(&mut self) -> Result<()> {
        let old = self.daemon.take().context("there is no daemon to replace")?;
        let words = [self.nk()?, "daemon", "--replace", "--config", &self.path("nk.toml")];
        let mut command = process::command(words);
        self.surround(&mut command);
        let running = process::start(command, &self.dir, "daemon")?;
        let socket = old.socket.clone();
        let ended = old.running.finish_alone(Duration::from_secs(10)).context("the old daemon")?;
        self.daemon = Some(Daemon { running, socket });
        if !ended.status.success() {
            bail!("the old daemon ended with {}: {}", ended.how(), ended.err);
        }
        eventually(Duration::from_secs(10), || self.control(&["guests"]).map(drop))
    }

    /// The daemon and what it started: keeper, NSMs. Private daemons of this test's guests, too.
    pub fn nk_pids(&self) -> Result<Vec<u32>> {
        let found = leaks::nk_processes(self.options.nk.as_deref(), &self.dir)?;
        Ok(found.into_iter().collect())
    }

    /// The checksum of a file, by sha256sum.
    pub fn sha256(&self, path: &str) -> Result<String> {
        let words = ["/usr/bin/sha256sum", path];
        let line = self.run(Side::Plain, &words, Duration::from_secs(60))?;
        let sum = line.split_whitespace().next().context("sha256sum said nothing")?;
        Ok(sum.to_owned())
    }

    /// The binary's path as text.
    pub fn nk(&self) -> Result<&str> {
        let path = self.options.nk.as_deref().context("this run has no nk")?;
        path.to_str().context("the path of nk is not UTF-8")
    }

    /// What `nk guests` or `nk flows` print.
    pub fn control(&self, words: &[&str]) -> Result<String> {
        let daemon = self.daemon.as_ref().context("this test has no daemon")?;
        self.control_at(&daemon.socket, words)
    }

    fn control_at(&self, socket: &Path, words: &[&str]) -> Result<String> {
        let output = Command::new(self.nk()?)
            .args(words)
            .arg("--engine")
            .arg(socket)
            .output()
            .context("nk")?;
        if !output.status.success() {
            bail!("nk {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The words that come before a guest's command; none for a plain program.
    pub fn prefix(&self, side: Side) -> Result<Vec<String>> {
        self.prefix_named(side, None)
    }

    /// As [`prefix`](Self::prefix), for a guest that the configuration names.
    pub fn prefix_named(&self, side: Side, guest: Option<&str>) -> Result<Vec<String>> {
        if side == Side::Plain || self.options.nk.is_none() {
            return Ok(Vec::new());
        }
        let mut words = vec![self.nk()?.to_owned(), "run".to_owned()];
        if let Some(guest) = guest {
            words.extend(["--name".to_owned(), guest.to_owned()]);
        }
        if let Some(daemon) = &self.daemon {
            words.push("--engine".to_owned());
            words.push(daemon.socket.display().to_string());
        }
        if let Some(name) = &self.guest_name {
            words.extend(["--name".to_owned(), name.clone()]);
        }
        words.push("--".to_owned());
        Ok(words)
    }

    /// Starts a program on one side.
    pub fn start<S: AsRef<str>>(&self, name: &str, side: Side, words: &[S]) -> Result<Running> {
        self.start_with(name, side, words, |_| {})
    }

    /// As [`start`](Self::start), with changes to the command (environment, directory).
    pub fn start_with<S: AsRef<str>>(
        &self,
        name: &str,
        side: Side,
        words: &[S],
        change: impl FnOnce(&mut Command),
    ) -> Result<Running> {
        let prefix = self.prefix(side)?;
        let all = prefix.iter().map(String::as_str).chain(words.iter().map(AsRef::as_ref));
        let mut command = process::command(all);
        self.surround(&mut command);
        change(&mut command);
        process::start(command, &self.dir, name)
    }

    /// As [`start`](Self::start), as the guest of that name.
    pub fn start_as<S: AsRef<str>>(&self, guest: &str, words: &[S]) -> Result<Running> {
        let prefix = self.prefix_named(Side::Guest, Some(guest))?;
        let all = prefix.iter().map(String::as_str).chain(words.iter().map(AsRef::as_ref));
        let mut command = process::command(all);
        self.surround(&mut command);
        process::start(command, &self.dir, guest)
    }

    /// The daemon anew, with more configuration.
    pub fn restart_with(&mut self, config: &str) -> Result<()> {
        if let Some(daemon) = self.daemon.take() {
            daemon.running.signal(Signal::TERM)?;
            daemon.running.finish_alone(Duration::from_secs(10))?;
        }
        self.options.config = config.to_owned();
        self.start_daemon()?;
        self.warm_up()?;
        self.idle_daemon = Some(leaks::DaemonState::of(self)?);
        Ok(())
    }

    /// As [`start`](Self::start), with a pipe to the program's standard input.
    pub fn start_piped<S: AsRef<str>>(
        &self,
        name: &str,
        side: Side,
        words: &[S],
    ) -> Result<Running> {
        let prefix = self.prefix(side)?;
        let all = prefix.iter().map(String::as_str).chain(words.iter().map(AsRef::as_ref));
        let mut command = process::command(all);
        self.surround(&mut command);
        process::start_reading(command, &self.dir, name, Stdio::piped())
    }

    /// Private daemons live in the test's directory, and nothing is inherited from whoever runs the tests.
    fn surround(&self, command: &mut Command) {
        command
            .current_dir(&self.dir)
            .env("XDG_RUNTIME_DIR", leaks::runtime_dir(&self.dir))
            .env("LC_ALL", "C.UTF-8");
        for variable in
            ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "LD_PRELOAD", "PYTHONHOME"]
        {
            command.env_remove(variable).env_remove(variable.to_uppercase());
        }
    }

    /// Compiles one of this crate's small C programs and says where it is.
    pub fn compile(&self, name: &str, source: &str) -> Result<String> {
        let file = self.write(&format!("{name}.c"), source)?;
        let program = self.path(name);
        let words = ["/usr/bin/gcc", "-O2", "-pthread", "-Wall", "-Wextra", "-o", &program, &file];
        self.run(Side::Plain, &words, Duration::from_secs(60))?;
        Ok(program)
    }

    /// A full test's count or seconds, or a tenth of it in a quick run.
    #[must_use]
    pub fn scaled(&self, full: u64) -> u64 {
        if self.options.quick { (full / 10).max(1) } else { full }
    }

    /// Runs a program to its end; it must end with status 0 in time.
    pub fn run<S: AsRef<str>>(&self, side: Side, words: &[S], limit: Duration) -> Result<String> {
        let name = words
            .first()
            .map_or("program", |word| word.as_ref().rsplit('/').next().unwrap_or("program"));
        self.start(name, side, words)?.ok(limit)
    }

    /// A path in the directory, as text.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Writes a file into the directory and says where it is.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> Result<String> {
        let path = self.path(name);
        fs::write(&path, contents).with_context(|| path.clone())?;
        Ok(path)
    }

    /// Checks that nothing is left, ends the daemon, and checks again. Call it when all programs have ended.
    pub fn close(mut self) -> Result<()> {
        if let Some(before) = self.idle_daemon.take() {
            leaks::daemon_is_back(&self, &before)?;
        }
        if let Some(daemon) = self.daemon.take() {
            // Only the daemon is asked and awaited: what it started has to end by itself.
            daemon.running.signal(Signal::TERM)?;
            daemon.running.finish_alone(Duration::from_secs(10)).context("the daemon's end")?;
        }
        leaks::nothing_left(self.options.nk.as_deref(), &self.dir, &self.files_before)?;
        leaks::directory_is_empty(&leaks::runtime_dir(&self.dir).join("netkernel"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.daemon.take());
        leaks::kill_leftovers(self.options.nk.as_deref(), &self.dir);
        if !self.options.keep {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A port of this run alone that is free on both families.
pub fn free_port() -> Result<u16> {
    free_ports(1)
}

/// The first of several such ports in a row.
pub fn free_ports(count: u16) -> Result<u16> {
    static PORTS: Mutex<Option<Ports>> = Mutex::new(None);
    let mut slot = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    if slot.is_none() {
        *slot = Some(Ports::claim(1)?);
    }
    let ports = slot.as_mut().context("no ports")?;
    let is_free = |port| {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
            && TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok()
    };
    (0..1000)
        .map(|_| ports.take(count))
        .find(|first| (*first..first + count).all(is_free))
        .with_context(|| format!("found no {count} free ports in a row"))
}

/// Waits until something accepts at the port, and fails early when `server` has ended.
pub fn wait_for_port(server: &mut Running, port: u16) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let up = eventually(Duration::from_secs(15), || {
        if server.ended_within(Duration::ZERO)? {
            return Ok(false);
        }
        TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        Ok(true)
    });
    match up {
        Ok(true) => Ok(()),
        Ok(false) => server.must_live(),
        Err(error) => {
            let said = format!("{}{}", process::tail(&server.out()), process::tail(&server.err()));
            Err(error)
                .with_context(|| format!("{} does not accept at port {port}{said}", server.name()))
        }
    }
}

/// Waits until somebody listens at the port of 127.0.0.1 or of all addresses, without connecting: some servers serve one
/// connection only.
pub fn wait_for_listener(server: &mut Running, port: u16) -> Result<()> {
    let at_port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let (_, hex) = local.rsplit_once(':')?;
        (state == "0A" && u16::from_str_radix(hex, 16) == Ok(port)).then_some(())
    };
    eventually(Duration::from_secs(15), || {
        server.must_live()?;
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
        let mut lines = tables.iter().flatten().flat_map(|table| table.lines());
        lines.find_map(at_port).with_context(|| format!("nobody listens at port {port}"))
    })
}
