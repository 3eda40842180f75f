//! gethostbyname, gethostbyname2, gethostbyaddr and their _r forms.
//!
//! A name that is numbers the C library answers here, as it does natively without asking anybody.

use core::mem::size_of;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use libc::{c_char, c_int, c_void, hostent, socklen_t};
use nk_attach::names::address_len;
use nk_attach::names::{HOST_NOT_FOUND, NETDB_INTERNAL, NO_RECOVERY, Outcome, Question, TRY_AGAIN};
use nk_device::row::NoAnswer;

use self::place::{Place, fill};
use super::names::bytes;
use crate::names::{Answer, ask};
use crate::next;
use crate::process::{Process, process};
use crate::rings::{lock, unlock};
use crate::sys::{self, SignalsBlocked};

/// Room for the result of the functions that give none: more than an answer has.
const STATIC_MAX: usize = 512 * 1024;

mod place;

type Found = *mut *mut hostent;

unsafe extern "C" {
    #[link_name = "__h_errno_location"]
    fn h_errno_location() -> *mut c_int;
}

pub(super) fn set_h_errno(e: c_int) {
    // SAFETY: the location is valid for the calling thread.
    unsafe { *h_errno_location() = e }
}

/// What went wrong: what a _r function returns, errno, and h_errno.
pub(super) fn error(why: NoAnswer) -> (c_int, c_int) {
    match why {
        NoAnswer::Busy | NoAnswer::Late | NoAnswer::Ended | NoAnswer::Malformed => {
            (libc::EAGAIN, TRY_AGAIN)
        }
        NoAnswer::Forbidden => (libc::EPERM, NO_RECOVERY),
        NoAnswer::TooLong => (libc::EMSGSIZE, NO_RECOVERY),
        NoAnswer::NoDaemon => (libc::ENETDOWN, NETDB_INTERNAL),
        NoAnswer::Resources => (libc::EMFILE, NETDB_INTERNAL),
    }
}

/// Whether the C library takes the name for numbers, whatever they mean to it.
fn is_numeric(name: &[u8]) -> bool {
    let dotted = |b: &u8| b.is_ascii_digit() || *b == b'.';
    let hex = |b: &u8| b.is_ascii_hexdigit() || *b == b':' || *b == b'.';
    (name.iter().all(dotted) && name.last() != Some(&b'.'))
        || (name.contains(&b':') && name.iter().all(hex))
}

/// Fills the place. Whether there is such a host, or what a _r function returns; and h_errno.
///
/// # Safety
/// As [`fill`].
unsafe fn settle(answer: Result<Answer, NoAnswer>, place: Place) -> (Result<bool, c_int>, c_int) {
    let answer = match answer {
        Ok(a) => a,
        Err(NoAnswer::TooLong) => return (Ok(false), HOST_NOT_FOUND),
        Err(why) => {
            let (errno, h_errno) = error(why);
            return (Err(errno), h_errno);
        }
    };
    match answer.parse() {
        Some((o @ Outcome { code: 0, .. }, r)) => {
            // SAFETY: the caller's promise.
            match unsafe { fill(r, place) } {
                Ok(found) => (Ok(found), o.h_errno),
                Err(libc::ERANGE) => (Err(libc::ERANGE), NETDB_INTERNAL),
                Err(e) => (Err(e), TRY_AGAIN),
            }
        }
        Some((o, _)) => (Err(o.code), o.h_errno),
        None => (Err(libc::EAGAIN), TRY_AGAIN),
    }
}

/// The end of every _r function.
///
/// # Safety
/// As those functions.
unsafe fn reentrant(
    p: &Process,
    question: &Question<'_>,
    place: Place,
    found: Found,
    h_errno: *mut c_int,
) -> c_int {
    // SAFETY: the caller's promise, also for the places written to.
    unsafe {
        let (r, e) = settle(ask(p, question), place);
        found.write(if r == Ok(true) { place.host } else { null_mut() });
        if r != Ok(true) {
            h_errno.write(e);
            // The C library's own leave it there, too, and programs look.
            set_h_errno(e);
        }
        match r {
            Ok(_) => 0,
            Err(e) => {
                sys::set_errno(e);
                e
            }
        }
    }
}

/// The result of the functions that give no place: one for all of them, as in the C library.
static RESULT: AtomicPtr<u8> = AtomicPtr::new(null_mut());
static LOCK: AtomicU32 = AtomicU32::new(0);

/// In a forked child: nobody holds it.
pub(crate) fn reset() {
    LOCK.store(0, Ordering::Release);
}

fn in_static(p: &Process, question: &Question<'_>) -> *mut hostent {
    let mut base = RESULT.load(Ordering::Acquire);
    if base.is_null() {
        let new = sys::map_private(STATIC_MAX).cast::<u8>();
        base = match RESULT.compare_exchange(null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => new,
            // Another thread's; ours is never touched, so it costs nothing.
            Err(theirs) => theirs,
        };
        if base.is_null() {
            sys::set_errno(libc::ENOMEM);
            set_h_errno(NETDB_INTERNAL);
            return null_mut();
        }
    }
    let answer = ask(p, question);
    // Two threads may fill it one after the other, and not at once.
    let signals = SignalsBlocked::new();
    lock(&LOCK);
    let host = base.cast::<hostent>();
    let at = base.wrapping_add(size_of::<hostent>()).cast();
    let place = Place { host, buffer: at, len: STATIC_MAX - size_of::<hostent>() };
    // SAFETY: memory of our own, aligned as a mapping is.
    let (r, h_errno) = unsafe { settle(answer, place) };
    unlock(&LOCK);
    drop(signals);
    if r == Ok(true) {
        return host;
    }
    if let Err(e) = r {
        sys::set_errno(e);
    }
    set_h_errno(h_errno);
    null_mut()
}

/// gethostbyname(3).
///
/// # Safety
/// As gethostbyname(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gethostbyname(name: *const c_char) -> *mut hostent {
    type Real = unsafe extern "C" fn(*const c_char) -> *mut hostent;
    // SAFETY: the program's own arguments.
    unsafe {
        match (process(), bytes(name), next::GETHOSTBYNAME.function::<Real>()) {
            (Some(p), Some(t), _) if !is_numeric(t) => {
                in_static(p, &Question::HostByName { name: t, family: 0 })
            }
            (_, _, Some(real)) => real(name),
            _ => null_mut(),
        }
    }
}

/// gethostbyname2(3).
///
/// # Safety
/// As gethostbyname2(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gethostbyname2(name: *const c_char, family: c_int) -> *mut hostent {
    type Real = unsafe extern "C" fn(*const c_char, c_int) -> *mut hostent;
    // SAFETY: the program's own arguments.
    unsafe {
        match (process(), bytes(name), next::GETHOSTBYNAME2.function::<Real>()) {
            (Some(p), Some(t), _) if !is_numeric(t) && family != 0 => {
                in_static(p, &Question::HostByName { name: t, family })
            }
            (_, _, Some(real)) => real(name, family),
            _ => null_mut(),
        }
    }
}

/// An address that can be asked about; another gets the C library's own answer.
///
/// # Safety
/// `address` has `len` bytes.
unsafe fn address<'a>(address: *const c_void, len: socklen_t, family: c_int) -> Option<&'a [u8]> {
    let expected = address_len(family)?;
    // SAFETY: the caller's promise.
    (len as usize == expected && !address.is_null())
        .then(|| unsafe { core::slice::from_raw_parts(address.cast(), expected) })
}

/// gethostbyaddr(3).
///
/// # Safety
/// As gethostbyaddr(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gethostbyaddr(
    given: *const c_void,
    len: socklen_t,
    family: c_int,
) -> *mut hostent {
    type Real = unsafe extern "C" fn(*const c_void, socklen_t, c_int) -> *mut hostent;
    // SAFETY: the program's own arguments.
    unsafe {
        let a = address(given, len, family);
        match (process(), a, next::GETHOSTBYADDR.function::<Real>()) {
            (Some(p), Some(address), _) => {
                in_static(p, &Question::HostByAddress { address, family })
            }
            (_, _, Some(real)) => real(given, len, family),
            _ => null_mut(),
        }
    }
}

/// gethostbyname_r(3).
///
/// # Safety
/// As gethostbyname_r(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gethostbyname_r(
    name: *const c_char,
    host: *mut hostent,
    buffer: *mut c_char,
    len: usize,
    found: Found,
    h_errno: *mut c_int,
) -> c_int {
    type Real = unsafe extern "C" fn(
        *const c_char,
        *mut hostent,
        *mut c_char,
        usize,
        Found,
        *mut c_int,
    ) -> c_int;
    // SAFETY: the program's string, places and arguments.
    unsafe {
        match (process(), bytes(name), next::GETHOSTBYNAME_R.function::<Real>()) {
            (Some(p), Some(t), _) if !is_numeric(t) => {
                let q = Question::HostByName { name: t, family: 0 };
                reentrant(p, &q, Place { host, buffer, len }, found, h_errno)
            }
            (_, _, Some(real)) => real(name, host, buffer, len, found, h_errno),
            _ => libc::ENOSYS,
        }
    }
}

/// gethostbyname2_r(3).
///
/// # Safety
/// As gethostbyname2_r(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gethostbyname2_r(
    name: *const c_char,
    family: c_int,
    host: *mut hostent,
    buffer: *mut c_char,
    len: usize,
    found: Found,
    h_errno: *mut c_int,
) -> c_int {
    type Real = unsafe extern "C" fn(
        *const c_char,
        c_int,
        *mut hostent,
        *mut c_char,
        usize,
        Found,
        *mut c_int,
    ) -> c_int;
    // SAFETY: the program's string, places and arguments.
    unsafe {
        match (process(), bytes(name), next::GETHOSTBYNAME2_R.function::<Real>()) {
            (Some(p), Some(t), _) if !is_numeric(t) && family != 0 => {
                let q = Question::HostByName { name: t, family };
                reentrant(p, &q, Place { host, buffer, len }, found, h_errno)
            }
            (_, _, Some(real)) => real(name, family, host, buffer, len, found, h_errno),
            _ => libc::ENOSYS,
        }
    }
}

/// gethostbyaddr_r(3).
///
/// # Safety
/// As gethostbyaddr_r(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gethostbyaddr_r(
    given: *const c_void,
    given_len: socklen_t,
    family: c_int,
    host: *mut hostent,
    buffer: *mut c_char,
    len: usize,
    found: Found,
    h_errno: *mut c_int,
) -> c_int {
    type Real = unsafe extern "C" fn(
        *const c_void,
        socklen_t,
        c_int,
        *mut hostent,
        *mut c_char,
        usize,
        Found,
        *mut c_int,
    ) -> c_int;
    // SAFETY: the program's address, places and arguments.
    unsafe {
        let a = address(given, given_len, family);
        match (process(), a, next::GETHOSTBYADDR_R.function::<Real>()) {
            (Some(p), Some(address), _) => {
                let q = Question::HostByAddress { address, family };
                reentrant(p, &q, Place { host, buffer, len }, found, h_errno)
            }
            (_, _, Some(real)) => real(given, given_len, family, host, buffer, len, found, h_errno),
            _ => libc::ENOSYS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_no_names() {
        for n in ["127.0.0.1", "1", "1.2", "::1", "fe80::1", "::ffff:1.2.3.4"] {
            assert!(is_numeric(n.as_bytes()), "{n}");
        }
        for n in ["localhost", "1.2.3.4.", "a", "dead.beef", "1a", "x::1"] {
            assert!(!is_numeric(n.as_bytes()), "{n}");
        }
    }
}
