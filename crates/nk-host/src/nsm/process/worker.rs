//! The thread that serves: polls ServiceLib and its stack, and takes commands between two polls.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use nk_attach::{Fds, Kind, Message};
use nk_device::patience::Patience;
use nk_device::{Counters, Layout};
use nk_servicelib::{Service, Stack};
use nk_stack_kernel::KernelStack;

use super::super::{NsmTotals, command};
use super::Command;
use crate::guest::{Region, SharedLedger};
use crate::pace::{Pace, now_ns, wait_ms};
use crate::sys;

/// The NSM's poll thread.
pub(super) struct Worker {
    pub(super) service: Service<KernelStack>,
    /// The NSM's own device, mapped for as long as the service uses it.
    own: Region,
    /// What it counts in, mapped as long.
    _totals: NsmTotals,
    /// Guests' regions, mapped for as long as the service knows the guest.
    pub(super) regions: HashMap<u16, Region>,
    /// What is counted of them, there as long.
    pub(super) counters: HashMap<u16, Box<Counters>>,
    /// Of guests that other NSMs serve too: how the pool is shared. Mapped for as long as the service looks at it.
    pub(super) ledgers: HashMap<u16, SharedLedger>,
    /// By key: what sockets that will be adopted have received.
    pub(super) unread: HashMap<u64, Vec<Vec<u32>>>,
    /// To tell of sockets that are given away.
    pub(super) control: Arc<OwnedFd>,
    commands: Receiver<Command>,
    engine_bell: Arc<OwnedFd>,
}

impl Worker {
    pub(super) fn new(
        stack: KernelStack,
        own: Region,
        totals: NsmTotals,
        control: Arc<OwnedFd>,
        commands: Receiver<Command>,
        engine_bell: OwnedFd,
    ) -> Worker {
        let mut service = Service::new(stack, own.device);
        service.count_in(totals.shared);
        Worker {
            service,
            own,
            _totals: totals,
            regions: HashMap::new(),
            counters: HashMap::new(),
            ledgers: HashMap::new(),
            unread: HashMap::new(),
            control,
            commands,
            engine_bell: Arc::new(engine_bell),
        }
    }

    pub(super) fn run(&mut self) {
        let patience = Patience::new();
        let mut pace = Pace::new(&patience);
        loop {
            let engine_bell = self.engine_bell.clone();
            let mut ring = || {
                sys::ring(&engine_bell);
            };
            let r = self.service.poll(now_ns(), pace.asks(), &mut ring);
            let mut busy = r.worked > 0 || r.pending;
            // After the stack's look at its epoll, as in the daemon's poll thread.
            loop {
                match self.commands.try_recv() {
                    Ok((m, mut fds, reply)) => {
                        let mut answer = Message::new(Kind::Nsm);
                        answer.a = m.a;
                        let done = if m.a == command::ADOPT {
                            self.adopt(&m, &mut fds, &mut answer)
                        } else {
                            let fds = [0, 1].map(|i| sys::take(&mut fds, i));
                            self.command(&m, fds, &mut answer)
                        };
                        answer.status =
                            done.map_or_else(|e| e.raw_os_error().unwrap_or(libc::EIO), |()| 0);
                        let _ = reply.send(answer);
                        busy = true;
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            pace.rest(
                &mut self.service,
                busy,
                |s| {
                    let r = s.poll(now_ns(), Some(0), &mut || {
                        sys::ring(&engine_bell);
                    });
                    r.worked > 0 || r.pending
                },
                |s| {
                    if s.prepare_sleep() {
                        s.poll(now_ns(), Some(wait_ms(r.due_ns)), &mut || {
                            sys::ring(&engine_bell);
                        });
                    }
                    s.finish_sleep();
                },
            );
        }
    }

    /// Another daemon takes over.
    fn adopt(&mut self, m: &Message, fds: &mut Fds, answer: &mut Message) -> io::Result<()> {
        let mut take = || {
            let fd = (0..nk_attach::FDS_MAX).find_map(|i| sys::take(fds, i));
            fd.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
        };
        let (memfd, bell, engine_bell, table) = (take()?, take()?, take()?, take()?);
        let region = Region::map(memfd, Layout::NSM)?;
        let stack = self.service.stack_mut();
        stack.add_waker(bell.as_fd(), 0).map_err(|e| io::Error::from_raw_os_error(e.0))?;
        let words = self.service.keep(region.device, now_ns());
        // Guests that it does not go on with.
        self.regions.retain(|guest, _| self.service.stats(*guest).is_some());
        self.counters.retain(|guest, _| self.service.stats(*guest).is_some());
        self.ledgers.retain(|guest, _| self.service.stats(*guest).is_some());
        self.own = region;
        self.engine_bell = Arc::new(engine_bell);
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        std::fs::File::from(table).write_all(&bytes)?;
        (answer.c, answer.d) = (m.c, bytes.len() as u64);
        Ok(())
    }

    pub(super) fn settle(&mut self) -> bool {
        let bell = self.engine_bell.clone();
        self.service.settle(now_ns(), &mut || {
            sys::ring(&bell);
        })
    }
}
