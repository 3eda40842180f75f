//! Which congestion controls a guest may choose.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nk_servicelib::Errno;

const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";
/// Bytes of such a list: the kernel's own bound is 16 for each name, of 128.
const LIST_MAX: usize = 2048;

/// The kernel's lists. They are read whenever a guest chooses, since modules come and go; by descriptors that stay open, since an NSM
/// process opens no files.
#[derive(Debug)]
pub(crate) struct Congestion {
    /// What a user without CAP_NET_ADMIN may choose, which the NSM may have.
    allowed: Option<File>,
    available: Option<File>,
}

impl Congestion {
    pub(crate) fn new() -> Congestion {
        Congestion::at(ALLOWED.as_ref(), AVAILABLE.as_ref())
    }

    fn at(allowed: &Path, available: &Path) -> Congestion {
        Congestion { allowed: File::open(allowed).ok(), available: File::open(available).ok() }
    }

    /// Whether a guest may choose it.
    pub(crate) fn check(&self, name: &[u8]) -> Result<(), Errno> {
        if has(self.allowed.as_ref(), name) {
            return Ok(());
        }
        Err(Errno(if has(self.available.as_ref(), name) { libc::EPERM } else { libc::ENOENT }))
    }
}

fn has(list: Option<&File>, name: &[u8]) -> bool {
    let mut text = [0; LIST_MAX];
    let len = list.and_then(|f| f.read_at(&mut text, 0).ok()).unwrap_or(0);
    let words = text.get(..len).unwrap_or_default().split(u8::is_ascii_whitespace);
    !name.is_empty() && words.into_iter().any(|w| w == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_loaded_later_can_be_chosen() {
        let dir = std::env::temp_dir().join(format!("nk-congestion-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let (allowed, available) = (dir.join("allowed"), dir.join("available"));
        std::fs::write(&allowed, "reno cubic\n").expect("write");
        std::fs::write(&available, "reno cubic dctcp\n").expect("write");
        let c = Congestion::at(&allowed, &available);
        let errno = |name: &[u8]| c.check(name).err().map(|e| e.0);
        assert_eq!(errno(b"cubic"), None);
        assert_eq!(errno(b"dctcp"), Some(libc::EPERM));
        assert_eq!([errno(b"bbr"), errno(b""), errno(b"cub")], [Some(libc::ENOENT); 3]);
        std::fs::write(&allowed, "reno cubic bbr\n").expect("write");
        assert_eq!(errno(b"bbr"), None);
        std::fs::remove_dir_all(&dir).expect("remove");
    }

    #[test]
    fn the_kernels_own_lists_are_read() {
        assert_eq!(Congestion::new().check(b"reno").err().map(|e| e.0), None);
    }
}
