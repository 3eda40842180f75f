//! Options of sockets: set, asked for, and set again.

use nk_device::nqe::unpack_option;
use nk_device::qset::REPLY_BYTES;
use nk_device::sync::Ordering;
use nk_device::{Nqe, Op};
use nk_guestlib::options::{Policy, lookup};

use super::key_of;
use crate::service::{Ctx, Taken};
use crate::{Errno, SetOption, Stack};

/// Bytes of an option's value that the element carries itself; a longer one is in a chunk.
const INLINE_MAX: usize = 16;

impl<S: Stack> Ctx<'_, S> {
    pub(super) fn set_option(&mut self, nqe: &Nqe, mut s: Taken<S>) -> Taken<S> {
        let (level, name, length) = unpack_option(nqe.size);
        let (level, name) = (i32::from(level), i32::from(name));
        let mut value = [0u8; 256];
        if usize::from(length) > INLINE_MAX {
            if let Err(e) = self.take_value(nqe.op_data as u32, &mut value) {
                self.reply(nqe, Err(e));
                return s;
            }
        } else {
            let words = nqe.op_data.to_le_bytes().into_iter().chain(nqe.data.to_le_bytes());
            for (to, from) in value.iter_mut().zip(words) {
                *to = from;
            }
        }
        let r = match value.get(..usize::from(length)) {
            Some(value) => {
                let option = SetOption { level, name, value: value.to_vec() };
                let r = self.apply_option(&mut s, &option);
                if r.is_ok() && s.datagram.is_some() {
                    self.stack.note_option(key_of(nqe), &option);
                }
                r
            }
            None => Err(Errno(libc::EINVAL)),
        };
        self.reply(nqe, r.map(|()| 0));
        s
    }

    pub(super) fn apply_option(&mut self, s: &mut Taken<S>, o: &SetOption) -> Result<(), Errno> {
        let (level, name, value) = (o.level, o.name, &o.value);
        match lookup(level, name).map(|o| o.policy) {
            // A datagram socket's port is chosen at its bind or first send, by rules that a choice of the kernel's own at a later
            // time would pass by.
            _ if s.datagram.is_some()
                && (level, name) == (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT) =>
            {
                Err(Errno(libc::ENOPROTOOPT))
            }
            Some(Policy::Forward | Policy::ForwardSync) => {
                self.on(s, |stack, h| stack.set_option(h, level, name, value))
            }
            Some(Policy::ReadOnly(e) | Policy::Off(e) | Policy::Refuse(e)) => Err(Errno(e)),
            Some(Policy::Local) | None => Err(Errno(libc::ENOPROTOOPT)),
        }?;
        if (level, name) == (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) && !s.is_claimed {
            s.is_v6only = value.iter().take(4).any(|b| *b != 0);
        }
        Self::note_option(s, level, name, value);
        Ok(())
    }

    /// Whether a socket that another service had is one for IPv6 alone.
    pub(crate) fn is_v6only(&mut self, handle: &S::Socket, family: u16) -> bool {
        let (level, name) = (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
        i32::from(family) == libc::AF_INET6 && self.is_set(handle, level, name)
    }

    /// Whether an option that is a switch is on.
    pub(crate) fn is_set(&mut self, handle: &S::Socket, level: i32, name: i32) -> bool {
        let mut value = [0; 4];
        self.stack.get_option(handle, level, name, &mut value).is_ok() && value != [0; 4]
    }

    /// Copies an option's value out of the leased chunk that it came in. ENETDOWN where it is not leased: a service that started
    /// meanwhile has taken it back.
    fn take_value(&mut self, chunk: u32, value: &mut [u8; 256]) -> Result<(), Errno> {
        let Some(row) = self.guest.begin_tx(chunk) else {
            self.guest.counters.service.violations.add(1);
            return Err(Errno(libc::ENETDOWN));
        };
        self.guest.device.copy_from_chunk(chunk, value);
        self.guest.pool.free(chunk);
        if let Some(row) = row {
            self.guest.top_up(row, false, self.port);
        }
        Ok(())
    }

    pub(super) fn get_option(&mut self, nqe: &Nqe, s: Taken<S>) -> Taken<S> {
        let (level, name, length) = unpack_option(nqe.size);
        let (level, name) = (i32::from(level), i32::from(name));
        let mut out = [0u8; REPLY_BYTES];
        let allowed = match lookup(level, name).map(|o| o.policy) {
            Some(Policy::Forward | Policy::ForwardSync | Policy::ReadOnly(_)) => Ok(()),
            Some(Policy::Refuse(e)) => Err(Errno(e)),
            Some(Policy::Local | Policy::Off(_)) | None => Err(Errno(libc::ENOPROTOOPT)),
        };
        // 255 asks for as much as there is: the length has a byte only.
        let room = if length == 255 { REPLY_BYTES } else { usize::from(length) };
        let r = allowed.and_then(|()| {
            let out = out.get_mut(..room).ok_or(Errno(libc::EINVAL))?;
            self.on(&s, |stack, h| stack.get_option(h, level, name, out))
        });
        match r {
            Ok(n) if nqe.ticket != 0 => self.reply_value(nqe, out.get(..n).unwrap_or_default()),
            Ok(_) => {}
            Err(e) => self.reply(nqe, Err(e)),
        }
        s
    }

    /// A reply with bytes: in the element, or in the queue set's reply area.
    fn reply_value(&mut self, nqe: &Nqe, value: &[u8]) {
        let mut out = Nqe::new(Op::Reply, nqe.socket, nqe.generation);
        out.guest = nqe.guest;
        out.qset = nqe.qset;
        out.ticket = nqe.ticket;
        out.size = value.len() as u32;
        let word = |b: &[u8]| {
            let mut w = [0u8; 8];
            for (to, from) in w.iter_mut().zip(b) {
                *to = *from;
            }
            u64::from_le_bytes(w)
        };
        if value.len() <= 16 {
            let mut words = value.chunks(8).map(word);
            out.op_data = words.next().unwrap_or(0);
            out.data = words.next().unwrap_or(0);
        } else if let Some(q) = self.guest.device.qset(nqe.qset) {
            for (to, from) in q.reply.iter().zip(value.chunks(8).map(word)) {
                to.store(from, Ordering::Relaxed);
            }
        }
        self.port.push(&out);
    }
}
