//! The C library's own versions of a few functions that we wrap and cannot replace by a system call.
//!
//! They are looked up once, at load time: dlsym is not safe in signal handlers.

use core::ffi::CStr;
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::c_void;

// dlsym moved from libdl to libc in glibc 2.34; the old version is there in both. A tail call, so that RTLD_NEXT
// sees a caller in this library.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".symver netkernel_dlsym_ref, dlsym@GLIBC_2.2.5",
    ".hidden netkernel_dlsym",
    ".globl netkernel_dlsym",
    ".type netkernel_dlsym, @function",
    "netkernel_dlsym:",
    "jmp *netkernel_dlsym_ref@GOTPCREL(%rip)",
    options(att_syntax)
);
#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".symver netkernel_dlsym_ref, dlsym@GLIBC_2.17",
    ".hidden netkernel_dlsym",
    ".globl netkernel_dlsym",
    ".type netkernel_dlsym, @function",
    "netkernel_dlsym:",
    "adrp x16, :got:netkernel_dlsym_ref",
    "ldr x16, [x16, :got_lo12:netkernel_dlsym_ref]",
    "br x16",
);

unsafe extern "C" {
    fn netkernel_dlsym(handle: *mut c_void, name: *const libc::c_char) -> *mut c_void;
}

/// A function found by name behind this library.
#[derive(Debug)]
pub(crate) struct Next {
    name: &'static CStr,
    at: AtomicPtr<c_void>,
}

impl Next {
    const fn new(name: &'static CStr) -> Next {
        Next { name, at: AtomicPtr::new(core::ptr::null_mut()) }
    }

    /// Its address, if it was looked up at load time.
    pub(crate) fn known(&self) -> *mut c_void {
        self.at.load(Ordering::Acquire)
    }

    /// Its address; null when the C library has none.
    pub(crate) fn get(&self) -> *mut c_void {
        let at = self.at.load(Ordering::Acquire);
        if !at.is_null() {
            return at;
        }
        // SAFETY: a C string; RTLD_NEXT is (void *)-1.
        let at = unsafe { netkernel_dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.at.store(at, Ordering::Release);
        at
    }

    /// As a function; `None` when the C library has none.
    ///
    /// # Safety
    /// `F` is a function pointer of its type.
    pub(crate) unsafe fn function<F: Copy>(&self) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let at = self.get();
        // SAFETY: not null, and of that type by the caller's promise.
        (!at.is_null()).then(|| unsafe { core::mem::transmute_copy(&at) })
    }
}

pub(crate) static POSIX_SPAWN: Next = Next::new(c"posix_spawn");
pub(crate) static POSIX_SPAWNP: Next = Next::new(c"posix_spawnp");
pub(crate) static ADDDUP2: Next = Next::new(c"posix_spawn_file_actions_adddup2");
pub(crate) static FDOPEN: Next = Next::new(c"fdopen");
pub(crate) static FREOPEN: Next = Next::new(c"freopen");
pub(crate) static FREOPEN64: Next = Next::new(c"freopen64");
pub(crate) static FILENO: Next = Next::new(c"fileno");
pub(crate) static FILENO_UNLOCKED: Next = Next::new(c"fileno_unlocked");
pub(crate) static SETCANCELTYPE: Next = Next::new(c"pthread_setcanceltype");
pub(crate) static VDPRINTF: Next = Next::new(c"vdprintf");
pub(crate) static SYSTEM: Next = Next::new(c"system");
pub(crate) static CLONE: Next = Next::new(c"clone");
pub(crate) static OPENPTY: Next = Next::new(c"openpty");
pub(crate) static LOGIN_TTY: Next = Next::new(c"login_tty");
pub(crate) static POPEN: Next = Next::new(c"popen");
pub(crate) static GETADDRINFO: Next = Next::new(c"getaddrinfo");
pub(crate) static GETNAMEINFO: Next = Next::new(c"getnameinfo");
pub(crate) static GETHOSTBYNAME: Next = Next::new(c"gethostbyname");
pub(crate) static GETHOSTBYNAME2: Next = Next::new(c"gethostbyname2");
pub(crate) static GETHOSTBYADDR: Next = Next::new(c"gethostbyaddr");
pub(crate) static GETHOSTBYNAME_R: Next = Next::new(c"gethostbyname_r");
pub(crate) static GETHOSTBYNAME2_R: Next = Next::new(c"gethostbyname2_r");
pub(crate) static GETHOSTBYADDR_R: Next = Next::new(c"gethostbyaddr_r");
pub(crate) static GETIFADDRS: Next = Next::new(c"getifaddrs");
pub(crate) static IF_NAMETOINDEX: Next = Next::new(c"if_nametoindex");
pub(crate) static IF_INDEXTONAME: Next = Next::new(c"if_indextoname");
pub(crate) static IF_NAMEINDEX: Next = Next::new(c"if_nameindex");
pub(crate) static RES_QUERY: Next = Next::new(c"res_query");
pub(crate) static RES_SEARCH: Next = Next::new(c"res_search");
pub(crate) static RES_QUERYDOMAIN: Next = Next::new(c"res_querydomain");
pub(crate) static RES_NQUERYDOMAIN: Next = Next::new(c"res_nquerydomain");
pub(crate) static RES_SEND: Next = Next::new(c"res_send");
pub(crate) static RES_NQUERY: Next = Next::new(c"res_nquery");
pub(crate) static RES_NSEARCH: Next = Next::new(c"res_nsearch");
pub(crate) static RES_NSEND: Next = Next::new(c"res_nsend");

/// Looks all of them up.
pub(crate) fn init() {
    for n in [
        &POSIX_SPAWN,
        &POSIX_SPAWNP,
        &ADDDUP2,
        &FDOPEN,
        &FREOPEN,
        &FREOPEN64,
        &FILENO,
        &FILENO_UNLOCKED,
        &SETCANCELTYPE,
        &SYSTEM,
        &VDPRINTF,
        &POPEN,
        &CLONE,
    ] {
        n.get();
    }
}
