//! What the test needs from Debian 12, and the guest kernel it finds there.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{output, run_logged};
use crate::{Error, Result};

/// A package, and a file that says it is there.
const PACKAGES: [(&str, &str); 7] = [
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    // A dynamic /bin/busybox may be there, from the package busybox.
    ("busybox-static", "/var/lib/dpkg/info/busybox-static.list"),
    ("xz-utils", "/usr/bin/xz"),
    ("make", "/usr/bin/make"),
    ("gcc", "/usr/bin/gcc"),
    ("libc6-dev", "/usr/lib/x86_64-linux-gnu/libc.a"),
    ("libelf-dev", "/usr/include/libelf.h"),
];

/// A kernel of Debian with its headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestKernel {
    /// As in `uname -r`.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// Where modules are built against it.
    pub build: PathBuf,
}

/// Installs with apt what is lacking of QEMU, busybox, a compiler and of a kernel with headers.
///
/// # Errors
/// [`Error::Packages`] names what is lacking, and why it could not be installed.
pub fn ensure_packages(log: &Path) -> Result<GuestKernel> {
    let mut lacking: Vec<&str> =
        PACKAGES.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(p, _)| *p).collect();
    if find_kernel().is_none() {
        lacking.extend(["linux-image-amd64", "linux-headers-amd64"]);
    }
    if !lacking.is_empty() {
        apt_install(&lacking, log)?;
    }
    find_kernel().ok_or_else(|| Error::Packages {
        packages: "linux-image-amd64 linux-headers-amd64".into(),
        reason: "installed, but no /boot/vmlinuz-6.1.*-amd64 with /lib/modules/*/build appeared"
            .into(),
    })
}

fn apt_install(packages: &[&str], log: &Path) -> Result<()> {
    let fail = |reason: String| Error::Packages { packages: packages.join(" "), reason };
    if !rustix::process::geteuid().is_root() {
        return Err(fail("installing needs root; run: apt-get install -y <them>".into()));
    }
    // The lists may be old or absent; a failing update is reported by the install that follows.
    let mut update = Command::new("apt-get");
    update.args(["-q", "update"]);
    let _ = run_logged(&mut update, log);
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install.args(["-q", "install", "-y", "--no-install-recommends"]).args(packages);
    run_logged(&mut install, log).map_err(|e| fail(e.to_string()))
}

/// The newest 6.1 kernel (the module is written against that series) that has both image and headers.
fn find_kernel() -> Option<GuestKernel> {
    let mut found: Vec<GuestKernel> = std::fs::read_dir("/boot")
        .ok()?
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter_map(|name| {
            let release = name.strip_prefix("vmlinuz-")?.to_owned();
            let build = PathBuf::from(format!("/lib/modules/{release}/build"));
            (release.starts_with("6.1.") && release.ends_with("-amd64") && build.exists())
                .then(|| GuestKernel { image: Path::new("/boot").join(&name), release, build })
        })
        .collect();
    found.sort_by_key(|k| version_key(&k.release));
    found.pop()
}

fn version_key(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|s| s.parse().ok()).collect()
}

/// The uncompressed kernel out of a bzImage, which boots by PVH in half the time; `None` when it is not packed with xz.
///
/// # Errors
/// Files that cannot be read or written.
pub fn extract_vmlinux(kernel: &GuestKernel, out: &Path) -> Result<Option<PathBuf>> {
    let path = out.join(format!("vmlinux-{}", kernel.release));
    if path.exists() {
        return Ok(Some(path));
    }
    let image = std::fs::read(&kernel.image)?;
    const XZ: &[u8] = b"\xfd7zXZ\0";
    let Some(start) = image.windows(XZ.len()).position(|w| w == XZ) else { return Ok(None) };
    let payload = out.join("payload.xz");
    std::fs::write(&payload, image.get(start..).unwrap_or_default())?;
    // What follows the stream in the image is not part of it.
    let unpacked = output(Command::new("xz").args(["-dcq", "--single-stream"]).arg(&payload));
    std::fs::remove_file(&payload)?;
    let elf = unpacked.stdout;
    if !elf.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    // Under another name first, so that a run cut short leaves no half file behind.
    let partial = path.with_extension("partial");
    std::fs::write(&partial, elf)?;
    std::fs::rename(&partial, &path)?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_sort_by_number() {
        assert!(version_key("6.1.0-9-amd64") < version_key("6.1.0-37-amd64"));
        assert!(version_key("6.1.0-56-amd64") < version_key("6.1.112-1-amd64"));
    }
}
