//! Network namespaces of guests that are made when the configuration asks for them, with their links, addresses and routes.
//!
//! They are names under `/run/netns`, so that `ip netns`, `ss -N`, `nft` and tcpdump work in them. Which are ours stands in the namespace
//! itself, in the alias of its `lo`: it survives the daemon, however that ends.

mod netlink;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change, unmount,
};
use serde::Deserialize;

use crate::config::{LinkKind, NetConfig};
use crate::sys::{self, check};
use netlink::Netlink;

/// Where `ip netns` keeps its names.
pub const NAMES: &str = "/var/run/netns";
/// The link in a namespace that we make.
const INSIDE: &str = "eth0";
/// Letters of a link's name.
const LINK_NAME_MAX: usize = 15;

/// An address and how much of it is the network's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Prefix {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network's part.
    pub len: u8,
}

impl TryFrom<String> for Prefix {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        let parsed = s.split_once('/').and_then(|(ip, len)| {
            let prefix = Prefix { ip: ip.parse().ok()?, len: len.parse().ok()? };
            (prefix.len <= if prefix.ip.is_ipv4() { 32 } else { 128 }).then_some(prefix)
        });
        let usable = |p: &Prefix| !p.ip.is_unspecified() && !p.ip.is_multicast();
        parsed.filter(usable).ok_or_else(|| {
            format!(
                "{s:?} is no address with a prefix: write such as \"10.0.0.2/24\" or \"fd00::2/64\""
            )
        })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.len)
    }
}

impl Prefix {
    /// Whether an address is in its network.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let differ = bits(self.ip) ^ bits(ip);
        self.ip.is_ipv4() == ip.is_ipv4() && differ.leading_zeros() >= u32::from(self.len)
    }
}

/// Does something in a thread of its own, which may change its namespaces.
fn in_thread<T: Send>(body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|s| {
        let thread = std::thread::Builder::new().name("nk-netns".into()).spawn_scoped(s, body)?;
        thread.join().map_err(|_| io::Error::other("it panicked"))?
    })
}

/// What the alias of `lo` says in a namespace that was made for this guest.
fn mark(guest: &str) -> String {
    format!("netkernel:{guest}")
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NAMES).join(name)
}

/// Opens a namespace by its name; none where there is none. A file without one is what a kill between making and mounting leaves.
fn open(name: &str) -> io::Result<Option<OwnedFd>> {
    match File::open(path_of(name)) {
        Ok(f) if sys::is_netns(&f) => Ok(Some(f.into())),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// What is wrong with a namespace of this name, where there is one that was not made for this guest. One that cannot be entered is not
/// judged: who may not do that makes none either.
pub(crate) fn foreign(name: &str, guest: &str) -> Option<String> {
    let fd = open(name).ok()??;
    let alias = Netlink::within(&fd).ok()?.link("lo").ok()??.alias;
    if alias.as_deref() == Some(&mark(guest)) {
        return None;
    }
    Some(match alias.as_deref().and_then(|a| a.strip_prefix("netkernel:")) {
        Some(other) => format!("namespace {name:?} was made for guest {other:?}"),
        None => format!(
            "there is a namespace {name:?} that NetKernel did not make; to use it as it is, leave the net section out"
        ),
    })
}

/// What failed.
fn context(what: impl fmt::Display) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

/// Makes what is missing of a guest's network, and changes what differs.
///
/// # Errors
/// With what failed. What was made until then stays, and is gone on with the next time.
pub fn ensure(name: &str, guest: &str, net: &NetConfig) -> io::Result<OwnedFd> {
    if let Some(why) = foreign(name, guest) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    let netns = match open(name)? {
        Some(fd) => fd,
        None => make(name, guest).map_err(context(format!("network namespace {name:?}")))?,
    };
    let mut inside = Netlink::within(&netns)?;
    let lo = inside.index("lo")?;
    inside.up(lo)?;
    ensure_link(&netns, &mut inside, guest, net)?;
    Ok(netns)
}

/// A new namespace, marked before it has its name.
fn make(name: &str, guest: &str) -> io::Result<OwnedFd> {
    let mark = mark(guest);
    let netns: OwnedFd = in_thread(move || {
        // SAFETY: plain numbers; this thread alone moves, and then ends.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        let mut inside = Netlink::here()?;
        let lo = inside.index("lo")?;
        inside.set_alias(lo, &mark)?;
        Ok(File::open("/proc/thread-self/ns/net")?.into())
    })?;
    shared_names()?;
    let path = path_of(name);
    File::options().write(true).create(true).truncate(false).open(&path)?;
    let from = format!("/proc/self/fd/{}", netns.as_raw_fd());
    mount_bind(from, &path)?;
    Ok(netns)
}

/// As `ip netns` does it: names made in one mount namespace are seen in the others, and can be removed from each.
fn shared_names() -> io::Result<()> {
    let dir = Path::new(NAMES);
    fs::create_dir_all(dir)?;
    let how = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    let share = || mount_change(dir, how);
    if let Err(e) = share() {
        // It is no mount of its own yet.
        if e != Errno::INVAL {
            return Err(e.into());
        }
        mount_bind_recursive(dir, dir)?;
        share()?;
    }
    Ok(())
}

/// What the link's alias says: how it was made.
fn link_mark(net: &NetConfig) -> Option<String> {
    let or_none =
        |s: &Option<toml::Spanned<String>>| s.as_ref().map_or("", |s| s.get_ref()).to_owned();
    Some(match net.link.as_ref()?.get_ref() {
        LinkKind::Veth => format!("netkernel:veth:{}", or_none(&net.bridge)),
        LinkKind::Macvlan => format!("netkernel:macvlan:{}", or_none(&net.parent)),
    })
}

fn ensure_link(
    netns: &OwnedFd,
    inside: &mut Netlink,
    guest: &str,
    net: &NetConfig,
) -> io::Result<()> {
    let found = inside.link(INSIDE)?;
    let wanted = link_mark(net);
    let alias = found.as_ref().and_then(|l| l.alias.clone());
    // The alias is written last, so a link without one was not finished.
    if let Some(link) = found.filter(|_| alias != wanted) {
        inside.remove(link.index)?;
    }
    let Some(wanted) = wanted else { return Ok(()) };
    let mut host = Netlink::here()?;
    if alias.as_ref() != Some(&wanted) {
        add_link(&mut host, netns, guest, net)?;
    }
    let index = inside.index(INSIDE)?;
    let addresses = net.addresses.iter().map(|a| *a.get_ref()).collect::<Vec<_>>();
    set_addresses(inside, index, &addresses)?;
    inside.up(index).map_err(context(format!("{INSIDE}: up")))?;
    if net.link.as_ref().is_some_and(|l| *l.get_ref() == LinkKind::Veth) {
        let name = host_link(guest);
        let end = host.index(&name)?;
        if net.bridge.is_none() {
            let addresses = net.host_addresses.iter().map(|a| *a.get_ref()).collect::<Vec<_>>();
            set_addresses(&mut host, end, &addresses)?;
        }
        host.up(end).map_err(context(format!("{name}: up")))?;
    }
    for is_v4 in [true, false] {
        match net.gateways().iter().find(|g| g.is_ipv4() == is_v4) {
            Some(&g) => inside.set_gateway(index, g).map_err(context(format!("gateway {g}")))?,
            None => inside.remove_gateway(index, is_v4)?,
        }
    }
    inside.set_alias(index, &wanted)
}

fn add_link(host: &mut Netlink, netns: &OwnedFd, guest: &str, net: &NetConfig) -> io::Result<()> {
    let index = |host: &mut Netlink, name: &Option<toml::Spanned<String>>| match name {
        Some(n) => host.index(n.get_ref()).map(Some).map_err(context(n.get_ref())),
        None => Ok(None),
    };
    let not_there = "this kernel has no such links? `nk doctor` tries them";
    match net.link.as_ref().map(toml::Spanned::get_ref) {
        Some(LinkKind::Veth) => {
            let bridge = index(host, &net.bridge)?;
            let name = host_link(guest);
            // The other half of one that was just removed goes with it; one that is left is somebody else's.
            host.add_veth(&name, bridge, INSIDE, netns).map_err(|e| match e.raw_os_error() {
                Some(libc::EEXIST) => context(format!("the host has a link {name} already"))(e),
                Some(libc::EOPNOTSUPP) => context(format!("veth {name}: {not_there}"))(e),
                _ => context(format!("veth {name}"))(e),
            })?;
            let end = host.index(&name)?;
            host.set_alias(end, &mark(guest))
        }
        Some(LinkKind::Macvlan) => {
            let parent = index(host, &net.parent)?
                .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
            host.add_macvlan(parent, INSIDE, netns).map_err(|e| match e.raw_os_error() {
                Some(libc::EOPNOTSUPP) => context(format!("macvlan: {not_there}"))(e),
                _ => context("macvlan")(e),
            })
        }
        None => Ok(()),
    }
}

/// The name of the host's end of a guest's veth: as much of the guest's as there is room for, and what tells it from others.
fn host_link(guest: &str) -> String {
    let whole = format!("nk-{guest}");
    if whole.len() <= LINK_NAME_MAX {
        return whole;
    }
    // FNV-1a.
    let hash =
        guest.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    format!("{}-{:06x}", whole.get(..LINK_NAME_MAX - 7).unwrap_or(&whole), hash & 0xff_ffff)
}

fn set_addresses(of: &mut Netlink, index: u32, wanted: &[Prefix]) -> io::Result<()> {
    let have: Vec<Prefix> =
        of.addresses()?.into_iter().filter(|a| a.0 == index).map(|a| a.1).collect();
    for a in have.iter().filter(|a| !wanted.contains(a)) {
        of.remove_address(index, *a).map_err(context(a))?;
    }
    for a in wanted.iter().filter(|a| !have.contains(a)) {
        of.add_address(index, *a).map_err(context(a))?;
    }
    Ok(())
}

/// Takes the name of a namespace away that was made for this guest, unless somebody is in it; whether it is gone. With its last user
/// the kernel removes the rest, links included.
///
/// # Errors
/// Those of umount.
pub fn remove(name: &str, guest: &str) -> io::Result<bool> {
    let Some(netns) = open(name)? else { return Ok(true) };
    if foreign(name, guest).is_some() || is_inhabited(sys::identity(&netns)?) {
        return Ok(false);
    }
    // Sockets that are left, such as those that end a connection, do not keep the link.
    let mut inside = Netlink::within(&netns)?;
    if let Some(link) = inside.link(INSIDE)? {
        inside.remove(link.index)?;
    }
    let path = path_of(name);
    unmount(&path, UnmountFlags::DETACH)?;
    fs::remove_file(path)?;
    Ok(true)
}

/// Whether a process is in the namespace.
fn is_inhabited(identity: (u64, u64)) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return true };
    processes.flatten().any(|p| {
        let of = fs::metadata(p.path().join("ns/net"));
        of.is_ok_and(|m| (m.dev(), m.ino()) == identity)
    })
}

/// The names that namespaces have here, by inode.
#[must_use]
pub fn names() -> Vec<(u64, String)> {
    let Ok(dir) = fs::read_dir(NAMES) else { return Vec::new() };
    let mut all: Vec<(u64, String)> = dir
        .flatten()
        .filter_map(|e| {
            Some((fs::metadata(e.path()).ok()?.ino(), e.file_name().into_string().ok()?))
        })
        .collect();
    all.sort();
    all
}

/// Addresses in a namespace that reach beyond it.
///
/// # Errors
/// Where it cannot be entered.
pub fn addresses(netns: &OwnedFd) -> io::Result<Vec<Prefix>> {
    Ok(Netlink::within(netns)?.addresses()?.into_iter().map(|a| a.1).collect())
}

/// Makes a link of a kind in the calling thread's namespace, to see whether this kernel has it.
///
/// # Errors
/// The kernel's.
pub fn probe(kind: LinkKind) -> io::Result<()> {
    let mut here = Netlink::here()?;
    let own: OwnedFd = File::open("/proc/thread-self/ns/net")?.into();
    here.add_veth("nk-probe0", None, "nk-probe1", &own)?;
    if kind == LinkKind::Veth {
        return Ok(());
    }
    let parent = here.index("nk-probe0")?;
    here.add_macvlan(parent, "nk-probe2", &own)
}

#[cfg(test)]
mod tests;
