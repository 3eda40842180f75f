//! The daemon's configuration, in TOML. `nk config check FILE` reads it as the daemon does.
//!
//! ```toml
//! socket = "/run/netkernel/nk.sock"
//! socket_mode = "0660"          # who may connect; by default everybody
//! socket_group = "root"
//! namespace = "host"            # of guests that name none
//!
//! [guest.web]                   # for `nk run --name web`
//! namespace = "netns:blue"
//! uid = 1000                    # who may run it, or [1000, 1001]; root and the daemon's user may
//! gid = [100]                   # or who is of these groups
//! listen = ["10.0.0.2:80", "[::]:1024-65535"]   # where it may listen; nowhere else
//! sockets_max = 4096
//! processes_max = 100
//! chunks_max = 2048             # of 16 KiB
//! out = "500Mbit/s"             # what it sends; kbit/s to Gbit/s, kB/s to GB/s
//! in = "1Gbit/s"                # what it receives
//! connections_per_s = 1000      # made and accepted
//! nqes_per_s = 1000000          # elements that it pushes
//! burst_ms = 20                 # of these rates, what may come at once after a pause
//! weight = 2                    # its part where guests compete; 1 to 64
//! port_min = 1024
//! names = false                 # no getaddrinfo: addresses only
//! nsm = "web"                   # otherwise the NSM with the fewest guests
//!
//! [nsm.kernel]                  # any names; with none there is one, "kernel", inline
//! default = true                # for guests that name none; where no NSM says so, all are
//!
//! [nsm.web]
//! stack = "kernel"
//! placement = "process"         # or "inline", in the daemon's poll thread: one at most
//! io = "auto"                   # or "epoll", "io_uring"
//! cores = [0]                   # where its threads may run
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nk_device::Addr;
use nk_engine::Listen;
use serde::Deserialize;
use toml::Spanned;

use crate::limits::{ByteRate, Change, GuestLimits};

/// Where the daemon's attach socket is by default.
pub const DEFAULT_SOCKET: &str = "/run/netkernel/nk.sock";
/// The lowest port that users other than root may bind, unless the configuration says otherwise.
const UNPRIVILEGED_PORT_MIN: u16 = 1024;

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Path of the attach socket.
    pub socket: Option<PathBuf>,
    /// Permissions of the attach socket, in octal.
    pub socket_mode: Option<Mode>,
    /// Its group, by name or number.
    pub socket_group: Option<String>,
    /// The file that this was read from.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// Namespace of guests whose `nk run` names none.
    pub namespace: Option<NamespaceName>,
    /// Guests by name.
    #[serde(default)]
    pub guest: BTreeMap<String, GuestConfig>,
    /// NSMs by name; see [`Config::nsms`].
    #[serde(default)]
    pub nsm: BTreeMap<String, NsmConfig>,
}

/// One guest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// Where its sockets are opened.
    pub namespace: Option<NamespaceName>,
    /// The users who may run it.
    pub uid: Option<Ids>,
    /// The groups whose members may.
    pub gid: Option<Ids>,
    /// Where it may listen; everywhere where nothing is said.
    pub listen: Option<Vec<ListenRule>>,
    /// Sockets.
    pub sockets_max: Option<u32>,
    /// Processes.
    pub processes_max: Option<u32>,
    /// Chunks.
    pub chunks_max: Option<u32>,
    /// What it sends.
    pub out: Option<ByteRate>,
    /// What it receives.
    #[serde(rename = "in")]
    pub input: Option<ByteRate>,
    /// Connections, made and accepted.
    pub connections_per_s: Option<u32>,
    /// Elements.
    pub nqes_per_s: Option<u32>,
    /// Bursts of these rates.
    pub burst_ms: Option<u32>,
    /// Its part where guests compete.
    pub weight: Option<u32>,
    /// Lowest port that it may bind.
    pub port_min: Option<u16>,
    /// Whether its questions about names are answered.
    pub names: Option<bool>,
    /// The NSM that serves it.
    pub nsm: Option<Spanned<String>>,
}

/// One number or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Ids {
    /// One.
    One(u32),
    /// Several.
    Many(Vec<u32>),
}

impl Ids {
    fn has(&self, id: u32) -> bool {
        match self {
            Ids::One(one) => *one == id,
            Ids::Many(all) => all.contains(&id),
        }
    }
}

/// Permissions in octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Mode(pub u32);

impl TryFrom<String> for Mode {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        let mode = u32::from_str_radix(&s, 8).ok().filter(|m| *m <= 0o777);
        mode.map(Mode).ok_or_else(|| {
            format!("{s:?} are no permissions: write them in octal, such as \"0660\"")
        })
    }
}

/// An address with a port or a range of ports.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ListenRule(pub Listen);

impl TryFrom<String> for ListenRule {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        let fail = || {
            format!(
                "{s:?} is no place to listen: write ADDRESS:PORT or ADDRESS:PORT-PORT, IPv6 addresses in brackets"
            )
        };
        let (ip, ports) = s.rsplit_once(':').ok_or_else(fail)?;
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |p: &str| p.parse::<u16>().map_err(|_| fail());
        let ports = port(first)?..=port(last)?;
        let addr = match ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')) {
            Some(ip) => Addr::v6(ip.parse::<Ipv6Addr>().map_err(|_| fail())?.octets(), 0, 0),
            None => Addr::v4(ip.parse::<Ipv4Addr>().map_err(|_| fail())?.octets(), 0),
        };
        if ports.is_empty() { Err(fail()) } else { Ok(ListenRule(Listen { addr, ports })) }
    }
}

/// One NSM.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NsmConfig {
    /// What it is.
    #[serde(default)]
    pub stack: StackName,
    /// Where it runs.
    #[serde(default)]
    pub placement: Placement,
    /// How it calls the kernel.
    #[serde(default)]
    pub io: Io,
    /// The CPUs on which its threads may run; all where none is named.
    #[serde(default)]
    pub cores: Vec<Spanned<usize>>,
    /// Whether guests that name no NSM may be given to it.
    #[serde(default)]
    pub default: bool,
}

impl NsmConfig {
    /// Numbers of its CPUs.
    #[must_use]
    pub fn core_numbers(&self) -> Vec<usize> {
        self.cores.iter().map(|c| *c.get_ref()).collect()
    }
}

/// A stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StackName {
    /// The host kernel's.
    #[default]
    Kernel,
}

/// How the kernel-stack NSM calls the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Io {
    /// With io_uring where it can be used.
    #[default]
    Auto,
    /// Without io_uring.
    Epoll,
    /// With io_uring, or not at all.
    IoUring,
}

impl Io {
    /// As the configuration has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Io::Auto => "auto",
            Io::Epoll => "epoll",
            Io::IoUring => "io_uring",
        }
    }
    /// As a word of a message.
    #[must_use]
    pub fn to_word(self) -> u64 {
        self as u64
    }
    /// Undoes [`Io::to_word`].
    #[must_use]
    pub fn from_word(word: u64) -> Io {
        [Io::Epoll, Io::IoUring].into_iter().find(|io| io.to_word() == word).unwrap_or_default()
    }
}

/// Where an NSM runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// In the daemon's poll thread.
    #[default]
    Inline,
    /// In a process of its own.
    Process,
}

/// `host`, or `netns:NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum NamespaceName {
    /// The host's.
    Host,
    /// A name under /var/run/netns, or a path.
    Named(String),
}

impl TryFrom<String> for NamespaceName {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        match s.strip_prefix("netns:") {
            Some(n) if !n.is_empty() && (n.starts_with('/') || !n.contains('/')) => {
                Ok(NamespaceName::Named(n.to_owned()))
            }
            None if s == "host" => Ok(NamespaceName::Host),
            _ => Err(format!("{s:?} is not a namespace: write \"host\" or \"netns:NAME\"")),
        }
    }
}

impl std::str::FromStr for NamespaceName {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        NamespaceName::try_from(s.to_owned())
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NamespaceName::Host => f.write_str("the host's network namespace"),
            NamespaceName::Named(n) => write!(f, "network namespace {n:?}"),
        }
    }
}

impl NamespaceName {
    /// Opens the namespace.
    ///
    /// # Errors
    /// Those of open; EINVAL when it is no network namespace.
    pub fn open(&self) -> io::Result<OwnedFd> {
        use std::os::fd::AsRawFd;
        let file = match self {
            NamespaceName::Host => open_host()?,
            NamespaceName::Named(n) if n.starts_with('/') => File::open(n)?,
            NamespaceName::Named(n) => File::open(Path::new("/var/run/netns").join(n))?,
        };
        if !crate::sys::is_netns(file.as_raw_fd()) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(file.into())
    }
}

/// The host's namespace is that of process 1. Whoever may not open that is still told whether it is its own: /proc/net's
/// entries are per namespace, and have an inode of their own in each.
fn open_host() -> io::Result<File> {
    use std::os::unix::fs::MetadataExt;
    let denied = match File::open("/proc/1/ns/net") {
        Ok(f) => return Ok(f),
        Err(e) => e,
    };
    let inode = |p: &str| std::fs::metadata(p).map(|m| (m.dev(), m.ino()));
    match (inode("/proc/1/net/unix"), inode("/proc/self/net/unix")) {
        (Ok(a), Ok(b)) if a == b => File::open("/proc/self/ns/net"),
        _ => Err(denied),
    }
}

impl GuestConfig {
    /// Whether this user, of these groups, may run it. Root and the daemon's user always may.
    #[must_use]
    pub fn admits(&self, uid: u32, gids: &[u32]) -> bool {
        self.uid.as_ref().is_some_and(|ids| ids.has(uid))
            || self.gid.as_ref().is_some_and(|ids| gids.iter().any(|gid| ids.has(*gid)))
    }

    /// Where it may listen.
    #[must_use]
    pub fn listen(&self) -> Option<Vec<Listen>> {
        Some(self.listen.as_ref()?.iter().map(|l| l.0.clone()).collect())
    }

    /// What is said of limits that can be changed, as changes.
    fn changes(&self) -> impl Iterator<Item = Result<Change, String>> {
        let number = |n: Option<u32>| n.map(u64::from);
        [
            ("out", self.out.map(|r| r.0)),
            ("in", self.input.map(|r| r.0)),
            ("nqes_per_s", number(self.nqes_per_s)),
            ("connections_per_s", number(self.connections_per_s)),
            ("sockets_max", number(self.sockets_max)),
            ("chunks_max", number(self.chunks_max)),
            ("processes_max", number(self.processes_max)),
            ("burst_ms", number(self.burst_ms)),
            ("weight", number(self.weight)),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .map(|(key, value)| match (value, format!("{key}={value}").parse::<Change>()) {
            // At run time 0 takes a limit away; here that is said by saying nothing.
            (0, Ok(_)) => Err(format!("{key}: at least 1; for no limit leave it out")),
            (_, change) => change,
        })
    }

    /// The limits for a guest of this user.
    #[must_use]
    pub fn limits(&self, uid: u32) -> GuestLimits {
        // The kernel itself holds users to this; a daemon that runs as root would not be held.
        let port_min = if uid == 0 { 0 } else { UNPRIVILEGED_PORT_MIN };
        let port_min = self.port_min.unwrap_or(port_min);
        let mut limits = GuestLimits { port_min, ..GuestLimits::default() };
        self.changes().flatten().for_each(|c| limits.change(c));
        limits
    }
}

impl Config {
    /// Reads and checks a file. The error names file, line and key.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let fail = |why: String| ConfigError { file: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        let place = |at: usize| {
            let line = text.get(..at).unwrap_or("").matches('\n').count() + 1;
            (line, text.lines().nth(line - 1).unwrap_or("").trim())
        };
        let mut config: Config = toml::from_str(&text).map_err(|e| {
            let (line, key) = place(e.span().map_or(0, |s| s.start));
            let why = e.message().trim_end().replace('\n', "; ");
            fail(format!("line {line}: {why} (at `{key}`)"))
        })?;
        config.check().map_err(|w| match w.at {
            Some(at) => {
                let (line, key) = place(at);
                fail(format!("line {line}: {} (at `{key}`)", w.why))
            }
            None => fail(w.why),
        })?;
        config.file = Some(path.to_owned());
        Ok(config)
    }

    fn check(&self) -> Result<(), Wrong> {
        self.check_nsms()?;
        if let Some(group) = &self.socket_group
            && crate::sys::group(group).is_none()
        {
            return Err(Wrong::new(format!("socket_group: there is no group {group:?}")));
        }
        for (name, g) in &self.guest {
            if let Some(why) = g.changes().find_map(Result::err) {
                return Err(Wrong::new(format!("guest.{name}.{why}")));
            }
            if let Some(nsm) = &g.nsm
                && !self.nsms().iter().any(|(n, _)| n == nsm.get_ref())
            {
                let why = format!("guest.{name}.nsm: there is no NSM {:?}", nsm.get_ref());
                return Err(Wrong { at: Some(nsm.span().start), why });
            }
        }
        Ok(())
    }

    fn check_nsms(&self) -> Result<(), Wrong> {
        let cores = crate::sys::cores_online();
        let mut inline = None;
        if self.nsm.len() > NSMS_MAX {
            return Err(Wrong::new(format!("nsm: {NSMS_MAX} at most")));
        }
        for (name, n) in &self.nsm {
            if !is_name(name) || name.len() > NSM_NAME_MAX {
                let why = format!(
                    "nsm.{name}: a name is 1 to {NSM_NAME_MAX} letters, digits, '.', '_' or '-'"
                );
                return Err(Wrong::new(why));
            }
            if n.placement == Placement::Inline
                && let Some(other) = inline.replace(name)
            {
                let why = format!(
                    "nsm.{name}: nsm.{other} is inline already, and the daemon has one poll thread; say placement = \"process\""
                );
                return Err(Wrong::new(why));
            }
            if let Some(core) = n.cores.iter().find(|c| !cores.contains(c.get_ref())) {
                let why = format!(
                    "nsm.{name}.cores: this machine has no CPU {} (it has {cores:?})",
                    core.get_ref()
                );
                return Err(Wrong { at: Some(core.span().start), why });
            }
        }
        Ok(())
    }

    /// The NSMs there are, by name; one "kernel", inline, where none is configured.
    #[must_use]
    pub fn nsms(&self) -> Vec<(String, NsmConfig)> {
        if self.nsm.is_empty() {
            return vec![("kernel".to_owned(), NsmConfig::default())];
        }
        self.nsm.iter().map(|(n, c)| (n.clone(), c.clone())).collect()
    }

    /// Puts the only NSM there is elsewhere than the file says.
    ///
    /// # Errors
    /// Where there are several.
    pub fn place(&mut self, placement: Placement) -> Result<(), String> {
        let [(name, _)] = &self.nsms()[..] else {
            return Err("there are several NSMs: their placement is the configuration's".into());
        };
        self.nsm.entry(name.clone()).or_default().placement = placement;
        Ok(())
    }

    /// What is said of a guest; the defaults when nothing is.
    #[must_use]
    pub fn guest(&self, name: &str) -> GuestConfig {
        self.guest.get(name).cloned().unwrap_or_default()
    }
}

/// NSMs at once.
pub const NSMS_MAX: usize = 64;
/// Letters of an NSM's name.
const NSM_NAME_MAX: usize = 32;

/// Whether guests and NSMs may have this name.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// What is wrong with a file, and at which byte of it.
#[derive(Debug)]
struct Wrong {
    at: Option<usize>,
    why: String,
}

impl Wrong {
    fn new(why: String) -> Wrong {
        Wrong { at: None, why }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct ConfigError {
    file: PathBuf,
    why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let mut p = std::env::temp_dir();
        p.push(format!("nk-config-{}-{:p}", std::process::id(), &raw const text));
        std::fs::write(&p, text).expect("write");
        let r = Config::read(&p).map_err(|e| e.to_string());
        std::fs::remove_file(&p).expect("remove");
        r
    }

    #[test]
    fn the_example_above_is_accepted() {
        let text: String = include_str!("config.rs")
            .lines()
            .skip_while(|l| *l != "//! ```toml")
            .skip(1)
            .take_while(|l| *l != "//! ```")
            .map(|l| format!("{}\n", l.trim_start_matches("//!")))
            .collect();
        let c = read(&text).expect("valid");
        let nsms = c.nsms();
        let [(kernel, first), (web, second)] = &nsms[..] else { panic!("{nsms:?}") };
        assert_eq!(
            (kernel.as_str(), first.placement, first.default),
            ("kernel", Placement::Inline, true)
        );
        assert_eq!(
            (web.as_str(), second.placement, second.io),
            ("web", Placement::Process, Io::Auto)
        );
        assert_eq!(second.core_numbers(), [0]);
        assert_eq!(c.guest("web").nsm.map(Spanned::into_inner).as_deref(), Some("web"));
        assert_eq!(c.guest("web").limits(1000).port_min, 1024);
        assert_eq!(c.guest("web").namespace, Some(NamespaceName::Named("blue".into())));
        assert_eq!(
            (c.guest("web").limits(0).out, c.guest("web").limits(0).weight),
            (62_500_000, 2)
        );
        assert_eq!(c.guest("other").limits(0), GuestLimits::default());
        let web = c.guest("web");
        assert!(web.admits(1000, &[1]) && web.admits(7, &[3, 100]) && !web.admits(7, &[1]));
        assert!(!c.guest("other").admits(1, &[1]));
        let rules = web.listen().expect("rules");
        assert_eq!(
            rules.iter().map(|l| l.ports.clone()).collect::<Vec<_>>(),
            [80..=80, 1024..=65535]
        );
        assert_eq!(c.socket_mode, Some(Mode(0o660)));
    }

    #[test]
    fn one_nsm_may_be_placed_from_outside_and_is_there_without_being_named() {
        let mut c = Config::default();
        c.place(Placement::Process).expect("one");
        assert_eq!(c.nsms().first().map(|n| n.1.placement), Some(Placement::Process));
        let mut c = read("[nsm.kernel]\nplacement = \"process\"\n[nsm.b]\n").expect("valid");
        c.place(Placement::Inline).expect_err("two");
    }

    #[test]
    fn mistakes_are_named_with_line_and_key() {
        let e = read("socket = \"/x\"\n\n[guest.web]\nsockets = 3\n").expect_err("unknown key");
        assert!(e.contains("line 4") && e.contains("sockets"), "{e}");
        let e = read("namespace = \"netns:\"\n").expect_err("bad value");
        assert!(e.contains("line 1") && e.contains("netns"), "{e}");
        let e = read("\n[guest.a]\nnsm = \"own\"\n").expect_err("no such NSM");
        assert!(e.contains("line 3") && e.contains("\"own\""), "{e}");
        let e = read("[nsm.a]\nplacement = \"process\"\ncores = [\n0, 99999]\n")
            .expect_err("no such CPU");
        assert!(e.contains("line 4") && e.contains("99999"), "{e}");
        let e = read("[nsm.a]\n[nsm.b]\n").expect_err("two inline");
        assert!(e.contains("nsm.b") && e.contains("inline"), "{e}");
        let e = read("[nsm.a]\nstack = \"own\"\n").expect_err("no such stack");
        assert!(e.contains("line 2"), "{e}");
        let e = read("[nsm.kernel]\nio = \"uring\"\n").expect_err("no such io");
        assert!(e.contains("line 2") && e.contains("io_uring"), "{e}");
        let e = read("[guest.a]\nprocesses_max = 0\n").expect_err("range");
        assert!(e.contains("guest.a.processes_max"), "{e}");
        for (wrong, why) in [
            ("socket_mode = \"rw\"", "octal"),
            ("socket_group = \"no such group\"", "no group"),
            ("[guest.a]\nlisten = [\"10.0.0.2\"]", "ADDRESS:PORT"),
            ("[guest.a]\nlisten = [\"::1:80\"]", "brackets"),
            ("[guest.a]\nlisten = [\"10.0.0.2:90-80\"]", "PORT-PORT"),
            ("[guest.a]\nuid = \"root\"", "uid"),
        ] {
            let e = read(wrong).expect_err(wrong);
            assert!(e.contains(why), "{e}");
        }
        let e = read("[guest.a]\nweight = 65\n").expect_err("range");
        assert!(e.contains("guest.a.weight: 1 to 64"), "{e}");
        let e = read("[guest.a]\n\nout = \"5 Mbps\"\n").expect_err("unit");
        assert!(e.contains("line 3") && e.contains("Mbit/s"), "{e}");
    }
}
