//! Datagram sockets: a descriptor is a datagram or several (`nk_device::datagram`), and nothing is ever over but by close.
//!
//! The stack is read only while the guest's ring has room, so that its own receive buffer, and its own count of what did not fit there,
//! are what they are natively: nothing is dropped on this side.

use std::collections::VecDeque;

use nk_device::cell::{SF_BOUND, SF_CONNECTED};
use nk_device::datagram::{DF_PEER, Header, MORE_MAX};
use nk_device::sync::Ordering;
use nk_device::{Addr, Cell, Nqe, Op};

use crate::service::{ALL, Ctx, Due, OUT, Taken};
use crate::{Errno, Key, Stack};

mod rx;
mod tx;

/// Chunks of the longest one.
const CHUNKS: usize = MORE_MAX + 1;
/// What lets a port have several owners.
const REUSE: [i32; 2] = [libc::SO_REUSEADDR, libc::SO_REUSEPORT];
/// How long a closed socket may take to send what is left.
const ORPHAN_MS: u64 = 5_000;

/// What is known of a span of the socket's `tx`, which begins with the datagram that is next to be sent.
#[derive(Debug)]
struct Queued {
    /// That datagram's header.
    header: Header,
    /// Where those go that say nothing of it, whatever the socket is connected to by then.
    peer: Option<Addr>,
}

impl Queued {
    /// The header with which the next datagram is sent.
    fn to_send(&self) -> Header {
        match self.peer {
            Some(peer) if self.header.flags & DF_PEER == 0 => {
                Header { flags: self.header.flags | DF_PEER, peer, ..self.header }
            }
            _ => self.header,
        }
    }
}

/// What a datagram socket has besides what all have.
#[derive(Debug, Default)]
pub(crate) struct Datagrams {
    /// For each span of the socket's `tx`.
    tx: VecDeque<Queued>,
    /// Further chunks of datagrams on the rx ring, with the index of the descriptor.
    rx_more: VecDeque<(u32, Vec<u32>)>,
    /// What became of datagrams whose report is awaited, when it was nothing good: tx index and errno.
    failed: VecDeque<(u32, i32)>,
    /// Calls that wait to be told what became of the datagram at an index, which their guest's rate holds back.
    reports: VecDeque<(u32, Nqe)>,
    /// Drops of the stack that were counted.
    dropped: u32,
    /// The stack's port is known.
    pub(crate) has_port: bool,
    /// SO_REUSEADDR and SO_REUSEPORT as the guest set them.
    reuse: [bool; 2],
    /// Somebody may keep its options.
    pub(crate) has_options: bool,
}

impl Datagrams {
    /// Those of a socket that another service gave away; `set` says which options are.
    pub(crate) fn moved(has_port: bool, set: impl FnMut(i32) -> bool) -> Datagrams {
        Datagrams { has_port, reuse: REUSE.map(set), has_options: true, ..Datagrams::default() }
    }

    /// Whether nobody waits to be told what became of a datagram, and what is queued is as it stands on the ring.
    pub(crate) fn may_move(&self) -> bool {
        let is_as_told = self.tx.iter().all(|q| q.peer.is_none());
        self.failed.is_empty() && self.reports.is_empty() && is_as_told
    }

    /// Takes out the further chunks of each descriptor that is to be sent.
    pub(crate) fn take_queued(&mut self) -> Vec<Vec<u32>> {
        self.tx.drain(..).map(|q| more_of(&q.header).to_vec()).collect()
    }

    /// A datagram stands on the rx ring.
    pub(crate) fn received(&mut self, index: u32, more: Vec<u32>) {
        if !more.is_empty() {
            self.rx_more.push_back((index, more));
        }
    }

    /// Further chunks of all that are not read.
    pub(crate) fn more(&self) -> impl Iterator<Item = u32> {
        self.rx_more.iter().flat_map(|(_, chunks)| chunks.iter().copied())
    }

    /// Further chunks of the datagram at a descriptor that was read.
    pub(crate) fn take_more(&mut self, index: u32) -> Vec<u32> {
        match self.rx_more.front() {
            Some((at, _)) if *at == index => {
                self.rx_more.pop_front().map(|(_, chunks)| chunks).unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }
}

/// The further chunks that a header names.
fn more_of(header: &Header) -> &[u32] {
    let n = Header::more_for(header.len as usize).unwrap_or(0);
    header.more.get(..n).unwrap_or_default()
}

impl<S: Stack> Ctx<'_, S> {
    /// The socket is one for datagrams. `renewed`: it lived before under another service, whose ring positions go on; what is on the
    /// rings went with that one.
    pub(crate) fn begin_datagrams(
        &mut self,
        key: Key,
        cell: &Cell,
        s: &mut Taken<S>,
        renewed: bool,
    ) {
        s.datagram = Some(Box::default());
        s.writable = true;
        if renewed {
            s.pass_published(cell);
            // Even, and later than any that a kick was pushed for.
            s.tx_seq = (cell.tx_seq.load(Ordering::Relaxed) | 1).wrapping_add(1);
            cell.tx_seq.store(s.tx_seq, Ordering::SeqCst);
            s.rx_freed = cell.position().index;
            s.rx_tail = s.rx_freed;
            cell.rx_tail.store(s.rx_tail, Ordering::SeqCst);
            s.change(cell, 0, u32::MAX);
            self.tell(key, cell, ALL);
        }
        let watched = s.handle.as_ref().map_or(Ok(()), |h| self.stack.watch(h, key));
        if let Err(e) = watched {
            s.handle = None;
            s.open_error = e.0;
        }
    }

    /// A turn of such a socket.
    pub(crate) fn datagram_turn(
        &mut self,
        key: Key,
        cell: &Cell,
        mut s: Taken<S>,
    ) -> Option<Taken<S>> {
        if !s.closing {
            self.receive_datagrams(key, cell, &mut s);
        }
        if !self.transmit(key, cell, &mut s) {
            self.break_off(key, cell, &mut s);
        }
        if s.closing && (s.tx_broken || s.is_drained(cell)) {
            self.end(key, cell, s, false);
            return None;
        }
        Some(s)
    }

    /// Nobody holds the socket any more: what is left goes now if the stack takes it, as it nearly always does.
    pub(crate) fn close_datagrams(
        &mut self,
        key: Key,
        cell: &Cell,
        mut s: Taken<S>,
    ) -> Option<Taken<S>> {
        self.free_rx(&mut s);
        if !self.transmit(key, cell, &mut s) {
            self.break_off(key, cell, &mut s);
        }
        if s.tx_broken || s.is_drained(cell) {
            self.end(key, cell, s, false);
            return None;
        }
        self.at(self.now_ms + ORPHAN_MS, key, Due::Orphan);
        self.enqueue(key, &mut s);
        Some(s)
    }

    /// What the guest's rate holds back goes where it was meant to go, whatever the socket is connected to by then.
    fn keep_peer(&self, s: &mut Taken<S>) {
        let peer = s.handle.as_ref().filter(|_| s.has(SF_CONNECTED)).map(|h| self.stack.peer(h));
        if let (Some(Ok(peer)), Some(d)) = (peer, &mut s.datagram) {
            d.tx.iter_mut().for_each(|q| q.peer = q.peer.or(Some(peer)));
        }
    }

    /// Gives back all that was received and not read.
    pub(crate) fn free_rx(&mut self, s: &mut Taken<S>) {
        let more = s.datagram.iter_mut().flat_map(|d| d.rx_more.drain(..)).flat_map(|(_, m)| m);
        for chunk in s.rx.drain(..).chain(more) {
            self.guest.pool.free(chunk);
        }
    }

    // ---- names ----

    /// The stack may have given the socket another address: tells the cell and the engine.
    pub(crate) fn refresh_local(&mut self, key: Key, cell: &Cell, s: &mut Taken<S>) {
        let Some(Ok(local)) = s.handle.as_ref().map(|h| self.stack.local(h)) else { return };
        s.set_local(cell, &local);
        s.change(cell, SF_BOUND, 0);
        s.is_claimed = true;
        self.tell_bound(Op::Bind, key, &local, false);
        if let Some(d) = &mut s.datagram {
            d.has_port = local.port != 0;
        }
    }

    /// Notes an option that was set.
    pub(crate) fn note_option(s: &mut Taken<S>, level: i32, name: i32, value: &[u8]) {
        if let Some(d) = &mut s.datagram {
            d.has_options = true;
        }
        let on = value.iter().take(4).any(|b| *b != 0);
        if let (Some(d), libc::SOL_SOCKET) = (&mut s.datagram, level)
            && let Some(i) = REUSE.iter().position(|r| *r == name)
            && let Some(slot) = d.reuse.get_mut(i)
        {
            *slot = on;
        }
    }

    /// Binds. A port that the stack chooses is nobody else's: with SO_REUSEADDR Linux would also choose one that another guest's socket
    /// has, if that has SO_REUSEADDR too.
    pub(crate) fn bind_datagram(&mut self, s: &Taken<S>, addr: &Addr) -> Result<Addr, Errno> {
        let reuse = s.datagram.as_ref().filter(|_| addr.port == 0).map_or([false; 2], |d| d.reuse);
        self.on(s, |stack, h| {
            let set = |stack: &mut S, on: i32| {
                let names = REUSE.iter().zip(reuse).filter(|(_, set)| *set);
                names.map(|(n, _)| *n).try_for_each(|name| {
                    stack.set_option(h, libc::SOL_SOCKET, name, &on.to_ne_bytes())
                })
            };
            set(stack, 0)?;
            let bound = stack.bind(h, addr);
            set(stack, 1)?;
            bound?;
            stack.local(h)
        })
    }

    /// Before the stack would choose a port by itself.
    pub(super) fn choose_port(&mut self, s: &Taken<S>) {
        if s.datagram.as_ref().is_some_and(|d| !d.has_port && d.reuse != [false; 2]) {
            let _ = self.bind_datagram(s, &Addr { family: s.family, ..Addr::default() });
        }
    }

    pub(crate) fn connect_datagram(
        &mut self,
        nqe: &Nqe,
        key: Key,
        cell: &Cell,
        mut s: Taken<S>,
    ) -> Taken<S> {
        let addr = Addr::from_words(s.family, nqe.size, nqe.op_data, nqe.data);
        // What was queued before goes where it was meant to go.
        let _ = self.transmit(key, cell, &mut s);
        self.keep_peer(&mut s);
        self.choose_port(&s);
        let r = self.on(&s, |stack, h| {
            stack.connect(h, &addr)?;
            Ok(stack.peer(h).unwrap_or(addr))
        });
        // Also a connect that failed has got a port.
        self.refresh_local(key, cell, &mut s);
        if let Ok(peer) = r {
            cell.peer.store(&peer);
            s.change(cell, SF_CONNECTED, 0);
            self.tell(key, cell, OUT);
        }
        self.reply(nqe, r.map(|_| 0));
        s
    }

    pub(crate) fn disconnect_datagram(
        &mut self,
        nqe: &Nqe,
        key: Key,
        cell: &Cell,
        mut s: Taken<S>,
    ) -> Taken<S> {
        let _ = self.transmit(key, cell, &mut s);
        self.keep_peer(&mut s);
        let r = self.on(&s, |stack, h| stack.disconnect(h));
        if r.is_ok() {
            s.change(cell, 0, SF_CONNECTED);
            self.refresh_local(key, cell, &mut s);
        }
        self.reply(nqe, r.map(|()| 0));
        s
    }
}
