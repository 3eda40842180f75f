//! What the kernel stack tells of its listeners and of options goes straight to the keeper.

use std::os::fd::BorrowedFd;

use nk_device::Addr;
use nk_servicelib::{Key, SetOption};
use nk_stack_kernel::ListenerKeeper;

use super::{CLASS_LISTENER, Keeper, book};

/// The stack's way to the keeper.
#[derive(Clone, Debug)]
pub struct ListenerNotes(pub Keeper);

impl ListenerKeeper for ListenerNotes {
    fn keep(&mut self, key: Key, fd: BorrowedFd<'_>, local: &Addr, backlog: u32) {
        self.0.keep(book::listener(key, local, backlog), &[fd]);
    }
    fn forget(&mut self, key: Key) {
        self.0.drop_entry(CLASS_LISTENER, key.to_word());
    }
    fn keep_option(&mut self, key: Key, option: &SetOption) {
        self.0.keep_option(key, option);
        self.0.tell_options();
    }
    fn forget_options(&mut self, key: Key) {
        self.0.forget_options(key);
        self.0.tell_options();
    }
}

pub(crate) fn format_addr(a: &Addr) -> String {
    let hex: String = a.ip.iter().map(|b| format!("{b:02x}")).collect();
    format!("{} {} {} {hex}", a.family, a.port, a.scope)
}

pub(crate) fn parse_addr(text: &str) -> Option<Addr> {
    let mut words = text.split(' ');
    let mut number = || words.next()?.parse::<u16>().ok();
    let (family, port, scope) = (number()?, number()?, number()?);
    let hex = words.next().filter(|h| h.len() == 32 && h.is_ascii())?;
    let mut ip = [0u8; 16];
    for (i, b) in ip.iter_mut().enumerate() {
        *b = u8::from_str_radix(hex.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(Addr { family, port, scope, ip })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive() {
        let mut ip = [0u8; 16];
        for (i, b) in ip.iter_mut().enumerate() {
            *b = 250 - i as u8;
        }
        for a in [Addr::v4([127, 0, 0, 1], 80), Addr::v6(ip, 65535, 9)] {
            assert_eq!(parse_addr(&format_addr(&a)), Some(a));
        }
        assert_eq!(parse_addr("2 80 0 xyz"), None);
        assert_eq!(parse_addr(""), None);
    }
}
