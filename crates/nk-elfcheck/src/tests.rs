extern crate std;

use super::*;
use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::vec::Vec;
use std::{env, fs, process};

struct Dir(PathBuf);
impl Dir {
    fn new(name: &str) -> Dir {
        let d = env::temp_dir().join(std::format!("nk-elfcheck-{}-{name}", process::id()));
        fs::create_dir_all(&d).expect("mkdir");
        Dir(d)
    }
    fn file(&self, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let p = self.0.join(name);
        fs::write(&p, content).expect("write");
        fs::set_permissions(&p, fs::Permissions::from_mode(mode)).expect("chmod");
        p
    }
}
impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn check(p: &Path) -> Result<Verdict, i32> {
    check_path(&CString::new(p.to_str().expect("utf-8")).expect("no nul"))
}

/// A minimal ELF file: header, one program header, the interpreter's name.
fn elf(machine: u16, interp: Option<&[u8]>) -> Vec<u8> {
    let mut b = std::vec![0u8; 64 + 56];
    b[..6].copy_from_slice(b"\x7fELF\x02\x01");
    b[18..20].copy_from_slice(&machine.to_le_bytes());
    b[32..40].copy_from_slice(&64u64.to_le_bytes());
    b[54..56].copy_from_slice(&56u16.to_le_bytes());
    b[56..58].copy_from_slice(&1u16.to_le_bytes());
    let kind: u32 = if interp.is_some() { 3 } else { 1 };
    b[64..68].copy_from_slice(&kind.to_le_bytes());
    b[72..80].copy_from_slice(&120u64.to_le_bytes());
    b.extend_from_slice(interp.unwrap_or(b""));
    b.push(0);
    b
}

#[test]
fn this_test_loads_and_the_loader_too() {
    assert!(matches!(check(&env::current_exe().expect("exe")), Ok(Verdict::Loads)));
    #[cfg(target_arch = "x86_64")]
    assert!(matches!(check(Path::new("/lib64/ld-linux-x86-64.so.2")), Ok(Verdict::Loads)));
}

#[test]
fn what_cannot_load_is_told_apart() {
    let d = Dir::new("kinds");
    let glibc = [b"/somewhere/", LOADER].concat();
    let refused = |name: &str, bytes: &[u8], mode| match check(&d.file(name, bytes, mode)) {
        Ok(Verdict::Refused(r)) => Some(r),
        _ => None,
    };
    assert!(matches!(check(&d.file("ok", &elf(MACHINE, Some(&glibc)), 0o755)), Ok(Verdict::Loads)));
    assert_eq!(refused("static", &elf(MACHINE, None), 0o755), Some(ExecRefused::Static));
    let musl = elf(MACHINE, Some(b"/lib/ld-musl-x86_64.so.1"));
    assert_eq!(refused("musl", &musl, 0o755), Some(ExecRefused::ForeignLibc));
    let arm = elf(MACHINE ^ 1, Some(&glibc));
    assert_eq!(refused("arm", &arm, 0o755), Some(ExecRefused::ForeignMachine));
    let mut narrow = elf(MACHINE, Some(&glibc));
    narrow[4] = 1;
    assert_eq!(refused("narrow", &narrow, 0o755), Some(ExecRefused::ForeignMachine));
    let good = elf(MACHINE, Some(&glibc));
    assert_eq!(refused("suid", &good, 0o4755), Some(ExecRefused::Setuid));
    assert_eq!(refused("sgid", &good, 0o2755), Some(ExecRefused::Setuid));
}

#[test]
fn scripts_are_followed() {
    let d = Dir::new("scripts");
    let glibc = [b"/x/", LOADER].concat();
    let good = d.file("good", &elf(MACHINE, Some(&glibc)), 0o755);
    let bad = d.file("bad", &elf(MACHINE, None), 0o755);
    let line = |to: &Path| std::format!("#! \t{} -e arg\nrest\n", to.display());
    let one = d.file("one", line(&good).as_bytes(), 0o755);
    let two = d.file("two", line(&one).as_bytes(), 0o755);
    let worse = d.file("worse", line(&bad).as_bytes(), 0o755);
    assert!(matches!(check(&two), Ok(Verdict::Loads)));
    assert!(matches!(check(&worse), Ok(Verdict::Refused(ExecRefused::Static))));
    let me = d.0.join("me");
    fs::write(&me, line(&me)).expect("write");
    assert_eq!(check(&me).err(), Some(libc::ELOOP));
    let lost = d.file("lost", b"#!/no/such/file\n", 0o755);
    assert_eq!(check(&lost).err(), Some(libc::ENOENT));
}

#[test]
fn the_rest_is_the_kernels_to_answer() {
    let d = Dir::new("rest");
    for content in [&b""[..], b"echo hi\n", b"#!", b"\x7fELF", b"\x7fEL"] {
        let r = check(&d.file("f", content, 0o755));
        let told =
            matches!(r, Ok(Verdict::NotBinary | Verdict::Refused(ExecRefused::ForeignMachine)));
        assert!(told, "{content:?} gave {r:?}");
    }
    assert_eq!(check(&d.0).err(), Some(libc::EACCES));
    assert_eq!(check(Path::new("/no/such/file")).err(), Some(libc::ENOENT));
}
