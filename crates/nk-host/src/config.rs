//! The daemon's configuration, in TOML. `nk config check FILE` reads it as the daemon does.
//!
//! ```toml
//! socket = "/run/netkernel/nk.sock"
//! socket_mode = "0660"          # who may connect; by default everybody
//! socket_group = "root"
//! namespace = "host"            # of guests that no section gives one, unless root or the daemon's user says --net; else that of who runs them
//!
//! [guest.web]                   # for `nk run --name web`
//! namespace = "netns:blue"
//! uid = 1000                    # who may run it, or [1000, 1001]; root and the daemon's user may
//! gid = [100]                   # or who is of these groups
//! listen = ["10.0.0.2:80", "[::]:1024-65535"]   # where it may listen; nowhere else
//! sockets_max = 4096
//! processes_max = 100
//! chunks_max = 2048             # of 32 KiB
//! out = "500Mbit/s"             # what it sends; kbit/s to Gbit/s, kB/s to GB/s
//! in = "1Gbit/s"                # what it receives
//! connections_per_s = 1000      # made and accepted
//! nqes_per_s = 1000000          # elements that it pushes
//! burst_ms = 20                 # of these rates, what may come at once after a pause
//! weight = 2                    # its part where guests compete; 1 to 64
//! port_min = 1024
//! names = false                 # no getaddrinfo: addresses only
//! nsm = "web"                   # otherwise the NSM with the fewest guests; ["a", "b"]: its connections are spread over them
//!
//! [guest.shop.net]              # its namespace is made, with lo; named as the guest, or by its namespace = "netns:NAME"
//! link = "veth"                 # or "macvlan"; without one there is lo alone
//! bridge = "br0"                # the host's end of a veth is put into it; without one it has host_addresses = [...]
//! addresses = ["10.0.0.2/24", "fd00::2/64"]
//! gateway = ["10.0.0.1", "fd00::1"]   # or one; parent = "eth0" is for macvlan
//!
//! [nsm.kernel]                  # any names; with none there is one, "kernel", inline
//! default = true                # for guests that name none; where no NSM says so, all are
//!
//! [nsm.web]
//! stack = "kernel"
//! placement = "process"         # or "inline", in the daemon's poll thread: one at most
//! io = "auto"                   # or "epoll", "io_uring"
//! cores = [0]                   # where its threads may run
//! grace_s = 60                  # how long its process goes on without a daemon
//! ```

mod guest;
mod namespace;
mod network;
mod nsm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use guest::{GuestConfig, Ids, ListenRule};
pub use namespace::NamespaceName;
pub use network::{Gateways, LinkKind, NetConfig};
pub use nsm::{Io, NSMS_MAX, NsmConfig, Placement, StackName};

/// Where the daemon's attach socket is by default.
pub const DEFAULT_SOCKET: &str = "/run/netkernel/nk.sock";

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
    /// Namespace of guests that no section gives one, unless the operator's `nk run` names one. Without it: that of who runs them.
    pub namespace: Option<NamespaceName>,
    /// Guests by name.
    #[serde(default)]
    pub guest: BTreeMap<String, GuestConfig>,
    /// NSMs by name; see [`Config::nsms`].
    #[serde(default)]
    pub nsm: BTreeMap<String, NsmConfig>,
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
            let why = in_words_of_toml(&e.message().trim_end().replace('\n', "; "));
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
        nsm::check(&self.nsm)?;
        network::check(&self.guest)?;
        if let Some(group) = &self.socket_group
            && crate::sys::group(group).is_none()
        {
            return Err(Wrong::new(format!("socket_group: there is no group {group:?}")));
        }
        if let Some(name) = self.guest.keys().find(|name| !is_name(name)) {
            return Err(Wrong::new(format!("guest.{name:?}: {GUEST_NAME}")));
        }
        for (name, g) in &self.guest {
            let Some(nsm) = &g.nsm else { continue };
            let (all, names) = (self.nsms(), nsm.get_ref().names());
            let unknown = names.iter().find(|name| !all.iter().any(|(n, _)| n == *name));
            let twice =
                names.iter().enumerate().find(|(at, n)| names.iter().take(*at).any(|o| o == *n));
            let why = match (unknown, twice) {
                (Some(unknown), _) => format!("there is no NSM {unknown:?}"),
                (_, Some((_, twice))) => format!("{twice:?} is named twice"),
                _ if names.is_empty() => "it names no NSM".to_owned(),
                _ => continue,
            };
            let why = format!("guest.{name}.nsm: {why}");
            return Err(Wrong { at: Some(nsm.span().start), why });
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

/// What [`is_name`] asks of a guest's.
pub(crate) const GUEST_NAME: &str = "a guest's name is 1 to 64 letters, digits, '.', '_' or '-'";

/// Whether guests and NSMs may have this name.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// The parser names what it expected in words of Rust's.
fn in_words_of_toml(why: &str) -> String {
    [
        ("expected a sequence", "expected a list: [...]"),
        ("expected a string", "expected text in quotes"),
        ("expected a boolean", "expected true or false"),
        ("expected u64", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected u16", "expected a number up to 65535"),
    ]
    .into_iter()
    .fold(why.to_owned(), |why, (from, to)| why.replace(from, to))
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
mod tests;
