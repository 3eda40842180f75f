//! The filter under which a guest's processes run: what would bypass GuestLib fails, so that runtimes fall back.
//!
//! GuestLib itself never makes these calls, so whatever reaches the filter came past it: a raw system call, a library of
//! its own, io_uring. The filter crosses fork and exec and cannot be taken off.

use std::io;

const LD_W_ABS: u16 = 0x20;
const JEQ_K: u16 = 0x15;
const JGE_K: u16 = 0x35;
const RET_K: u16 = 0x06;

const AT_NUMBER: u32 = 0;
const AT_ARCH: u32 = 4;
/// Low half of the first argument (little endian).
const AT_FIRST: u32 = 16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const fn errno(e: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | e as u32
}

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
/// From here on, numbers are of the x32 ABI.
const X32: u32 = 0x4000_0000;

const fn op(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// The program. Other ABIs of the same kernel (i386, x32) get ENOSYS for everything: their socket calls have other numbers,
/// and no program that GuestLib can serve uses them.
fn program() -> [libc::sock_filter; 17] {
    [
        op(LD_W_ABS, AT_ARCH, 0, 0),
        op(JEQ_K, ARCH, 1, 0),
        op(RET_K, errno(libc::ENOSYS), 0, 0),
        op(LD_W_ABS, AT_NUMBER, 0, 0),
        op(JGE_K, X32, 9, 0),
        op(JEQ_K, libc::SYS_io_uring_setup as u32, 8, 0),
        op(JEQ_K, libc::SYS_io_uring_enter as u32, 7, 0),
        op(JEQ_K, libc::SYS_io_uring_register as u32, 6, 0),
        op(JEQ_K, libc::SYS_socket as u32, 0, 4),
        op(LD_W_ABS, AT_FIRST, 0, 0),
        op(JEQ_K, libc::AF_INET as u32, 4, 0),
        op(JEQ_K, libc::AF_INET6 as u32, 3, 0),
        op(JEQ_K, libc::AF_PACKET as u32, 3, 0),
        op(RET_K, ALLOW, 0, 0),
        op(RET_K, errno(libc::ENOSYS), 0, 0),
        op(RET_K, errno(libc::EAFNOSUPPORT), 0, 0),
        op(RET_K, errno(libc::EPERM), 0, 0),
    ]
}

/// Puts the filter on this process and all its descendants.
///
/// # Errors
/// Those of prctl and seccomp, with what to do.
pub(crate) fn install(privileged: bool) -> io::Result<()> {
    let mut filter = program();
    let prog = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    const SECCOMP_SET_MODE_FILTER: i32 = 1;
    // SAFETY: plain numbers, and a program that outlives the call (the kernel copies it).
    let put = || unsafe {
        result(libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const prog))
    };
    if privileged {
        match put() {
            // Root of a container, without CAP_SYS_ADMIN: as any user.
            Err(e) if e.raw_os_error() == Some(libc::EACCES) => {}
            done => return done,
        }
    }
    // SAFETY: plain numbers.
    result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    put()
}

fn result(returned: libc::c_long) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn run(arch: u32, number: u32, first: u32) -> u32 {
        let filter = program();
        let (mut pc, mut a) = (0usize, 0u32);
        loop {
            let i = filter[pc];
            pc += 1;
            match i.code {
                LD_W_ABS => {
                    a = match i.k {
                        AT_NUMBER => number,
                        AT_ARCH => arch,
                        AT_FIRST => first,
                        other => panic!("load from {other}"),
                    }
                }
                JEQ_K => pc += usize::from(if a == i.k { i.jt } else { i.jf }),
                JGE_K => pc += usize::from(if a >= i.k { i.jt } else { i.jf }),
                RET_K => return i.k,
                other => panic!("code {other}"),
            }
        }
    }

    #[test]
    fn each_call_gets_its_answer() {
        let socket = libc::SYS_socket as u32;
        let call = |n: i64| run(ARCH, n as u32, 0);
        assert_eq!(run(ARCH, socket, libc::AF_INET as u32), errno(libc::EAFNOSUPPORT));
        assert_eq!(run(ARCH, socket, libc::AF_INET6 as u32), errno(libc::EAFNOSUPPORT));
        assert_eq!(run(ARCH, socket, libc::AF_PACKET as u32), errno(libc::EPERM));
        assert_eq!(run(ARCH, socket, libc::AF_UNIX as u32), ALLOW);
        assert_eq!(run(ARCH, socket, libc::AF_NETLINK as u32), ALLOW);
        assert_eq!(call(libc::SYS_io_uring_setup), errno(libc::ENOSYS));
        assert_eq!(call(libc::SYS_io_uring_enter), errno(libc::ENOSYS));
        assert_eq!(call(libc::SYS_io_uring_register), errno(libc::ENOSYS));
        for n in [libc::SYS_read, libc::SYS_connect, libc::SYS_socketpair, libc::SYS_execve] {
            assert_eq!(run(ARCH, n as u32, libc::AF_INET as u32), ALLOW);
        }
        assert_eq!(run(ARCH, X32 + socket, libc::AF_UNIX as u32), errno(libc::ENOSYS));
        assert_eq!(run(0x4000_0003, 359, libc::AF_UNIX as u32), errno(libc::ENOSYS));
    }
}
