//! What the daemon asks of the worker, by command.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use nk_attach::{Kind, Message};
use nk_device::header::ENGINE_GONE;
use nk_device::{Layout, SharedCounters};
use nk_servicelib::{GuestPool, Key, MovedAt, MovedSocket, SetOption};

use super::super::{command, format_stats, note, unread_from_text, unread_to_texts};
use super::os;
use super::worker::Worker;
use crate::guest::{Region, SharedLedger, layout};
use crate::keeper::options_from_text;
use crate::keeper::process::wake_guest;
use crate::limits::GuestLimits;

/// The ledger that comes with a command whose text says which number this NSM has there.
fn shared_ledger(m: &Message, memfd: OwnedFd, layout: Layout) -> io::Result<SharedLedger> {
    let number = m.text().and_then(|t| t.parse().ok()).ok_or_else(|| os(libc::EINVAL))?;
    SharedLedger::map(memfd, layout, number)
}

/// The options that come with [`command::OPTIONS`].
fn read_options(memfd: OwnedFd, len: u64) -> Option<Vec<(Key, Vec<SetOption>)>> {
    let mut text = vec![0; usize::try_from(len).ok()?];
    std::fs::File::from(memfd).read_exact_at(&mut text, 0).ok()?;
    options_from_text(std::str::from_utf8(&text).ok()?)
}

impl Worker {
    fn add_guest(
        &mut self,
        m: &Message,
        memfd: OwnedFd,
        ledger: Option<OwnedFd>,
    ) -> io::Result<()> {
        let guest = m.b as u16;
        let region = Region::map(memfd, layout(m.d))?;
        let device = region.device;
        let ledger = ledger.map(|fd| shared_ledger(m, fd, device.layout())).transpose()?;
        let counters = NonNull::from(&**self.counters.entry(guest).or_default()).cast();
        // SAFETY: the box stays until after the service has forgotten the guest, and is changed by atomics alone.
        let counters = unsafe { SharedCounters::new(counters) };
        let counters = counters.map_err(|_| os(libc::EINVAL))?;
        self.service.add_guest(GuestPool {
            guest,
            device,
            namespace: m.c,
            pool: 0..device.layout().chunks,
            ledger: ledger.as_ref().map(|l| l.ledger),
            counters,
        });
        self.regions.insert(guest, region);
        match ledger {
            Some(ledger) => self.ledgers.insert(guest, ledger),
            None => self.ledgers.remove(&guest),
        };
        Ok(())
    }

    /// The guest's new sockets are another NSM's from now on.
    fn leave(&mut self, m: &Message, memfd: OwnedFd) -> io::Result<()> {
        let guest = m.b as u16;
        let region = self.regions.get(&guest).ok_or_else(|| os(libc::ENOENT))?;
        let layout = region.device.layout();
        if !self.settle() {
            return Err(os(libc::EAGAIN));
        }
        let ledger = match self.ledgers.remove(&guest) {
            Some(ledger) => ledger,
            None => shared_ledger(m, memfd, layout)?,
        };
        let moved = self.service.leave(guest, ledger.ledger);
        self.ledgers.insert(guest, ledger);
        for socket in moved {
            for text in unread_to_texts(&socket.unread) {
                let mut told = Message::new(Kind::Nsm).with_text(&text);
                (told.a, told.b) = (note::UNREAD, socket.key.to_word());
                nk_attach::send(self.control.as_raw_fd(), &told, &[]).map_err(os)?;
            }
            let mut told = Message::new(Kind::Nsm).with_text(&socket.at.to_text());
            (told.a, told.b) = (note::MOVED, socket.key.to_word());
            nk_attach::send(self.control.as_raw_fd(), &told, &[socket.fd.as_raw_fd()])
                .map_err(os)?;
        }
        Ok(())
    }

    fn adopt_moved(&mut self, m: &Message, fd: OwnedFd) -> io::Result<()> {
        let at = m.text().and_then(MovedAt::from_text).ok_or_else(|| os(libc::EINVAL))?;
        let unread = self.unread.remove(&m.b).unwrap_or_default();
        let socket = MovedSocket { key: Key::from_word(m.b), fd, unread, at };
        self.service.adopt_moved(socket).map_err(|e| os(e.0))
    }

    fn remember_unread(&mut self, m: &Message) -> io::Result<()> {
        let more = m.text().and_then(unread_from_text).ok_or_else(|| os(libc::EINVAL))?;
        self.unread.entry(m.b).or_default().extend(more);
        Ok(())
    }

    fn renew_options(&mut self, m: &Message, memfd: OwnedFd) -> io::Result<()> {
        let all = read_options(memfd, m.d).ok_or_else(|| os(libc::EINVAL))?;
        self.service.renew_options(m.b as u16);
        for (key, options) in all {
            options.into_iter().for_each(|o| self.service.renew_option(key, o));
        }
        Ok(())
    }

    fn be_alone(&mut self, guest: u16) {
        // What it was told about sockets of the NSMs that are gone is about shared chunks.
        self.settle();
        self.service.be_alone(guest);
        self.ledgers.remove(&guest);
    }

    fn remove_guest(&mut self, guest: u16) {
        self.service.remove_guest(guest);
        self.regions.remove(&guest);
        self.counters.remove(&guest);
        self.ledgers.remove(&guest);
    }

    fn limit(&mut self, m: &Message) -> io::Result<()> {
        let limits = m.text().and_then(GuestLimits::from_text).ok_or_else(|| os(libc::EINVAL))?;
        self.service.set_limits(m.b as u16, &limits.service());
        Ok(())
    }

    fn tell_stats(&self, guest: u16, answer: &mut Message) -> io::Result<()> {
        let stats = self.service.stats(guest).ok_or_else(|| os(libc::ENOENT))?;
        *answer = answer.with_text(&format_stats(&stats));
        Ok(())
    }

    /// Does what the daemon asks.
    pub(super) fn command(
        &mut self,
        m: &Message,
        [fd, more]: [Option<OwnedFd>; 2],
        answer: &mut Message,
    ) -> io::Result<()> {
        let guest = m.b as u16;
        match (m.a, fd) {
            (command::ADD_GUEST, Some(memfd)) => return self.add_guest(m, memfd, more),
            (command::LEAVE, Some(memfd)) => return self.leave(m, memfd),
            (command::ADOPT_MOVED, Some(fd)) => return self.adopt_moved(m, fd),
            (command::UNREAD, _) => return self.remember_unread(m),
            (command::OPTIONS, Some(memfd)) => return self.renew_options(m, memfd),
            (command::ADOPT_LISTENER, Some(fd)) => {
                let adopted = self.service.adopt_listener(Key::from_word(m.b), fd, m.c as u32);
                return adopted.map_err(|e| os(e.0));
            }
            (command::LIMITS, _) => return self.limit(m),
            (command::STATS, _) => return self.tell_stats(guest, answer),
            (command::ENTER, _) => self.service.enter(guest),
            (command::ALONE, _) => self.be_alone(guest),
            (command::REMOVE_GUEST, _) => self.remove_guest(guest),
            (command::END, _) => {
                self.regions.values().for_each(|r| wake_guest(r, ENGINE_GONE));
            }
            _ => return Err(os(libc::EINVAL)),
        }
        Ok(())
    }
}
