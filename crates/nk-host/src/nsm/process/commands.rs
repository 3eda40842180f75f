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

    /// Does what the daemon asks; returns an errno or 0.
    pub(super) fn command(
        &mut self,
        m: &Message,
        fds: [Option<OwnedFd>; 2],
        answer: &mut Message,
    ) -> i32 {
        let guest = m.b as u16;
        let [fd, more] = fds;
        match (m.a, fd) {
            (command::ADD_GUEST, Some(memfd)) => {
                let done = self.add_guest(m, memfd, more);
                done.map_or_else(|e| e.raw_os_error().unwrap_or(libc::EIO), |()| 0)
            }
            (command::LEAVE, Some(memfd)) => {
                let done = self.leave(m, memfd);
                done.map_or_else(|e| e.raw_os_error().unwrap_or(libc::EIO), |()| 0)
            }
            (command::ENTER, _) => {
                self.service.enter(guest);
                0
            }
            (command::ADOPT_MOVED, Some(fd)) => {
                let Some(at) = m.text().and_then(MovedAt::from_text) else { return libc::EINVAL };
                let unread = self.unread.remove(&m.b).unwrap_or_default();
                let socket = MovedSocket { key: Key::from_word(m.b), fd, unread, at };
                self.service.adopt_moved(socket).map_or_else(|e| e.0, |()| 0)
            }
            (command::UNREAD, _) => match m.text().and_then(unread_from_text) {
                Some(mut more) => {
                    self.unread.entry(m.b).or_default().append(&mut more);
                    0
                }
                None => libc::EINVAL,
            },
            (command::OPTIONS, Some(memfd)) => match read_options(memfd, m.d) {
                Some(all) => {
                    self.service.renew_options(guest);
                    for (key, options) in all {
                        options.into_iter().for_each(|o| self.service.renew_option(key, o));
                    }
                    0
                }
                None => libc::EINVAL,
            },
            (command::END, _) => {
                self.regions.values().for_each(|r| wake_guest(r, ENGINE_GONE));
                0
            }
            (command::ALONE, _) => {
                // What it was told about sockets of the NSMs that are gone is about shared chunks.
                self.settle();
                self.service.be_alone(guest);
                self.ledgers.remove(&guest);
                0
            }
            (command::REMOVE_GUEST, _) => {
                self.service.remove_guest(guest);
                self.regions.remove(&guest);
                self.counters.remove(&guest);
                self.ledgers.remove(&guest);
                0
            }
            (command::ADOPT_LISTENER, Some(fd)) => {
                match self.service.adopt_listener(Key::from_word(m.b), fd, m.c as u32) {
                    Ok(()) => 0,
                    Err(e) => e.0,
                }
            }
            (command::LIMITS, _) => {
                match m.text().and_then(crate::limits::GuestLimits::from_text) {
                    Some(l) => {
                        self.service.set_limits(guest, &l.service());
                        0
                    }
                    None => libc::EINVAL,
                }
            }
            (command::STATS, _) => match self.service.stats(guest) {
                Some(s) => {
                    *answer = answer.with_text(&format_stats(&s));
                    0
                }
                None => libc::ENOENT,
            },
            _ => libc::EINVAL,
        }
    }
}
