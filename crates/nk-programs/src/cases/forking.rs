//! Servers with a process for each connection: PostgreSQL (whose parent never reads a byte), sshd (which drops its rights and
//! execs itself on the way), vsftpd (whose children are made by system call number and live in a chroot).

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::both_sides;
use super::nginx::isolated;
use crate::process::{Running, eventually};
use crate::suite::Test;
use crate::world::{Mode, Side, World, free_port, wait_for_port};

const LIMIT: Duration = Duration::from_secs(60);
const POSTGRES: &str = "/usr/lib/postgresql/15/bin";
const AS_POSTGRES: [&str; 5] =
    ["/usr/bin/setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"];

pub(super) fn tests() -> Vec<Test> {
    both_sides(&[("postgresql", postgresql), ("sshd and ssh", ssh), ("vsftpd", vsftpd)])
}

/// A text file to be carried about.
fn numbers() -> String {
    (0..400_000).map(|n| format!("{n}\n")).collect()
}

fn postgresql(world: &mut World, mode: Mode) -> Result<String> {
    let home = world.path("postgres");
    fs::create_dir(&home)?;
    world.run(Side::Plain, &["/bin/chown", "postgres", &home], LIMIT)?;
    let tool = |name: &str| format!("{POSTGRES}/{name}");
    let data = format!("{home}/data");
    let initdb = tool("initdb");
    let words = [&AS_POSTGRES[..], &[&initdb, "-D", &data, "-A", "trust", "-N"]].concat();
    world.run(Side::Plain, &words, LIMIT)?;
    let port = free_port()?.to_string();
    let server = tool("postgres");
    let settings = ["-c", "listen_addresses=127.0.0.1,::1", "-c", "fsync=off"];
    let words = [&AS_POSTGRES[..], &[&server, "-D", &data, "-p", &port, "-k", &home], &settings];
    let mut server = world.start("postgres", mode.server, &words.concat())?;
    wait_for_port(&mut server, port.parse()?)?;
    let bench = tool("pgbench");
    let pgbench = |host: &'static str, words: &[&'static str]| -> Vec<String> {
        let common = [bench.as_str(), "-h", host, "-p", port.as_str(), "-U", "postgres"];
        common.iter().chain(words).chain(&["postgres"]).map(|w| (*w).to_owned()).collect()
    };
    eventually(Duration::from_secs(20), || {
        world.run(mode.client, &pgbench("127.0.0.1", &["-i", "-q", "-s", "1"]), LIMIT)
    })?;
    let mut done = Vec::new();
    for (host, words) in [
        ("127.0.0.1", &["-n", "-c", "8", "-j", "2", "-T", "2"][..]),
        ("::1", &["-n", "-C", "-c", "4", "-t", "20"]),
    ] {
        let client = world.start("pgbench", mode.client, &pgbench(host, words))?;
        std::thread::sleep(Duration::from_millis(300));
        if !client.ended_within(Duration::ZERO)? {
            isolated(world, mode, &server, &client)?;
        }
        let said = client.ok(LIMIT)?;
        ensure!(said.contains("failed transactions: 0 "), "pgbench: {said}");
        let line = said.lines().find(|l| l.contains("actually processed"));
        done.push(line.and_then(|l| l.split(": ").nth(1)).unwrap_or("?").to_owned());
    }
    server.must_live()?;
    server.stop(Signal::INT, Duration::from_secs(20))?;
    Ok(format!("{} transactions, {} with a connection each", done.join(", then "), "the last"))
}

fn sshd(world: &World, side: Side, port: &str) -> Result<Running> {
    let (host_key, key) = (world.path("host_key"), world.path("key"));
    for file in [&host_key, &key] {
        let words = ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file];
        world.run(Side::Plain, &words, LIMIT)?;
    }
    // Where nothing starts services, nobody has made the directory to which sshd's children are confined.
    fs::create_dir_all("/run/sshd")?;
    let config = world.write(
        "sshd_config",
        format!(
            "ListenAddress 127.0.0.1:{port}\nListenAddress [::1]:{port}\nHostKey {host_key}\nAuthorizedKeysFile {key}.pub\n\
             StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\n"
        ),
    )?;
    let mut server = world.start("sshd", side, &["/usr/sbin/sshd", "-D", "-e", "-f", &config])?;
    wait_for_port(&mut server, port.parse()?)?;
    Ok(server)
}

fn ssh(world: &mut World, mode: Mode) -> Result<String> {
    let port = free_port()?.to_string();
    let mut server = sshd(world, mode.server, &port)?;
    let text = numbers();
    let file = world.write("numbers", &text)?;
    let key = world.path("key");
    let ssh = |to: &str, words: &[&str]| -> Vec<String> {
        let options = ["-F", "none", "-p", &port, "-i", &key, "-o", "BatchMode=yes"];
        let trust = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"];
        let all = [&["/usr/bin/ssh"][..], &options, &trust, &["-o", "LogLevel=ERROR"], words];
        all.concat().iter().map(|w| (*w).to_owned()).chain([to.to_owned()]).collect()
    };
    for to in ["root@127.0.0.1", "root@::1"] {
        let mut words = ssh(to, &[]);
        words.push(format!("sleep 0.5; cat {file}; exit 3"));
        let client = world.start("ssh", mode.client, &words)?;
        std::thread::sleep(Duration::from_millis(400));
        isolated(world, mode, &server, &client)?;
        let ended = client.finish(LIMIT)?;
        ensure!(
            ended.status.code() == Some(3) && ended.out == text,
            "ssh: {} {} bytes {} sshd: {}",
            ended.how(),
            ended.out.len(),
            ended.err,
            server.err()
        );
    }
    // A terminal, and a connection carried through the connection.
    let mut words = ssh("root@127.0.0.1", &["-tt"]);
    words.push("tty".to_owned());
    let said = world.run(mode.client, &words, LIMIT)?;
    ensure!(said.contains("/dev/pts/"), "ssh -tt: {said:?}");
    let forward = free_port()?.to_string();
    let to = format!("127.0.0.1:{forward}:127.0.0.1:{port}");
    let tunnel = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", &to];
    let mut tunnel = world.start("ssh", mode.client, &ssh("root@127.0.0.1", &tunnel))?;
    wait_for_port(&mut tunnel, forward.parse()?)?;
    let inner = ["-p", &forward, "-o", "HostKeyAlias=inner"];
    let mut words = ssh("root@127.0.0.1", &inner);
    // The first -p counts.
    words.drain(3..5);
    words.push(format!("cat {file}"));
    let said = world.run(mode.client, &words, LIMIT).context("ssh through ssh")?;
    ensure!(said == text, "ssh through ssh: {} bytes", said.len());
    tunnel.stop(Signal::TERM, Duration::from_secs(10))?;
    server.must_live()?;
    server.stop(Signal::TERM, Duration::from_secs(10))?;
    Ok(String::new())
}

fn vsftpd(world: &mut World, mode: Mode) -> Result<String> {
    let text = numbers();
    let (root, empty) = (world.path("ftp"), world.path("empty"));
    fs::create_dir(&root)?;
    fs::create_dir(&empty)?;
    fs::write(world.dir.join("ftp/numbers"), &text)?;
    let port = free_port()?;
    let config = world.write(
        "vsftpd.conf",
        format!(
            "listen=YES\nlisten_address=127.0.0.1\nlisten_port={port}\nbackground=NO\nanonymous_enable=YES\n\
             no_anon_password=YES\nanon_root={root}\nsecure_chroot_dir={empty}\nconnect_from_port_20=NO\n"
        ),
    )?;
    let mut server = world.start("vsftpd", mode.server, &["/usr/sbin/vsftpd", &config])?;
    wait_for_port(&mut server, port)?;
    let url = format!("ftp://127.0.0.1:{port}/numbers");
    // The server listens for the data, then the client does.
    for way in [&[][..], &["-P", "-"]] {
        let words = [&["/usr/bin/curl", "-sS", "-m", "20"][..], way, &[&url]].concat();
        let said = world.run(mode.client, &words, LIMIT).context("curl")?;
        ensure!(said == text, "curl {way:?}: {} bytes of {}", said.len(), text.len());
    }
    server.must_live()?;
    server.stop(Signal::TERM, Duration::from_secs(10))?;
    Ok(String::new())
}
