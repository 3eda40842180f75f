//! Linking: dlsym is in libdl before glibc 2.34, and that library is still there (empty) after.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,--no-as-needed,-l:libdl.so.2,--as-needed");
}
