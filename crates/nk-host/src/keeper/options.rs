//! Options of datagram sockets, which are made again with them when their NSM dies: the daemon knows them by socket, the keeper
//! has them as texts.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use nk_attach::TEXT_MAX;
use nk_servicelib::{Key, SetOption};

use super::CLASS_OPTIONS;
use super::entries::Entries;

/// Texts that the options of one socket may fill.
pub(super) const PARTS: u64 = 16;
/// Texts that the options of all sockets of a guest may fill: what a guest can make daemon and keeper remember.
const GUEST_TEXTS_MAX: usize = 4096;
/// Pairs of options of IP and IPv6 of which the second takes back what the first did.
const JOIN_LEAVE: [(i32, i32, i32); 5] = [
    (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, libc::IP_DROP_MEMBERSHIP),
    (libc::IPPROTO_IP, libc::IP_ADD_SOURCE_MEMBERSHIP, libc::IP_DROP_SOURCE_MEMBERSHIP),
    (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP, libc::IPV6_DROP_MEMBERSHIP),
    (libc::IPPROTO_IP, libc::MCAST_JOIN_GROUP, libc::MCAST_LEAVE_GROUP),
    (libc::IPPROTO_IPV6, libc::MCAST_JOIN_GROUP, libc::MCAST_LEAVE_GROUP),
];

/// An option, and the text that says it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    option: SetOption,
    text: String,
}

impl From<SetOption> for Kept {
    fn from(option: SetOption) -> Kept {
        let text = option_to_text(&option);
        Kept { option, text }
    }
}

/// By socket ([`Key::to_word`]), in the order in which they were set.
#[derive(Debug, Default)]
pub(super) struct Options {
    sockets: BTreeMap<u64, Vec<Kept>>,
    /// By guest: how many texts they fill.
    texts: HashMap<u16, usize>,
    /// Guests that have filled all theirs, once.
    full: HashSet<u16>,
    /// Sockets of which the keeper does not know what is known here.
    changed: BTreeSet<u64>,
}

fn of_guest(guest: u16) -> std::ops::RangeInclusive<u64> {
    let first = u64::from(guest) << 48;
    first..=first | 0xffff_ffff_ffff
}

impl Options {
    /// What a keeper has.
    pub(super) fn of<D>(entries: &Entries<D>) -> Options {
        let mut options = Options::default();
        for class in CLASS_OPTIONS..CLASS_OPTIONS + PARTS {
            for (key, kept) in entries.of(class) {
                options.read(key, kept.message.text().unwrap_or(""));
            }
        }
        options
    }

    /// Enters an option. `false`: there is no room for it, and the socket has none of that kind here any more; the first time that
    /// this is for its guest's sake is logged, no later one, or a guest could fill the log.
    pub(super) fn set(&mut self, key: Key, option: &SetOption) -> bool {
        let word = key.to_word();
        let mut all = self.sockets.remove(&word).unwrap_or_default();
        let texts = self.texts.remove(&key.guest).unwrap_or(0);
        let others = texts.saturating_sub(count(&all).unwrap_or(0));
        let is_known = !all.is_empty();
        enter(&mut all, option);
        let fits = count(&all);
        let is_kept = fits.is_some_and(|n| others + n <= GUEST_TEXTS_MAX);
        if !is_kept {
            all.pop_if(|k| k.option == *option);
            if fits.is_some() && self.full.insert(key.guest) {
                tracing::warn!(
                    guest = key.guest,
                    "the options of a guest's UDP sockets are more than are kept: sockets made from now on may lack theirs when their NSM dies"
                );
            }
        }
        let now = others + count(&all).unwrap_or(0);
        if now > 0 {
            self.texts.insert(key.guest, now);
        }
        if is_known || !all.is_empty() {
            self.changed.insert(word);
        }
        if !all.is_empty() {
            self.sockets.insert(word, all);
        }
        is_kept
    }

    /// Whether the socket has this very option: a program may set one as often as it likes. A join may have been taken back since, by
    /// a leave in other words.
    pub(super) fn has(&self, key: Key, option: &SetOption) -> bool {
        let is_same = |(level, join, leave): &(i32, i32, i32)| {
            *level == option.level && [*join, *leave].contains(&option.name)
        };
        let all = self.sockets.get(&key.to_word());
        !JOIN_LEAVE.iter().any(is_same)
            && all.is_some_and(|all| all.iter().any(|k| k.option == *option))
    }

    /// Enters what a keeper had of a socket.
    fn read(&mut self, word: u64, text: &str) {
        let read: Vec<SetOption> = text.split(';').filter_map(option_from_text).collect();
        if read.is_empty() {
            return;
        }
        let all = self.sockets.entry(word).or_default();
        let before = count(all).unwrap_or(0);
        all.extend(read.into_iter().map(Kept::from));
        let texts = self.texts.entry(Key::from_word(word).guest).or_default();
        *texts = (*texts + count(all).unwrap_or(0)).saturating_sub(before);
    }

    pub(super) fn forget(&mut self, key: Key) {
        let word = key.to_word();
        let Some(all) = self.sockets.remove(&word) else { return };
        if let Some(texts) = self.texts.get_mut(&key.guest) {
            *texts = texts.saturating_sub(count(&all).unwrap_or(0));
        }
        self.changed.insert(word);
    }

    pub(super) fn forget_guest(&mut self, guest: u16) {
        self.sockets.retain(|word, _| !of_guest(guest).contains(word));
        self.changed.retain(|word| !of_guest(guest).contains(word));
        self.texts.remove(&guest);
        self.full.remove(&guest);
    }

    pub(super) fn of_guest(&self, guest: u16) -> Vec<(Key, Vec<SetOption>)> {
        let its = self.sockets.range(of_guest(guest));
        let options = |all: &Vec<Kept>| all.iter().map(|k| k.option.clone()).collect();
        its.map(|(word, all)| (Key::from_word(*word), options(all))).collect()
    }

    /// The sockets whose options changed since this was last asked, with the texts of all that each has now.
    pub(super) fn take_changed(&mut self) -> Vec<(u64, Vec<String>)> {
        let changed = std::mem::take(&mut self.changed);
        let texts = |word: &u64| self.sockets.get(word).map_or_else(Vec::new, |all| to_texts(all));
        changed.into_iter().map(|word| (word, texts(&word))).collect()
    }
}

/// All options of a guest in one text: a line for each socket.
pub(crate) fn options_to_text(all: &[(Key, Vec<SetOption>)]) -> String {
    let line = |(key, options): &(Key, Vec<SetOption>)| {
        let options: Vec<String> = options.iter().map(option_to_text).collect();
        format!("{:x} {}\n", key.to_word(), options.join(";"))
    };
    all.iter().map(line).collect()
}

/// Undoes [`options_to_text`].
pub(crate) fn options_from_text(text: &str) -> Option<Vec<(Key, Vec<SetOption>)>> {
    let line = |line: &str| {
        let (key, options) = line.split_once(' ')?;
        let key = Key::from_word(u64::from_str_radix(key, 16).ok()?);
        Some((key, options.split(';').map(option_from_text).collect::<Option<_>>()?))
    };
    text.lines().map(line).collect()
}

fn enter(all: &mut Vec<Kept>, option: &SetOption) {
    for (_, join, leave) in JOIN_LEAVE.into_iter().filter(|(level, ..)| *level == option.level) {
        if option.name == join {
            return all.push(option.clone().into());
        }
        if option.name == leave {
            let joined = SetOption { name: join, ..option.clone() };
            match all.iter().rposition(|k| k.option == joined) {
                Some(at) => drop(all.remove(at)),
                // Said in other words than when it was joined.
                None => all.push(option.clone().into()),
            }
            return;
        }
    }
    all.retain(|k| (k.option.level, k.option.name) != (option.level, option.name));
    all.push(option.clone().into());
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

/// How many texts that fit into a message each they fill; `None`: they would be too many, or one is too long.
fn count(all: &[Kept]) -> Option<usize> {
    let (mut texts, mut room) = (0u64, 0usize);
    for len in all.iter().map(|k| k.text.len()) {
        match room.checked_sub(len + 1) {
            Some(left) => room = left,
            None => (texts, room) = (texts + 1, TEXT_MAX.checked_sub(len)?),
        }
    }
    (texts <= PARTS).then_some(texts as usize)
}

/// As many texts as [`count`] says.
fn to_texts(all: &[Kept]) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for text in all.iter().map(|k| &k.text) {
        match texts.last_mut() {
            Some(last) if last.len() + 1 + text.len() <= TEXT_MAX => {
                last.push(';');
                last.push_str(text);
            }
            _ => texts.push(text.clone()),
        }
    }
    texts
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
            assert!(o.set(KEY, &set));
        }
        let all = [join(2), ttl, reuse(0), leave(3)];
        assert_eq!(o.of_guest(7), [(KEY, all.to_vec())]);
        assert!(o.has(KEY, &reuse(0)) && !o.has(KEY, &reuse(1)) && !o.has(KEY, &join(2)));
        assert!(o.set(Key { guest: 8, ..KEY }, &reuse(1)));
        o.forget_guest(7);
        assert_eq!((o.of_guest(7).len(), o.of_guest(8).len()), (0, 1));
    }

    fn join(n: u8) -> SetOption {
        let mut long = [0; 136];
        long[..12].copy_from_slice(&[n, 0, 0, 0, 0, 0, 0, 0, 2, 0, 255, 239]);
        option(0, libc::MCAST_JOIN_GROUP, &long)
    }

    #[test]
    fn texts_of_the_keeper_and_of_the_nsm_give_the_same() {
        let mut o = Options::default();
        for n in 0..20 {
            assert!(o.set(KEY, &join(n)));
        }
        assert!(o.set(KEY, &option(17, 1, &[])), "nothing is a value");
        let [(word, texts)] = &o.take_changed()[..] else { panic!("one socket changed") };
        assert!(texts.len() > 1 && texts.iter().all(|t| t.len() <= TEXT_MAX));
        let mut back = Options::default();
        texts.iter().for_each(|text| back.read(*word, text));
        assert_eq!((back.of_guest(7), &back.texts), (o.of_guest(7), &o.texts));
        assert_eq!(o.texts[&7], texts.len());
        let text = options_to_text(&o.of_guest(7));
        assert_eq!(options_from_text(&text), Some(o.of_guest(7)));
        assert_eq!(options_from_text(""), Some(Vec::new()));
        for odd in ["", "1 2 3", "1 2 300 00", "1 2 1 0000", "1 2 4 xx", "1 2 -1 "] {
            assert_eq!(option_from_text(odd), None, "{odd:?}");
            assert_eq!(options_from_text(&format!("7 {odd}\n")), None, "{odd:?}");
        }
    }

    #[test]
    fn what_there_is_no_room_for_is_not_kept_and_the_rest_is() {
        let mut o = Options::default();
        let ttl = |value: &[u8]| option(libc::IPPROTO_IP, libc::IP_TTL, value);
        assert!(o.set(KEY, &ttl(&[1])) && o.set(KEY, &join(1)));
        assert!(!o.set(KEY, &ttl(&[1; 150])), "too long for a text");
        assert_eq!(o.of_guest(7), [(KEY, vec![join(1)])], "not as it was before, either");
        let full = (2..=255).find(|n| !o.set(KEY, &join(*n)));
        assert!(full.is_some_and(|n| n > 20), "{full:?}");
        assert_eq!(o.texts[&7] as u64, PARTS);
        assert!(o.full.is_empty(), "one socket has its fill, not the guest");
        // Others of the guest fill what is left.
        let mut socket = KEY.socket;
        while o.set(Key { socket, ..KEY }, &join(1)) || socket == KEY.socket {
            socket += 1;
        }
        assert_eq!((socket - KEY.socket) as usize, GUEST_TEXTS_MAX - PARTS as usize + 1);
        assert!(o.full.contains(&7) && o.texts[&7] == GUEST_TEXTS_MAX);
        let other = Key { guest: 8, ..KEY };
        assert!(o.set(other, &join(1)), "another guest has its own");
        // What goes makes room.
        o.forget(KEY);
        assert!(o.set(Key { socket, ..KEY }, &join(1)));
        o.take_changed();
        (KEY.socket..=socket).for_each(|socket| o.forget(Key { socket, ..KEY }));
        assert_eq!((o.of_guest(7).len(), o.texts[&7]), (0, 0));
        let changed = o.take_changed();
        assert!(changed.iter().all(|(_, texts)| texts.is_empty()));
        assert_eq!(changed.len(), (socket - KEY.socket) as usize);
    }

    #[test]
    fn however_often_a_value_changes_the_keeper_is_told_once() {
        let mut o = Options::default();
        for n in 0..60 {
            let ttl = option(libc::IPPROTO_IP, libc::IP_TTL, &[n, 0, 0, 0]);
            assert!(o.set(KEY, &ttl));
        }
        assert_eq!(o.take_changed(), [(KEY.to_word(), vec!["0 2 4 3b".to_owned()])]);
        assert!(o.take_changed().is_empty());
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
