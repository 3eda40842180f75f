//! Options of datagram sockets, which are made again with them when their NSM dies: the daemon knows them by socket, the keeper
//! has them as texts.

use std::collections::BTreeMap;

use nk_attach::TEXT_MAX;
use nk_servicelib::{Key, SetOption};

/// Sockets of one guest of which options are kept.
const SOCKETS_MAX: usize = 32 * 1024;
/// Texts that the options of one socket may fill.
pub(super) const PARTS: u64 = 16;
/// Pairs of options of IP and IPv6 of which the second takes back what the first did.
const JOIN_LEAVE: [(i32, i32, i32); 5] = [
    (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, libc::IP_DROP_MEMBERSHIP),
    (libc::IPPROTO_IP, libc::IP_ADD_SOURCE_MEMBERSHIP, libc::IP_DROP_SOURCE_MEMBERSHIP),
    (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP, libc::IPV6_DROP_MEMBERSHIP),
    (libc::IPPROTO_IP, libc::MCAST_JOIN_GROUP, libc::MCAST_LEAVE_GROUP),
    (libc::IPPROTO_IPV6, libc::MCAST_JOIN_GROUP, libc::MCAST_LEAVE_GROUP),
];

/// By socket ([`Key::to_word`]), in the order in which they were set.
#[derive(Debug, Default)]
pub(super) struct Options(BTreeMap<u64, Vec<SetOption>>);

fn of_guest(guest: u16) -> std::ops::RangeInclusive<u64> {
    let first = u64::from(guest) << 48;
    first..=first | 0xffff_ffff_ffff
}

impl Options {
    /// Enters an option; returns the texts of all that the socket has now, or `None` where there is no room for it.
    pub(super) fn set(&mut self, key: Key, option: &SetOption) -> Option<Vec<String>> {
        let word = key.to_word();
        let is_known = self.0.contains_key(&word);
        if !is_known && self.0.range(of_guest(key.guest)).count() >= SOCKETS_MAX {
            return None;
        }
        let mut all = self.0.get(&word).cloned().unwrap_or_default();
        enter(&mut all, option);
        let texts = to_texts(&all)?;
        self.0.insert(word, all);
        Some(texts)
    }

    /// Whether the socket has this very option: a program may set one as often as it likes. A join may have been taken back since, by
    /// a leave in other words.
    pub(super) fn has(&self, key: Key, option: &SetOption) -> bool {
        let is_same = |(level, join, leave): &(i32, i32, i32)| {
            *level == option.level && [*join, *leave].contains(&option.name)
        };
        !JOIN_LEAVE.iter().any(is_same)
            && self.0.get(&key.to_word()).is_some_and(|all| all.contains(option))
    }

    /// Enters what a keeper had of a socket.
    pub(super) fn read(&mut self, word: u64, text: &str) {
        self.0.entry(word).or_default().extend(text.split(';').filter_map(option_from_text));
    }

    pub(super) fn forget(&mut self, key: Key) -> bool {
        self.0.remove(&key.to_word()).is_some()
    }

    pub(super) fn forget_guest(&mut self, guest: u16) {
        self.0.retain(|word, _| !of_guest(guest).contains(word));
    }

    pub(super) fn of_guest(&self, guest: u16) -> Vec<(Key, Vec<SetOption>)> {
        let its = self.0.range(of_guest(guest));
        its.map(|(word, all)| (Key::from_word(*word), all.clone())).collect()
    }
}

fn enter(all: &mut Vec<SetOption>, option: &SetOption) {
    for (_, join, leave) in JOIN_LEAVE.into_iter().filter(|(level, ..)| *level == option.level) {
        if option.name == join {
            return all.push(option.clone());
        }
        if option.name == leave {
            let joined = SetOption { name: join, ..option.clone() };
            match all.iter().rposition(|o| *o == joined) {
                Some(at) => drop(all.remove(at)),
                // Said in other words than when it was joined.
                None => all.push(option.clone()),
            }
            return;
        }
    }
    all.retain(|o| (o.level, o.name) != (option.level, option.name));
    all.push(option.clone());
}

/// Level, number, length, and the value without the zeros at its end.
pub(crate) fn option_to_text(o: &SetOption) -> String {
    let used = o.value.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    let hex: String = o.value.iter().take(used).map(|b| format!("{b:02x}")).collect();
    format!("{} {} {} {hex}", o.level, o.name, o.value.len())
}

/// Undoes [`option_to_text`].
pub(crate) fn option_from_text(text: &str) -> Option<SetOption> {
    let mut words = text.split(' ');
    let mut number = || words.next()?.parse::<i32>().ok();
    let (level, name, len) = (number()?, number()?, number()?);
    let hex = words.next().filter(|h| h.is_ascii())?;
    let mut value = vec![0; usize::try_from(len).ok().filter(|n| *n <= 256)?];
    if hex.len() > value.len() * 2 {
        return None;
    }
    for (at, byte) in value.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *at = u8::from_str_radix(std::str::from_utf8(byte).ok()?, 16).ok()?;
    }
    Some(SetOption { level, name, value })
}

/// Texts that fit into a message each; `None`: they would be too many, or one is too long.
fn to_texts(all: &[SetOption]) -> Option<Vec<String>> {
    let mut texts: Vec<String> = Vec::new();
    for text in all.iter().map(option_to_text) {
        match texts.last_mut() {
            Some(last) if last.len() + 1 + text.len() <= TEXT_MAX => {
                last.push(';');
                last.push_str(&text);
            }
            _ if text.len() <= TEXT_MAX => texts.push(text),
            _ => return None,
        }
    }
    (texts.len() as u64 <= PARTS).then_some(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { guest: 7, socket: 9, generation: 3 };

    fn option(level: i32, name: i32, value: &[u8]) -> SetOption {
        SetOption { level, name, value: value.to_vec() }
    }

    #[test]
    fn what_is_set_last_counts_and_groups_that_were_left_are_none() {
        let mut o = Options::default();
        let reuse = |on| option(libc::SOL_SOCKET, libc::SO_REUSEADDR, &[on, 0, 0, 0]);
        let ttl = option(libc::IPPROTO_IP, libc::IP_TTL, &[9, 0, 0, 0]);
        let join = |n| option(libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &[239, 0, 0, n, 127]);
        let leave = |n| SetOption { name: libc::IP_DROP_MEMBERSHIP, ..join(n) };
        for set in [reuse(1), join(1), join(2), ttl.clone(), leave(1), reuse(0), leave(3)] {
            o.set(KEY, &set).expect("room");
        }
        let all = [join(2), ttl, reuse(0), leave(3)];
        assert_eq!(o.of_guest(7), [(KEY, all.to_vec())]);
        assert!(o.has(KEY, &reuse(0)) && !o.has(KEY, &reuse(1)) && !o.has(KEY, &join(2)));
        o.set(Key { guest: 8, ..KEY }, &reuse(1)).expect("room");
        o.forget_guest(7);
        assert_eq!((o.of_guest(7).len(), o.of_guest(8).len()), (0, 1));
    }

    #[test]
    fn texts_of_the_keeper_give_the_same() {
        let mut long = [0; 136];
        long[..12].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 255, 239]);
        let join = |n: u8| option(0, libc::MCAST_JOIN_GROUP, &[&[n][..], &long[1..]].concat());
        let (mut o, mut last) = (Options::default(), Vec::new());
        for n in 0..20 {
            last = o.set(KEY, &join(n)).expect("room");
        }
        o.set(KEY, &option(17, 1, &[])).expect("nothing is a value");
        assert!(last.len() > 1 && last.iter().all(|t| t.len() <= TEXT_MAX));
        let mut back = Options::default();
        for text in last.iter().map(String::as_str).chain(["17 1 0 "]) {
            back.read(KEY.to_word(), text);
        }
        assert_eq!(back.of_guest(7), o.of_guest(7));
        assert_eq!(o.set(KEY, &option(0, 1, &[1; 150])), None, "too long for a text");
        let full = (0..=255).find(|n| o.set(KEY, &join(*n)).is_none());
        assert!(full.is_some_and(|n| n > 20), "{full:?}");
        for odd in ["", "1 2 3", "1 2 300 00", "1 2 1 0000", "1 2 4 xx", "1 2 -1 "] {
            assert_eq!(option_from_text(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn an_option_with_the_number_of_a_leave_at_another_level_is_none() {
        let mut all = Vec::new();
        for value in [1, 2, 3] {
            let value = vec![value, 0, 0, 0];
            enter(&mut all, &SetOption { level: libc::IPPROTO_IP, name: libc::IP_MINTTL, value });
        }
        assert_eq!(libc::IP_MINTTL, libc::IPV6_DROP_MEMBERSHIP);
        assert_eq!(all.len(), 1);
    }
}
