//! gethostby*'s answer: a host, or none.

use super::{Reader, Writer};

/// `h_errno`, of <netdb.h>: errno says more.
pub const NETDB_INTERNAL: i32 = -1;
/// There is no such host.
pub const HOST_NOT_FOUND: i32 = 1;
/// A name server did not answer, or said so.
pub const TRY_AGAIN: i32 = 2;
/// It will not be answered.
pub const NO_RECOVERY: i32 = 3;

const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;

/// Bytes of a host's address of a family.
#[must_use]
pub fn address_len(family: i32) -> Option<usize> {
    match family {
        AF_INET => Some(4),
        AF_INET6 => Some(16),
        _ => None,
    }
}

/// Bytes in a row, as a packet has them.
#[derive(Clone, Copy, Debug)]
pub struct List<'a> {
    rest: Reader<'a>,
    len: usize,
}

impl<'a> List<'a> {
    /// Each of which has at least `each` bytes, and is as `is_right` says.
    fn parse(
        r: &mut Reader<'a>,
        each: usize,
        is_right: impl Fn(&[u8]) -> bool,
    ) -> Option<List<'a>> {
        let len = r.count(4 + each)?;
        let list = List { rest: *r, len };
        for _ in 0..len {
            r.bytes().flatten().filter(|b| is_right(b))?;
        }
        Some(list)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Each.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let List { mut rest, len } = *self;
        (0..len).map_while(move |_| rest.bytes().flatten())
    }
}

/// A host, read from an answer.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// AF_INET or AF_INET6.
    pub family: i32,
    /// Its name.
    pub name: &'a [u8],
    /// Its other names.
    pub aliases: List<'a>,
    /// Its addresses: one at least, each of the family's length.
    pub addresses: List<'a>,
}

impl<'a> Host<'a> {
    /// Appends a host. Bytes that are not there make it no answer.
    pub fn write(
        w: &mut Writer<'_>,
        family: i32,
        name: Option<&[u8]>,
        aliases: &[&[u8]],
        addresses: &[&[u8]],
    ) {
        w.word(1);
        w.int(family);
        w.bytes(name);
        for list in [aliases, addresses] {
            w.word(list.len() as u32);
            list.iter().for_each(|b| w.bytes(Some(b)));
        }
    }

    /// Appends that there is none.
    pub fn write_none(w: &mut Writer<'_>) {
        w.word(0);
    }

    /// What follows an answer's head, to its last byte. `Some(None)`: there is no such host.
    #[must_use]
    pub fn parse(mut r: Reader<'a>) -> Option<Option<Host<'a>>> {
        if r.word()? == 0 {
            return Some(None);
        }
        let family = r.int()?;
        let length = address_len(family)?;
        let name = r.bytes().flatten()?;
        let aliases = List::parse(&mut r, 0, |_| true)?;
        let addresses = List::parse(&mut r, length, |a| a.len() == length)?;
        let is_right = r.is_at_end() && !addresses.is_empty();
        is_right.then_some(Some(Host { family, name, aliases, addresses }))
    }
}
