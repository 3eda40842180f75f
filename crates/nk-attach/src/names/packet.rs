//! Words and bytes of a packet.

/// Length of what is not there.
const NONE: u32 = u32::MAX;
/// First word of every packet; changes with the format.
pub(super) const FORMAT: u32 = 0x4e4b_4e02;

/// Writes words and bytes one after the other.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
    fits: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: &'a mut [u8]) -> Writer<'a> {
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
    pub(super) fn new(packet: &'a [u8]) -> Option<Reader<'a>> {
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
