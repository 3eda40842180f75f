//! getaddrinfo and getnameinfo: as they answer in the namespace of the guest's sockets.
//!
//! What depends on no namespace (a numeric address that stays one) the C library's own function answers here. Everything else is
//! asked, also what looks local: which families AI_ADDRCONFIG leaves and how several addresses are sorted follow from the
//! interfaces and routes there are.

use core::ffi::CStr;
use core::mem::size_of;
use core::ptr::null_mut;

use libc::{addrinfo, c_char, c_int, sockaddr, socklen_t};
use nk_attach::names::{Address, Outcome, Question, Reader};
use nk_device::row::NoAnswer;

use crate::names::ask;
use crate::process::process;
use crate::{next, sys};

/// Bytes of an entry with its address, in glibc's own order: its freeaddrinfo frees the entry and the name.
const ENTRY: usize = size_of::<addrinfo>();
/// glibc's hints where the program gives none.
const NO_HINTS: [i32; 4] = [libc::AI_V4MAPPED | libc::AI_ADDRCONFIG, 0, 0, 0];

type GetAddrInfo = unsafe extern "C" fn(
    *const c_char,
    *const c_char,
    *const addrinfo,
    *mut *mut addrinfo,
) -> c_int;
type GetNameInfo = unsafe extern "C" fn(
    *const sockaddr,
    socklen_t,
    *mut c_char,
    socklen_t,
    *mut c_char,
    socklen_t,
    c_int,
) -> c_int;

/// What the C library says when it could not ask.
pub(super) fn eai(why: NoAnswer) -> c_int {
    let system = |e| {
        sys::set_errno(e);
        libc::EAI_SYSTEM
    };
    match why {
        NoAnswer::Busy | NoAnswer::Late | NoAnswer::Ended | NoAnswer::Malformed => libc::EAI_AGAIN,
        NoAnswer::TooLong => libc::EAI_NONAME,
        NoAnswer::Forbidden => libc::EAI_FAIL,
        NoAnswer::NoDaemon => system(libc::ENETDOWN),
        NoAnswer::Resources => system(libc::EMFILE),
    }
}

/// # Safety
/// Null, or a C string that outlives the result.
pub(super) unsafe fn bytes<'a>(s: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    (!s.is_null()).then(|| unsafe { CStr::from_ptr(s) }.to_bytes())
}

/// Whether the C library can answer here. Its own function is the judge of what is numeric.
///
/// # Safety
/// As getaddrinfo(3).
unsafe fn answer_here(
    real: GetAddrInfo,
    node: *const c_char,
    service: *const c_char,
    hints: *const addrinfo,
    found: *mut *mut addrinfo,
) -> Option<c_int> {
    // SAFETY: the caller's promise.
    let (given, text) = unsafe { (hints.as_ref(), bytes(node)) };
    let flags = given.map_or(NO_HINTS[0], |h| h.ai_flags);
    let family = given.map_or(0, |h| h.ai_family);
    if flags & libc::AI_ADDRCONFIG != 0 {
        return None;
    }
    match text {
        // One address, or two that have to be sorted.
        None => {
            (family != libc::AF_UNSPEC)
                // SAFETY: the caller's promise.
                .then(|| unsafe { real(node, service, hints, found) })
        }
        // A scope is a name or number of an interface; a star is no node.
        Some(t) if t.contains(&b'%') || t == b"*" => None,
        Some(_) => {
            // SAFETY: the caller's promise.
            let code = unsafe { numeric(real, node, service, given, found) };
            (code != libc::EAI_NONAME).then_some(code)
        }
    }
}

/// What the C library answers without a network: nodes that are addresses, or none. Families are those asked for, whatever
/// interfaces there are.
///
/// # Safety
/// As getaddrinfo(3).
unsafe fn numeric(
    real: GetAddrInfo,
    node: *const c_char,
    service: *const c_char,
    given: Option<&addrinfo>,
    found: *mut *mut addrinfo,
) -> c_int {
    let flags = given.map_or(NO_HINTS[0], |h| h.ai_flags);
    let hints = addrinfo {
        ai_flags: (flags | libc::AI_NUMERICHOST) & !libc::AI_ADDRCONFIG,
        ai_family: given.map_or(0, |h| h.ai_family),
        ai_socktype: given.map_or(0, |h| h.ai_socktype),
        ai_protocol: given.map_or(0, |h| h.ai_protocol),
        ai_addrlen: given.map_or(0, |h| h.ai_addrlen),
        ai_addr: given.map_or(null_mut(), |h| h.ai_addr),
        ai_canonname: given.map_or(null_mut(), |h| h.ai_canonname),
        ai_next: given.map_or(null_mut(), |h| h.ai_next),
    };
    // SAFETY: the caller's promise; the hints are complete.
    let code = unsafe { real(node, service, &raw const hints, found) };
    if code == 0 {
        // SAFETY: the list that was just made.
        let mut entry = unsafe { *found };
        // SAFETY: as above. Answers repeat the program's flags.
        while let Some(e) = unsafe { entry.as_mut() } {
            e.ai_flags = flags;
            entry = e.ai_next;
        }
    }
    code
}

/// getaddrinfo(3).
///
/// # Safety
/// As getaddrinfo(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getaddrinfo(
    node: *const c_char,
    service: *const c_char,
    hints: *const addrinfo,
    found: *mut *mut addrinfo,
) -> c_int {
    // SAFETY: that is its type.
    let Some(real) = (unsafe { next::GETADDRINFO.function::<GetAddrInfo>() }) else {
        return libc::EAI_SYSTEM;
    };
    let Some(p) = process() else {
        // SAFETY: the program's own arguments.
        return unsafe { real(node, service, hints, found) };
    };
    // SAFETY: as above.
    if let Some(code) = unsafe { answer_here(real, node, service, hints, found) } {
        return code;
    }
    // SAFETY: hints are null or the program's; so are the strings, which it does not change during the call.
    let (given, name, port) = unsafe { (hints.as_ref(), bytes(node), bytes(service)) };
    let hints = given.map_or(NO_HINTS, |h| [h.ai_flags, h.ai_family, h.ai_socktype, h.ai_protocol]);
    let answer = match ask(p, &Question::Addresses { node: name, service: port, hints }) {
        Ok(a) => a,
        // Addresses are no names: a server finds what to bind to, also where the operator answers no questions.
        Err(NoAnswer::Forbidden) => {
            // SAFETY: the program's own arguments.
            let code = unsafe { numeric(real, node, service, given, found) };
            let was_name = code == libc::EAI_NONAME && hints[0] & libc::AI_NUMERICHOST == 0;
            return if was_name { eai(NoAnswer::Forbidden) } else { code };
        }
        Err(why) => return eai(why),
    };
    match answer.parse() {
        Some((Outcome { code: 0, .. }, r)) => match build(r) {
            Ok(list) => {
                // SAFETY: where the program wants the list.
                unsafe { found.write(list) };
                0
            }
            Err(code) => code,
        },
        Some((o, _)) => fail(o),
        None => libc::EAI_AGAIN,
    }
}

fn fail(o: Outcome) -> c_int {
    if o.code == libc::EAI_SYSTEM {
        sys::set_errno(o.errno);
    }
    o.code
}

/// The list that the program frees with the C library's freeaddrinfo.
fn build(mut r: Reader<'_>) -> Result<*mut addrinfo, c_int> {
    let canonical = r.bytes().ok_or(libc::EAI_AGAIN)?;
    let count = r.count(20).ok_or(libc::EAI_AGAIN)?;
    // All of it is looked at before anything is made.
    let mut look = r;
    for _ in 0..count {
        Address::parse(&mut look).ok_or(libc::EAI_AGAIN)?;
    }
    if count == 0 || !look.is_at_end() || canonical.is_some_and(|c| c.contains(&0)) {
        return Err(libc::EAI_AGAIN);
    }
    let mut first: *mut addrinfo = null_mut();
    let mut last: *mut addrinfo = null_mut();
    for _ in 0..count {
        let entry = Address::parse(&mut r).map_or(null_mut(), |a| new_entry(&a));
        if entry.is_null() {
            // SAFETY: the list so far is as glibc makes one.
            unsafe { libc::freeaddrinfo(first) };
            return Err(libc::EAI_MEMORY);
        }
        if first.is_null() {
            first = entry;
        } else {
            // SAFETY: the entry made before.
            unsafe { (*last).ai_next = entry };
        }
        last = entry;
    }
    if let Some(c) = canonical {
        let name = copy(c, 1);
        if name.is_null() {
            // SAFETY: as above.
            unsafe { libc::freeaddrinfo(first) };
            return Err(libc::EAI_MEMORY);
        }
        // SAFETY: the first entry, which is there.
        unsafe { (*first).ai_canonname = name.cast() };
    }
    Ok(first)
}

/// Bytes in the program's heap, with so many zeros behind; null when it is full.
fn copy(b: &[u8], zeros: usize) -> *mut u8 {
    // SAFETY: calloc gives zeroed memory of that size or null.
    unsafe {
        let to = libc::calloc(1, b.len() + zeros).cast::<u8>();
        if !to.is_null() {
            core::ptr::copy_nonoverlapping(b.as_ptr(), to, b.len());
        }
        to
    }
}

fn new_entry(a: &Address<'_>) -> *mut addrinfo {
    let [ai_flags, ai_family, ai_socktype, ai_protocol] = a.words;
    // SAFETY: calloc's memory is aligned for any type, and has room for the entry and the address behind it.
    unsafe {
        let entry = libc::calloc(1, ENTRY + a.address.len()).cast::<addrinfo>();
        if entry.is_null() {
            return entry;
        }
        let address = entry.add(1).cast::<u8>();
        core::ptr::copy_nonoverlapping(a.address.as_ptr(), address, a.address.len());
        entry.write(addrinfo {
            ai_flags,
            ai_family,
            ai_socktype,
            ai_protocol,
            ai_addrlen: a.address.len() as socklen_t,
            ai_addr: address.cast(),
            ai_canonname: null_mut(),
            ai_next: null_mut(),
        });
        entry
    }
}

/// Whether the name of this address is its numbers, whatever the namespace: an IPv6 address of one link names the link's interface.
fn is_numeric(address: &[u8], flags: c_int, wants_host: bool) -> bool {
    const SCOPE_AT: usize = 24;
    let scoped = address.get(SCOPE_AT..SCOPE_AT + 4).is_some_and(|s| s != [0; 4]);
    !wants_host || (flags & libc::NI_NUMERICHOST != 0 && !scoped)
}

/// getnameinfo(3).
///
/// # Safety
/// As getnameinfo(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getnameinfo(
    address: *const sockaddr,
    address_len: socklen_t,
    host: *mut c_char,
    host_len: socklen_t,
    service: *mut c_char,
    service_len: socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: that is its type.
    let Some(real) = (unsafe { next::GETNAMEINFO.function::<GetNameInfo>() }) else {
        return libc::EAI_SYSTEM;
    };
    let wanted = [!host.is_null() && host_len != 0, !service.is_null() && service_len != 0];
    // SAFETY: the program's address, which has this length.
    let given: &[u8] = unsafe {
        match address_len as usize {
            n @ 2..=nk_attach::names::ADDRESS_MAX if !address.is_null() => {
                core::slice::from_raw_parts(address.cast(), n)
            }
            _ => &[],
        }
    };
    let family = given.first_chunk::<2>().map_or(0, |f| i32::from(u16::from_ne_bytes(*f)));
    let is_ip = family == libc::AF_INET || family == libc::AF_INET6;
    let asked = process().filter(|_| is_ip && !is_numeric(given, flags, wanted[0]));
    let Some(p) = asked else {
        // SAFETY: the program's own arguments.
        return unsafe { real(address, address_len, host, host_len, service, service_len, flags) };
    };
    let answer = match ask(p, &Question::Name { address: given, flags, wanted }) {
        Ok(a) => a,
        Err(why) => return eai(why),
    };
    let Some((o, mut r)) = answer.parse() else { return libc::EAI_AGAIN };
    if o.code != 0 {
        return fail(o);
    }
    let (Some(name), Some(number), true) = (r.bytes(), r.bytes(), r.is_at_end()) else {
        return libc::EAI_AGAIN;
    };
    for (text, to, room) in [(name, host, host_len), (number, service, service_len)] {
        let Some(text) = text else { continue };
        if text.len() >= room as usize {
            return libc::EAI_OVERFLOW;
        }
        // SAFETY: the program's buffer, which has room for the text and its end.
        unsafe {
            core::ptr::copy_nonoverlapping(text.as_ptr(), to.cast::<u8>(), text.len());
            to.add(text.len()).write(0);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(canonical: Option<&[u8]>, count: u32, addresses: &[&[u8]]) -> Vec<u8> {
        let mut out = vec![0; 4096];
        let mut w = Outcome::default().write(&mut out);
        w.bytes(canonical);
        w.word(count);
        for address in addresses {
            Address { words: [0, libc::AF_INET, libc::SOCK_STREAM, 6], address }.write(&mut w);
        }
        let len = w.finish().expect("fits");
        out.truncate(len);
        out
    }

    fn built(packet: &[u8]) -> Result<*mut addrinfo, c_int> {
        build(Outcome::parse(packet).expect("head").1)
    }

    #[test]
    fn the_list_is_one_that_freeaddrinfo_frees() {
        let (a, b) = ([2u8, 0, 0, 80, 127, 0, 0, 1], [2u8, 0, 0, 80, 127, 0, 0, 2]);
        let list = built(&packet(Some(b"name"), 2, &[&a, &b])).expect("a list");
        // SAFETY: a list as getaddrinfo gives.
        unsafe {
            assert_eq!(bytes((*list).ai_canonname), Some(&b"name"[..]));
            let second = (*list).ai_next;
            assert!((*second).ai_next.is_null() && (*second).ai_canonname.is_null());
            let got = core::slice::from_raw_parts((*second).ai_addr.cast::<u8>(), 8);
            assert_eq!((got, (*second).ai_addrlen), (&b[..], 8));
            libc::freeaddrinfo(list);
        }
    }

    #[test]
    fn an_answer_that_lies_is_none() {
        let a = [2u8, 0, 0, 80, 127, 0, 0, 1];
        for (canonical, count, addresses) in [
            (None, 0, &[][..]),
            (None, 2, &[&a[..]][..]),
            (None, 1, &[&a[..], &a[..]]),
            (None, u32::MAX, &[&a[..]]),
            (Some(&b"a\0b"[..]), 1, &[&a[..]]),
            (None, 1, &[&a[..1]]),
            (None, 1, &[&[0; 200][..]]),
        ] {
            assert_eq!(built(&packet(canonical, count, addresses)), Err(libc::EAI_AGAIN));
        }
    }

    #[test]
    fn what_names_no_interface_is_numeric() {
        let mut link = [0u8; 28];
        assert!(is_numeric(&link, libc::NI_NUMERICHOST, true));
        link[24] = 2;
        assert!(!is_numeric(&link, libc::NI_NUMERICHOST, true));
        assert!(is_numeric(&link, 0, false));
        assert!(!is_numeric(&link[..16], 0, true));
    }
}
