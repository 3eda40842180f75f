//! dprintf on a socket: glibc's own writes past our write.

use core::ffi::{c_char, c_int, c_void};

use super::messages::write;
use crate::fdtable::{self, Entry};
use crate::next;
use crate::sys::{self, Memory};

/// Bytes of a `va_list` as it is passed to functions: by a pointer to this, on both machines.
const VA_LIST_BYTES: usize = 32;

unsafe extern "C" {
    fn vsnprintf(to: *mut c_char, room: usize, format: *const c_char, list: *mut c_void) -> c_int;
}

/// Formats into memory of its own and writes all of it.
///
/// # Safety
/// As vdprintf(3).
unsafe fn print(fd: c_int, format: *const c_char, list: *mut c_void) -> c_int {
    #[repr(align(16))]
    struct List([u8; VA_LIST_BYTES]);
    let mut again = List([0; VA_LIST_BYTES]);
    #[cfg(target_arch = "x86_64")]
    const BYTES: usize = 24;
    #[cfg(target_arch = "aarch64")]
    const BYTES: usize = VA_LIST_BYTES;
    // SAFETY: a va_list is plain data on these machines and is passed by its address; each pass uses its own copy.
    unsafe {
        core::ptr::copy_nonoverlapping(list.cast::<u8>(), again.0.as_mut_ptr(), BYTES);
        let len = vsnprintf(core::ptr::null_mut(), 0, format, list);
        let Ok(len) = usize::try_from(len) else { return -1 };
        let Some(memory) = Memory::new(len + 1) else { return sys::fail(libc::ENOMEM) };
        vsnprintf(memory.as_ptr().cast(), len + 1, format, again.0.as_mut_ptr().cast());
        let mut done = 0;
        while done < len {
            let n = write(fd, memory.as_ptr().add(done).cast(), len - done);
            match usize::try_from(n) {
                Ok(n) => done += n,
                Err(_) => return -1,
            }
        }
        len as c_int
    }
}

/// vdprintf(3).
///
/// # Safety
/// As vdprintf(3); `list` is the address of a va_list, as the ABI passes one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdprintf(fd: c_int, format: *const c_char, list: *mut c_void) -> c_int {
    type Vdprintf = unsafe extern "C" fn(c_int, *const c_char, *mut c_void) -> c_int;
    let real = next::VDPRINTF.get();
    if matches!(fdtable::get(fd), Entry::Socket { .. }) || real.is_null() {
        // SAFETY: the caller's promise.
        return unsafe { print(fd, format, list) };
    }
    // SAFETY: the C library's function of that name and signature, with the program's arguments.
    unsafe { core::mem::transmute::<*mut c_void, Vdprintf>(real)(fd, format, list) }
}

/// vdprintf(3) with _FORTIFY_SOURCE.
///
/// # Safety
/// As vdprintf(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __vdprintf_chk(
    fd: c_int,
    _flag: c_int,
    format: *const c_char,
    list: *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { vdprintf(fd, format, list) }
}

// dprintf is variadic: these entries lay the argument registers out as the ABI's va_arg wants them, make the va_list and
// pass it on. Its named arguments take 2 (dprintf) or 3 (__dprintf_chk) of the general registers.
#[cfg(target_arch = "x86_64")]
macro_rules! variadic_entry {
    ($name:ident, $named_bytes:literal, $move:literal) => {
        /// dprintf(3).
        ///
        /// # Safety
        /// As the C function, whose signature is variadic; only C callers pass it right.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() -> c_int {
            core::arch::naked_asm!(
                "sub rsp, 216",
                "mov [rsp + 32], rdi",
                "mov [rsp + 40], rsi",
                "mov [rsp + 48], rdx",
                "mov [rsp + 56], rcx",
                "mov [rsp + 64], r8",
                "mov [rsp + 72], r9",
                "test al, al",
                "je 2f",
                "movaps [rsp + 80], xmm0",
                "movaps [rsp + 96], xmm1",
                "movaps [rsp + 112], xmm2",
                "movaps [rsp + 128], xmm3",
                "movaps [rsp + 144], xmm4",
                "movaps [rsp + 160], xmm5",
                "movaps [rsp + 176], xmm6",
                "movaps [rsp + 192], xmm7",
                "2:",
                "mov dword ptr [rsp + 8], {named}",
                "mov dword ptr [rsp + 12], 48",
                "lea rax, [rsp + 224]",
                "mov [rsp + 16], rax",
                "lea rax, [rsp + 32]",
                "mov [rsp + 24], rax",
                $move,
                "lea rdx, [rsp + 8]",
                "call {print}",
                "add rsp, 216",
                "ret",
                named = const $named_bytes,
                print = sym vdprintf,
            )
        }
    };
}
#[cfg(target_arch = "x86_64")]
variadic_entry!(dprintf, 16, "");
#[cfg(target_arch = "x86_64")]
variadic_entry!(__dprintf_chk, 24, "mov rsi, rdx");
