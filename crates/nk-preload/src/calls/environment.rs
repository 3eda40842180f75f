//! The environment that an exec passes on, and the search for a program in PATH.

use core::ffi::CStr;
use core::ptr::null;

use libc::{c_char, c_int};
use nk_attach::env;

use super::exec::Strings;
use crate::attach::{LIBRARY, SOCKET, TOKEN, value_of};
use crate::sys::Memory;

unsafe extern "C" {
    #[link_name = "__environ"]
    static ENVIRON: Strings;
}

/// The environment now.
pub(crate) fn environment() -> Strings {
    // SAFETY: glibc's variable; a program that changes it in another thread at the same time breaks exec natively, too.
    unsafe { ENVIRON }
}

/// An environment with our variables, in memory of its own; the program's where it had them all.
#[derive(Debug)]
pub(crate) struct Environment {
    memory: Option<Memory>,
    given: Strings,
}

impl Environment {
    /// The array to pass on.
    pub(crate) fn as_ptr(&self) -> Strings {
        self.memory.as_ref().map_or(self.given, |m| m.as_ptr().cast())
    }

    /// Completes the program's environment.
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn complete(given: Strings) -> Result<Environment, c_int> {
        let mut count = 0;
        let mut has = [false; 4];
        let mut preload: &[u8] = &[];
        let library = LIBRARY.get();
        for_each(given, |entry| {
            count += 1;
            let text = entry.to_bytes();
            for (h, (name, value)) in has.iter_mut().zip(ours()) {
                *h |= value_of(text, name) == Some(value);
            }
            if let Some(v) = value_of(text, PRELOAD) {
                preload = v;
                has[3] = v.split(|b| *b == b':' || *b == b' ').any(|l| l == library);
            }
        });
        if has.iter().all(|h| *h) {
            return Ok(Environment { memory: None, given });
        }
        let [(_, socket), (_, token), _] = ours();
        let text = 64 + socket.len() + token.len() + 2 * library.len() + preload.len();
        let pointers = (count + 5) * size_of::<*const c_char>();
        let memory = Memory::new(pointers + text).ok_or(libc::ENOMEM)?;
        let mut out = Writer {
            next: memory.as_ptr().cast::<*const c_char>(),
            text: memory.as_ptr().wrapping_add(pointers),
        };
        for_each(given, |entry| {
            let t = entry.to_bytes();
            let replaced = ours().iter().any(|(n, _)| value_of(t, n).is_some())
                || value_of(t, PRELOAD).is_some();
            if !replaced {
                out.pointer(entry.as_ptr());
            }
        });
        for (name, value) in ours() {
            out.entry(&[name.as_bytes(), b"=", value]);
        }
        let colon: &[u8] = if preload.is_empty() { b"" } else { b":" };
        if has[3] {
            out.entry(&[PRELOAD.as_bytes(), b"=", preload]);
        } else {
            out.entry(&[PRELOAD.as_bytes(), b"=", library, colon, preload]);
        }
        out.pointer(null());
        Ok(Environment { memory: Some(memory), given })
    }
}

const PRELOAD: &str = "LD_PRELOAD";

/// Puts our variables back into the program's own environment where it dropped them: for C library functions that start a
/// program with it and take no other.
pub(crate) fn restore_environment() {
    let Ok(completed) = Environment::complete(environment()) else { return };
    if completed.memory.is_none() {
        return;
    }
    for_each(completed.as_ptr(), |entry| {
        let t = entry.to_bytes();
        let is_ours =
            ours().iter().any(|(n, _)| value_of(t, n).is_some()) || value_of(t, PRELOAD).is_some();
        let Some(at) = t.iter().position(|b| *b == b'=') else { return };
        let mut name = [0u8; 16];
        if is_ours && let (Some(to), Some(from)) = (name.get_mut(..at), t.get(..at)) {
            to.copy_from_slice(from);
            // SAFETY: both are C strings (the name's array is longer than any of ours, and zeroed); setenv copies them.
            unsafe { libc::setenv(name.as_ptr().cast(), entry.as_ptr().add(at + 1), 1) };
        }
    });
}

fn ours() -> [(&'static str, &'static [u8]); 3] {
    [(env::SOCKET, SOCKET.get()), (env::TOKEN, TOKEN.get()), (env::LIBRARY, LIBRARY.get())]
}

struct Writer {
    next: *mut *const c_char,
    text: *mut u8,
}

impl Writer {
    fn pointer(&mut self, p: *const c_char) {
        // SAFETY: `complete` counted the pointers before it made the memory.
        unsafe { self.next.write(p) };
        self.next = self.next.wrapping_add(1);
    }

    fn entry(&mut self, parts: &[&[u8]]) {
        self.pointer(self.text.cast());
        for p in parts {
            // SAFETY: `complete` counted the bytes before it made the memory.
            unsafe { core::ptr::copy_nonoverlapping(p.as_ptr(), self.text, p.len()) };
            self.text = self.text.wrapping_add(p.len());
        }
        // The memory is zeroed: the string ends here.
        self.text = self.text.wrapping_add(1);
    }
}

/// Calls `f` for each string of a null-terminated array (none when it is null).
pub(crate) fn for_each<'a>(strings: Strings, mut f: impl FnMut(&'a CStr)) {
    let mut at = strings;
    // SAFETY: the program's own array, as exec takes it.
    unsafe {
        while !at.is_null() && !(*at).is_null() {
            f(CStr::from_ptr(*at));
            at = at.add(1);
        }
    }
}

const PATH_MAX: usize = 4096;

/// Where a name is searched for: PATH, or what glibc takes without one.
fn search_path() -> &'static [u8] {
    let mut found: &[u8] = b"/bin:/usr/bin";
    for_each(environment(), |e| {
        if let Some(v) = value_of(e.to_bytes(), "PATH") {
            found = v;
        }
    });
    found
}

/// Calls `f` with each path that a name may mean, until it gives something. Without a slash in the name: the directories of PATH.
pub(crate) fn for_each_candidate<T>(
    name: &CStr,
    mut f: impl FnMut(&CStr) -> Option<T>,
) -> Option<T> {
    let text = name.to_bytes();
    if text.contains(&b'/') {
        return f(name);
    }
    let mut buffer = [0u8; PATH_MAX];
    for directory in search_path().split(|b| *b == b':') {
        let len = directory.len() + 1 + text.len();
        if len >= PATH_MAX {
            continue;
        }
        // An empty entry is the working directory.
        let parts: [&[u8]; 3] =
            if directory.is_empty() { [text, b"", b""] } else { [directory, b"/", text] };
        let mut at = 0;
        for p in parts {
            if let Some(to) = buffer.get_mut(at..at + p.len()) {
                to.copy_from_slice(p);
                at += p.len();
            }
        }
        if let Some(end) = buffer.get_mut(at) {
            *end = 0;
        }
        let path = buffer.get(..=at).and_then(|b| CStr::from_bytes_with_nul(b).ok());
        if let Some(path) = path
            && let Some(t) = f(path)
        {
            return Some(t);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    fn completed(given: &[&str]) -> Vec<String> {
        SOCKET.set(b"/run/s");
        TOKEN.set(b"00ff");
        LIBRARY.set(b"/lib/n.so");
        let strings: Vec<CString> =
            given.iter().map(|s| CString::new(*s).expect("string")).collect();
        let mut pointers: Vec<*const c_char> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(null());
        let e = Environment::complete(pointers.as_ptr()).expect("memory");
        let mut out = Vec::new();
        for_each(e.as_ptr(), |s| out.push(s.to_str().expect("text").to_owned()));
        out.sort();
        out
    }

    #[test]
    fn what_a_program_dropped_from_its_environment_comes_back() {
        let all =
            ["LD_PRELOAD=/lib/n.so", "NK_LIBRARY=/lib/n.so", "NK_SOCKET=/run/s", "NK_TOKEN=00ff"];
        assert_eq!(completed(&[]), all);
        assert_eq!(completed(&all), all);
        assert_eq!(completed(&["NK_TOKEN=forged"]), all);
        let with = completed(&["A=1", "LD_PRELOAD=/x.so /y.so"]);
        assert_eq!(with[..2], ["A=1", "LD_PRELOAD=/lib/n.so:/x.so /y.so"]);
        let kept = completed(&["LD_PRELOAD=/x.so:/lib/n.so", "NK_LIBRARY=/lib/n.so"]);
        assert_eq!(kept[0], "LD_PRELOAD=/x.so:/lib/n.so");
        assert_eq!(kept.len(), 4);
    }

    #[test]
    fn names_are_searched_in_path_and_paths_are_not() {
        let mut seen = Vec::new();
        for_each_candidate::<()>(c"prog", |p| {
            seen.push(p.to_str().expect("text").to_owned());
            None
        });
        assert!(seen.len() > 1 && seen.iter().all(|p| p.ends_with("/prog") || p == "prog"));
        assert_eq!(for_each_candidate(c"./x", |p| Some(p.to_owned())), Some(c"./x".to_owned()));
    }
}
