//! A conversation with the kernel about one network namespace's links, addresses and routes.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    MacVlanMode,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Prefix;

/// The kernel answers at once.
const ANSWER_MAX_S: u64 = 10;

/// The conversation.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A link that exists.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) alias: Option<String>,
}

impl Netlink {
    /// About the calling thread's namespace.
    pub(super) fn here() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        crate::sys::set_receive_timeout(&socket, ANSWER_MAX_S)?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// About another one. The socket belongs to it wherever it is used afterwards.
    pub(super) fn within(netns: &OwnedFd) -> io::Result<Netlink> {
        // Into its own an ordinary user may not move either.
        let own = std::fs::File::open("/proc/thread-self/ns/net")?.into();
        if crate::broker::key_of(&own)? == crate::broker::key_of(netns)? {
            return Netlink::here();
        }
        super::in_thread(|| {
            // This thread alone moves, and then ends.
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            Netlink::here()
        })
    }

    /// Asks, and waits for the answers or the word that it is done.
    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        // Some flags of a change are those of a dump under other names.
        let is_dump = matches!(message, RouteNetlinkMessage::GetAddress(_));
        header.flags = NLM_F_REQUEST | if is_dump { NLM_F_DUMP } else { NLM_F_ACK | flags };
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let m = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(io::Error::other)?;
                // Each is padded to four bytes.
                let len = (m.header.length as usize).next_multiple_of(4).max(4);
                rest = rest.get(len..).unwrap_or_default();
                if m.header.sequence_number != self.sequence {
                    continue;
                }
                match m.payload {
                    NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(m) => answers.push(m),
                    _ => {}
                }
            }
        }
    }

    fn tell(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, flags).map(drop)
    }

    /// A link by its name.
    pub(super) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut m = LinkMessage::default();
        m.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answers = match self.ask(RouteNetlinkMessage::GetLink(m), 0) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            other => other?,
        };
        Ok(answers.into_iter().find_map(|a| match a {
            RouteNetlinkMessage::NewLink(l) => Some(Link {
                index: l.header.index,
                alias: l.attributes.into_iter().find_map(|a| match a {
                    LinkAttribute::IfAlias(text) => Some(text),
                    _ => None,
                }),
            }),
            _ => None,
        }))
    }

    /// The index of a link that must be there.
    pub(super) fn index(&mut self, name: &str) -> io::Result<u32> {
        let link = self.link(name)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        Ok(link.index)
    }

    /// A pair of veth links: one here, in a bridge if one is named, and one in the other namespace.
    pub(super) fn add_veth(
        &mut self,
        name: &str,
        bridge: Option<u32>,
        far: &str,
        far_netns: &OwnedFd,
    ) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(far.to_owned()));
        peer.attributes.push(LinkAttribute::NetNsFd(far_netns.as_raw_fd()));
        let mut m = LinkMessage::default();
        m.attributes.push(LinkAttribute::IfName(name.to_owned()));
        m.attributes.extend(bridge.map(LinkAttribute::Controller));
        m.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.tell(RouteNetlinkMessage::NewLink(m), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// A macvlan link over one of here, in the other namespace.
    pub(super) fn add_macvlan(
        &mut self,
        parent: u32,
        far: &str,
        far_netns: &OwnedFd,
    ) -> io::Result<()> {
        let mut m = LinkMessage::default();
        m.attributes.push(LinkAttribute::IfName(far.to_owned()));
        m.attributes.push(LinkAttribute::NetNsFd(far_netns.as_raw_fd()));
        m.attributes.push(LinkAttribute::Link(parent));
        m.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::MacVlan),
            LinkInfo::Data(InfoData::MacVlan(vec![InfoMacVlan::Mode(MacVlanMode::Bridge)])),
        ]));
        self.tell(RouteNetlinkMessage::NewLink(m), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Puts a link up.
    pub(super) fn up(&mut self, index: u32) -> io::Result<()> {
        let mut m = LinkMessage::default();
        m.header.index = index;
        (m.header.flags, m.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
        self.tell(RouteNetlinkMessage::SetLink(m), 0)
    }

    /// Writes a link's alias, which `ip link` shows.
    pub(super) fn set_alias(&mut self, index: u32, alias: &str) -> io::Result<()> {
        let mut m = LinkMessage::default();
        m.header.index = index;
        m.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        self.tell(RouteNetlinkMessage::SetLink(m), 0)
    }

    /// Removes a link.
    pub(super) fn remove(&mut self, index: u32) -> io::Result<()> {
        let mut m = LinkMessage::default();
        m.header.index = index;
        self.tell(RouteNetlinkMessage::DelLink(m), 0)
    }

    /// Gives a link an address.
    pub(super) fn add_address(&mut self, index: u32, address: Prefix) -> io::Result<()> {
        let m = address_message(index, address);
        self.tell(RouteNetlinkMessage::NewAddress(m), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Takes an address away.
    pub(super) fn remove_address(&mut self, index: u32, address: Prefix) -> io::Result<()> {
        self.tell(RouteNetlinkMessage::DelAddress(address_message(index, address)), 0)
    }

    /// All addresses, with the index of their link; those that are of this link or host only are left out.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<(u32, Prefix)>> {
        let m = AddressMessage::default();
        let answers = self.ask(RouteNetlinkMessage::GetAddress(m), 0)?;
        let of = |a: RouteNetlinkMessage| {
            let RouteNetlinkMessage::NewAddress(m) = a else { return None };
            if m.header.scope != AddressScope::Universe {
                return None;
            }
            let own = |a: &AddressAttribute| match a {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            };
            let far = |a: &AddressAttribute| match a {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            };
            let ip =
                m.attributes.iter().find_map(own).or_else(|| m.attributes.iter().find_map(far));
            Some((m.header.index, Prefix { ip: ip?, len: m.header.prefix_len }))
        };
        Ok(answers.into_iter().filter_map(of).collect())
    }

    /// The default route of one family goes through this neighbour.
    pub(super) fn set_gateway(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let mut m = default_route(gateway.is_ipv4(), index);
        m.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        self.tell(RouteNetlinkMessage::NewRoute(m), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// There is no default route of this family through this link.
    pub(super) fn remove_gateway(&mut self, index: u32, is_v4: bool) -> io::Result<()> {
        match self.tell(RouteNetlinkMessage::DelRoute(default_route(is_v4, index)), 0) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }
}

fn family(is_v4: bool) -> AddressFamily {
    if is_v4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address_message(index: u32, address: Prefix) -> AddressMessage {
    let mut m = AddressMessage::default();
    m.header.index = index;
    m.header.family = family(address.ip.is_ipv4());
    m.header.prefix_len = address.len;
    // Usable at once: a server binds it in the next moment.
    m.header.flags = AddressHeaderFlags::Nodad;
    m.attributes.push(AddressAttribute::Local(address.ip));
    m.attributes.push(AddressAttribute::Address(address.ip));
    m
}

fn default_route(is_v4: bool, index: u32) -> RouteMessage {
    let mut m = RouteMessage::default();
    m.header.address_family = family(is_v4);
    m.header.table = RouteHeader::RT_TABLE_MAIN;
    m.header.protocol = RouteProtocol::Static;
    m.header.scope = RouteScope::Universe;
    m.header.kind = RouteType::Unicast;
    m.attributes.push(RouteAttribute::Oif(index));
    m
}
