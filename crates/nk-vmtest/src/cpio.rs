//! A cpio archive in the "newc" format, as the kernel unpacks it into its first root file system.

use std::path::Path;

/// An archive being made.
#[derive(Debug, Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;

impl Cpio {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Cpio {
        Cpio::default()
    }

    /// A directory; parents come first.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, &[]);
    }

    /// A file that can be executed.
    pub fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, EXECUTABLE, content);
    }

    /// A copy of a file of this machine.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn copy(&mut self, name: &str, from: &Path) -> std::io::Result<()> {
        self.file(name, &std::fs::read(from)?);
        Ok(())
    }

    /// The finished archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let fields = [
            self.inode,
            mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            content.len() as u32,
            0, // device of the file, major and minor
            0,
            0, // device it names, major and minor
            0,
            name.len() as u32 + 1,
            0, // checksum, unused in this format
        ];
        self.bytes.extend(b"070701");
        for f in fields {
            self.bytes.extend(format!("{f:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_ended() {
        let mut c = Cpio::new();
        c.directory("d");
        c.file("d/f", b"12345");
        let bytes = c.finish();
        assert_eq!(bytes.len() % 4, 0);
        let starts: Vec<usize> =
            bytes.windows(6).enumerate().filter(|(_, w)| w == b"070701").map(|(i, _)| i).collect();
        assert_eq!(starts.len(), 3);
        assert!(starts.iter().all(|s| s % 4 == 0));
        assert!(bytes.windows(10).any(|w| w == b"TRAILER!!!"));
    }
}
