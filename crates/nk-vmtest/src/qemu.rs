//! Boots the guest and listens to its serial console.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::command::dies_along;
use crate::{Error, Result};

/// What to boot.
#[derive(Debug)]
pub struct Boot<'a> {
    /// vmlinux (booted by PVH) or a bzImage.
    pub kernel: &'a Path,
    /// The first root file system.
    pub initramfs: &'a Path,
    /// Appended to the kernel's command line.
    pub arguments: &'a str,
    /// Where the ivshmem server listens.
    pub ivshmem: &'a Path,
    /// MSI-X vectors of the device.
    pub vectors: usize,
    /// The VM is killed after this.
    pub limit: Duration,
}

/// A VM under way, killed when dropped.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    console: Arc<Mutex<Vec<u8>>>,
    reader: Option<std::thread::JoinHandle<()>>,
    deadline: Instant,
    limit: Duration,
}

impl Boot<'_> {
    /// Starts QEMU: no NIC, no KVM (function is what is proved here, not speed), the NK device as the only PCI function of note.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub fn start(&self) -> Result<Vm> {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg", "-M", "pc", "-cpu", "max", "-m", "512", "-smp", "2"])
            .args(["-nic", "none", "-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio", "-monitor", "none"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .args([
                "-append",
                &format!("console=ttyS0 quiet panic=-1 oops=panic {}", self.arguments),
            ])
            .args(["-chardev", &format!("socket,path={},id=nk", self.ivshmem.display())])
            .args(["-device", &format!("ivshmem-doorbell,chardev=nk,vectors={}", self.vectors)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        dies_along(&mut command);
        let mut child = command.spawn().map_err(|e| Error::Command {
            command: "qemu-system-x86_64".into(),
            said: e.to_string(),
        })?;
        let console = Arc::new(Mutex::new(Vec::new()));
        let reader = child.stdout.take().map(|out| {
            let console = Arc::clone(&console);
            std::thread::spawn(move || copy_console(out, &console))
        });
        Ok(Vm { child, console, reader, deadline: Instant::now() + self.limit, limit: self.limit })
    }
}

/// Far more than a test prints; a guest that floods its console is cut off.
const CONSOLE_BYTES_MAX: usize = 4 << 20;

fn copy_console(mut from: impl Read, to: &Mutex<Vec<u8>>) {
    let mut buffer = [0u8; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let mut console = lock(to);
        if console.len() < CONSOLE_BYTES_MAX {
            console.extend(buffer.get(..n).unwrap_or_default());
        }
    }
}

fn lock(m: &Mutex<Vec<u8>>) -> std::sync::MutexGuard<'_, Vec<u8>> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Vm {
    /// Whether QEMU still runs.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits until the guest powers off and gives what it printed.
    ///
    /// # Errors
    /// [`Error::TimedOut`] with the console so far, or [`Error::Command`] when QEMU failed.
    pub fn finish(mut self) -> Result<String> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                if let Some(r) = self.reader.take() {
                    let _ = r.join();
                }
                if status.success() {
                    return Ok(self.text());
                }
                let said = self.errors();
                return Err(Error::Command { command: "qemu-system-x86_64".into(), said });
            }
            if self.is_late() {
                return Err(Error::TimedOut { after: self.limit, console: self.text() });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What QEMU itself complained of; ends it if it still runs.
    pub fn errors(&mut self) -> String {
        let _ = self.child.kill();
        let mut said = String::new();
        if let Some(mut e) = self.child.stderr.take() {
            let _ = e.read_to_string(&mut said);
        }
        said
    }

    /// Whether its time is up.
    #[must_use]
    pub fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// What it printed so far.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.console)).replace('\r', "")
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
