//! Living on when the engine dies: the next one is told what there is.

use nk_device::Device;
use nk_device::cell::{SF_CONNECTED, SF_CONNECTING, SF_DEAD, SF_FAILED};
use nk_device::kept::{
    KS_BOUND, KS_CLOSING, KS_CONNECTION, KS_DATAGRAM, KS_LISTENING, KS_SHUT_WR, KS_V6ONLY,
    KeptSocket,
};

use crate::guest::Guest;
use crate::port::Port;
use crate::service::Service;
use crate::socket::Socket;
use crate::{Key, Stack};

impl<S: Stack> Service<S> {
    /// The engine is dead and another one takes over, with this NSM device, which nobody has used. Everything that the dead one had
    /// asked is done; then the answer says what there is of all guests (`nk_engine::KeptGuest::parse`). What happens from here on the
    /// next engine is told over its device.
    pub fn keep(&mut self, device: Device, now_ns: u64) -> Vec<u64> {
        self.port.desert();
        while self.take_nqes(now_ns) > 0 {}
        self.forget_begun();
        self.port = Port::new(device);
        if let Some(q) = device.qset(0) {
            q.in_use.store(1, nk_device::sync::Ordering::SeqCst);
        }
        let mut words = Vec::new();
        for g in self.guests.iter().flatten() {
            tell_guest(&self.stack, g, &mut words);
        }
        words
    }
}

fn tell_guest<S: Stack>(stack: &S, g: &Guest<S::Socket>, words: &mut Vec<u64>) {
    let rows: Vec<u64> = g.live_rows().map(u64::from).collect();
    let sockets = g.sockets.iter().flatten().count() as u64;
    let head = u64::from(g.id) | (rows.len() as u64) << 16 | (g.ids.len() as u64) << 32;
    words.extend([head, sockets]);
    words.extend(rows);
    words
        .extend(g.ids.iter().map(|(id, generation)| u64::from(*id) | u64::from(*generation) << 32));
    for (id, s) in g.sockets.iter().enumerate() {
        if let Some(s) = s {
            let key = Key { guest: g.id, socket: id as u32, generation: s.generation };
            words.extend(describe(stack, key, s).to_words());
        }
    }
}

fn describe<S: Stack>(stack: &S, key: Key, s: &Socket<S::Socket>) -> KeptSocket {
    let flag = |is: bool, flag: u16| if is { flag } else { 0 };
    let is_connection = s.has(SF_CONNECTED | SF_CONNECTING | SF_FAILED | SF_DEAD);
    let local = s.handle.as_ref().and_then(|h| stack.local(h).ok());
    let peer = s.handle.as_ref().filter(|_| s.datagram.is_some() && s.has(SF_CONNECTED));
    let mut k = KeptSocket {
        socket: key.socket,
        generation: key.generation,
        flags: flag(s.is_listening(), KS_LISTENING)
            | flag(s.datagram.is_none() && !s.is_listening() && is_connection, KS_CONNECTION)
            | flag(s.datagram.is_some(), KS_DATAGRAM)
            | flag(s.closing, KS_CLOSING)
            | flag(s.is_claimed && local.is_some(), KS_BOUND)
            | flag(s.is_v6only, KS_V6ONLY)
            | flag(s.shut_wr_wanted || s.shut_wr, KS_SHUT_WR),
        backlog: s.listener.as_ref().map_or(0, |l| l.backlog),
        local: local.unwrap_or_default(),
        peer: peer.and_then(|h| stack.peer(h).ok()).unwrap_or_default(),
    };
    k.local.family = s.family;
    k
}
