//! fcntl and ioctl. Both are variadic in C; on the machines served, a caller passes the one optional argument where a fixed one
//! would be.

use core::sync::atomic::Ordering;

use libc::{c_int, c_ulong};
use nk_device::cell::SF_LISTENING;
use nk_device::row::Missed;
use nk_guestlib::{datagram, recv, send};

use super::options::kind;
use super::{Target, descriptors, interfaces, native, target};
use crate::fdtable::{self, Entry};
use crate::io::Open;
use crate::{standin, sys};

const SIOCOUTQNSD: c_ulong = 0x894b;
const SIOCATMARK: c_ulong = 0x8905;
const FIOSETOWN: c_ulong = 0x8901;
const SIOCSPGRP: c_ulong = 0x8902;
const FIOGETOWN: c_ulong = 0x8903;
const SIOCGPGRP: c_ulong = 0x8904;
const SIOCGSTAMP_OLD: c_ulong = 0x8906;
const SIOCGSTAMPNS_OLD: c_ulong = 0x8907;
const SIOCGSTAMP_NEW: c_ulong = 0x8010_8906;
const SIOCGSTAMPNS_NEW: c_ulong = 0x8010_8907;
const SIOCADDRT: c_ulong = 0x890b;
const SIOCDELRT: c_ulong = 0x890c;
/// From here to [`INTERFACE_LAST`] requests are about interfaces.
const INTERFACE_FIRST: c_ulong = 0x8910;
const INTERFACE_LAST: c_ulong = 0x8995;
const SIOCGIFADDR: c_ulong = 0x8915;
const SIOCSIFADDR: c_ulong = 0x8916;
const SIOCGIFDSTADDR: c_ulong = 0x8917;
const SIOCSIFDSTADDR: c_ulong = 0x8918;
const SIOCGIFBRDADDR: c_ulong = 0x8919;
const SIOCSIFBRDADDR: c_ulong = 0x891a;
const SIOCGIFNETMASK: c_ulong = 0x891b;
const SIOCSIFNETMASK: c_ulong = 0x891c;
const SIOCDIFADDR: c_ulong = 0x8936;
const SIOCGIFINDEX: c_ulong = 0x8933;

fn do_fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    let entry = fdtable::get(fd);
    if entry == Entry::None {
        return sys::fcntl(fd, command, argument);
    }
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => descriptors::dup_from(fd, command, argument),
        libc::F_GETFL => status_flags(fd),
        libc::F_SETFL => set_status_flags(fd, argument),
        _ if entry == Entry::Internal => sys::fail(libc::EBADF),
        libc::F_GETFD | libc::F_SETFD => sys::fcntl(fd, command, argument),
        // Owners, signals, locks: the kernel keeps them per file.
        _ => match standin::settle(fd) {
            Ok(()) => sys::fcntl(fd, command, argument),
            Err(e) => sys::fail(e),
        },
    }
}

/// F_GETFL. What a socket does when it would block is in its cell: of several processes that share it, some may have a file of the
/// kernel's for it that another does not have.
fn status_flags(fd: c_int) -> c_int {
    let kept = if fdtable::is_shared(fd) { libc::O_RDWR } else { sys::fcntl(fd, libc::F_GETFL, 0) };
    match target(fd) {
        Target::Socket(s) if kept >= 0 => {
            let nonblock = s.cell.nonblock.load(Ordering::Relaxed) != 0;
            kept & !libc::O_NONBLOCK | if nonblock { libc::O_NONBLOCK } else { 0 }
        }
        Target::Socket(_) | Target::Native => kept,
        Target::Error(e) => sys::fail(e),
    }
}

/// F_SETFL. The kernel's file is asked for whatever is no matter of the cell alone.
fn set_status_flags(fd: c_int, argument: usize) -> c_int {
    /// What F_SETFL may change (fcntl(2)), without O_NONBLOCK.
    const OTHERS: c_int = libc::O_APPEND | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME;
    let wanted = argument as c_int;
    if wanted & OTHERS != 0
        && let Err(e) = standin::settle(fd)
    {
        return sys::fail(e);
    }
    if wanted & OTHERS != 0 || !fdtable::is_shared(fd) {
        let r = native!(libc::SYS_fcntl, fd, libc::F_SETFL, argument) as c_int;
        if r < 0 {
            return r;
        }
    }
    if let Target::Socket(s) = target(fd) {
        mirror_nonblock(&s, wanted & libc::O_NONBLOCK != 0);
        if wanted & libc::O_ASYNC != 0 {
            s.p.count_missed(Missed::Call, libc::SYS_fcntl as u64);
        }
    }
    0
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

fn read_int(argument: usize) -> c_int {
    // SAFETY: the program's pointer to an int, not null.
    unsafe { (argument as *const c_int).read_unaligned() }
}

fn ioctl_socket(s: &Open, fd: c_int, request: c_ulong, argument: usize) -> c_int {
    let listening = s.cell.state.load(Ordering::Acquire) & SF_LISTENING != 0;
    match request {
        libc::FIONBIO if argument != 0 && fdtable::is_shared(fd) => {
            mirror_nonblock(s, read_int(argument) != 0);
            0
        }
        libc::FIONBIO => {
            let r = native!(libc::SYS_ioctl, fd, request, argument) as c_int;
            if r == 0 {
                mirror_nonblock(s, read_int(argument) != 0);
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
        SIOCATMARK if !s.is_datagram() => write_int(argument, 0),
        // Signals are not served; off is what it is.
        libc::FIOASYNC if argument != 0 && read_int(argument) == 0 => 0,
        // Whom they would go to, the stand-in keeps.
        FIOSETOWN | SIOCSPGRP | FIOGETOWN | SIOCGPGRP => {
            if let Err(e) = standin::settle(fd) {
                return sys::fail(e);
            }
            native!(libc::SYS_ioctl, fd, request, argument) as c_int
        }
        // No stream has the time at which anything arrived.
        SIOCGSTAMP_OLD | SIOCGSTAMPNS_OLD | SIOCGSTAMP_NEW | SIOCGSTAMPNS_NEW
            if !s.is_datagram() =>
        {
            sys::fail(libc::ENOENT)
        }
        SIOCADDRT | SIOCDELRT | INTERFACE_FIRST..=INTERFACE_LAST => {
            interface(s, fd, request, argument)
        }
        libc::FIOCLEX | libc::FIONCLEX => native!(libc::SYS_ioctl, fd, request, argument) as c_int,
        // What terminals answer: programs ask it of any descriptor, to see whether it is one.
        0x5400..=0x54ff if request != libc::FIOASYNC => sys::fail(libc::ENOTTY),
        _ => {
            s.p.count_missed(Missed::Ioctl, request);
            sys::fail(libc::ENOTTY)
        }
    }
}

/// Interfaces are those where the guest's sockets are; they are not the guest's to change. Where nobody tells about them, the
/// stand-in answers for the guest's own namespace, in which there are no addresses.
fn interface(s: &Open, fd: c_int, request: c_ulong, argument: usize) -> c_int {
    let family = if kind(s).ipv4 { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: the program's own argument for that request.
    if let Some(r) = unsafe { interfaces::ioctl(s.p, family, request, argument) } {
        return r;
    }
    let r = native!(libc::SYS_ioctl, fd, request, argument) as c_int;
    if r == 0 || sys::errno() != libc::ENOTTY {
        return r;
    }
    s.p.count_missed(Missed::Ioctl, request);
    match request {
        SIOCGIFADDR | SIOCGIFDSTADDR | SIOCGIFBRDADDR | SIOCGIFNETMASK if kind(s).ipv4 => {
            // It finds whether there is such an interface, into a copy: the request's own union is left alone.
            // SAFETY: the kernel has just read a request of this size from there.
            let mut copy = unsafe { (argument as *const libc::ifreq).read_unaligned() };
            match native!(libc::SYS_ioctl, fd, SIOCGIFINDEX, &raw mut copy) {
                0 => sys::fail(libc::EADDRNOTAVAIL),
                _ => -1,
            }
        }
        SIOCADDRT | SIOCDELRT | SIOCDIFADDR => sys::fail(libc::EPERM),
        SIOCSIFADDR | SIOCSIFDSTADDR | SIOCSIFBRDADDR | SIOCSIFNETMASK => sys::fail(libc::EPERM),
        _ => r,
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
