//! How what the daemon knows stands in entries: as the control thread tells it to the keeper, and as the next daemon reads it.

use std::collections::BTreeMap;

use nk_attach::{Kind, Message};
use nk_device::Addr;
use nk_engine::{AdoptedListener, AdoptedRow, Adoption, GuestId};
use nk_servicelib::Key;

use super::{
    CLASS_GUEST, CLASS_HOLD, CLASS_LISTENER, CLASS_NSM, CLASS_PROCESS, CLASS_QSET, Entry,
    HAS_CONTROL, HAS_PIDFD, format_addr, parse_addr,
};
use crate::control::adoption::process_goes_on;
use crate::control::members::Hold;
use crate::limits::GuestLimits;

/// An entry.
#[must_use]
pub fn entry(class: u64, key: u64, words: (u64, u64), text: &str) -> Message {
    let mut m = Message::new(Kind::Keep).with_text(text);
    (m.a, m.b, m.c, m.d) = (class, key, words.0, words.1);
    m
}

/// What is kept of a guest as such.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// Who made it.
    pub uid: u32,
    /// With which it was made.
    pub flags: u64,
    /// Its limits.
    pub limits: GuestLimits,
    /// The name of the NSM that serves it.
    pub nsm: String,
    /// Its name.
    pub name: String,
}

impl Said {
    /// The name, which may be long, comes last.
    fn to_text(&self) -> String {
        let Said { uid, flags, limits, nsm, name } = self;
        format!("{uid} {flags} {} {nsm} {name}", limits.to_text())
    }

    /// Parses it.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Said> {
        let mut w = text.splitn(5, ' ');
        Some(Said {
            uid: w.next()?.parse().ok()?,
            flags: w.next()?.parse().ok()?,
            limits: GuestLimits::from_text(w.next()?)?,
            nsm: w.next()?.to_owned(),
            name: w.next()?.to_owned(),
        })
    }
}

/// The flags and the NSM of a guest, for a keeper, which may be older than the daemon that it serves and need not understand the rest.
pub(super) fn flags_and_nsm(text: &str) -> (u64, &str) {
    let mut words = text.split(' ').skip(1);
    let flags = words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
    (flags, words.nth(1).unwrap_or(""))
}

/// A guest's entry. With it go: its memfd, the engine's doorbell, its namespace, its counters, and those of its resolver, if it ever had one.
#[must_use]
pub fn guest(id: GuestId, token: (u64, u64), said: &Said) -> Message {
    entry(CLASS_GUEST, id.0.into(), token, &said.to_text())
}

/// A process's key.
#[must_use]
pub fn process_key(guest: GuestId, row: u16) -> u64 {
    u64::from(guest.0) << 16 | u64::from(row)
}

/// A process's entry. With it go: its control connection, its pidfd, of which each may be lacking.
#[must_use]
pub fn process(guest: GuestId, row: u16, pid: i32, has_control: bool, has_pidfd: bool) -> Message {
    let bits = if has_control { HAS_CONTROL } else { 0 } | if has_pidfd { HAS_PIDFD } else { 0 };
    entry(CLASS_PROCESS, process_key(guest, row), (pid as u64, bits), "")
}

/// A queue set's key.
#[must_use]
pub fn qset_key(guest: GuestId, row: u16, qset: u16) -> u64 {
    u64::from(guest.0) << 32 | u64::from(row) << 16 | u64::from(qset)
}

/// A queue set's entry. With it goes its doorbell.
#[must_use]
pub fn qset(guest: GuestId, row: u16, qset: u16, is_primary: bool) -> Message {
    entry(CLASS_QSET, qset_key(guest, row, qset), (is_primary.into(), 0), "")
}

/// Of a hold's key, its serial.
const SERIAL: u64 = (1 << 48) - 1;

/// A hold's key.
#[must_use]
pub fn hold_key(guest: GuestId, hold: Hold) -> u64 {
    u64::from(guest.0) << 48 | (hold.serial & SERIAL)
}

/// A hold's entry. With it goes the far end.
#[must_use]
pub fn hold(guest: GuestId, hold: Hold) -> Message {
    let words = (hold.socket.into(), hold.generation.into());
    entry(CLASS_HOLD, hold_key(guest, hold), words, "")
}

/// A listener's entry. With it goes the socket.
#[must_use]
pub fn listener(key: Key, local: &Addr, backlog: u32) -> Message {
    entry(CLASS_LISTENER, key.to_word(), (backlog.into(), 0), &format_addr(local))
}

/// An NSM process's entry. With it go the daemon's end of its control socket, and its pidfd.
#[must_use]
pub fn nsm(pid: i32, name: &str, counts: NsmCounts, protocol: u64) -> Message {
    let NsmCounts { restarts, violations } = counts;
    let words = (restarts << 32 | violations & 0xffff_ffff, protocol);
    entry(CLASS_NSM, pid as u64, words, name)
}

/// What the daemon counts of an NSM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NsmCounts {
    /// Times that it was started again.
    pub restarts: u64,
    /// Times that it did what it must not do, and was killed for it.
    pub violations: u64,
}

impl NsmCounts {
    /// Of an NSM process's entry.
    #[must_use]
    pub fn of<D>(e: &Entry<D>) -> NsmCounts {
        NsmCounts { restarts: e.c >> 32, violations: e.c & 0xffff_ffff }
    }
}

/// A guest as the keeper has it.
#[derive(Debug)]
pub struct OfGuest<D> {
    /// Its id.
    pub id: GuestId,
    /// By which its processes attach.
    pub token: (u64, u64),
    /// What it is.
    pub said: Said,
    /// As [`guest`] says.
    pub fds: Vec<D>,
    /// Processes that go on.
    pub processes: Vec<OfProcess<D>>,
    /// Rows whose process has ended.
    pub dead: Vec<u16>,
    /// Holds.
    pub holds: Vec<OfHold<D>>,
    /// Listeners.
    pub listeners: Vec<OfListener<D>>,
}

/// A process that goes on.
#[derive(Debug)]
pub struct OfProcess<D> {
    /// Its row.
    pub row: u16,
    /// 0 of a child that has not said hello.
    pub pid: i32,
    /// Its control connection.
    pub control: Option<D>,
    /// Its pidfd.
    pub pidfd: Option<D>,
    /// Its queue sets with their doorbells, the primary one first.
    pub qsets: Vec<(u16, D)>,
}

/// A hold.
#[derive(Debug)]
pub struct OfHold<D> {
    /// The far end.
    pub fd: D,
    /// What is held.
    pub hold: Hold,
}

/// A listener.
#[derive(Debug)]
pub struct OfListener<D> {
    /// Whose.
    pub key: Key,
    /// The socket.
    pub fd: D,
    /// Where it listens.
    pub local: Addr,
    /// As the guest gave it.
    pub backlog: u32,
}

impl<D> OfGuest<D> {
    /// What the engine is to know of it, apart from what its NSM tells.
    #[must_use]
    pub fn adoption(&self) -> Adoption {
        let row = |p: &OfProcess<D>| {
            let qsets = p.qsets.iter().map(|q| q.0).collect();
            AdoptedRow { row: p.row, pid: p.pid as u32, qsets }
        };
        let listener = |l: &OfListener<D>| AdoptedListener {
            socket: l.key.socket,
            generation: l.key.generation,
            local: l.local,
            backlog: l.backlog,
        };
        Adoption {
            rows: self.processes.iter().map(row).collect(),
            listeners: self.listeners.iter().map(listener).collect(),
            holds: self.holds.iter().map(|h| (h.hold.socket, h.hold.generation)).collect(),
            kept: None,
        }
    }
}

/// What the keeper has, guest by guest; `None` where it does not say what the guest is. `has_ended` looks at a pidfd.
pub fn read<D>(
    entries: Vec<Entry<D>>,
    has_ended: impl Fn(&D) -> bool,
) -> BTreeMap<u16, Option<OfGuest<D>>> {
    let all = sort(entries).into_iter();
    all.map(|(id, kept)| (id, kept.read(GuestId(id), &has_ended))).collect()
}

/// One guest's entries, sorted out.
#[derive(Debug)]
struct Sorted<D> {
    guest: Option<Entry<D>>,
    processes: BTreeMap<u16, Entry<D>>,
    /// By row: number, primary, doorbell.
    qsets: BTreeMap<u16, Vec<(u16, bool, D)>>,
    holds: Vec<Entry<D>>,
    listeners: Vec<Entry<D>>,
}

impl<D> Default for Sorted<D> {
    fn default() -> Sorted<D> {
        let (processes, qsets) = (BTreeMap::new(), BTreeMap::new());
        Sorted { guest: None, processes, qsets, holds: Vec::new(), listeners: Vec::new() }
    }
}

fn sort<D>(entries: Vec<Entry<D>>) -> BTreeMap<u16, Sorted<D>> {
    let mut all: BTreeMap<u16, Sorted<D>> = BTreeMap::new();
    for mut e in entries {
        let k = e.key;
        match e.class {
            CLASS_GUEST => all.entry(k as u16).or_default().guest = Some(e),
            CLASS_PROCESS => {
                all.entry((k >> 16) as u16).or_default().processes.insert(k as u16, e);
            }
            CLASS_QSET => {
                if let Some(bell) = e.fds.pop() {
                    let g = all.entry((k >> 32) as u16).or_default();
                    let row = g.qsets.entry((k >> 16) as u16).or_default();
                    row.push((k as u16, e.c == 1, bell));
                    // The primary one first.
                    row.sort_by_key(|q| !q.1);
                }
            }
            CLASS_HOLD => all.entry((k >> 48) as u16).or_default().holds.push(e),
            CLASS_LISTENER => all.entry((k >> 48) as u16).or_default().listeners.push(e),
            _ => {}
        }
    }
    all
}

impl<D> Sorted<D> {
    fn read(self, id: GuestId, has_ended: &impl Fn(&D) -> bool) -> Option<OfGuest<D>> {
        let guest = self.guest?;
        let said = Said::from_text(&guest.text)?;
        let (mut processes, mut dead) = (Vec::new(), Vec::new());
        let mut qsets = self.qsets;
        for (row, mut e) in self.processes {
            let pidfd = if e.d & HAS_PIDFD != 0 { e.fds.pop() } else { None };
            let control = if e.d & HAS_CONTROL != 0 { e.fds.pop() } else { None };
            let own = qsets.remove(&row).unwrap_or_default();
            let ended = pidfd.as_ref().map(has_ended);
            if !process_goes_on(control.is_some(), ended, own.len()) {
                dead.push(row);
                continue;
            }
            let qsets = own.into_iter().map(|q| (q.0, q.2)).collect();
            processes.push(OfProcess { row, pid: e.c as i32, control, pidfd, qsets });
        }
        let hold = |mut e: Entry<D>| {
            let (serial, socket, generation) = (e.key & SERIAL, e.c as u32, e.d as u16);
            Some(OfHold { fd: e.fds.pop()?, hold: Hold { serial, socket, generation } })
        };
        let listener = |mut e: Entry<D>| {
            let (key, local) = (Key::from_word(e.key), parse_addr(&e.text)?);
            Some(OfListener { key, fd: e.fds.pop()?, local, backlog: e.c as u32 })
        };
        Some(OfGuest {
            id,
            token: (guest.c, guest.d),
            said,
            fds: guest.fds,
            processes,
            dead,
            holds: self.holds.into_iter().filter_map(hold).collect(),
            listeners: self.listeners.into_iter().filter_map(listener).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_guest_is_read() {
        let limits = GuestLimits { weight: 3, ..GuestLimits::default() };
        let (nsm, name) = ("web".to_owned(), "shop".to_owned());
        let said = Said { uid: 7, flags: 1, limits, nsm, name };
        let id = GuestId(5);
        let local = Addr::v4([127, 0, 0, 1], 80);
        let key = Key { guest: 5, socket: 3, generation: 2 };
        let told = [
            (listener(key, &local, 8), vec!["socket"]),
            (qset(id, 1, 4, false), vec!["bell of 4"]),
            (qset(id, 1, 6, true), vec!["bell of 6"]),
            (process(id, 1, 70, true, true), vec!["control", "pidfd"]),
            // In the middle of an exec.
            (process(id, 2, 71, false, true), vec!["ended"]),
            (qset(id, 2, 5, true), vec!["bell of 5"]),
            (hold(id, Hold { serial: 9, socket: 3, generation: 2 }), vec!["far end"]),
            (guest(id, (1, 2), &said), vec!["memfd"]),
            (entry(CLASS_QSET, qset_key(GuestId(6), 1, 1), (1, 0), ""), vec!["bell"]),
        ];
        let entries = told.iter().map(|(m, fds)| Entry::new(m, fds.clone())).collect();
        let mut all = read(entries, |fd| *fd == "ended");
        assert!(all.remove(&6).expect("something").is_none(), "nobody says what it is");
        let g = all.remove(&5).expect("something").expect("it is said what it is");
        assert_eq!((g.token, &g.said, &g.fds), ((1, 2), &said, &vec!["memfd"]));
        let [p] = &g.processes[..] else { panic!("{g:?}") };
        assert_eq!((p.row, p.pid, p.control, p.pidfd), (1, 70, Some("control"), Some("pidfd")));
        assert_eq!(p.qsets, [(6, "bell of 6"), (4, "bell of 4")], "the primary one first");
        assert_eq!(g.dead, [2]);
        assert_eq!(g.holds[0].hold.serial, 9);
        assert_eq!(flags_and_nsm(&said.to_text()), (1, "web"));
        assert_eq!(flags_and_nsm("7 1 words-of-a-later-version web shop"), (1, "web"));
        let adoption = g.adoption();
        assert_eq!((adoption.rows.len(), adoption.holds), (1, vec![(3, 2)]));
        let [l] = adoption.listeners[..] else { panic!("one") };
        assert_eq!((l.socket, l.generation, l.local, l.backlog), (3, 2, local, 8));
    }
}
