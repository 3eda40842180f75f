//! What the keeper makes of what it is told, and of deaths: no I/O. Its process ([`super::process`]) has the descriptors, and so has, in memory,
//! the simulation (`nk-models`, `played`).

use nk_attach::{Kind, Message};
use nk_device::header::{ENGINE_AWAY, ENGINE_DOWN, ENGINE_GONE};

use super::book::flags_and_nsm;
use super::entries::{Entries, Kept};
use super::{
    CLASS_GUEST, CLASS_NSM, CLASS_PROCESS, CLASS_QSET, HAS_PIDFD, KEPT_COMPLETE, KEPT_END,
};

/// What it has.
#[derive(Debug)]
pub struct State<D> {
    entries: Entries<D>,
    /// A daemon is connected.
    has_daemon: bool,
    /// One ever was: that which started this keeper connects at once.
    served: bool,
    /// The daemon has told everything. One that gives up before is not dead: it starts another keeper.
    is_complete: bool,
    /// No daemon will follow this one.
    is_last: bool,
}

/// What is to be written into the header of a guest's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The guest.
    pub guest: u64,
    /// The `engine_state`. At all but [`ENGINE_AWAY`] whoever sleeps there is woken.
    pub state: u32,
}

/// How it can be told of a process's end.
#[derive(Debug)]
pub enum End<'a, D> {
    /// A pidfd is readable then.
    Pidfd(&'a D),
    /// Of a child that has not said hello there is its control socket alone, which is readable when it has, and hung up at its end.
    Control(&'a D),
}

/// A process whose end is waited for, by class and key.
pub type Watched<'a, D> = ((u64, u64), End<'a, D>);

impl<D> State<D> {
    /// One that knows nothing. `is_last`: of a private daemon, which none follows.
    #[must_use]
    pub fn new(is_last: bool) -> State<D> {
        let (has_daemon, served, is_complete) = (false, false, false);
        State { entries: Entries::default(), has_daemon, served, is_complete, is_last }
    }

    /// What it keeps.
    #[must_use]
    pub fn entries(&self) -> &Entries<D> {
        &self.entries
    }

    /// Whether a daemon has told it everything: the paths are its, and not those of a keeper that took its place.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Whether the daemon that started it has connected.
    #[must_use]
    pub fn served(&self) -> bool {
        self.served
    }

    /// Whether there is nothing left to keep, or nobody to keep it for.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let has_process = self.entries.of(CLASS_PROCESS).next().is_some();
        let goes_on = self.has_daemon || !self.served;
        !goes_on && (self.is_last || !self.is_complete || !has_process)
    }

    /// A daemon connects; `false`: another one lives.
    pub fn connected(&mut self) -> bool {
        let is_free = !self.has_daemon;
        (self.has_daemon, self.served) = (true, true);
        is_free
    }

    /// The daemon says something. `true`: it is to be told all entries.
    pub fn message(&mut self, m: Message, fds: Vec<D>) -> bool {
        match Kind::from_u32(m.kind) {
            Some(Kind::Keep) => self.entries.keep(m, fds),
            Some(Kind::Drop) => self.entries.drop_entry(m.a, m.b),
            Some(Kind::Kept) if m.a == KEPT_COMPLETE => self.is_complete = true,
            Some(Kind::Kept) if m.a == KEPT_END => self.is_last = true,
            Some(Kind::Kept) => return true,
            _ => {}
        }
        false
    }

    /// The daemon says something, of whose descriptors some did not come: there was no number left. Half of an entry is none.
    pub fn message_without(&mut self, m: Message) {
        if m.kind == Kind::Keep as u32 {
            self.entries.keep_without(m);
        }
    }

    /// The daemon's connection closed. `has_ended` looks at a pidfd.
    pub fn daemon_ended(&mut self, has_ended: impl Fn(&D) -> bool) -> Vec<Mark> {
        self.has_daemon = false;
        if !self.is_complete {
            return Vec::new();
        }
        // A VM's guest, of which nothing is told but what its NSM tells, ended with the daemon: nobody is to listen for it.
        self.entries.drop_strays();
        let nsms = self.entries.of(CLASS_NSM);
        let living: Vec<&str> = nsms
            .filter(|(_, e)| e.fds.last().is_some_and(|p| !has_ended(p)))
            .filter_map(|(_, e)| e.message.text())
            .collect();
        self.marks(|nsm| {
            Some(match living.contains(&nsm) {
                _ if self.is_last => ENGINE_GONE,
                true => ENGINE_AWAY,
                false => ENGINE_DOWN,
            })
        })
    }

    /// Whose end it waits for: while there is a daemon, nobody's.
    #[must_use]
    pub fn watched(&self) -> Vec<Watched<'_, D>> {
        let classes = if self.has_daemon { &[][..] } else { &[CLASS_PROCESS, CLASS_NSM] };
        let ends = |class: &u64| {
            let class = *class;
            self.entries.of(class).filter_map(move |(key, e)| {
                let has_pidfd = class == CLASS_NSM || e.message.d & HAS_PIDFD != 0;
                // A pidfd comes last.
                let fd = e.fds.last()?;
                Some(((class, key), if has_pidfd { End::Pidfd(fd) } else { End::Control(fd) }))
            })
        };
        classes.iter().flat_map(ends).collect()
    }

    /// A process ended while there was no daemon.
    pub fn ended(&mut self, (class, key): (u64, u64)) -> Vec<Mark> {
        let its = self.entries.text(class, key).filter(|_| class == CLASS_NSM);
        let name = its.map(str::to_owned);
        self.entries.drop_entry(class, key);
        let down = |name: String| self.marks(|nsm| (nsm == name).then_some(ENGINE_DOWN));
        name.map(down).unwrap_or_default()
    }

    /// The state of the guests of each NSM for which there is one.
    fn marks(&self, state: impl Fn(&str) -> Option<u32>) -> Vec<Mark> {
        let guests = self.entries.of(CLASS_GUEST);
        let mark = |(guest, e): (u64, &Kept<D>)| {
            let (_, nsm) = flags_and_nsm(e.message.text().unwrap_or(""));
            Some(Mark { guest, state: state(nsm)? })
        };
        guests.filter_map(mark).collect()
    }

    /// The entry of a guest.
    #[must_use]
    pub fn guest(&self, guest: u64) -> Option<&Kept<D>> {
        self.entries.get(CLASS_GUEST, guest)
    }

    /// The doorbells of a guest.
    pub fn bells(&self, guest: u64) -> impl Iterator<Item = &D> {
        let its = self.entries.of(CLASS_QSET).filter(move |(k, _)| k >> 32 == guest);
        its.filter_map(|(_, e)| e.fds.first())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::CLASS_LISTENER;
    use crate::keeper::book::{self, NsmCounts, Said};
    use crate::limits::GuestLimits;
    use nk_device::Addr;
    use nk_engine::GuestId;
    use nk_servicelib::Key;

    /// It has a guest with a process on each of two NSMs; a descriptor is its name.
    fn two() -> State<&'static str> {
        let mut s = State::new(false);
        assert!(s.connected());
        for (id, nsm) in [(1, "a"), (2, "b")] {
            let (limits, name) = (GuestLimits::default(), "g".to_owned());
            let said = Said { uid: 0, flags: 0, limits, nsm: nsm.to_owned(), name };
            let told = [
                (book::guest(GuestId(id), (0, 0), &said), vec!["device"]),
                (book::process(GuestId(id), 1, 9, true, false), vec!["control"]),
                (book::qset(GuestId(id), 1, 1, true), vec!["bell"]),
                (book::nsm(id.into(), nsm, NsmCounts::default(), 0), vec!["way", nsm]),
            ];
            assert!(told.into_iter().all(|(m, fds)| !s.message(m, fds)));
        }
        s
    }

    fn kept(what: u64) -> Message {
        let mut m = Message::new(Kind::Kept);
        m.a = what;
        m
    }

    fn marked(marks: &[Mark]) -> Vec<(u64, u32)> {
        marks.iter().map(|m| (m.guest, m.state)).collect()
    }

    #[test]
    fn who_is_on_a_living_nsm_waits_and_the_others_have_lost_theirs() {
        let mut s = two();
        s.message(kept(KEPT_COMPLETE), vec![]);
        assert!(s.watched().is_empty() && !s.is_over());
        let marks = s.daemon_ended(|pidfd| *pidfd == "b");
        assert_eq!(marked(&marks), [(1, ENGINE_AWAY), (2, ENGINE_DOWN)]);
        assert_eq!(s.watched().len(), 4);
        assert!(!s.is_over());
        // The other one ends, too.
        assert_eq!(marked(&s.ended((CLASS_NSM, 1))), [(1, ENGINE_DOWN)]);
        assert_eq!(s.watched().len(), 3);
        for guest in [1u64, 2] {
            assert!(!s.is_over());
            assert!(s.ended((CLASS_PROCESS, guest << 16 | 1)).is_empty());
        }
        assert!(s.is_over(), "nobody is left");
    }

    #[test]
    fn one_that_was_not_told_everything_says_nothing_and_ends() {
        let mut s = two();
        assert!(s.daemon_ended(|_| false).is_empty());
        assert!(s.is_over() && !s.is_complete());
    }

    #[test]
    fn for_a_guest_that_ended_with_the_daemon_nobody_listens() {
        let mut s = two();
        s.message(kept(KEPT_COMPLETE), vec![]);
        for guest in [2, 3] {
            let key = Key { guest, socket: 1, generation: 1 };
            s.message(book::listener(key, &Addr::v4([0; 4], 80), 1), vec!["socket"]);
        }
        let listeners = |s: &State<_>| {
            let all = s.entries().of(CLASS_LISTENER);
            all.map(|(key, _)| Key::from_word(key).guest).collect::<Vec<_>>()
        };
        assert_eq!(listeners(&s), [2, 3]);
        s.daemon_ended(|_| false);
        assert_eq!(listeners(&s), [2]);
    }

    #[test]
    fn after_the_last_daemon_all_is_gone() {
        let mut s = two();
        s.message(kept(KEPT_COMPLETE), vec![]);
        s.message(kept(KEPT_END), vec![]);
        assert_eq!(marked(&s.daemon_ended(|_| false)), [(1, ENGINE_GONE), (2, ENGINE_GONE)]);
        assert!(s.is_over() && s.is_complete());
    }

    #[test]
    fn one_daemon_at_a_time() {
        let mut s = State::<()>::new(false);
        assert!(!s.is_over() && !s.served(), "it waits for the one that started it");
        assert!(s.connected() && s.served());
        assert!(!s.connected());
        assert!(s.message(Message::new(Kind::Kept), vec![]), "all is asked for");
    }
}
