//! Questions about names and interfaces, and their answers: one packet each way between a guest's process and its resolver.
//!
//! A question is what the program passed to the C library's function, an answer what the function gave in the namespace of
//! the guest's sockets. Both are words of four bytes in the machine's order; bytes carry their length in front, `NONE` for a null
//! pointer. Either end may lie: what does not parse to its last byte is no question and no answer.

mod host;

pub use host::{HOST_NOT_FOUND, Host, List, NETDB_INTERNAL, NO_RECOVERY, TRY_AGAIN, address_len};

/// Bytes of a question, at most. A DNS name has 255.
pub const QUESTION_MAX: usize = 4096;
/// Bytes of an answer, at most: about 4,000 addresses.
pub const ANSWER_MAX: usize = 160 * 1024;
/// Length of what is not there.
const NONE: u32 = u32::MAX;
/// First word of every packet; changes with the format.
const FORMAT: u32 = 0x4e4b_4e01;
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
}

impl<'a> Interface<'a> {
    /// Appends it.
    pub fn write(&self, w: &mut Writer<'_>) {
        w.word(self.flags);
        w.bytes(Some(self.name));
        for a in self.addresses {
            w.bytes(a);
        }
    }

    /// Reads the next one.
    #[must_use]
    pub fn parse(r: &mut Reader<'a>) -> Option<Interface<'a>> {
        let flags = r.word()?;
        let name = r.bytes()??;
        let addresses = [r.bytes()?, r.bytes()?, r.bytes()?];
        let fits = |a: &[u8]| (2..=ADDRESS_MAX).contains(&a.len());
        (!name.is_empty() && !name.contains(&0) && addresses.iter().flatten().all(|a| fits(a)))
            .then_some(Interface { name, flags, addresses })
    }
}

/// Writes words and bytes one after the other.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
    fits: bool,
}

impl<'a> Writer<'a> {
    fn new(out: &'a mut [u8]) -> Writer<'a> {
        let mut w = Writer { out, at: 0, fits: true };
        w.word(FORMAT);
        w
    }

    fn put(&mut self, b: &[u8]) {
        let end = self.at.saturating_add(b.len());
        match self.out.get_mut(self.at..end) {
            Some(to) if self.fits => {
                to.copy_from_slice(b);
                self.at = end;
            }
            _ => self.fits = false,
        }
    }

    /// Four bytes.
    pub fn word(&mut self, w: u32) {
        self.put(&w.to_ne_bytes());
    }

    /// Four bytes with a sign.
    pub fn int(&mut self, n: i32) {
        self.put(&n.to_ne_bytes());
    }

    /// Bytes, or none.
    pub fn bytes(&mut self, b: Option<&[u8]>) {
        match b {
            None => self.word(NONE),
            Some(b) => {
                self.word(u32::try_from(b.len()).unwrap_or(NONE));
                self.put(b);
            }
        }
    }

    /// The packet's length, if everything fitted.
    #[must_use]
    pub fn finish(self) -> Option<usize> {
        self.fits.then_some(self.at)
    }
}

/// Reads what a [`Writer`] wrote.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(packet: &'a [u8]) -> Option<Reader<'a>> {
        let mut r = Reader { rest: packet };
        (r.word()? == FORMAT).then_some(r)
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(taken)
    }

    /// Four bytes.
    pub fn word(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_ne_bytes)
    }

    /// Four bytes with a sign.
    pub fn int(&mut self) -> Option<i32> {
        self.take(4)?.try_into().ok().map(i32::from_ne_bytes)
    }

    /// Bytes, or none.
    pub fn bytes(&mut self) -> Option<Option<&'a [u8]>> {
        match self.word()? {
            NONE => Some(None),
            n => self.take(n as usize).map(Some),
        }
    }

    /// A count of elements that take at least `each` bytes.
    pub fn count(&mut self, each: usize) -> Option<usize> {
        let n = self.word()? as usize;
        (n <= self.rest.len() / each.max(1)).then_some(n)
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests;
