//! Interfaces and their addresses: those in the namespace of the guest's sockets, since that is where a guest binds and joins groups.
//! The guest's resolver knows them. A guest whose questions are not answered (`names = false`) sees its own empty namespace.

use core::ffi::CStr;
use core::mem::size_of;
use core::ptr::null_mut;

use libc::{
    c_char, c_int, c_uint, c_ulong, if_nameindex as NameIndex, ifaddrs, sockaddr, sockaddr_storage,
};
use nk_attach::names::{
    IFREQ, INTERFACE_REQUESTS, Interface, LINK_STATS, Outcome, Question, Reader, SIOCGIFCONF,
};
use nk_device::row::NoAnswer;

use crate::names::{Answer, ask};
use crate::process::{Process, process};
use crate::{next, sys};

/// Bytes of an interface's name, with the null byte at its end.
const NAME: usize = libc::IF_NAMESIZE;
const SIOCGIFNAME: c_ulong = 0x8910;
const SIOCGIFINDEX: c_ulong = 0x8933;
/// Where the union begins in `struct ifreq`.
const UNION: usize = NAME;

/// One entry of the list. glibc's own is one block of memory too, which its freeifaddrs frees as one.
#[repr(C)]
struct Slot {
    entry: ifaddrs,
    addresses: [sockaddr_storage; 3],
    data: [u32; LINK_STATS / size_of::<u32>()],
    name: [u8; NAME],
}

/// errno of a question that was not answered; `None` where the guest's own namespace has to do.
fn errno(why: NoAnswer) -> Option<c_int> {
    match why {
        NoAnswer::Forbidden => None,
        NoAnswer::NoDaemon => Some(libc::ENETDOWN),
        NoAnswer::Resources => Some(libc::EMFILE),
        _ => Some(libc::ENOBUFS),
    }
}

/// The entries of an answer; an errno where there are none, `None` as for [`errno`].
fn answer(p: &Process, question: &Question<'_>) -> Result<Answer, Option<c_int>> {
    let answer = ask(p, question).map_err(errno)?;
    match answer.parse() {
        Some((Outcome { code: 0, .. }, _)) => Ok(answer),
        Some((o, _)) => Err(Some(o.errno)),
        None => Err(Some(libc::ENOBUFS)),
    }
}

/// What follows an answer's head.
fn body(answer: &Answer) -> Option<Reader<'_>> {
    answer.parse().map(|(_, r)| r)
}

/// Fills `slots`, one for each entry of the answer. `None`: the answer is none.
///
/// # Safety
/// There are `n` slots, zeroed.
unsafe fn fill(r: &mut Reader<'_>, slots: *mut Slot, n: usize) -> Option<()> {
    for i in 0..n {
        let told = Interface::parse(r).filter(|t| t.name.len() < NAME)?;
        let slot = slots.wrapping_add(i);
        // SAFETY: within the slots; a name and an address are no longer than their places, and neither are counters.
        unsafe {
            let name = &raw mut (*slot).name;
            name.cast::<u8>().copy_from_nonoverlapping(told.name.as_ptr(), told.name.len());
            let mut places = [null_mut(); 3];
            for (k, (place, a)) in places.iter_mut().zip(told.addresses).enumerate() {
                if let Some(a) = a {
                    let to = (&raw mut (*slot).addresses).cast::<sockaddr_storage>().add(k);
                    to.cast::<u8>().copy_from_nonoverlapping(a.as_ptr(), a.len());
                    *place = to.cast::<sockaddr>();
                }
            }
            let mut data = null_mut();
            if let Some(told) = told.data {
                let to = &raw mut (*slot).data;
                to.cast::<u8>().copy_from_nonoverlapping(told.as_ptr(), told.len().min(LINK_STATS));
                data = to.cast();
            }
            (*slot).entry = ifaddrs {
                ifa_next: if i + 1 < n { slot.add(1).cast() } else { null_mut() },
                ifa_name: name.cast(),
                ifa_flags: told.flags,
                ifa_addr: places[0],
                ifa_netmask: places[1],
                ifa_ifu: places[2],
                ifa_data: data,
            };
        }
    }
    r.is_at_end().then_some(())
}

/// The list that getifaddrs gives, of one block of memory; null when there is none.
fn list(p: &Process) -> Result<*mut ifaddrs, Option<c_int>> {
    const LIES: Option<c_int> = Some(libc::ENOBUFS);
    let answer = answer(p, &Question::Interfaces)?;
    let mut r = body(&answer).ok_or(LIES)?;
    let n = r.count(7 * size_of::<u32>()).ok_or(LIES)?;
    if n == 0 {
        return Ok(null_mut());
    }
    // SAFETY: memory for that many, zeroed; freed again unless it is given away.
    unsafe {
        let slots = libc::calloc(n, size_of::<Slot>()).cast::<Slot>();
        if slots.is_null() {
            return Err(Some(libc::ENOMEM));
        }
        if fill(&mut r, slots, n).is_none() {
            libc::free(slots.cast());
            return Err(LIES);
        }
        Ok(slots.cast())
    }
}

/// getifaddrs(3).
///
/// # Safety
/// As getifaddrs(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getifaddrs(to: *mut *mut ifaddrs) -> c_int {
    type GetIfAddrs = unsafe extern "C" fn(*mut *mut ifaddrs) -> c_int;
    let told = process().map(list);
    match told {
        Some(Ok(all)) => {
            // SAFETY: the program's place.
            unsafe { *to = all };
            0
        }
        Some(Err(Some(e))) => sys::fail(e),
        // SAFETY: the C library's own, with the program's place.
        Some(Err(None)) | None => unsafe {
            match next::GETIFADDRS.function::<GetIfAddrs>() {
                Some(real) => real(to),
                None => sys::fail(libc::ENOSYS),
            }
        },
    }
}

/// An ioctl about one interface. The union of `struct ifreq` as the kernel filled it in.
fn one(
    p: &Process,
    family: c_int,
    request: c_ulong,
    ifreq: &mut [u8; IFREQ],
) -> Result<(), Option<c_int>> {
    let question = Question::InterfaceRequest { family, request: request as u32, ifreq };
    let answer = answer(p, &question)?;
    let got = body(&answer).and_then(|mut r| r.bytes()).flatten().and_then(|b| b.try_into().ok());
    *ifreq = got.ok_or(Some(libc::ENOBUFS))?;
    Ok(())
}

/// if_nametoindex(3).
///
/// # Safety
/// As if_nametoindex(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn if_nametoindex(name: *const c_char) -> c_uint {
    type NameToIndex = unsafe extern "C" fn(*const c_char) -> c_uint;
    if let Some(p) = process() {
        // SAFETY: the program's C string.
        let given = unsafe { CStr::from_ptr(name) }.to_bytes();
        let mut ifreq = [0; IFREQ];
        match ifreq.get_mut(..given.len()) {
            Some(to) if given.len() < NAME => to.copy_from_slice(given),
            _ => {
                sys::set_errno(libc::ENODEV);
                return 0;
            }
        }
        match one(p, libc::AF_INET, SIOCGIFINDEX, &mut ifreq) {
            Ok(()) => {
                let [.., a, b, c, d] =
                    *ifreq.first_chunk::<{ UNION + 4 }>().unwrap_or(&[0; UNION + 4]);
                return c_uint::from_ne_bytes([a, b, c, d]);
            }
            Err(Some(e)) => {
                sys::set_errno(e);
                return 0;
            }
            Err(None) => {}
        }
    }
    // SAFETY: the C library's own, with the program's argument.
    unsafe { next::IF_NAMETOINDEX.function::<NameToIndex>().map_or(0, |real| real(name)) }
}

/// if_indextoname(3).
///
/// # Safety
/// As if_indextoname(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn if_indextoname(index: c_uint, name: *mut c_char) -> *mut c_char {
    type IndexToName = unsafe extern "C" fn(c_uint, *mut c_char) -> *mut c_char;
    if let Some(p) = process() {
        let mut ifreq = [0; IFREQ];
        if let Some(to) = ifreq.get_mut(UNION..UNION + 4) {
            to.copy_from_slice(&index.to_ne_bytes());
        }
        match one(p, libc::AF_INET, SIOCGIFNAME, &mut ifreq) {
            Ok(()) => {
                // SAFETY: the program's place has room for a name.
                unsafe { name.cast::<u8>().copy_from_nonoverlapping(ifreq.as_ptr(), NAME) };
                return name;
            }
            Err(Some(e)) => {
                // As the C library says it.
                sys::set_errno(if e == libc::ENODEV { libc::ENXIO } else { e });
                return null_mut();
            }
            Err(None) => {}
        }
    }
    // SAFETY: the C library's own, with the program's arguments.
    unsafe {
        next::IF_INDEXTONAME.function::<IndexToName>().map_or(null_mut(), |real| real(index, name))
    }
}

/// The array that if_nameindex gives, with every name in memory of its own: glibc's if_freenameindex frees it so.
fn indexes(p: &Process) -> Result<*mut NameIndex, Option<c_int>> {
    let all = list(p)?;
    let mut links = 0;
    // SAFETY: our own list; links are those with an address of the link layer.
    let link = |i: *mut ifaddrs| unsafe {
        let a = (*i).ifa_addr;
        (!a.is_null() && c_int::from((*a).sa_family) == libc::AF_PACKET)
            .then(|| (*a.cast::<libc::sockaddr_ll>()).sll_ifindex as c_uint)
    };
    // SAFETY: as above; the array has a place for each link and one more, zeroed, and the list is freed after its last use.
    unsafe {
        let mut i = all;
        while !i.is_null() {
            links += usize::from(link(i).is_some());
            i = (*i).ifa_next;
        }
        let array = libc::calloc(links + 1, size_of::<NameIndex>()).cast::<NameIndex>();
        let (mut i, mut n) = (all, 0);
        while !i.is_null() && !array.is_null() {
            if let Some(if_index) = link(i) {
                *array.add(n) = NameIndex { if_index, if_name: libc::strdup((*i).ifa_name) };
                n += 1;
            }
            i = (*i).ifa_next;
        }
        libc::free(all.cast());
        if array.is_null() { Err(Some(libc::ENOMEM)) } else { Ok(array) }
    }
}

/// if_nameindex(3).
#[unsafe(no_mangle)]
pub extern "C" fn if_nameindex() -> *mut NameIndex {
    type IfNameIndex = unsafe extern "C" fn() -> *mut NameIndex;
    match process().map(indexes) {
        Some(Ok(array)) => array,
        Some(Err(Some(e))) => {
            sys::set_errno(e);
            null_mut()
        }
        // SAFETY: the C library's own.
        Some(Err(None)) | None => unsafe {
            next::IF_NAMEINDEX.function::<IfNameIndex>().map_or(null_mut(), |real| real())
        },
    }
}

/// An ioctl that reads about interfaces, on a socket of ours. `None`: it is none, or the guest's own namespace has to do.
///
/// # Safety
/// The argument is what the request wants (netdevice(7)), or null.
pub(super) unsafe fn ioctl(
    p: &Process,
    family: c_int,
    request: c_ulong,
    argument: usize,
) -> Option<c_int> {
    if !INTERFACE_REQUESTS.contains(&u32::try_from(request).ok()?) {
        return None;
    }
    if argument == 0 {
        return Some(sys::fail(libc::EFAULT));
    }
    let told = if request == c_ulong::from(SIOCGIFCONF) {
        // SAFETY: the caller's promise.
        unsafe { conf(p, family, argument as *mut libc::ifconf) }
    } else {
        let place = argument as *mut [u8; IFREQ];
        // SAFETY: the caller's promise.
        let mut ifreq = unsafe { place.read_unaligned() };
        one(p, family, request, &mut ifreq).map(|()| {
            // SAFETY: as above.
            unsafe { place.write_unaligned(ifreq) };
        })
    };
    match told {
        Ok(()) => Some(0),
        Err(why) => why.map(sys::fail),
    }
}

/// SIOCGIFCONF: as many entries as there is room for, or how long they all are.
///
/// # Safety
/// As for the ioctl.
unsafe fn conf(p: &Process, family: c_int, conf: *mut libc::ifconf) -> Result<(), Option<c_int>> {
    let question = Question::InterfaceRequest { family, request: SIOCGIFCONF, ifreq: &[0; IFREQ] };
    let answer = answer(p, &question)?;
    let all = body(&answer).and_then(|mut r| r.bytes()).flatten().ok_or(Some(libc::ENOBUFS))?;
    // SAFETY: the caller's promise; never more than the room that is said to be there.
    unsafe {
        let to = (*conf).ifc_ifcu.ifcu_buf.cast::<u8>();
        let room = usize::try_from((*conf).ifc_len).map_err(|_| Some(libc::EINVAL))?;
        let len = if to.is_null() { all.len() } else { all.len().min(room / IFREQ * IFREQ) };
        if !to.is_null() {
            to.copy_from_nonoverlapping(all.as_ptr(), len);
        }
        (*conf).ifc_len = len as c_int;
    }
    Ok(())
}
