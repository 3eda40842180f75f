//! SCM_RIGHTS: sockets that travel over Unix sockets.
//!
//! While a descriptor is in flight no process has it, so the daemon holds the socket: before the first send of a socket its stand-in
//! becomes one end of a pair, put over all own descriptors of the socket with the same tag; the daemon gets the other end
//! and holds the socket until that end says that the last descriptor is gone, in flight or open.

use core::sync::atomic::Ordering;

use libc::{c_int, cmsghdr, msghdr};
use nk_attach::{Kind, Message};
use nk_device::row::Missed;

use super::files;
use crate::fdtable::{self, Entry};
use crate::io::Open;
use crate::process::{Process, process};
use crate::{borrowers, control, gate, standin, sys};

/// Calls `f` with each descriptor in the message's control data, until it fails.
fn for_each_right(m: &msghdr, mut f: impl FnMut(c_int) -> Result<(), c_int>) -> Result<(), c_int> {
    if m.msg_control.is_null() {
        return Ok(());
    }
    // SAFETY: libc's macros stay within msg_control and msg_controllen, which the program or the kernel set.
    unsafe {
        let mut c: *const cmsghdr = libc::CMSG_FIRSTHDR(m);
        while !c.is_null() {
            if (*c).cmsg_level == libc::SOL_SOCKET && (*c).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(c).cast::<c_int>();
                let end = (m.msg_control as usize).saturating_add(m.msg_controllen);
                let room = end.saturating_sub(data as usize);
                let bytes = ((*c).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                for i in 0..bytes.min(room) / size_of::<c_int>() {
                    f(data.add(i).read_unaligned())?;
                }
            }
            c = libc::CMSG_NXTHDR(m, c);
        }
    }
    Ok(())
}

/// Before a native sendmsg: the daemon holds every socket of ours that it carries.
pub(crate) fn about_to_send(message: *const msghdr) -> Result<(), c_int> {
    if message.is_null() || fdtable::top() == 0 {
        return Ok(());
    }
    // SAFETY: the program's message header.
    let m = unsafe { message.read() };
    for_each_right(&m, |fd| match fdtable::get(fd) {
        Entry::Socket { id, generation } => {
            let p = process().ok_or(libc::EBADF)?;
            hold(p, id, generation)?;
            standin::settle(fd)
        }
        Entry::Internal => Err(libc::EBADF),
        _ => Ok(()),
    })
}

/// Makes the daemon hold the socket until its last descriptor is closed, wherever it is.
///
/// # Errors
/// EMFILE and the like, or the daemon's refusal.
pub(crate) fn hold(p: &Process, id: u32, generation: u16) -> Result<(), c_int> {
    if borrowers::lender().is_some() {
        return borrowers::lend_all(p, id, generation);
    }
    if fdtable::is_held(id) {
        return Ok(());
    }
    // Several threads may come here at once: each has the daemon's word for a pair before it says so, and one pair in the place of
    // another is as good.
    let near = pair_for(p, id, generation)?;
    gate::alone(p, || {
        fdtable::for_each_socket(|fd, i, g| {
            if (i, g) == (id, generation) {
                let cloexec = sys::fcntl(fd, libc::F_GETFD, 0) & libc::FD_CLOEXEC != 0;
                let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
                // SAFETY: no memory is involved. It replaces the old stand-in at once.
                unsafe { sys::system_call!(libc::SYS_dup3, near, fd, flags) };
                fdtable::set_settled(fd, id, generation);
                fdtable::set_held(id);
            }
        });
    });
    sys::close(near);
    Ok(())
}

/// A stand-in of the socket, close-on-exec, whose other end the daemon has: it holds the socket as long as a copy of this one is open anywhere.
///
/// # Errors
/// EMFILE and the like, or the daemon's refusal.
pub(crate) fn pair_for(p: &Process, id: u32, generation: u16) -> Result<c_int, c_int> {
    let [near, far] = sys::seqpacket_pair()?;
    let r = give_far_end(p, near, far, id, generation);
    sys::close(far);
    if r.is_err() {
        sys::close(near);
    }
    r.map(|()| near)
}

fn give_far_end(
    p: &Process,
    near: c_int,
    far: c_int,
    id: u32,
    generation: u16,
) -> Result<(), c_int> {
    standin::tag(near, id, generation)?;
    if p.cell(id).is_some_and(|c| c.nonblock.load(Ordering::Relaxed) != 0) {
        sys::fcntl(near, libc::F_SETFL, (libc::O_NONBLOCK | libc::O_RDWR) as usize);
    }
    let mut message = Message::new(Kind::Hold);
    message.a = id.into();
    message.b = generation.into();
    control::request(p, &message, &[far]).map(drop)
}

/// A native recvmsg, after which what came is entered.
pub(crate) fn received(message: *mut msghdr, call: impl FnOnce() -> isize) -> isize {
    if fdtable::top() == 0 {
        return call();
    }
    let n = call();
    if n >= 0 {
        import(message);
    }
    n
}

/// Enters the sockets of ours among the descriptors that a message brought.
pub(crate) fn import(message: *const msghdr) {
    if message.is_null() {
        return;
    }
    // SAFETY: the kernel has just filled it.
    let m = unsafe { message.read() };
    if m.msg_controllen == 0 {
        return;
    }
    if borrowers::lender().is_some() {
        return;
    }
    let _ = for_each_right(&m, |fd| {
        if let Some((id, generation)) = standin::read_tag(fd)
            && let Some(p) = process()
        {
            {
                let _changing = gate::enter();
                if p.cell(id)
                    .is_some_and(|c| c.generation.load(Ordering::Acquire) == u32::from(generation))
                {
                    standin::enter(p, fd, id, generation);
                    // What came is an end of the pair by which the daemon holds the socket. Other descriptors of it here are not, and the
                    // next to be sent may be one of those: then there will be a pair for all.
                    if fdtable::holders(id) == 1 {
                        fdtable::set_held(id);
                    }
                }
            }
            files::follow(fd);
        }
        Ok(())
    });
}

/// Control messages that a program sends on a stream of ours: Linux's TCP knows none that mean something here.
pub(crate) fn check_control(s: &Open, m: &msghdr) -> Result<(), c_int> {
    if m.msg_control.is_null() || m.msg_controllen < size_of::<cmsghdr>() {
        return Ok(());
    }
    // SAFETY: within the program's control buffer, by the length above.
    let (level, kind) = unsafe {
        let c = libc::CMSG_FIRSTHDR(m);
        if c.is_null() {
            return Ok(());
        }
        ((*c).cmsg_level, (*c).cmsg_type)
    };
    s.p.count_missed(
        Missed::ControlMessage,
        (level as u64 & 0xffff) << 16 | (kind as u64 & 0xffff),
    );
    Err(libc::EINVAL)
}
