//! fcntl and ioctl. Both are variadic in C; on the machines served, a caller passes the one optional argument where a fixed one
//! would be.

use core::sync::atomic::Ordering;

use libc::{c_int, c_ulong};
use nk_device::cell::SF_LISTENING;
use nk_device::row::Missed;
use nk_guestlib::{datagram, recv, send};

use super::{Target, descriptors, native, target};
use crate::fdtable::{self, Entry};
use crate::io::Open;
use crate::sys;

const SIOCOUTQNSD: c_ulong = 0x894b;
const SIOCATMARK: c_ulong = 0x8905;

fn do_fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    let entry = fdtable::get(fd);
    if entry == Entry::None {
        return sys::fcntl(fd, command, argument);
    }
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => descriptors::dup_from(fd, command, argument),
        libc::F_SETFL => {
            let r = native!(libc::SYS_fcntl, fd, command, argument) as c_int;
            if r >= 0
                && let Target::Socket(s) = target(fd)
            {
                mirror_nonblock(&s, argument as c_int & libc::O_NONBLOCK != 0);
                if argument as c_int & libc::O_ASYNC != 0 {
                    s.p.count_missed(Missed::Call, libc::SYS_fcntl as u64);
                }
            }
            r
        }
        _ if entry == Entry::Internal => sys::fail(libc::EBADF),
        _ => sys::fcntl(fd, command, argument),
    }
}

fn mirror_nonblock(s: &Open, on: bool) {
    s.cell.nonblock.store(u32::from(on), Ordering::Relaxed);
}

/// fcntl(2).
#[unsafe(no_mangle)]
pub extern "C" fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    do_fcntl(fd, command, argument)
}

/// fcntl64: the same on 64-bit machines.
#[unsafe(no_mangle)]
pub extern "C" fn fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int {
    do_fcntl(fd, command, argument)
}

fn write_int(argument: usize, value: usize) -> c_int {
    if argument == 0 {
        return sys::fail(libc::EFAULT);
    }
    let value = c_int::try_from(value).unwrap_or(c_int::MAX);
    // SAFETY: the program's pointer to an int, not null.
    unsafe { (argument as *mut c_int).write_unaligned(value) };
    0
}

fn ioctl_socket(s: &Open, fd: c_int, request: c_ulong, argument: usize) -> c_int {
    let listening = s.cell.state.load(Ordering::Acquire) & SF_LISTENING != 0;
    match request {
        libc::FIONBIO => {
            let r = native!(libc::SYS_ioctl, fd, request, argument) as c_int;
            if r == 0 {
                // SAFETY: the kernel has just read this int.
                let on = unsafe { (argument as *const c_int).read_unaligned() } != 0;
                mirror_nonblock(s, on);
            }
            r
        }
        libc::FIONREAD | libc::TIOCOUTQ | SIOCOUTQNSD if listening => sys::fail(libc::EINVAL),
        SIOCOUTQNSD if s.is_datagram() => sys::fail(libc::ENOTTY),
        libc::FIONREAD if s.is_datagram() => write_int(argument, datagram::available(&s.socket())),
        libc::TIOCOUTQ if s.is_datagram() => write_int(argument, datagram::queued(&s.socket())),
        libc::FIONREAD => write_int(argument, recv::available(s.cell)),
        libc::TIOCOUTQ | SIOCOUTQNSD => write_int(argument, send::queued(&s.socket())),
        // Urgent data is not served, so the mark is never reached.
        SIOCATMARK => write_int(argument, 0),
        libc::FIOCLEX | libc::FIONCLEX => native!(libc::SYS_ioctl, fd, request, argument) as c_int,
        // What terminals answer: programs ask it of any descriptor, to see whether it is one.
        0x5400..=0x54ff if request != libc::FIOASYNC => sys::fail(libc::ENOTTY),
        _ => {
            s.p.count_missed(Missed::Ioctl, request);
            sys::fail(if request == libc::FIOASYNC { libc::EINVAL } else { libc::ENOTTY })
        }
    }
}

/// ioctl(2).
#[unsafe(no_mangle)]
pub extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int {
    // Some callers sign-extend the 32-bit request.
    let request = request & 0xffff_ffff;
    match target(fd) {
        Target::Socket(s) => ioctl_socket(&s, fd, request, argument),
        Target::Native => native!(libc::SYS_ioctl, fd, request, argument) as c_int,
        Target::Error(e) => sys::fail(e),
    }
}
