//! Questions about names and interfaces, and their answers: one packet each way between a guest's process and its resolver.
//!
//! A question is what the program passed to the C library's function, an answer what the function gave in the namespace of
//! the guest's sockets. Both are words of four bytes in the machine's order; bytes carry their length in front, `NONE` for a null
//! pointer. Either end may lie: what does not parse to its last byte is no question and no answer.

mod host;
mod packet;

pub use host::{HOST_NOT_FOUND, Host, List, NETDB_INTERNAL, NO_RECOVERY, TRY_AGAIN, address_len};
pub use packet::{Reader, Writer};

/// Bytes of a question, at most. A DNS name has 255.
pub const QUESTION_MAX: usize = 4096;
/// Bytes of an answer, at most: about 4,000 addresses.
pub const ANSWER_MAX: usize = 160 * 1024;
/// Bytes of a socket address, at most (`sockaddr_storage`).
pub const ADDRESS_MAX: usize = 128;

/// Bits of a resolver state's `options` that are set unless somebody clears them: RECURSE, DEFNAMES, DNSRCH.
pub const RES_DEFAULT: u32 = 0x40 | 0x80 | 0x200;

/// `code` of an [`Outcome`] when the resolver has too much to do; the question was not looked at.
pub const BUSY: i32 = i32::MIN;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// getaddrinfo.
    Addresses {
        /// The host, or null.
        node: Option<&'a [u8]>,
        /// The service, or null.
        service: Option<&'a [u8]>,
        /// `ai_flags`, `ai_family`, `ai_socktype`, `ai_protocol`.
        hints: [i32; 4],
    },
    /// getnameinfo.
    Name {
        /// The socket address.
        address: &'a [u8],
        /// NI_* flags.
        flags: i32,
        /// Whether the host and the service are asked for.
        wanted: [bool; 2],
    },
    /// gethostbyname (family 0) and gethostbyname2.
    HostByName {
        /// The host.
        name: &'a [u8],
        /// AF_*, or 0.
        family: i32,
    },
    /// gethostbyaddr.
    HostByAddress {
        /// The address.
        address: &'a [u8],
        /// AF_*.
        family: i32,
    },
    /// res_query, or res_search.
    Records {
        /// The domain.
        name: &'a [u8],
        /// Class and type.
        class_and_type: [i32; 2],
        /// Whether the search list is applied.
        search: bool,
        /// The `options` of the program's resolver state, low half.
        options: u32,
    },
    /// res_send.
    Message {
        /// The DNS message.
        message: &'a [u8],
        /// As above.
        options: u32,
    },
    /// getifaddrs.
    Interfaces,
    /// An ioctl about one interface, or SIOCGIFCONF (netdevice(7)): one of [`INTERFACE_REQUESTS`].
    InterfaceRequest {
        /// The family of the socket that it is made on.
        family: i32,
        /// SIOCGIF*.
        request: u32,
        /// `struct ifreq`; zeroes for SIOCGIFCONF.
        ifreq: &'a [u8],
    },
}

/// Bytes of `struct ifreq`.
pub const IFREQ: usize = 40;
/// SIOCGIFCONF: the answer is as many `struct ifreq` as there are.
pub const SIOCGIFCONF: u32 = 0x8912;
/// The requests that only read, and whose argument holds no pointer: SIOCGIFNAME, SIOCGIFCONF, SIOCGIFFLAGS, SIOCGIFADDR,
/// SIOCGIFDSTADDR, SIOCGIFBRDADDR, SIOCGIFNETMASK, SIOCGIFMETRIC, SIOCGIFMTU, SIOCGIFHWADDR, SIOCGIFINDEX, SIOCGIFTXQLEN,
/// SIOCGIFMAP.
pub const INTERFACE_REQUESTS: [u32; 13] = [
    0x8910,
    SIOCGIFCONF,
    0x8913,
    0x8915,
    0x8917,
    0x8919,
    0x891b,
    0x891d,
    0x8921,
    0x8927,
    0x8933,
    0x8942,
    0x8970,
];

const ADDRESSES: u32 = 1;
const NAME: u32 = 2;
const HOST_BY_NAME: u32 = 3;
const HOST_BY_ADDRESS: u32 = 4;
const RECORDS: u32 = 5;
const MESSAGE: u32 = 6;
const INTERFACES: u32 = 7;
const INTERFACE_REQUEST: u32 = 8;

impl<'a> Question<'a> {
    /// Writes the question; its length, or `None` when it does not fit.
    #[must_use]
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        let end = out.len().min(QUESTION_MAX);
        let mut w = Writer::new(out.get_mut(..end)?);
        match *self {
            Question::Addresses { node, service, hints } => {
                w.word(ADDRESSES);
                for h in hints {
                    w.int(h);
                }
                w.bytes(node);
                w.bytes(service);
            }
            Question::Name { address, flags, wanted: [host, service] } => {
                w.word(NAME);
                w.int(flags);
                w.word(u32::from(host) | u32::from(service) << 1);
                w.bytes(Some(address));
            }
            Question::HostByName { name, family } => {
                w.word(HOST_BY_NAME);
                w.int(family);
                w.bytes(Some(name));
            }
            Question::HostByAddress { address, family } => {
                w.word(HOST_BY_ADDRESS);
                w.int(family);
                w.bytes(Some(address));
            }
            Question::Records { name, class_and_type: [class, kind], search, options } => {
                w.word(RECORDS);
                w.int(class);
                w.int(kind);
                w.word(search.into());
                w.word(options);
                w.bytes(Some(name));
            }
            Question::Message { message, options } => {
                w.word(MESSAGE);
                w.word(options);
                w.bytes(Some(message));
            }
            Question::Interfaces => w.word(INTERFACES),
            Question::InterfaceRequest { family, request, ifreq } => {
                w.word(INTERFACE_REQUEST);
                w.int(family);
                w.word(request);
                w.bytes(Some(ifreq));
            }
        }
        w.finish()
    }

    /// Reads a question.
    #[must_use]
    pub fn parse(packet: &'a [u8]) -> Option<Question<'a>> {
        if packet.len() > QUESTION_MAX {
            return None;
        }
        let mut r = Reader::new(packet)?;
        let question = match r.word()? {
            ADDRESSES => Question::Addresses {
                hints: [r.int()?, r.int()?, r.int()?, r.int()?],
                node: r.bytes()?,
                service: r.bytes()?,
            },
            NAME => {
                let flags = r.int()?;
                let wanted = r.word()?;
                if wanted > 3 {
                    return None;
                }
                let address = r.bytes()??;
                if address.len() > ADDRESS_MAX {
                    return None;
                }
                Question::Name { address, flags, wanted: [wanted & 1 != 0, wanted & 2 != 0] }
            }
            HOST_BY_NAME => Question::HostByName { family: r.int()?, name: r.bytes()?? },
            HOST_BY_ADDRESS => Question::HostByAddress { family: r.int()?, address: r.bytes()?? },
            RECORDS => Question::Records {
                class_and_type: [r.int()?, r.int()?],
                search: match r.word()? {
                    0 => false,
                    1 => true,
                    _ => return None,
                },
                options: r.word()?,
                name: r.bytes()??,
            },
            MESSAGE => Question::Message { options: r.word()?, message: r.bytes()?? },
            INTERFACES => Question::Interfaces,
            INTERFACE_REQUEST => {
                let (family, request, ifreq) = (r.int()?, r.word()?, r.bytes()??);
                if !INTERFACE_REQUESTS.contains(&request) || ifreq.len() != IFREQ {
                    return None;
                }
                Question::InterfaceRequest { family, request, ifreq }
            }
            _ => return None,
        };
        let strings = match question {
            Question::Addresses { node, service, .. } => [node, service],
            Question::HostByName { name, .. } | Question::Records { name, .. } => {
                [Some(name), None]
            }
            Question::Name { .. }
            | Question::HostByAddress { .. }
            | Question::Message { .. }
            | Question::Interfaces
            | Question::InterfaceRequest { .. } => [None, None],
        };
        // They become C strings.
        let is_c_string = |s: &[u8]| !s.contains(&0);
        (r.is_at_end() && strings.into_iter().flatten().all(is_c_string)).then_some(question)
    }
}

/// How the function ended: the head of every answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What it returned (an EAI_* code, an errno, a length), or [`BUSY`].
    pub code: i32,
    /// errno, where the code says to look there.
    pub errno: i32,
    /// h_errno, for the functions that set it.
    pub h_errno: i32,
}

impl Outcome {
    /// Starts an answer.
    #[must_use]
    pub fn write(self, out: &mut [u8]) -> Writer<'_> {
        let end = out.len().min(ANSWER_MAX);
        let mut w = Writer::new(out.get_mut(..end).unwrap_or_default());
        w.int(self.code);
        w.int(self.errno);
        w.int(self.h_errno);
        w
    }

    /// Reads an answer's head.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<(Outcome, Reader<'_>)> {
        let mut r = Reader::new(packet)?;
        Some((Outcome { code: r.int()?, errno: r.int()?, h_errno: r.int()? }, r))
    }
}

/// One of getaddrinfo's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address<'a> {
    /// `ai_flags`, `ai_family`, `ai_socktype`, `ai_protocol`.
    pub words: [i32; 4],
    /// The socket address.
    pub address: &'a [u8],
}

impl<'a> Address<'a> {
    /// Appends it.
    pub fn write(&self, w: &mut Writer<'_>) {
        for n in self.words {
            w.int(n);
        }
        w.bytes(Some(self.address));
    }

    /// Reads the next one.
    #[must_use]
    pub fn parse(r: &mut Reader<'a>) -> Option<Address<'a>> {
        let words = [r.int()?, r.int()?, r.int()?, r.int()?];
        let address = r.bytes()??;
        (2..=ADDRESS_MAX).contains(&address.len()).then_some(Address { words, address })
    }
}

/// One of getifaddrs' answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// IFF_*.
    pub flags: u32,
    /// Socket addresses: `ifa_addr`, `ifa_netmask`, `ifa_ifu`.
    pub addresses: [Option<&'a [u8]>; 3],
    /// `ifa_data`: of a link its counters, [`LINK_STATS`] bytes.
    pub data: Option<&'a [u8]>,
}

/// Bytes of `struct rtnl_link_stats` (linux/if_link.h), since Linux 4.6.
pub const LINK_STATS: usize = 24 * size_of::<u32>();

impl<'a> Interface<'a> {
    /// Appends it.
    pub fn write(&self, w: &mut Writer<'_>) {
        w.word(self.flags);
        w.bytes(Some(self.name));
        for a in self.addresses {
            w.bytes(a);
        }
        w.bytes(self.data);
    }

    /// Reads the next one.
    #[must_use]
    pub fn parse(r: &mut Reader<'a>) -> Option<Interface<'a>> {
        let flags = r.word()?;
        let name = r.bytes()??;
        let addresses = [r.bytes()?, r.bytes()?, r.bytes()?];
        let data = r.bytes()?;
        let fits = |a: &[u8]| (2..=ADDRESS_MAX).contains(&a.len());
        let is_one = !name.is_empty()
            && !name.contains(&0)
            && addresses.iter().flatten().all(|a| fits(a))
            && data.is_none_or(|d| d.len() == LINK_STATS);
        is_one.then_some(Interface { name, flags, addresses, data })
    }
}

#[cfg(test)]
mod tests;
