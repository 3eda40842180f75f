//! What is tested: plain programs in a VM without a NIC reach a plain echo server on the host.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::command::run_logged;
use crate::cpio::Cpio;
use crate::daemon::{Counted, Daemon};
use crate::echo::{self, ClosedPort, EchoServer};
use crate::qemu::{Boot, Vm};
use crate::{Error, Paths, Result, ivshmem, module, packages};

/// The VM takes about 6 s; a machine that is busy with other things gets this long.
const VM_LIMIT: Duration = Duration::from_secs(150);
/// QEMU connects to the ivshmem server within a second.
const IVSHMEM_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at whether QEMU still runs.
const POLL_SLICE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
const ECHO_BYTES: u64 = 1 << 20;
const NC_BYTES: u64 = "hello from a virtual machine\n".len() as u64;

const GUEST: &str = "vmtest";
/// The daemon's counts are right at the latest this long after the VM's end.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// What the guest must report, each as "ok"; nothing else may be missing or fail.
const EXPECTED: [&str; 16] = [
    "no-nic",
    "unreachable-before",
    "insmod",
    "nc",
    "echo-static",
    "echo-dynamic",
    "refused",
    "many",
    "serve",
    "held",
    "rmmod",
    "unreachable-after",
    "insmod-again",
    "echo-again",
    "rmmod-again",
    "kernel-log",
];
/// Connections of "many", 8 bytes each: several times what the host grants ahead.
const MANY: u64 = 200;
/// Bytes that the echo server must have counted: nc once, the echo client three times, "many".
const SERVED_BYTES: u64 = NC_BYTES + 3 * ECHO_BYTES + MANY * 8;
/// And connections: those, and the one of "held", which carries nothing.
const SERVED_CONNECTIONS: u64 = 5 + MANY;
/// What the host's client sends to the guest's server.
const CLIENT_BYTES: usize = 300_000;

/// The NK device of a VM guest, as the daemon made it.
#[derive(Debug)]
pub struct VmDevice {
    /// The region.
    pub memfd: OwnedFd,
    /// The VM rings it.
    pub engine_eventfd: OwnedFd,
    /// The engine rings it; MSI-X vector 0 of the VM.
    pub guest_eventfd: OwnedFd,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Report {
    /// The guest's results: name and detail.
    pub results: Vec<(String, String)>,
    /// From QEMU's start to its end.
    pub took: Duration,
    /// Connections and bytes that the echo server counted.
    pub connections: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The whole test: prepares, starts the daemon `nk` with its NSM `inline` or as a `process`, makes a VM guest, boots it, checks.
///
/// # Errors
/// See [`prepare`], [`Daemon`] and [`check`].
pub fn run(paths: &Paths, nk: &Path, nsm: &str) -> Result<Report> {
    let prepared = prepare(paths)?;
    let daemon = Daemon::start(nk, nsm, &paths.out)?;
    let guest = daemon.create_vm(GUEST)?;
    let report = check(paths, &prepared, &guest.device)?;
    // The last close is still on its way when the VM has gone.
    let deadline = Instant::now() + SETTLE_LIMIT;
    loop {
        let wrong = miscounted(&daemon.counted(GUEST)?);
        match wrong {
            None => return Ok(report),
            Some(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            Some(what) => return Err(Error::Failed { what, console: String::new() }),
        }
    }
}

/// What of the daemon's counts is not as it must be: every byte passed CoreEngine, and nothing is left.
fn miscounted(counted: &Counted) -> Option<String> {
    let bytes = SERVED_BYTES + CLIENT_BYTES as u64;
    [
        ("/engine/bytes_sent", bytes),
        ("/engine/bytes_received", bytes),
        ("/engine/connections_open", 0),
        ("/engine/violations", 0),
        ("/engine/quarantined", 0),
        ("/engine/sockets", 0),
        ("/nsm/sockets", 0),
        ("/nsm/violations", 0),
        ("/nsm/chunks_tx", 0),
        ("/nsm/chunks_rx", 0),
    ]
    .into_iter()
    .find(|(at, want)| counted.number(at) != Some(*want))
    .map(|(at, want)| format!("the daemon counted {at} {:?} instead of {want}", counted.number(at)))
}

/// Everything that a VM needs, built.
#[derive(Debug)]
pub struct Prepared {
    kernel: PathBuf,
    initramfs: PathBuf,
}

/// Installs what lacks, builds the module and the test programs and packs them.
///
/// # Errors
/// Whatever is lacking or does not build.
pub fn prepare(paths: &Paths) -> Result<Prepared> {
    let out = &paths.out;
    fs::create_dir_all(out)?;
    let kernel = packages::ensure_packages(&out.join("packages.log"))?;
    let image = packages::extract_vmlinux(&kernel, out)?.unwrap_or_else(|| kernel.image.clone());
    let module = module::build_module(&paths.root, &kernel, out)?;
    let guest = paths.root.join("crates/nk-vmtest/guest");

    let mut c = Cpio::new();
    for d in ["bin", "lib", "lib64", "lib/x86_64-linux-gnu"] {
        c.directory(d);
    }
    c.copy("bin/busybox", Path::new("/bin/busybox"))?;
    c.copy("init", &guest.join("init.sh"))?;
    c.file("netkernel.ko", &strip(&module, out)?);
    c.copy("serve", &module::build_program(&guest.join("serve.c"), "serve", true, out)?)?;
    c.copy(
        "echo-static",
        &module::build_program(&guest.join("echo.c"), "echo-static", true, out)?,
    )?;
    c.copy(
        "echo-dynamic",
        &module::build_program(&guest.join("echo.c"), "echo-dynamic", false, out)?,
    )?;
    for library in ["lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6"] {
        c.copy(library, &Path::new("/").join(library))?;
    }
    let initramfs = out.join("initramfs.cpio");
    fs::write(&initramfs, c.finish())?;
    Ok(Prepared { kernel: image, initramfs })
}

/// The module without its debug sections, which are most of it.
fn strip(module: &Path, out: &Path) -> Result<Vec<u8>> {
    let stripped = out.join("netkernel-stripped.ko");
    let mut c = Command::new("strip");
    c.args(["--strip-debug", "-o"]).arg(&stripped).arg(module);
    run_logged(&mut c, &out.join("module.log"))?;
    Ok(fs::read(stripped)?)
}

/// Boots the VM on the device and checks what it reports, and what the echo server saw.
///
/// # Errors
/// [`Error::Failed`] with the console when anything is not as expected.
pub fn check(paths: &Paths, prepared: &Prepared, device: &VmDevice) -> Result<Report> {
    let server = EchoServer::start()?;
    // Bound and never listened on: connections to it are refused, and nobody else can take it.
    let closed = ClosedPort::new()?;
    let socket = paths.out.join(format!("ivshmem-{}.sock", std::process::id()));
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    let arguments = format!(
        "nk.address={} nk.port={} nk.closed={} nk.bytes={ECHO_BYTES} nk.many={MANY}",
        server.address.ip(),
        server.address.port(),
        closed.port
    );
    let started = Instant::now();
    let vm = Boot {
        kernel: &prepared.kernel,
        initramfs: &prepared.initramfs,
        arguments: &arguments,
        ivshmem: &socket,
        vectors: 1,
        limit: VM_LIMIT,
    }
    .start();
    let console = vm.and_then(|mut vm| {
        wait_for_client(&listener, &mut vm)?;
        let _serving = ivshmem::serve_ivshmem(
            &listener,
            device.memfd.as_fd(),
            device.engine_eventfd.as_fd(),
            &[device.guest_eventfd.as_fd()],
        )?;
        let client = serve_guest(&mut vm);
        Ok((vm.finish()?, client))
    });
    let took = started.elapsed();
    fs::remove_file(&socket)?;
    let (console, client) = console?;
    let (connections, bytes) = server.stop();
    let results = parse(&console);
    let failed = |what: String| Err(Error::Failed { what, console: console.clone() });
    for name in EXPECTED {
        match results.iter().find(|r| r.name == name) {
            None => return failed(format!("no result of {name}")),
            Some(r) if !r.ok => return failed(format!("{name} failed: {}", r.detail)),
            Some(_) => {}
        }
    }
    if !console.lines().any(|l| l == "NK end") {
        return failed("the guest did not come to its end".into());
    }
    if let Err(why) = client {
        return failed(format!("the host's client of the guest's server: {why}"));
    }
    if (connections, bytes) != (SERVED_CONNECTIONS, SERVED_BYTES) {
        return failed(format!(
            "the echo server saw {connections} connections and {bytes} bytes instead of \
             {SERVED_CONNECTIONS} and {SERVED_BYTES}"
        ));
    }
    let results = results.into_iter().map(|r| (r.name, r.detail)).collect();
    Ok(Report { results, took, connections, bytes })
}

/// Waits until the guest's server says its port, and is its client.
fn serve_guest(vm: &mut Vm) -> std::result::Result<(), String> {
    while vm.is_running().is_ok_and(|r| r) && !vm.is_late() {
        let console = vm.text();
        // A whole line: the last digits may still be under way.
        if let Some((_, rest)) = console.split_once("NK-PORT ")
            && let Some((port, _)) = rest.split_once('\n')
        {
            let port = port.trim().parse().map_err(|_| format!("no port: {port:?}"))?;
            return echo::client(port, CLIENT_BYTES).map_err(|e| e.to_string());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err("the guest's server never said its port".into())
}

/// QEMU may fail before it connects; then its own message is the error, not a wait for ever.
fn wait_for_client(listener: &UnixListener, vm: &mut Vm) -> Result<()> {
    let deadline = Instant::now() + IVSHMEM_LIMIT;
    loop {
        let mut p = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut p, Some(&POLL_SLICE)) == Ok(1) {
            return Ok(());
        }
        if !vm.is_running()? || Instant::now() > deadline {
            let said = vm.errors();
            return Err(Error::Command { command: "qemu-system-x86_64".into(), said });
        }
    }
}

struct GuestResult {
    name: String,
    ok: bool,
    detail: String,
}

/// The "NK name ok|FAIL detail" lines; what does not read like one is the kernel's or a program's.
fn parse(console: &str) -> Vec<GuestResult> {
    console
        .lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("NK ")?.splitn(3, ' ');
            let name = words.next()?.to_owned();
            let ok = match words.next()? {
                "ok" => true,
                "FAIL" => false,
                _ => return None,
            };
            Some(GuestResult { name, ok, detail: words.next().unwrap_or_default().to_owned() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_told_from_noise() {
        let r =
            parse("[ 1.0] NK x ok\nNK a ok 3 bytes\nNK b FAIL status 1: no\nNK end\nNK c maybe\n");
        let r: Vec<_> = r.iter().map(|r| (r.name.as_str(), r.ok, r.detail.as_str())).collect();
        assert_eq!(r, [("a", true, "3 bytes"), ("b", false, "status 1: no")]);
    }
}
