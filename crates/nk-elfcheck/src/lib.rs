//! Whether GuestLib can load into an executable file.
//!
//! `LD_PRELOAD` fails open: a static program, a set-uid one or one of another C library runs on without it. So `nk run` and
//! GuestLib's exec wrappers look at the file first. The crate is `no_std`, allocates nothing and makes raw syscalls
//! only, so that it may run in a signal handler or between fork and exec. What it finds can change before the kernel
//! looks again; the guest's empty network namespace is what makes a wrong answer harmless.
//!
//! Its key types: [`Verdict`], what one file is; [`check_path`], which follows `#!` lines to the end.
#![no_std]
#![deny(missing_docs)]

mod file;

use core::ffi::CStr;

use file::File;
pub use nk_device::row::ExecRefused;

/// Bytes of a `#!` line that the kernel looks at.
const LINE_MAX: usize = 256;
/// `#!` interpreters that are scripts themselves: as deep as the kernel follows.
const DEPTH_MAX: u32 = 5;
/// Program headers looked at; the kernel itself takes no more than a page of 64 KiB of them.
const PHDRS_MAX: u16 = 1024;

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "x86_64")]
const LOADER: &[u8] = b"ld-linux-x86-64.so.2";
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;
#[cfg(target_arch = "aarch64")]
const LOADER: &[u8] = b"ld-linux-aarch64.so.1";

/// The interpreter that a `#!` line names, as a C string.
#[derive(Clone, Copy, Debug)]
pub struct Interpreter {
    path: [u8; LINE_MAX + 1],
    len: usize,
}

impl Interpreter {
    /// Its path. Relative ones are relative to the working directory, as for the kernel.
    #[must_use]
    pub fn path(&self) -> &CStr {
        self.path.get(..=self.len).and_then(|b| CStr::from_bytes_with_nul(b).ok()).unwrap_or(c"/")
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is no allocator to box with")]
pub enum Verdict {
    /// A dynamic program of this machine and glibc: GuestLib loads.
    Loads,
    /// GuestLib cannot load.
    Refused(ExecRefused),
    /// A script: what counts is its interpreter.
    Script(Interpreter),
    /// Neither ELF nor `#!`: the kernel answers ENOEXEC and a shell reads it as a script of its own.
    NotBinary,
    /// May be run but not read, so nobody knows.
    Unreadable,
}

/// Looks at an open file; `path` is how it was named, if it was.
///
/// # Errors
/// The errno of reading it; EACCES when it is no regular file.
pub fn check_fd(fd: i32, path: Option<&CStr>) -> Result<Verdict, i32> {
    look(File::borrowed(fd), path)
}

/// Looks at the file and, where it is a script, at its interpreter, as deep as the kernel goes. Never gives
/// [`Verdict::Script`].
///
/// # Errors
/// The errno that exec would give: ENOENT, EACCES, ELOOP, ...
pub fn check_path(path: &CStr) -> Result<Verdict, i32> {
    let mut interpreter;
    let mut path = path;
    for _ in 0..DEPTH_MAX {
        let file = match File::open(path) {
            Ok(f) => f,
            Err(libc::EACCES) if file::is_executable(path) => return Ok(Verdict::Unreadable),
            Err(e) => return Err(e),
        };
        match look(file, Some(path))? {
            Verdict::Script(next) => {
                interpreter = next;
                path = interpreter.path();
            }
            other => return Ok(other),
        }
    }
    Err(libc::ELOOP)
}

/// What [`explain`]'s text is about, to be put before it: the file, or the interpreter that it names.
#[must_use]
pub fn subject(path: &CStr) -> &'static str {
    let verdict = File::open(path).and_then(|f| look(f, Some(path)));
    if matches!(verdict, Ok(Verdict::Script(_))) { "its interpreter: " } else { "" }
}

/// Why the file is refused and what to do, for people.
#[must_use]
pub fn explain(reason: ExecRefused) -> &'static str {
    match reason {
        ExecRefused::Static => {
            "it is statically linked, so libnetkernel.so cannot load into it; use a dynamically linked build, or run it in a VM guest"
        }
        ExecRefused::Setuid => {
            "it is set-uid, set-gid or has file capabilities, so the loader ignores libnetkernel.so; run it outside the guest, \
             or a copy without these bits"
        }
        ExecRefused::ForeignMachine => {
            "it is built for another machine or word size than libnetkernel.so; use a build for this machine"
        }
        ExecRefused::ForeignLibc => {
            "it uses another C library than glibc (musl, for example); use a build for glibc, or run it in a VM guest"
        }
    }
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(b.get(at..at + 2)?.try_into().ok()?))
}
fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?))
}
fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?))
}

fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or(path)
}

fn look(file: File, path: Option<&CStr>) -> Result<Verdict, i32> {
    if !file.is_regular()? {
        return Err(libc::EACCES);
    }
    let mut head = [0u8; LINE_MAX];
    let n = file.read_at(&mut head, 0)?;
    let head = head.get(..n).unwrap_or(&[]);
    if head.starts_with(b"#!") {
        return Ok(script(head).map_or(Verdict::NotBinary, Verdict::Script));
    }
    if !head.starts_with(b"\x7fELF") {
        return Ok(Verdict::NotBinary);
    }
    // Scripts are looked at before this: their set-uid bits are ignored by the kernel.
    if file.is_privileged()? {
        return Ok(Verdict::Refused(ExecRefused::Setuid));
    }
    // Class 2: 64 bits; data 1: little endian.
    if head.get(4..6) != Some(&[2, 1]) || u16_at(head, 18) != Some(MACHINE) {
        return Ok(Verdict::Refused(ExecRefused::ForeignMachine));
    }
    let (Some(at), Some(size), Some(count)) =
        (u64_at(head, 32), u16_at(head, 54), u16_at(head, 56))
    else {
        return Ok(Verdict::NotBinary);
    };
    if usize::from(size) != 56 {
        return Ok(Verdict::NotBinary);
    }
    for i in 0..count.min(PHDRS_MAX) {
        let mut ph = [0u8; 56];
        let n = file.read_at(&mut ph, at.saturating_add(u64::from(i) * 56))?;
        const PT_INTERP: u32 = 3;
        if n < ph.len() {
            break;
        }
        if u32_at(&ph, 0) != Some(PT_INTERP) {
            continue;
        }
        let mut name = [0u8; LINE_MAX];
        let n = file.read_at(&mut name, u64_at(&ph, 8).unwrap_or(0))?;
        let name = name.get(..n).unwrap_or(&[]);
        let name = name.split(|b| *b == 0).next().unwrap_or(name);
        return Ok(if base_name(name) == LOADER {
            Verdict::Loads
        } else {
            Verdict::Refused(ExecRefused::ForeignLibc)
        });
    }
    // glibc's loader, run as a program, loads what LD_PRELOAD names into the program that it is given.
    if path.is_some_and(|p| base_name(p.to_bytes()) == LOADER) {
        return Ok(Verdict::Loads);
    }
    Ok(Verdict::Refused(ExecRefused::Static))
}

/// Parses a `#!` line as the kernel does: blanks, then the path up to a blank or the line's end.
fn script(head: &[u8]) -> Option<Interpreter> {
    let line = head.get(2..)?;
    let line = line.split(|b| *b == b'\n' || *b == 0).next()?;
    let start = line.iter().position(|b| *b != b' ' && *b != b'\t')?;
    let word = line.get(start..)?.split(|b| *b == b' ' || *b == b'\t').next()?;
    let mut out = Interpreter { path: [0; LINE_MAX + 1], len: word.len() };
    out.path.get_mut(..word.len())?.copy_from_slice(word);
    Some(out)
}

#[cfg(test)]
mod tests;
