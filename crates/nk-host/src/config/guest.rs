//! A guest as the configuration has it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use nk_device::Addr;
use nk_engine::Listen;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use toml::Spanned;

use super::{NamespaceName, NetConfig};
use crate::limits::{Change, GuestLimits, LIMITS, Limit};

/// The lowest port that users other than root may bind, unless the configuration says otherwise.
const UNPRIVILEGED_PORT_MIN: u16 = 1024;

/// One guest.
#[derive(Clone, Debug, Default)]
pub struct GuestConfig {
    /// Where its sockets are opened.
    pub namespace: Option<NamespaceName>,
    /// The network that is made for it.
    pub net: Option<Spanned<NetConfig>>,
    /// The users who may run it.
    pub uid: Option<Ids>,
    /// The groups whose members may.
    pub gid: Option<Ids>,
    /// Where it may listen; everywhere where nothing is said.
    pub listen: Option<Vec<ListenRule>>,
    /// Lowest port that it may bind.
    pub port_min: Option<u16>,
    /// Whether its questions about names and interfaces are answered.
    pub names: Option<bool>,
    /// The NSM that serves it, or several over which its sockets are spread.
    pub nsm: Option<Spanned<Nsms>>,
    /// What is said of its limits.
    limits: Vec<Change>,
}

/// Keys that are no limits.
const OTHER_KEYS: [&str; 8] =
    ["namespace", "net", "uid", "gid", "listen", "port_min", "names", "nsm"];

/// A key of a guest. Told apart while the key is read, so that an unknown one is reported with its line.
enum GuestKey {
    Limit(&'static Limit),
    Other(String),
}

impl<'de> Deserialize<'de> for GuestKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<GuestKey, D::Error> {
        let key = String::deserialize(d)?;
        if let Some(limit) = Limit::named(&key) {
            return Ok(GuestKey::Limit(limit));
        }
        if OTHER_KEYS.contains(&key.as_str()) {
            return Ok(GuestKey::Other(key));
        }
        let known: Vec<&str> =
            OTHER_KEYS.into_iter().chain(LIMITS.iter().map(|l| l.name)).collect();
        Err(D::Error::custom(format!("unknown key {key:?}; there are {}", known.join(", "))))
    }
}

impl<'de> Deserialize<'de> for GuestConfig {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<GuestConfig, D::Error> {
        d.deserialize_map(GuestVisitor)
    }
}

struct GuestVisitor;

impl<'de> Visitor<'de> for GuestVisitor {
    type Value = GuestConfig;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a guest's table")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<GuestConfig, A::Error> {
        let mut g = GuestConfig::default();
        while let Some(key) = map.next_key()? {
            let key = match key {
                GuestKey::Limit(limit) => {
                    g.limits.push(map.next_value_seed(limit)?);
                    continue;
                }
                GuestKey::Other(key) => key,
            };
            match key.as_str() {
                "namespace" => g.namespace = Some(map.next_value()?),
                "net" => g.net = Some(map.next_value()?),
                "uid" => g.uid = Some(map.next_value()?),
                "gid" => g.gid = Some(map.next_value()?),
                "listen" => g.listen = Some(map.next_value()?),
                "port_min" => g.port_min = Some(map.next_value()?),
                "names" => g.names = Some(map.next_value()?),
                _ => g.nsm = Some(map.next_value()?),
            }
        }
        Ok(g)
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

    /// The limits for a guest of this user.
    #[must_use]
    pub fn limits(&self, uid: u32) -> GuestLimits {
        // The kernel itself holds users to this; a daemon that runs as root would not be held.
        let port_min = if uid == 0 { 0 } else { UNPRIVILEGED_PORT_MIN };
        let port_min = self.port_min.unwrap_or(port_min);
        let mut limits = GuestLimits { port_min, ..GuestLimits::default() };
        self.limits.iter().for_each(|c| limits.change(*c));
        limits
    }
}

/// The name of an NSM, or of several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "the name of an NSM, or a list of such names")]
pub enum Nsms {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Nsms {
    /// Their names.
    #[must_use]
    pub fn names(&self) -> &[String] {
        match self {
            Nsms::One(one) => std::slice::from_ref(one),
            Nsms::Many(all) => all,
        }
    }
}

/// One number or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a number, or a list of numbers (`id NAME` tells a user's)")]
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
