//! NSM processes that outlived a daemon, and go on with this one.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};

use nk_attach::{Kind, Message};
use nk_device::Layout;
use nk_engine::{GuestId, KeptGuest, NsmId};

use super::Server;
use super::nsm::{end_stranger, exchange};
use crate::control::adoption::{Unfit, nsm_goes_on};
use crate::guest::Region;
use crate::keeper::Entry;
use crate::keeper::book::NsmCounts;
use crate::nsm::{PROTOCOL, command};
use crate::sys;

/// What an NSM may tell: a process has hardly more than 2^20 descriptors (`fs.nr_open`), and of as many sockets half of this is told.
const TOLD_MAX: u64 = 1 << 27;

/// Reads what an NSM told of its guests.
fn read_told(table: &mut File, len: u64) -> io::Result<Vec<(GuestId, KeptGuest)>> {
    if len > TOLD_MAX {
        return Err(io::Error::other("it tells of more than it can have"));
    }
    let mut bytes = Vec::new();
    table.rewind()?;
    table.take(len).read_to_end(&mut bytes)?;
    let (words, rest) = bytes.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|w| u64::from_le_bytes(*w)).collect();
    let whole = rest.is_empty() && bytes.len() as u64 == len;
    let guests = KeptGuest::parse(&words).filter(|_| whole);
    guests.ok_or_else(|| io::Error::other("what it tells is not complete"))
}

impl Server {
    /// Goes on with the NSM processes that the keeper has. One that the configuration does not name any more, or that cannot go on, is
    /// ended; its guests' connections are lost.
    pub(super) fn adopt_nsms(&mut self, entries: Vec<Entry>) -> Vec<(NsmId, GuestId, KeptGuest)> {
        let mut told = Vec::new();
        for mut e in entries {
            let pid = e.key as i32;
            let (Some(pidfd), Some(control)) = (e.fds.pop(), e.fds.pop()) else { continue };
            let known = self.adoptable(&e, &pidfd);
            let adopted = known.and_then(|id| {
                let pidfd = pidfd.try_clone()?;
                self.adopt_nsm(id, (pid, pidfd), control).map(|guests| (id, guests))
            });
            match adopted {
                Ok((id, guests)) => {
                    tracing::info!(nsm = e.text, pid, "NSM process adopted");
                    if let Some(n) = self.nsm_mut(id) {
                        n.counts = NsmCounts::of(&e);
                    }
                    told.extend(guests.into_iter().map(|(guest, kept)| (id, guest, kept)));
                }
                Err(why) => {
                    tracing::warn!(nsm = e.text, pid, error = %why, "an NSM process cannot go on: it is ended, with its connections");
                    end_stranger(&pidfd);
                    if let Some(k) = &self.keeper {
                        k.drop_entry(e.class, e.key);
                    }
                }
            }
        }
        told
    }

    fn adoptable(&self, e: &Entry, pidfd: &OwnedFd) -> io::Result<NsmId> {
        let id = self.nsm_named(&e.text);
        let named = id.and_then(|id| self.nsm(id)).filter(|n| !n.is_inline());
        let has_one = named.map(|n| n.child.is_some());
        nsm_goes_on(sys::has_ended(pidfd), has_one, e.d, PROTOCOL).map_err(io::Error::other)?;
        named.map(|n| n.id).ok_or_else(|| io::Error::other(Unfit::Unknown))
    }

    fn adopt_nsm(
        &mut self,
        id: NsmId,
        (pid, pidfd): (i32, OwnedFd),
        control: OwnedFd,
    ) -> io::Result<Vec<(GuestId, KeptGuest)>> {
        let Some(nsm) = self.nsm(id) else { return Err(io::ErrorKind::NotFound.into()) };
        let region = Region::new("nsm", Layout::NSM, 0)?;
        let device = region.device;
        let (broker, their_broker) = sys::seqpacket_pair()?;
        crate::nsm::serve_broker(self.broker.clone(), nsm.leave.clone(), broker)?;
        let (bell, engine_bell) = (sys::eventfd()?, self.engine_bell(id)?);
        let mut table = File::from(sys::memfd_with(&[])?);
        let mut m = Message::new(Kind::Nsm);
        let number = sys::random()?.0;
        (m.a, m.b, m.c) = (command::ADOPT, PROTOCOL, number);
        m.d = nsm.config.grace_s().into();
        let fds = [
            region.memfd.as_raw_fd(),
            bell.as_raw_fd(),
            engine_bell.as_raw_fd(),
            their_broker.as_raw_fd(),
            table.as_raw_fd(),
        ];
        let is_answer = |r: &Message| r.a == command::ADOPT && r.c == number;
        let (reply, notes) = exchange(&control, &m, &fds, is_answer)?;
        if reply.status != 0 {
            return Err(io::Error::from_raw_os_error(reply.status));
        }
        let guests = read_told(&mut table, reply.d)?;
        self.ask(move |s| s.engine.adopt_nsm(id, device).map_err(io::Error::other))??;
        if let Some(nsm) = self.nsm_mut(id) {
            nsm.region = region;
            nsm.engine_bell = Some(engine_bell);
        }
        self.nsm_serves(id, pid, false, control, pidfd, bell)?;
        for (m, fd) in notes {
            self.nsm_note(id, &m, fd);
        }
        Ok(guests)
    }

    /// All guests are known.
    pub(super) fn hear_nsms(&mut self) -> io::Result<()> {
        let all: Vec<NsmId> = self.nsms.iter().map(|n| n.id).collect();
        self.ask(move |s| {
            for id in all {
                let _ = s.engine.hear_nsm(id);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_told_is_bounded_and_complete() {
        let words: [u64; 3] = [7 | 1 << 16, 0, 5];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut table = File::from(sys::memfd_with(&[]).expect("memfd"));
        table.write_all(&bytes).expect("write");
        let mut told = |len| read_told(&mut table, len);
        let guests = told(24).expect("it is whole");
        let [(GuestId(7), kept)] = &guests[..] else { panic!("{guests:?}") };
        assert_eq!(kept.rows, [5]);
        for len in [16, 23, 32, u64::MAX] {
            assert!(told(len).is_err(), "{len}");
        }
        // Nothing of it takes memory of the NSM's.
        table.set_len(u64::MAX >> 2).expect("a hole");
        assert!(read_told(&mut table, TOLD_MAX + 8).is_err(), "it was read");
        let mut nothing = File::from(sys::memfd_with(&[]).expect("memfd"));
        nothing.set_len(1 << 20).expect("a hole");
        assert!(read_told(&mut nothing, 1 << 20).is_err(), "guests without number");
    }
}
