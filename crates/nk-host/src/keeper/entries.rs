//! What is kept, as both ends know it: the keeper's process has it so that it outlives the daemon, and the daemon has a copy so
//! that another keeper can be given everything when one dies.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use nk_attach::Message;

use super::link::Wire;
use super::{
    CLASS_GUEST, CLASS_HOLD, CLASS_LISTENER, CLASS_NSM, CLASS_OPTIONS, CLASS_PROCESS, CLASS_QSET,
};

/// One entry: the message that made it, and its descriptors.
#[derive(Debug)]
pub struct Kept<D> {
    /// The message.
    pub message: Message,
    /// The descriptors.
    pub fds: Vec<D>,
}

impl<D> Kept<D> {
    /// Sends it.
    ///
    /// # Errors
    /// Those of the wire.
    pub fn send<W: Wire<Fd = D>>(&self, to: &W) -> Result<(), i32> {
        let fds: Vec<W::Raw<'_>> = self.fds.iter().map(W::raw).collect();
        to.send(&self.message, &fds)
    }
}

/// All entries, by class and key.
#[derive(Debug)]
pub struct Entries<D>(BTreeMap<(u64, u64), Kept<D>>);

impl<D> Default for Entries<D> {
    fn default() -> Entries<D> {
        Entries(BTreeMap::new())
    }
}

/// The guest to which an entry belongs.
fn guest_of(class: u64, key: u64) -> Option<u64> {
    match class {
        CLASS_PROCESS => Some(key >> 16),
        CLASS_QSET => Some(key >> 32),
        CLASS_HOLD | CLASS_LISTENER | CLASS_OPTIONS.. => Some(key >> 48),
        _ => None,
    }
}

impl<D> Entries<D> {
    /// Enters what a message of [`nk_attach::Kind::Keep`] says.
    pub fn keep(&mut self, message: Message, fds: Vec<D>) {
        self.0.insert((message.a, message.b), Kept { message, fds });
    }

    /// Enters what such a message says, of whose descriptors there are no copies: what is known that stays right.
    pub(super) fn keep_without(&mut self, message: Message) {
        let at = (message.a, message.b);
        match message.a {
            // Theirs are the same as long as they are there.
            CLASS_GUEST | CLASS_LISTENER | CLASS_NSM => {
                if let Some(kept) = self.0.get_mut(&at) {
                    kept.message = message;
                }
            }
            CLASS_PROCESS => {}
            _ => drop(self.0.remove(&at)),
        }
    }

    /// Takes an entry out; with a guest goes all that was its, with a process its queue sets.
    pub(super) fn drop_entry(&mut self, class: u64, key: u64) {
        self.0.remove(&(class, key));
        match class {
            CLASS_GUEST => self.0.retain(|(c, k), _| guest_of(*c, *k) != Some(key)),
            CLASS_PROCESS => {
                self.0.retain(|(c, k), _| *c != CLASS_QSET || k >> 16 != key);
            }
            _ => {}
        }
    }

    /// Takes out what is of guests that are not kept themselves.
    pub(super) fn drop_strays(&mut self) {
        let guests: BTreeSet<u64> = self.of(CLASS_GUEST).map(|(guest, _)| guest).collect();
        self.0.retain(|(c, k), _| guest_of(*c, *k).is_none_or(|guest| guests.contains(&guest)));
    }

    /// An entry, if there is such a one.
    #[must_use]
    pub fn get(&self, class: u64, key: u64) -> Option<&Kept<D>> {
        self.0.get(&(class, key))
    }

    /// The text of an entry, if there is such a one.
    pub(super) fn text(&self, class: u64, key: u64) -> Option<&str> {
        self.get(class, key).map(|kept| kept.message.text().unwrap_or(""))
    }

    /// The entries of a class, with their keys.
    pub fn of(&self, class: u64) -> impl Iterator<Item = (u64, &Kept<D>)> {
        self.0.range((class, 0)..=(class, u64::MAX)).map(|(k, e)| (k.1, e))
    }

    /// The entries behind that one, in order, by class and key; all for `None`.
    pub fn after(&self, last: Option<(u64, u64)>) -> impl Iterator<Item = ((u64, u64), &Kept<D>)> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.0.range((from, Bound::Unbounded)).map(|(at, e)| (*at, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nk_attach::Kind;

    #[test]
    fn with_a_guest_goes_what_is_its() {
        let mut entries = Entries::<()>::default();
        let mut enter = |class, key| {
            let mut m = Message::new(Kind::Keep);
            (m.a, m.b) = (class, key);
            entries.keep(m, Vec::new());
        };
        for guest in [1u64, 2] {
            enter(CLASS_GUEST, guest);
            for row in [3u64, 4] {
                enter(CLASS_PROCESS, guest << 16 | row);
                enter(CLASS_QSET, guest << 32 | row << 16 | 9);
            }
            enter(CLASS_HOLD, guest << 48 | 7);
            enter(CLASS_LISTENER, guest << 48 | 8);
            enter(CLASS_OPTIONS + 1, guest << 48 | 8);
        }
        entries.drop_entry(CLASS_PROCESS, 2 << 16 | 3);
        assert_eq!(entries.of(CLASS_PROCESS).count(), 3);
        assert_eq!(entries.of(CLASS_QSET).count(), 3);
        entries.drop_entry(CLASS_GUEST, 1);
        let of_guests =
            [CLASS_GUEST, CLASS_PROCESS, CLASS_QSET, CLASS_HOLD, CLASS_LISTENER, CLASS_OPTIONS + 1];
        for class in of_guests {
            assert_eq!(entries.of(class).count(), 1, "class {class}");
        }
        entries.drop_entry(CLASS_GUEST, 2);
        assert!(entries.0.is_empty());
    }
}
