//! Becoming a process of a guest: at load time, and again in the child of a raw fork.

use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use libc::{c_char, c_int};
use nk_attach::{Fds, Kind, Message, RecvError, env};
use nk_device::Device;

use crate::process::{self, Identity, Process};
use crate::{fdtable, rings, standin, sys};

/// Exit status when a process cannot be made a guest's: it never runs without the redirection.
const EXIT_CLOSED: c_int = 125;
const PATH_MAX: usize = 512;
/// Daemons that end before they answer, and the rest between two.
const TRIES: u32 = 50;
const TRY_REST_US: u64 = 20_000;
/// After this time without an answer it is asked again: a daemon may have died after it took the question along.
const ANSWER_MS: u32 = 1000;

/// A string from the environment, kept because programs clear or move their environment.
pub(crate) struct Saved {
    bytes: UnsafeCell<[u8; PATH_MAX]>,
    len: AtomicUsize,
}
// SAFETY: written by the constructor only, before any other thread can be there; `len` is published after.
unsafe impl Sync for Saved {}

impl Saved {
    const fn new() -> Saved {
        Saved { bytes: UnsafeCell::new([0; PATH_MAX]), len: AtomicUsize::new(0) }
    }

    pub(crate) fn set(&self, value: &[u8]) -> bool {
        if value.len() >= PATH_MAX {
            return false;
        }
        // SAFETY: see `Sync`; the length was checked.
        unsafe {
            core::ptr::copy_nonoverlapping(
                value.as_ptr(),
                self.bytes.get().cast::<u8>(),
                value.len(),
            );
        }
        self.len.store(value.len(), Ordering::Release);
        true
    }

    /// The bytes; empty when it was not set.
    pub(crate) fn get(&self) -> &[u8] {
        // SAFETY: the first `len` bytes were written before `len` was, and are not written again.
        unsafe {
            core::slice::from_raw_parts(
                self.bytes.get().cast::<u8>(),
                self.len.load(Ordering::Acquire),
            )
        }
    }
}

/// NK_SOCKET, NK_TOKEN, NK_LIBRARY as this process was started with.
pub(crate) static SOCKET: Saved = Saved::new();
pub(crate) static TOKEN: Saved = Saved::new();
pub(crate) static LIBRARY: Saved = Saved::new();
static TOKEN_HIGH: AtomicU64 = AtomicU64::new(0);
static TOKEN_LOW: AtomicU64 = AtomicU64::new(0);

/// Value of `NAME=value` when the entry is of that name.
pub(crate) fn value_of<'a>(entry: &'a [u8], name: &str) -> Option<&'a [u8]> {
    match entry.strip_prefix(name.as_bytes())?.split_first() {
        Some((b'=', value)) => Some(value),
        _ => None,
    }
}

extern "C" fn constructor(_argc: c_int, _argv: *const *const c_char, envp: *const *const c_char) {
    let mut at = envp;
    // SAFETY: glibc passes the environment as a null-terminated array of C strings to constructors.
    unsafe {
        while !at.is_null() && !(*at).is_null() {
            let entry = CStr::from_ptr(*at).to_bytes();
            for (name, to) in
                [(env::SOCKET, &SOCKET), (env::TOKEN, &TOKEN), (env::LIBRARY, &LIBRARY)]
            {
                if let Some(value) = value_of(entry, name)
                    && !to.set(value)
                {
                    refuse(b"a NK_* variable is too long", &[]);
                }
            }
            at = at.add(1);
        }
    }
    if SOCKET.get().is_empty() && TOKEN.get().is_empty() {
        return;
    }
    let Some((high, low)) = env::parse_token(TOKEN.get()) else {
        refuse(b"NK_TOKEN is not a token", &[]);
    };
    TOKEN_HIGH.store(high, Ordering::Relaxed);
    TOKEN_LOW.store(low, Ordering::Relaxed);
    let saved = sys::errno();
    crate::next::init();
    attach(false);
    sys::set_errno(saved);
}

// SAFETY: a function pointer in .init_array is what the loader calls with (argc, argv, envp).
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = constructor;

/// Says why and ends the process.
fn refuse(why: &[u8], more: &[&[u8]]) -> ! {
    sys::complain(&[b"netkernel: ", why]);
    for m in more {
        sys::complain(&[m]);
    }
    sys::complain(&[b"; not running without it (start the program with `nk run`)\n"]);
    sys::exit_now(EXIT_CLOSED)
}

/// In the child of a raw fork: it is a process of its own from now on.
pub(crate) fn again() {
    let saved = sys::errno();
    if let Some(p) = process::current() {
        // The parent's: its control socket must not stay open here, it is how the daemon sees the parent's end.
        sys::close(p.control_fd());
        sys::close(p.doorbell_fd());
        for fd in [p.control_fd(), p.doorbell_fd(), p.engine_fd()] {
            fdtable::swap(fd, fdtable::Entry::None);
        }
        sys::close(p.engine_fd());
    }
    standin::weigh_anchor();
    fdtable::clear();
    crate::gate::reset();
    crate::control::reset();
    crate::calls::hosts::reset();
    crate::grants::reset();
    attach(true);
    sys::set_errno(saved);
}

fn attach(is_raw_child: bool) {
    let Ok(doorbell) = sys::eventfd() else { refuse(b"cannot make an eventfd", &[]) };
    let doorbell = sys::move_up(doorbell);
    let (socket, reply, mut fds) = ask(doorbell);
    if reply.status != 0 {
        refuse(b"the daemon refused: ", &[reply.text().unwrap_or("no reason given").as_bytes()]);
    }
    let (Some(memory), Some(engine)) = (fds.take(0), fds.take(1)) else {
        refuse(b"the daemon's answer lacks descriptors", &[]);
    };
    let engine = sys::move_up(engine);
    let identity = Identity {
        row: reply.a as u16,
        qset: reply.b as u16,
        control_fd: socket,
        doorbell_fd: doorbell,
    };
    if is_raw_child {
        // The parent's mapping is shared and still there.
        process::set_engine_fd(engine);
        process::become_identity(identity);
    } else {
        map(memory, reply.c, engine, identity);
    }
    nk_attach::close_raw(memory);
    let Some(p) = process::current() else { refuse(b"no memory", &[]) };
    if !fdtable::init(p.device().layout().cells) {
        refuse(b"no memory", &[]);
    }
    rings::reset(p.device().header().epoch.load(Ordering::Acquire));
    protect(p);
    crate::events::reset_after_fork(p);
    let imported = crate::gate::enter();
    if let Some(row) = p.row() {
        // An image that exec replaced may have been stopped in the middle of one.
        row.end_append();
    }
    standin::import(p);
    if reply.d == 1 {
        standin::release_others(p);
    }
    drop(imported);
    if !is_raw_child {
        crate::calls::files::follow_standard();
    }
}

/// Asks for a row, and of the next daemon again where one dies before it answers: on the same connection, if the dead one had done it and so the next
/// one has that, else on another. Each that ends without a word costs a try.
fn ask(doorbell: c_int) -> (c_int, Message, Fds) {
    let path = SOCKET.get();
    let mut message = Message::new(Kind::Attach);
    message.b = TOKEN_HIGH.load(Ordering::Relaxed);
    message.c = TOKEN_LOW.load(Ordering::Relaxed);
    for n in 0..TRIES {
        if n > 0 {
            sys::sleep_us(TRY_REST_US);
        }
        let socket = match nk_attach::connect(path) {
            Ok(fd) => sys::move_up(fd),
            Err(_) => refuse(b"cannot connect to the daemon at ", &[path]),
        };
        loop {
            // What nobody has read is read by who serves next.
            let is_read = sys::unread_by_peer(socket) == 0;
            if is_read && nk_attach::send(socket, &message, &[doorbell]).is_err() {
                break;
            }
            if !sys::wait_readable(socket, ANSWER_MS) {
                continue;
            }
            match nk_attach::recv(socket, false) {
                Ok((m, f, _)) => return (socket, m, f),
                Err(RecvError::Malformed) => refuse(b"the daemon is of another version", &[]),
                Err(_) => break,
            }
        }
        sys::close(socket);
    }
    refuse(b"the daemon hung up", &[])
}

fn map(memory: c_int, len: u64, engine: c_int, identity: Identity) {
    // SAFETY: a fresh mapping of a descriptor that the daemon sealed against shrinking.
    let base = unsafe {
        sys::system_call!(
            libc::SYS_mmap,
            0usize,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
            memory,
            0usize,
        )
    };
    let base = if base == -1 { None } else { NonNull::new(base as *mut u8) };
    let Some(base) = base else { refuse(b"cannot map the device", &[]) };
    // SAFETY: page-aligned, `len` bytes, never unmapped.
    let device = match unsafe { Device::open(base, len as usize) } {
        Ok(d) => d,
        Err(_) => refuse(b"the device has a layout of another version", &[]),
    };
    if !process::begin(device, engine, identity) {
        refuse(b"no memory", &[]);
    }
}

/// Enters our own descriptors, so that the program's close and dup2 do not hit them.
pub(crate) fn protect(p: &Process) {
    for fd in [p.control_fd(), p.doorbell_fd(), p.engine_fd()] {
        fdtable::swap(fd, fdtable::Entry::Internal);
    }
}
