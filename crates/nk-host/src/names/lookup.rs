//! One question to the C library, and what it says as a packet.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};

use libc::{addrinfo, hostent, sockaddr, socklen_t};
use nk_attach::names::{
    Address, Host, NETDB_INTERNAL, NO_RECOVERY, Outcome, Question, RES_DEFAULT, TRY_AGAIN, Writer,
};

use super::interfaces;

/// Memory for one hostent, at most: a DNS answer has 64 KiB.
const HOST_BUFFER_MAX: usize = 1 << 20;
/// A DNS message's length is 16 bits.
const RECORDS_MAX: usize = 65535;
/// Bits of the resolver state's `options` that a program may set for its own questions, besides the usual ones: USEVC, IGNTC, EDNS0, DNSSEC, TRUSTAD.
const MORE: u32 = 0x8 | 0x20 | 0x0010_0000 | 0x0080_0000 | 0x0400_0000;

/// The head of glibc's `struct __res_state`.
#[repr(C)]
struct ResolverState {
    retrans: c_int,
    retry: c_int,
    options: libc::c_ulong,
}

type Found = *mut *mut hostent;

#[link(name = "resolv")]
unsafe extern "C" {
    fn gethostbyname_r(
        name: *const c_char,
        host: *mut hostent,
        buffer: *mut c_char,
        len: usize,
        found: Found,
        h_errno: *mut c_int,
    ) -> c_int;
    fn gethostbyname2_r(
        name: *const c_char,
        family: c_int,
        host: *mut hostent,
        buffer: *mut c_char,
        len: usize,
        found: Found,
        h_errno: *mut c_int,
    ) -> c_int;
    fn gethostbyaddr_r(
        address: *const c_void,
        address_len: socklen_t,
        family: c_int,
        host: *mut hostent,
        buffer: *mut c_char,
        len: usize,
        found: Found,
        h_errno: *mut c_int,
    ) -> c_int;
    fn res_query(name: *const c_char, class: c_int, kind: c_int, to: *mut u8, room: c_int)
    -> c_int;
    fn res_send(message: *const u8, len: c_int, to: *mut u8, room: c_int) -> c_int;
    fn res_search(
        name: *const c_char,
        class: c_int,
        kind: c_int,
        to: *mut u8,
        room: c_int,
    ) -> c_int;
    #[link_name = "__res_init"]
    fn res_init() -> c_int;
    #[link_name = "__res_state"]
    fn res_state() -> *mut ResolverState;
    #[link_name = "__h_errno_location"]
    fn h_errno_location() -> *mut c_int;
}

fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Parsed questions have no null bytes in their strings.
fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).unwrap_or_default()
}

/// Asks, and writes the answer. Its length, and whether it says "try again".
pub(super) fn answer(question: &Question<'_>, out: &mut [u8]) -> (usize, bool) {
    let (len, again) = match *question {
        Question::Addresses { node, service, hints } => addresses(node, service, hints, out),
        Question::Name { address, flags, wanted } => name(address, flags, wanted, out),
        Question::HostByName { name, family } => host_by_name(name, family, out),
        Question::HostByAddress { address, family } => host_by_address(address, family, out),
        Question::Records { name, class_and_type: [class, kind], search, options } => {
            let name = c_string(name);
            records(options, out, |to| {
                let call = if search { res_search } else { res_query };
                // SAFETY: a C string, and a buffer of that length.
                unsafe { call(name.as_ptr(), class, kind, to, RECORDS_MAX as c_int) }
            })
        }
        Question::Message { message, options } => records(options, out, |to| {
            let len = message.len() as c_int;
            // SAFETY: a message with its length, and a buffer of that length.
            unsafe { res_send(message.as_ptr(), len, to, RECORDS_MAX as c_int) }
        }),
        Question::Interfaces => (interfaces::all(out), false),
        Question::InterfaceRequest { family, request, ifreq } => {
            (interfaces::request(family, request, ifreq, out), false)
        }
    };
    match len {
        Some(len) => (len, again),
        None => (too_large(question, out), false),
    }
}

/// An answer that no packet holds.
fn too_large(question: &Question<'_>, out: &mut [u8]) -> usize {
    let outcome = match question {
        Question::Addresses { .. } | Question::Name { .. } => {
            Outcome { code: libc::EAI_MEMORY, ..Outcome::default() }
        }
        Question::HostByName { .. } | Question::HostByAddress { .. } => {
            Outcome { code: libc::ENOMEM, errno: libc::ENOMEM, h_errno: NETDB_INTERNAL }
        }
        Question::Records { .. } | Question::Message { .. } => {
            Outcome { code: -1, errno: 0, h_errno: NO_RECOVERY }
        }
        Question::Interfaces | Question::InterfaceRequest { .. } => {
            Outcome { code: -1, errno: libc::ENOBUFS, h_errno: 0 }
        }
    };
    outcome.write(out).finish().unwrap_or(0)
}

fn addresses(
    node: Option<&[u8]>,
    service: Option<&[u8]>,
    [flags, family, socktype, protocol]: [i32; 4],
    out: &mut [u8],
) -> (Option<usize>, bool) {
    let (node, service) = (node.map(c_string), service.map(c_string));
    let pointer = |s: &Option<CString>| s.as_ref().map_or(null(), |s| s.as_ptr());
    // SAFETY: addrinfo is plain data.
    let mut hints: addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_flags = flags;
    hints.ai_family = family;
    hints.ai_socktype = socktype;
    hints.ai_protocol = protocol;
    let mut list: *mut addrinfo = null_mut();
    // SAFETY: C strings or null, and places of ours.
    let code = unsafe {
        libc::getaddrinfo(pointer(&node), pointer(&service), &raw const hints, &raw mut list)
    };
    let errno = if code == libc::EAI_SYSTEM { errno() } else { 0 };
    let mut w = Outcome { code, errno, h_errno: 0 }.write(out);
    if code == 0 {
        // SAFETY: the list is as getaddrinfo made it: each entry's address has the length that is said, and the name is a C string.
        unsafe {
            write_addresses(list, &mut w);
            libc::freeaddrinfo(list);
        }
    }
    (w.finish(), code == libc::EAI_AGAIN)
}

/// # Safety
/// `list` is one of getaddrinfo.
unsafe fn write_addresses(list: *const addrinfo, w: &mut Writer<'_>) {
    // SAFETY: the caller's promise.
    let entries: Vec<&addrinfo> = unsafe {
        std::iter::successors(list.as_ref(), |a| a.ai_next.cast_const().as_ref()).collect()
    };
    let canonical = entries.first().map_or(null_mut(), |a| a.ai_canonname);
    // SAFETY: as above.
    w.bytes(unsafe { bytes_of(canonical) });
    w.word(entries.len() as u32);
    for a in entries {
        // SAFETY: as above.
        let address = unsafe {
            std::slice::from_raw_parts(a.ai_addr.cast_const().cast::<u8>(), a.ai_addrlen as usize)
        };
        let words = [a.ai_flags, a.ai_family, a.ai_socktype, a.ai_protocol];
        Address { words, address }.write(w);
    }
}

/// # Safety
/// Null, or a C string that outlives the result.
unsafe fn bytes_of<'a>(s: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    (!s.is_null()).then(|| unsafe { CStr::from_ptr(s) }.to_bytes())
}

fn name(address: &[u8], flags: i32, wanted: [bool; 2], out: &mut [u8]) -> (Option<usize>, bool) {
    // Of <netdb.h>; glibc itself cuts nothing longer than the buffers, it reports EAI_OVERFLOW.
    let (mut host, mut service) = ([0u8; 1025], [0u8; 1025]);
    #[repr(align(8))]
    struct Aligned([u8; nk_attach::names::ADDRESS_MAX]);
    let mut from = Aligned([0; nk_attach::names::ADDRESS_MAX]);
    if let Some(to) = from.0.get_mut(..address.len()) {
        to.copy_from_slice(address);
    }
    let place = |b: &mut [u8; 1025], wanted: bool| -> (*mut c_char, socklen_t) {
        if wanted { (b.as_mut_ptr().cast(), 1025) } else { (null_mut(), 0) }
    };
    let [(h, h_len), (s, s_len)] = [place(&mut host, wanted[0]), place(&mut service, wanted[1])];
    // SAFETY: an address with its length in an aligned buffer that has room for every family's, and two buffers with theirs.
    let code = unsafe {
        let from = (&raw const from).cast::<sockaddr>();
        libc::getnameinfo(from, address.len() as socklen_t, h, h_len, s, s_len, flags)
    };
    let errno = if code == libc::EAI_SYSTEM { errno() } else { 0 };
    let mut w = Outcome { code, errno, h_errno: 0 }.write(out);
    if code == 0 {
        for (text, wanted) in [(&host, wanted[0]), (&service, wanted[1])] {
            let text = CStr::from_bytes_until_nul(text).unwrap_or_default();
            w.bytes(wanted.then_some(text.to_bytes()));
        }
    }
    (w.finish(), code == libc::EAI_AGAIN)
}

fn host_by_name(name: &[u8], family: i32, out: &mut [u8]) -> (Option<usize>, bool) {
    let name = c_string(name);
    host(out, |h, buffer, len, found, h_errno| {
        // SAFETY: a C string, and places with the lengths that `host` gives.
        unsafe {
            if family == 0 {
                gethostbyname_r(name.as_ptr(), h, buffer, len, found, h_errno)
            } else {
                gethostbyname2_r(name.as_ptr(), family, h, buffer, len, found, h_errno)
            }
        }
    })
}

fn host_by_address(address: &[u8], family: i32, out: &mut [u8]) -> (Option<usize>, bool) {
    host(out, |h, buffer, len, found, h_errno| {
        let (from, n) = (address.as_ptr().cast(), address.len() as socklen_t);
        // SAFETY: an address with its length, and places with the lengths that `host` gives.
        unsafe { gethostbyaddr_r(from, n, family, h, buffer, len, found, h_errno) }
    })
}

/// Calls one of the gethostby*_r functions with as much memory as it needs.
fn host(
    out: &mut [u8],
    call: impl Fn(*mut hostent, *mut c_char, usize, Found, *mut c_int) -> c_int,
) -> (Option<usize>, bool) {
    let mut buffer = vec![0u8; 8192];
    loop {
        // SAFETY: hostent is plain data.
        let mut place: hostent = unsafe { std::mem::zeroed() };
        let (mut found, mut h_errno) = (null_mut(), 0);
        let p = buffer.as_mut_ptr().cast();
        let code = call(&raw mut place, p, buffer.len(), &raw mut found, &raw mut h_errno);
        if code == libc::ERANGE && buffer.len() < HOST_BUFFER_MAX {
            buffer = vec![0; buffer.len() * 4];
            continue;
        }
        let errno = if code == 0 { 0 } else { errno() };
        let mut w = Outcome { code, errno, h_errno }.write(out);
        // SAFETY: null, or the place that the function filled, with pointers into the buffer.
        match unsafe { found.as_ref() } {
            // SAFETY: as above.
            Some(h) => unsafe { write_host(h, &mut w) },
            None => Host::write_none(&mut w),
        }
        return (w.finish(), found.is_null() && h_errno == TRY_AGAIN);
    }
}

/// # Safety
/// A hostent as the C library fills it.
unsafe fn write_host(h: &hostent, w: &mut Writer<'_>) {
    // SAFETY: the name is a C string, the lists end with null, an address has `h_length` bytes.
    unsafe {
        let aliases = list(h.h_aliases, |p| bytes_of(p).unwrap_or_default());
        let length = h.h_length as usize;
        let addresses = list(h.h_addr_list, |p| std::slice::from_raw_parts(p.cast::<u8>(), length));
        Host::write(w, h.h_addrtype, bytes_of(h.h_name), &aliases, &addresses);
    }
}

/// # Safety
/// Null, or pointers that end with null.
unsafe fn list<'a>(
    list: *const *mut c_char,
    each: impl Fn(*const c_char) -> &'a [u8],
) -> Vec<&'a [u8]> {
    // SAFETY: the caller's promise: there is a null before the list's end.
    let pointer = |n| unsafe { list.add(n).read() };
    let some = (0..).map(pointer).take_while(|p| !p.is_null());
    if list.is_null() { Vec::new() } else { some.map(|p| each(p.cast_const())).collect() }
}

/// Calls one of the functions that speak DNS, with the thread's resolver state as resolv.conf makes it and the program's options.
fn records(options: u32, out: &mut [u8], call: impl Fn(*mut u8) -> c_int) -> (Option<usize>, bool) {
    let mut message = vec![0u8; RECORDS_MAX];
    // SAFETY: the state is this thread's own, and initialised before its options are changed.
    unsafe {
        let state = res_state();
        (*state).options = 0;
        if res_init() == 0 {
            let kept = (*state).options & !libc::c_ulong::from(RES_DEFAULT);
            (*state).options = kept | libc::c_ulong::from(options & (RES_DEFAULT | MORE));
        }
        *h_errno_location() = 0;
    }
    let len = call(message.as_mut_ptr());
    // SAFETY: the thread's own.
    let h_errno = unsafe { *h_errno_location() };
    let errno = if len < 0 { errno() } else { 0 };
    let mut w = Outcome { code: len, errno, h_errno }.write(out);
    if let Ok(len) = usize::try_from(len) {
        w.bytes(message.get(..len.min(RECORDS_MAX)));
    }
    (w.finish(), len < 0 && h_errno == TRY_AGAIN)
}
