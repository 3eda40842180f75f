//! res_query, res_search, res_send and their relatives: DNS past nsswitch, as mail servers and Kerberos use it.
//!
//! The name servers are those of the guest's sockets' namespace, whatever the program wrote into its resolver state; of its `options`
//! those that change the question are passed on. glibc has each function under two names, of which programs use either.

use libc::{c_char, c_int, c_ulong};
use nk_attach::names::{NETDB_INTERNAL, NO_RECOVERY, Question, RES_DEFAULT, TRY_AGAIN};

use super::hosts::{error, set_h_errno};
use super::names::bytes;
use crate::names::ask;
use crate::process::{Process, process};
use crate::{next, sys};

/// RES_INIT.
const INITIALISED: u32 = 1;
/// In a DNS message's third byte: it was cut.
const TRUNCATED: u8 = 2;
/// A name with its domain.
const NAME_MAX: usize = 1026;

/// The head of glibc's `struct __res_state`.
#[derive(Debug)]
#[repr(C)]
pub struct ResolverState {
    retrans: c_int,
    retry: c_int,
    options: c_ulong,
}

unsafe extern "C" {
    #[link_name = "__res_state"]
    fn own_state() -> *mut ResolverState;
}

/// # Safety
/// A resolver state.
unsafe fn options(state: *const ResolverState) -> u32 {
    // SAFETY: the caller's promise.
    let options = unsafe { (*state).options } as u32;
    if options & INITIALISED == 0 { RES_DEFAULT } else { options }
}

fn fail(errno: c_int, h_errno: c_int) -> c_int {
    if errno != 0 {
        sys::set_errno(errno);
    }
    set_h_errno(h_errno);
    -1
}

/// # Safety
/// `to` has room for `room` bytes.
unsafe fn answer(p: &Process, question: &Question<'_>, to: *mut u8, room: c_int) -> c_int {
    let answer = match ask(p, question) {
        Ok(a) => a,
        Err(why) => {
            let (errno, h_errno) = error(why);
            return fail(errno, h_errno);
        }
    };
    let Some((o, mut r)) = answer.parse() else { return fail(libc::EAGAIN, TRY_AGAIN) };
    if o.code < 0 {
        return fail(o.errno, o.h_errno);
    }
    let Some(message) = r.bytes().flatten().filter(|_| r.is_at_end()) else {
        return fail(libc::EAGAIN, TRY_AGAIN);
    };
    let len = message.len().min(usize::try_from(room).unwrap_or(0));
    // SAFETY: the caller's promise.
    unsafe {
        core::ptr::copy_nonoverlapping(message.as_ptr(), to, len);
        if len < message.len() && len > 2 {
            *to.add(2) |= TRUNCATED;
        }
    }
    set_h_errno(o.h_errno);
    len as c_int
}

/// What a name is asked for.
struct Asked {
    class: c_int,
    kind: c_int,
    search: bool,
}

/// # Safety
/// As res_nquery(3).
unsafe fn query(
    p: &Process,
    state: *const ResolverState,
    name: *const c_char,
    asked: &Asked,
    to: *mut u8,
    room: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let Some(name) = bytes(name) else { return fail(libc::EINVAL, NETDB_INTERNAL) };
        let class_and_type = [asked.class, asked.kind];
        let (search, options) = (asked.search, options(state));
        answer(p, &Question::Records { name, class_and_type, search, options }, to, room)
    }
}

/// # Safety
/// As res_nquerydomain(3).
unsafe fn query_domain(
    p: &Process,
    state: *const ResolverState,
    name: *const c_char,
    domain: *const c_char,
    asked: &Asked,
    to: *mut u8,
    room: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    let (name, domain) = unsafe { (bytes(name).unwrap_or_default(), bytes(domain)) };
    let mut whole = [0u8; NAME_MAX];
    let (dot, domain): (&[u8], &[u8]) = domain.map_or((b"", b""), |d| (b".", d));
    let mut at = 0;
    for part in [name, dot, domain] {
        let Some(place) = whole.get_mut(at..at + part.len()) else {
            return fail(0, NO_RECOVERY);
        };
        place.copy_from_slice(part);
        at += part.len();
    }
    // The array ends with a null.
    if at == NAME_MAX {
        return fail(0, NO_RECOVERY);
    }
    // SAFETY: a C string, and the caller's promise.
    unsafe { query(p, state, whole.as_ptr().cast(), asked, to, room) }
}

/// # Safety
/// As res_nsend(3).
unsafe fn send(
    p: &Process,
    state: *const ResolverState,
    message: *const u8,
    len: c_int,
    to: *mut u8,
    room: c_int,
) -> c_int {
    let Ok(len) = usize::try_from(len) else { return fail(libc::EINVAL, NETDB_INTERNAL) };
    // SAFETY: the caller's promise.
    unsafe {
        let message = core::slice::from_raw_parts(message, len);
        answer(p, &Question::Message { message, options: options(state) }, to, room)
    }
}

/// Each function under its names: `with` answers for a guest, the C library for others.
macro_rules! exports {
    ($($name:ident $alias:ident $next:ident ($($a:ident: $t:ty),*) |$p:ident| $with:expr;)*) => {$(
        /// See resolver(3).
        ///
        /// # Safety
        /// As the function of that name.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($a: $t),*) -> c_int {
            type Real = unsafe extern "C" fn($($t),*) -> c_int;
            // SAFETY: the program's own arguments; the state is the thread's own, or the program's.
            unsafe {
                let Some($p) = process() else {
                    return match next::$next.function::<Real>() {
                        Some(real) => real($($a),*),
                        None => sys::fail(libc::ENOSYS),
                    };
                };
                $with
            }
        }

        /// The same, under its other name.
        ///
        /// # Safety
        /// As the function of that name.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $alias($($a: $t),*) -> c_int {
            // SAFETY: the caller's promise.
            unsafe { $name($($a),*) }
        }
    )*};
}

exports! {
    res_query __res_query RES_QUERY
        (name: *const c_char, class: c_int, kind: c_int, to: *mut u8, room: c_int)
        |p| query(p, own_state(), name, &Asked { class, kind, search: false }, to, room);
    res_search __res_search RES_SEARCH
        (name: *const c_char, class: c_int, kind: c_int, to: *mut u8, room: c_int)
        |p| query(p, own_state(), name, &Asked { class, kind, search: true }, to, room);
    res_querydomain __res_querydomain RES_QUERYDOMAIN
        (name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, to: *mut u8, room: c_int)
        |p| query_domain(p, own_state(), name, domain, &Asked { class, kind, search: false }, to, room);
    res_send __res_send RES_SEND
        (message: *const u8, len: c_int, to: *mut u8, room: c_int)
        |p| send(p, own_state(), message, len, to, room);
    res_nquery __res_nquery RES_NQUERY
        (state: *mut ResolverState, name: *const c_char, class: c_int, kind: c_int, to: *mut u8, room: c_int)
        |p| query(p, state, name, &Asked { class, kind, search: false }, to, room);
    res_nsearch __res_nsearch RES_NSEARCH
        (state: *mut ResolverState, name: *const c_char, class: c_int, kind: c_int, to: *mut u8, room: c_int)
        |p| query(p, state, name, &Asked { class, kind, search: true }, to, room);
    res_nquerydomain __res_nquerydomain RES_NQUERYDOMAIN
        (state: *mut ResolverState, name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, to: *mut u8, room: c_int)
        |p| query_domain(p, state, name, domain, &Asked { class, kind, search: false }, to, room);
    res_nsend __res_nsend RES_NSEND
        (state: *mut ResolverState, message: *const u8, len: c_int, to: *mut u8, room: c_int)
        |p| send(p, state, message, len, to, room);
}
