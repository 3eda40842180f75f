//! Many sends with one system call, through io_uring (docs/decisions/0008).
//!
//! Nothing is ever under way after [`Ring::send_all`]: MSG_DONTWAIT makes the kernel complete each request while it takes it, with EAGAIN
//! where the socket has no room. So a chunk's owner, a socket's close and a guest's end know nothing of the ring.

use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use nk_servicelib::{Errno, Sending};

use crate::sys;

/// Requests with one system call.
const ENTRIES: usize = 64;
const FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

/// Where the requests lie: memory of this process, that no guest maps.
pub(crate) struct Ring {
    uring: IoUring,
    headers: Box<[libc::msghdr; ENTRIES]>,
}

// SAFETY: the headers' pointers are only of use within send_some, which sets them.
unsafe impl Send for Ring {}

impl Ring {
    /// Makes it, and asks for what it needs: Linux 5.18.
    pub(crate) fn new() -> Result<Ring, Errno> {
        let failed = |e: std::io::Error| Errno(e.raw_os_error().unwrap_or(libc::EIO));
        let mut builder = IoUring::builder();
        let uring =
            builder.setup_submit_all().setup_r_disabled().build(ENTRIES as u32).map_err(failed)?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe).map_err(failed)?;
        let needed = [opcode::Send::CODE, opcode::SendMsg::CODE];
        if needed.iter().any(|op| !probe.is_supported(*op)) {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        // Seccomp does not see what a ring does: whoever takes over this process is to have no more by it than without.
        let mut restrictions = needed.map(Restriction::sqe_op);
        uring.submitter().register_restrictions(&mut restrictions).map_err(failed)?;
        uring.submitter().register_enable_rings().map_err(failed)?;
        // SAFETY: msghdr is plain data, valid when zeroed.
        let headers = Box::new(unsafe { core::mem::zeroed() });
        Ok(Ring { uring, headers })
    }

    /// Sends on each; `false` when the ring is of no use any more (what it did not send was sent without it).
    pub(crate) fn send_all(&mut self, sends: &mut [Sending<'_, OwnedFd>]) -> bool {
        let mut works = true;
        for some in sends.chunks_mut(ENTRIES) {
            let mut done = [false; ENTRIES];
            works = works && self.send_some(some, &mut done);
            for (s, done) in some.iter_mut().zip(done) {
                if !done || s.result == Err(Errno(libc::EINTR)) {
                    s.result = sys::send(s.socket, s.spans);
                }
            }
        }
        works
    }

    fn send_some(
        &mut self,
        sends: &mut [Sending<'_, OwnedFd>],
        done: &mut [bool; ENTRIES],
    ) -> bool {
        for (i, (s, header)) in sends.iter().zip(self.headers.iter_mut()).enumerate() {
            let entry = request(s, header).user_data(i as u64);
            // SAFETY: the descriptor and the spans are borrowed beyond this call, the header is our own, and no request outlives
            // this call: see the module. The spans' maker vouches for their memory, which only the kernel reads.
            if unsafe { self.uring.submission().push(&entry) }.is_err() {
                return false;
            }
        }
        self.carry_out(sends.len(), |at, result| {
            if let (Some(s), Some(done)) = (sends.get_mut(at), done.get_mut(at)) {
                s.result = usize::try_from(result).map_err(|_| Errno(-result));
                *done = true;
            }
        })
    }

    /// Has the kernel carry out what was pushed. `false`: nothing of what is missing was taken.
    fn carry_out(&mut self, count: usize, mut done: impl FnMut(usize, i32)) -> bool {
        let mut left = count;
        while left > 0 {
            match self.uring.submit_and_wait(left) {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(_) => return false,
            }
            for c in self.uring.completion() {
                done(c.user_data() as usize, c.result());
                left = left.saturating_sub(1);
            }
        }
        true
    }
}

fn request(s: &Sending<'_, OwnedFd>, header: &mut libc::msghdr) -> squeue::Entry {
    let fd = types::Fd(s.socket.as_raw_fd());
    if let [one] = s.spans
        && let Ok(len) = u32::try_from(one.len())
    {
        return opcode::Send::new(fd, one.as_ptr(), len).flags(FLAGS).build();
    }
    header.msg_iov = s.spans.as_ptr().cast_mut().cast();
    header.msg_iovlen = s.spans.len();
    opcode::SendMsg::new(fd, header).flags(FLAGS as u32).build()
}
