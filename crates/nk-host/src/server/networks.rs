//! Guests' networks: those that are made for them, and a word about those that are the host's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use serde_json::{Value, json};

use super::{Reply, Server};
use crate::config::{GuestConfig, NamespaceName};
use crate::guest::Guest;
use crate::netns;

/// Listeners of the host that a warning names.
const NAMED_MAX: usize = 16;

impl Server {
    /// Makes what the configuration asks for, and takes away what it asks for no more. One that fails is tried again when its guest
    /// comes.
    pub(super) fn set_up_networks(&mut self) {
        let wanted: Vec<(String, GuestConfig)> =
            self.config.guest.iter().map(|(n, g)| (n.clone(), g.clone())).collect();
        for (guest, config) in &wanted {
            if let Some(Err(e)) = self.ensure_network(guest, config) {
                tracing::error!(guest, error = %e, "a guest's network cannot be made");
            }
        }
        self.remove_networks();
    }

    /// The namespace that is made for a guest; none where none is asked for.
    fn ensure_network(&mut self, guest: &str, config: &GuestConfig) -> Option<io::Result<OwnedFd>> {
        let (net, name) = (config.net.as_ref()?, config.made_namespace(guest)?);
        let made = netns::ensure(name, guest, net.get_ref());
        if made.is_ok() && self.networks.insert(guest.to_owned(), name.to_owned()).is_none() {
            tracing::info!(guest, namespace = name, "network made or found");
        }
        Some(made)
    }

    /// Takes networks away that are in the configuration no more, or under another name. A guest that runs there keeps it.
    pub(super) fn remove_networks(&mut self) {
        let made: Vec<String> = self.networks.keys().cloned().collect();
        for guest in made {
            self.remove_network(&guest);
        }
    }

    fn remove_network(&mut self, guest: &str) {
        let Some(name) = self.networks.get(guest) else { return };
        if self.config.guest(guest).made_namespace(guest) == Some(name) {
            return;
        }
        let key =
            NamespaceName::Named(name.clone()).open().and_then(|ns| crate::broker::key_of(&ns));
        if key.is_ok_and(|key| self.guests.values().any(|g| g.namespace == key)) {
            return;
        }
        match netns::remove(name, guest) {
            Ok(true) => tracing::info!(guest, namespace = name, "network removed"),
            Ok(false) => {
                tracing::warn!(
                    guest,
                    namespace = name,
                    "a network stays: processes are in its namespace, or it is another's"
                );
            }
            Err(e) => tracing::error!(guest, error = %e, "a network cannot be removed"),
        }
        self.networks.remove(guest);
    }

    /// The namespace that the configuration gives a guest.
    pub(super) fn configured_netns(
        &mut self,
        guest: &str,
        rules: &GuestConfig,
    ) -> Option<Result<OwnedFd, Reply>> {
        if let Some(made) = self.ensure_network(guest, rules) {
            return Some(made.map_err(|e| Reply::failed("cannot make the guest's network", &e)));
        }
        let ns = rules.namespace.as_ref()?;
        Some(ns.open().map_err(|e| Reply::failed(&format!("cannot open {ns}"), &e)))
    }

    /// Says once for each configured guest, and once for all others, that its sockets are the host's.
    pub(super) fn warn_of_host(&mut self, guest: &str, namespace: u64) {
        let is_host = |ns: OwnedFd| crate::broker::key_of(&ns).is_ok_and(|key| key == namespace);
        if self.private || !NamespaceName::Host.open().is_ok_and(is_host) {
            return;
        }
        let who = if self.config.guest.contains_key(guest) { guest } else { "" };
        if !self.warned.insert(who.to_owned()) {
            return;
        }
        let exposed = listeners_of_host();
        let shown = exposed.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(" ");
        let (guest, more) = (
            if who.is_empty() { "those without a section" } else { who },
            exposed.len().saturating_sub(NAMED_MAX),
        );
        tracing::warn!(
            guest,
            exposed = shown,
            more,
            "its sockets are in the host's network namespace: it reaches what listens there, and what it listens on is the host's"
        );
    }
}

/// What listens in the host's namespace, as the kernel's tables say.
fn listeners_of_host() -> Vec<String> {
    let mut all = Vec::new();
    for (file, is_listener) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        let text = fs::read_to_string(format!("/proc/1/net/{file}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let mut words = line.split_ascii_whitespace().skip(1);
            if let (Some(local), Some(_), Some(state)) = (words.next(), words.next(), words.next())
                && state == is_listener
                && let Some(local) = address(local)
            {
                all.push(format!("{}/{local}", file.trim_end_matches('6')));
            }
        }
    }
    all.sort();
    all.dedup();
    all
}

/// An address as the kernel's tables have it: words in the machine's order.
fn address(text: &str) -> Option<std::net::SocketAddr> {
    let (ip, port) = text.split_once(':').filter(|(ip, _)| [8, 32].contains(&ip.len()))?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<[u8; 4]>> = ip
        .as_bytes()
        .chunks(8)
        .map(|c| Some(u32::from_str_radix(std::str::from_utf8(c).ok()?, 16).ok()?.to_ne_bytes()))
        .collect();
    let bytes = words?.concat();
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => std::net::IpAddr::from(v4),
        Err(_) => std::net::IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?),
    };
    Some((ip, port).into())
}

/// Names and addresses of namespaces, each looked at once.
#[derive(Debug, Default)]
pub(super) struct Described(BTreeMap<u64, Value>);

impl Described {
    /// Those of a guest's.
    pub(super) fn of(&mut self, g: &Guest) -> Value {
        let describe = || {
            let name = netns::names().into_iter().find(|n| n.0 == g.namespace).map(|n| n.1);
            let host = NamespaceName::Host.open().and_then(|ns| crate::broker::key_of(&ns));
            let name = name.or_else(|| (host.ok()? == g.namespace).then(|| "host".to_owned()));
            let addresses = netns::addresses(&g.netns).ok();
            let addresses =
                addresses.map(|a| a.iter().map(ToString::to_string).collect::<Vec<_>>());
            json!({"name": name, "addresses": addresses})
        };
        self.0.entry(g.namespace).or_insert_with(describe).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let read = |text| address(text).map(|a| a.to_string());
        assert_eq!(read("0100007F:0050").as_deref(), Some("127.0.0.1:80"));
        let loopback = "00000000000000000000000001000000:1F90";
        assert_eq!(read(loopback).as_deref(), Some("[::1]:8080"));
        assert_eq!(read("0100007F"), None);
        assert_eq!(read("01:0050"), None);
    }

    #[test]
    fn what_listens_is_named() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let here =
            NamespaceName::Host.open().and_then(|ns| crate::broker::key_of(&ns)).expect("host");
        let own = fs::File::open("/proc/self/ns/net").expect("own").into();
        if crate::broker::key_of(&own).expect("key") == here {
            let wanted = format!("tcp/{}", server.local_addr().expect("address"));
            assert!(listeners_of_host().contains(&wanted));
        }
    }
}
