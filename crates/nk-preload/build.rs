//! Linking: dlsym is in libdl before glibc 2.34, and that library is still there (empty) after.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The compiled `core` names an unwinder's personality, which only LTO would drop. None: nothing here catches anything, and the
    // C library's forced unwinding (pthread_cancel) passes such frames by.
    println!("cargo:rustc-cdylib-link-arg=-Wl,--defsym=rust_eh_personality=0");
    println!("cargo:rustc-cdylib-link-arg=-Wl,--no-as-needed,-l:libdl.so.2,--as-needed");
}
