//! What moves files: git's daemon and git over HTTP, rsync's daemon, aria2c, lftp and wget2, openssl's own client and server.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::both_sides;
use super::noise;
use crate::nginx::Nginx;
use crate::suite::Test;
use crate::world::{Mode, Side, World, free_port, wait_for_port};

const LIMIT: Duration = Duration::from_secs(60);
const GIT: &str = "/usr/bin/git";

pub(super) fn tests() -> Vec<Test> {
    both_sides(&[
        ("git daemon", git_daemon),
        ("git over http", git_http),
        ("rsync daemon", rsync),
        ("aria2c, lftp, wget2", downloads),
        ("openssl s_client and s_server", openssl),
    ])
}

/// A directory of many small files and a large one.
fn files(world: &World, name: &str) -> Result<String> {
    let dir = world.dir.join(name);
    fs::create_dir_all(dir.join("deep"))?;
    for n in 0..100usize {
        fs::write(dir.join(format!("small-{n}")), noise(n as u64 + 1, n * 97))?;
    }
    fs::write(dir.join("deep").join("large"), noise(7, 8 << 20))?;
    Ok(dir.display().to_string())
}

fn same(world: &World, one: &str, other: &str) -> Result<()> {
    world.run(Side::Plain, &["/usr/bin/diff", "-r", "--exclude=.git", one, other], LIMIT).map(drop)
}

// ---- git ---------------------------------------------------------------------------------------------------

/// git that reads no configuration but the repository's.
fn git(world: &World, side: Side, dir: &str, words: &[&str]) -> Result<String> {
    let who = ["-c", "user.name=test", "-c", "user.email=test@localhost"];
    let all = [&[GIT, "-C", dir], &who[..], words].concat();
    let running = world.start_with("git", side, &all, |command| {
        command.env("HOME", &world.dir).env("GIT_CONFIG_NOSYSTEM", "1");
        command.env("GIT_TERMINAL_PROMPT", "0");
    })?;
    running.ok(LIMIT).with_context(|| words.join(" "))
}

/// A bare repository `served/r.git` with one commit of [`files`]; gives the directory it came from.
fn repository(world: &World) -> Result<String> {
    let source = files(world, "source")?;
    let here = world.dir.display().to_string();
    fs::create_dir_all(world.dir.join("served"))?;
    git(world, Side::Plain, &source, &["init", "-q"])?;
    git(world, Side::Plain, &source, &["add", "."])?;
    git(world, Side::Plain, &source, &["commit", "-q", "-m", "one"])?;
    git(world, Side::Plain, &here, &["clone", "-q", "--bare", "source", "served/r.git"])?;
    Ok(source)
}

/// Clones, commits, pushes, and fetches that from another clone.
fn clone_and_push(world: &World, mode: Mode, source: &str, url: &str) -> Result<()> {
    let here = world.dir.display().to_string();
    let (one, two) = (world.path("one"), world.path("two"));
    git(world, mode.client, &here, &["clone", "-q", url, "one"])?;
    git(world, mode.client, &here, &["clone", "-q", url, "two"])?;
    same(world, source, &one)?;
    fs::write(Path::new(&one).join("new"), noise(99, 3 << 20))?;
    git(world, mode.client, &one, &["add", "."])?;
    git(world, mode.client, &one, &["commit", "-q", "-m", "two"])?;
    git(world, mode.client, &one, &["push", "-q", "origin", "HEAD"])?;
    git(world, mode.client, &two, &["pull", "-q", "--ff-only"])?;
    same(world, &one, &two)
}

fn git_daemon(world: &mut World, mode: Mode) -> Result<String> {
    let source = repository(world)?;
    let port = free_port()?;
    let base = format!("--base-path={}", world.path("served"));
    let at = format!("--port={port}");
    // One process per connection, each with the connection as its standard input and output.
    let words = [
        GIT,
        "daemon",
        "--listen=127.0.0.1",
        &at,
        &base,
        "--export-all",
        "--enable=receive-pack",
        "--reuseaddr",
    ];
    let mut daemon = world.start_with("git daemon", mode.server, &words, |command| {
        command.env("HOME", &world.dir).env("GIT_CONFIG_NOSYSTEM", "1");
    })?;
    wait_for_port(&mut daemon, port)?;
    clone_and_push(world, mode, &source, &format!("git://127.0.0.1:{port}/r.git"))?;
    daemon.must_live()?;
    daemon.stop(Signal::TERM, Duration::from_secs(10))?;
    Ok(String::new())
}

/// git's own CGI program behind python's little HTTP server.
fn git_http(world: &mut World, mode: Mode) -> Result<String> {
    let source = repository(world)?;
    let bare = world.path("served/r.git");
    git(world, Side::Plain, &bare, &["config", "http.receivepack", "true"])?;
    let script = world.write("git_http.py", include_str!("../../programs/git_http.py"))?;
    let port = free_port()?;
    let words = ["/usr/bin/python3", &script, &port.to_string(), &world.path("served")];
    let mut server = world.start_with("git http", mode.server, &words, |command| {
        command.env("HOME", &world.dir).env("GIT_CONFIG_NOSYSTEM", "1");
    })?;
    wait_for_port(&mut server, port)?;
    clone_and_push(world, mode, &source, &format!("http://127.0.0.1:{port}/r.git"))?;
    server.must_live()?;
    server.stop(Signal::TERM, Duration::from_secs(10))?;
    Ok(String::new())
}

// ---- rsync -------------------------------------------------------------------------------------------------

fn rsync(world: &mut World, mode: Mode) -> Result<String> {
    const RSYNC: &str = "/usr/bin/rsync";
    let source = files(world, "source")?;
    let (down, up) = (world.path("down"), world.path("up"));
    fs::create_dir_all(&up)?;
    // Where the daemon starts as root, it would go on as nobody.
    let who = if rustix::process::geteuid().is_root() { "uid = root\ngid = root\n" } else { "" };
    let config = world.write(
        "rsyncd.conf",
        format!(
            "use chroot = no\n{who}[down]\npath = {source}\n[up]\npath = {up}\nread only = no\n"
        ),
    )?;
    let port = free_port()?;
    let at = format!("--port={port}");
    let config = format!("--config={config}");
    let words = [RSYNC, "--daemon", "--no-detach", "--address=127.0.0.1", &at, &config];
    let mut daemon = world.start("rsyncd", mode.server, &words)?;
    wait_for_port(&mut daemon, port)?;
    let url = |module: &str| format!("rsync://127.0.0.1:{port}/{module}/");
    world.run(mode.client, &[RSYNC, "-a", &url("down"), &down], LIMIT)?;
    same(world, &source, &down)?;
    world.run(mode.client, &[RSYNC, "-a", &format!("{source}/"), &url("up")], LIMIT)?;
    same(world, &source, &up)?;
    // A large file with a small change: both sides talk for long before much is sent.
    let large = Path::new(&source).join("deep").join("large");
    let mut bytes = fs::read(&large)?;
    bytes.splice(1_000_000..1_000_100, noise(5, 5000));
    fs::write(&large, bytes)?;
    let words = [RSYNC, "-a", "--no-whole-file", "-c", "-z", &format!("{source}/"), &url("up")];
    world.run(mode.client, &words, LIMIT)?;
    same(world, &source, &up)?;
    daemon.must_live()?;
    daemon.stop(Signal::TERM, Duration::from_secs(10))?;
    Ok(String::new())
}

// ---- downloads ---------------------------------------------------------------------------------------------

/// Programs that fetch a file in several parts at once.
fn downloads(world: &mut World, mode: Mode) -> Result<String> {
    let nginx = Nginx::start(world, mode.server)?;
    let bytes = noise(3, 24 << 20);
    fs::write(nginx.files(world).join("large"), &bytes)?;
    let url = format!("{}files/large", nginx.url());
    let dir = world.dir.display().to_string();
    let pget = format!("set net:max-retries 1; set net:timeout 20; pget -n 3 {url} -o lftp");
    let aria = ["-q", "-x", "4", "-s", "4", "-k", "1M", "--max-tries=1", "-d", &dir, "-o", "aria2"];
    let wget2 = world.path("wget2");
    let runs: [(&str, Vec<&str>); 3] = [
        ("aria2", [&["/usr/bin/aria2c"], &aria[..], &[&url]].concat()),
        ("lftp", vec!["/usr/bin/lftp", "-c", &pget]),
        ("wget2", vec!["/usr/bin/wget2", "-q", "--tries=1", "--chunk-size=4M", "-O", &wget2, &url]),
    ];
    for (name, words) in &runs {
        let running = world.start_with(name, mode.client, words, |command| {
            command.env("HOME", &world.dir);
        })?;
        running.ok(LIMIT)?;
        ensure!(fs::read(world.path(name))? == bytes, "{name} got other bytes");
    }
    nginx.stop()?;
    Ok(String::new())
}

// ---- openssl -----------------------------------------------------------------------------------------------

fn openssl(world: &mut World, mode: Mode) -> Result<String> {
    const OPENSSL: &str = "/usr/bin/openssl";
    let (key, certificate) = (world.path("own-key.pem"), world.path("own-cert.pem"));
    let make = ["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let about = ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"];
    let files = ["-keyout", &key, "-out", &certificate];
    world.run(Side::Plain, &[&[OPENSSL], &make[..], &about, &files].concat(), LIMIT)?;
    let content = noise(11, 4 << 20);
    world.write("content", &content)?;
    // -WWW answers GET with a file, -rev each line with its reverse.
    for (kind, version) in [("-WWW", "-tls1_3"), ("-rev", "-tls1_2")] {
        let port = free_port()?;
        let address = format!("127.0.0.1:{port}");
        let words = [OPENSSL, "s_server", "-accept", &address, "-quiet", kind];
        let files = ["-key", &key, "-cert", &certificate];
        let mut server = world.start("s_server", mode.server, &[&words[..], &files].concat())?;
        wait_for_port(&mut server, port)?;
        // With -quiet, s_client goes on until the server ends; with -no_ign_eof, until its input does.
        let (ask, end) = match kind {
            "-WWW" => ("printf 'GET /content HTTP/1.0\\r\\n\\r\\n'", "-ign_eof"),
            _ => ("(echo netkernel; sleep 1)", "-no_ign_eof"),
        };
        let script = format!(
            "{ask} | {OPENSSL} s_client -connect {address} {version} -quiet {end} \
             -verify_return_error -verify_ip 127.0.0.1 -CAfile {certificate} > answer"
        );
        let client = world.start("s_client", mode.client, &["/bin/sh", "-c", &script])?;
        client.finish(LIMIT)?;
        let answer = fs::read(world.path("answer"))?;
        let expected: &[u8] = if kind == "-WWW" { &content } else { b"lenrekten\n" };
        ensure!(answer.ends_with(expected), "{kind}: {} other bytes", answer.len());
        server.must_live()?;
        server.stop(Signal::TERM, Duration::from_secs(10))?;
    }
    Ok(String::new())
}
