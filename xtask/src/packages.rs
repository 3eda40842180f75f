//! Installs what is missing: Debian packages, and components of the Rust toolchain. Services that a package would
//! start at its installation are not started.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::{root, run};

/// A program that is needed, and the package that has it.
pub(crate) type Needed = (&'static str, &'static str);

/// For the demo and all measurements.
pub(crate) const PROGRAMS: &[Needed] = &[
    ("/usr/sbin/nginx", "nginx-light"),
    ("/usr/bin/curl", "curl"),
    ("/usr/bin/wrk", "wrk"),
    ("/usr/bin/openssl", "openssl"),
    ("/usr/bin/taskset", "util-linux"),
    ("/usr/bin/prlimit", "util-linux"),
    ("/usr/bin/setpriv", "util-linux"),
];

/// For the measurements, in addition.
pub(crate) const FOR_BENCH: &[Needed] = &[
    ("/usr/bin/ab", "apache2-utils"),
    ("/usr/bin/iperf3", "iperf3"),
    ("/usr/bin/redis-server", "redis-server"),
    ("/usr/bin/redis-benchmark", "redis-tools"),
    ("/usr/bin/unshare", "util-linux"),
    ("/bin/ip", "iproute2"),
];

/// For the tests, in addition. What the VM test needs, it installs itself.
pub(crate) const FOR_TESTS: &[Needed] = &[
    ("/usr/sbin/nft", "nftables"),
    ("/usr/bin/systemd-analyze", "systemd"),
    ("/usr/bin/tcpdump", "tcpdump"),
    ("/usr/bin/ss", "iproute2"),
    ("/usr/bin/nsenter", "util-linux"),
    ("/usr/bin/redis-server", "redis-server"),
    ("/usr/bin/redis-benchmark", "redis-tools"),
    ("/usr/bin/ab", "apache2-utils"),
    ("/usr/bin/python3", "python3"),
    ("/usr/sbin/haproxy", "haproxy"),
    ("/usr/bin/memcached", "memcached"),
    ("/usr/bin/socat", "socat"),
    ("/bin/nc.openbsd", "netcat-openbsd"),
    ("/usr/bin/wget", "wget"),
    ("/usr/bin/perl", "perl"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/include/stdio.h", "libc6-dev"),
    ("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev"),
    ("/bin/ip", "iproute2"),
    ("/usr/sbin/dnsmasq", "dnsmasq-base"),
    ("/usr/bin/node", "nodejs"),
    ("/usr/bin/javac", "openjdk-17-jdk-headless"),
    ("/usr/bin/iperf3", "iperf3"),
    ("/usr/lib/git-core/git-daemon", "git"),
    ("/usr/lib/git-core/git-http-backend", "git"),
    ("/usr/bin/rsync", "rsync"),
    ("/usr/bin/aria2c", "aria2"),
    ("/usr/bin/lftp", "lftp"),
    ("/usr/bin/wget2", "wget2"),
    ("/usr/bin/diff", "diffutils"),
    ("/usr/lib/postgresql/15/bin/pgbench", "postgresql-15"),
    ("/usr/sbin/sshd", "openssh-server"),
    ("/usr/bin/ssh", "openssh-client"),
    ("/usr/sbin/vsftpd", "vsftpd"),
    ("/usr/bin/dig", "bind9-dnsutils"),
    ("/usr/sbin/dnsmasq", "dnsmasq-base"),
    ("/usr/sbin/unbound", "unbound"),
    ("/usr/share/doc/python3-venv", "python3-venv"),
];

/// Installs the packages of those programs that are not there.
pub(crate) fn ensure_programs(lists: &[&[Needed]]) -> Result<()> {
    let missing: Vec<&Needed> = lists
        .iter()
        .flat_map(|list| list.iter())
        .filter(|(program, _)| !Path::new(program).exists())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    let list = packages.join(" ");
    if !rustix::process::geteuid().is_root() {
        bail!("missing packages: {list}. Install them: apt-get install {list}");
    }
    println!("installing {list}");
    let _quiet = NoServices::begin()?;
    apt(&["update", "-qq"])?;
    apt(&[&["install", "-qq", "-y", "--no-install-recommends"][..], &packages].concat())?;
    let still = missing.iter().find(|(program, _)| !Path::new(program).exists());
    ensure!(still.is_none(), "{still:?} is still missing after the installation");
    Ok(())
}

/// Python packages that Debian has not, in an environment of their own: `nk-programs` looks for them there.
const PYTHON: &str = "target/python";
const AIOQUIC: &str = "aioquic==1.7.2";

/// Makes the environment with the QUIC library that a test needs.
pub(crate) fn ensure_python() -> Result<()> {
    let has = |interpreter: &Path| {
        let found = Command::new(interpreter).args(["-c", "import aioquic"]).output();
        found.is_ok_and(|o| o.status.success())
    };
    let home = root().join(PYTHON);
    let interpreter = home.join("bin/python3");
    if has(&interpreter) {
        return Ok(());
    }
    println!("installing {AIOQUIC} in {PYTHON}");
    run(Command::new("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(&home))?;
    run(Command::new(&interpreter).args(["-m", "pip", "install", "--quiet", AIOQUIC]))?;
    ensure!(has(&interpreter), "{AIOQUIC} is not there after its installation");
    Ok(())
}

fn apt(words: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(words).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
    run(&mut command)
}

/// While it lives, Debian's own switch keeps installations from starting services.
struct NoServices {
    made: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn begin() -> Result<Self> {
        // One that is there already is its owner's decision.
        if Path::new(POLICY).exists() {
            return Ok(NoServices { made: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").context(POLICY)?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        Ok(NoServices { made: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.made {
            let _ = fs::remove_file(POLICY);
        }
    }
}

/// Components and targets of the Rust toolchain, where rustup manages it.
pub(crate) fn ensure_rust(components: &[&str], targets: &[&str]) -> Result<()> {
    let installed = |kind: &str| -> Option<String> {
        let words = [kind, "list", "--installed"];
        let output = Command::new("rustup")
            .args(words)
            .current_dir(crate::workspace::root())
            .output()
            .ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for (kind, wanted) in [("component", components), ("target", targets)] {
        let have = installed(kind).context("rustup is needed: https://rustup.rs")?;
        let missing: Vec<&str> = wanted
            .iter()
            .filter(|name| !have.lines().any(|line| line.starts_with(**name)))
            .copied()
            .collect();
        if missing.is_empty() {
            continue;
        }
        let mut command = Command::new("rustup");
        command.current_dir(crate::workspace::root()).args([kind, "add"]).args(&missing);
        run(&mut command)?;
    }
    Ok(())
}
