//! Which network namespace.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use serde::Deserialize;

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
        let file = match self {
            NamespaceName::Host => open_host()?,
            NamespaceName::Named(n) if n.starts_with('/') => File::open(n)?,
            NamespaceName::Named(n) => File::open(Path::new(crate::netns::NAMES).join(n))?,
        };
        if !crate::sys::is_netns(&file) {
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
