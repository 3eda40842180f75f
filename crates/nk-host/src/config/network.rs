//! The network that a guest's sockets are to have, made for it: `[guest.NAME.net]`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rustix::net::{self, AddressFamily, SocketFlags, SocketType, netdevice};
use serde::Deserialize;
use toml::Spanned;

use super::{GuestConfig, NamespaceName, Wrong};
use crate::netns::{self, Prefix};

/// Addresses and gateways of one guest.
const ADDRESSES_MAX: usize = 64;

/// What is to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// How it is joined to the host's; by nothing where it is not said.
    pub link: Option<Spanned<LinkKind>>,
    /// The host's bridge that the host's end of a veth is put into.
    pub bridge: Option<Spanned<String>>,
    /// The host's link over which a macvlan lies.
    pub parent: Option<Spanned<String>>,
    /// Of the guest's end.
    #[serde(default)]
    pub addresses: Vec<Spanned<Prefix>>,
    /// Of the host's end of a veth that is in no bridge.
    #[serde(default)]
    pub host_addresses: Vec<Spanned<Prefix>>,
    /// Where all else goes; one of each family at most.
    pub gateway: Option<Spanned<Gateways>>,
}

/// A kind of link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// A pair, of which one end stays with the host.
    Veth,
    /// A second address of one of the host's links.
    Macvlan,
}

/// One address or several.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Gateways {
    /// One.
    One(IpAddr),
    /// Several.
    Many(Vec<IpAddr>),
}

impl NetConfig {
    /// The gateways.
    #[must_use]
    pub fn gateways(&self) -> &[IpAddr] {
        match self.gateway.as_ref().map(Spanned::get_ref) {
            Some(Gateways::One(one)) => std::slice::from_ref(one),
            Some(Gateways::Many(all)) => all,
            None => &[],
        }
    }

    /// What the kernel is not asked about.
    fn check(&self, guest: &str) -> Result<(), Wrong> {
        let wrong = |at: usize, key: &str, why: String| Wrong {
            at: Some(at),
            why: format!("guest.{guest}.net.{key}: {why}"),
        };
        let kind = self.link.as_ref().map(Spanned::get_ref);
        let of_link = |key, name: &Option<Spanned<String>>, wanted| match name {
            Some(n) if kind != Some(&wanted) => {
                let kind = if wanted == LinkKind::Veth { "veth" } else { "macvlan" };
                Err(wrong(n.span().start, key, format!("only of link = {kind:?}")))
            }
            Some(n) if !is_link(n.get_ref()) => {
                let why = format!("this machine has no link {:?}", n.get_ref());
                Err(wrong(n.span().start, key, why))
            }
            _ => Ok(()),
        };
        of_link("bridge", &self.bridge, LinkKind::Veth)?;
        of_link("parent", &self.parent, LinkKind::Macvlan)?;
        if let (Some(link), None) = (&self.link, &self.parent)
            && *link.get_ref() == LinkKind::Macvlan
        {
            let why = "a macvlan needs the host's link that it lies over: parent = \"...\"";
            return Err(wrong(link.span().start, "link", why.to_owned()));
        }
        if let Some(h) = self.host_addresses.first()
            && (kind != Some(&LinkKind::Veth) || self.bridge.is_some())
        {
            let why = "only of a veth that is in no bridge".to_owned();
            return Err(wrong(h.span().start, "host_addresses", why));
        }
        if let (Some(a), None) = (self.addresses.first(), kind) {
            let why =
                "there is no link that could have them: link = \"veth\" or \"macvlan\"".to_owned();
            return Err(wrong(a.span().start, "addresses", why));
        }
        if self.addresses.len() > ADDRESSES_MAX || self.host_addresses.len() > ADDRESSES_MAX {
            let at = self.addresses.first().or(self.host_addresses.first());
            let at = at.map_or(0, |a| a.span().start);
            return Err(wrong(at, "addresses", format!("{ADDRESSES_MAX} at most")));
        }
        let mut families = Vec::new();
        let at = self.gateway.as_ref().map_or(0, |g| g.span().start);
        for &ip in self.gateways() {
            if !self.addresses.iter().any(|a| a.get_ref().contains(ip)) {
                let why = format!("{ip} is in the subnet of none of the addresses");
                return Err(wrong(at, "gateway", why));
            }
            if families.contains(&ip.is_ipv4()) {
                return Err(wrong(at, "gateway", "one of each family at most".to_owned()));
            }
            families.push(ip.is_ipv4());
        }
        Ok(())
    }
}

/// Whether this namespace has a link of this name.
fn is_link(name: &str) -> bool {
    // As if_nametoindex asks.
    let (family, kind) = (AddressFamily::UNIX, SocketType::DGRAM);
    net::socket_with(family, kind, SocketFlags::CLOEXEC, None)
        .is_ok_and(|s| netdevice::name_to_index(s, name).is_ok())
}

/// Whether the networks that are asked for can be had side by side.
pub(super) fn check(guests: &BTreeMap<String, GuestConfig>) -> Result<(), Wrong> {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    // By what joins them: the same address may be used behind two bridges.
    let mut addresses: BTreeMap<(Option<&str>, IpAddr), String> = BTreeMap::new();
    for (guest, config) in guests {
        let Some(net) = &config.net else { continue };
        let at = net.span().start;
        let net = net.get_ref();
        net.check(guest)?;
        let wrong = |at: usize, why: String| Wrong { at: Some(at), why };
        let Some(name) = config.made_namespace(guest) else {
            let why = "a namespace that is made has a name: namespace = \"netns:NAME\"";
            return Err(wrong(at, format!("guest.{guest}.net: {why}")));
        };
        if let Some(other) = names.insert(name, guest) {
            let why =
                format!("guest.{guest}.net: namespace {name:?} is made for guest.{other} already");
            return Err(wrong(at, why));
        }
        if let Some(why) = netns::foreign(name, guest) {
            return Err(wrong(at, format!("guest.{guest}.net: {why}")));
        }
        let joined = net.bridge.as_ref().or(net.parent.as_ref()).map(|s| s.get_ref().as_str());
        for (key, list) in [("addresses", &net.addresses), ("host_addresses", &net.host_addresses)]
        {
            for a in list {
                let path = format!("guest.{guest}.net.{key}");
                let ip = a.get_ref().ip;
                if let Some(other) = addresses.insert((joined, ip), path.clone()) {
                    let why = format!("{path}: {ip} is given twice, first in {other}");
                    return Err(wrong(a.span().start, why));
                }
            }
        }
    }
    Ok(())
}

impl GuestConfig {
    /// The name of the namespace that is to be made: the guest's own, unless another is said.
    #[must_use]
    pub fn made_namespace<'a>(&'a self, guest: &'a str) -> Option<&'a str> {
        self.net.as_ref()?;
        match &self.namespace {
            None => Some(guest),
            Some(NamespaceName::Named(name)) if !name.starts_with('/') => Some(name),
            Some(_) => None,
        }
    }
}
