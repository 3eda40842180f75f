//! curl against nginx: HTTP, HTTPS, large files both ways with checksums, refusals.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::noise;
use super::{both_sides, loads};
use crate::nginx::Nginx;
use crate::suite::Test;
use crate::world::{Mode, World, free_port};

const LIMIT: Duration = Duration::from_secs(60);
const LARGE: usize = 96 << 20;

pub(super) fn tests() -> Vec<Test> {
    let mut tests = both_sides(&[
        ("curl http", http),
        ("curl https", https),
        ("curl to a closed port", refused),
    ]);
    tests.extend(loads(&[("curl large files", large_files)]));
    tests
}

/// curl with the options that all calls share.
fn curl(world: &World, mode: Mode, words: &[&str]) -> Result<String> {
    let common = ["/usr/bin/curl", "-sS", "--fail", "-m", "50"];
    world.run(mode.client, &[&common, words].concat(), LIMIT)
}

fn http(world: &mut World, mode: Mode) -> Result<String> {
    let nginx = Nginx::start(world, mode.server)?;
    let body = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n";
    for url in [nginx.url(), nginx.url_v6()] {
        let got = curl(world, mode, &[&url])?;
        ensure!(got == body, "{url} answered {got:?}");
    }
    let one_connection = [nginx.url(), nginx.url(), nginx.url()];
    let words: Vec<&str> = one_connection.iter().map(String::as_str).collect();
    ensure!(curl(world, mode, &words)? == body.repeat(3), "three requests over one connection");
    let format = ["-o", "/dev/null", "-w", "%{remote_ip} %{remote_port} %{local_ip} %{http_code}"];
    let seen = curl(world, mode, &[&format[..], &[&nginx.url()]].concat())?;
    let expected = format!("127.0.0.1 {} 127.0.0.1 200", nginx.port);
    ensure!(seen == expected, "curl saw {seen:?} and not {expected:?}");
    let many: Vec<String> =
        (0..20).flat_map(|_| ["-o".into(), "/dev/null".into(), nginx.url()]).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    curl(world, mode, &[&["-Z", "--parallel-max", "10"], &many[..]].concat())?;
    nginx.stop()?;
    Ok(String::new())
}

fn https(world: &mut World, mode: Mode) -> Result<String> {
    let nginx = Nginx::start(world, mode.server)?;
    let content: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    fs::write(nginx.files(world).join("numbers"), &content)?;
    let certificate = world.path("cert.pem");
    for host in ["127.0.0.1", "[::1]"] {
        let url = format!("https://{host}:{}/files/numbers", nginx.tls_port);
        let got = curl(world, mode, &["--cacert", &certificate, &url])?;
        ensure!(got == content, "{url}: {} bytes of {} or wrong ones", got.len(), content.len());
    }
    nginx.stop()?;
    Ok(String::new())
}

fn large_files(world: &mut World, mode: Mode) -> Result<String> {
    let nginx = Nginx::start(world, mode.server)?;
    let original = world.write("original", noise(1, LARGE))?;
    let sum = world.sha256(&original)?;
    let up = nginx.files(world).join("up").display().to_string();
    let (down, down_tls) = (world.path("down"), world.path("down-tls"));
    let url = format!("{}files/up", nginx.url());
    curl(world, mode, &["-T", &original, "-o", "/dev/null", &url])?;
    ensure!(world.sha256(&up)? == sum, "the uploaded file differs");
    curl(world, mode, &["-o", &down, &url])?;
    ensure!(world.sha256(&down)? == sum, "the downloaded file differs");
    let certificate = world.path("cert.pem");
    let tls = format!("https://127.0.0.1:{}/files/up", nginx.tls_port);
    curl(world, mode, &["--cacert", &certificate, "-o", &down_tls, &tls])?;
    ensure!(world.sha256(&down_tls)? == sum, "the file downloaded over TLS differs");
    let slow = world.path("slow");
    // A slow reader: the server's side fills and has to wait.
    curl(world, mode, &["--limit-rate", "8M", "-r", "0-20000000", "-o", &slow, &url])?;
    let got = fs::read(&slow)?;
    ensure!(
        fs::read(&original)?.starts_with(&got) && got.len() == 20_000_001,
        "a slow reader got other bytes"
    );
    nginx.stop()?;
    Ok(format!("{} MiB up, down, and down over TLS", LARGE >> 20))
}

fn refused(world: &mut World, mode: Mode) -> Result<String> {
    for host in ["127.0.0.1", "[::1]"] {
        let url = format!("http://{host}:{}/", free_port()?);
        let curl = world.start("curl", mode.client, &["/usr/bin/curl", "-sS", "-m", "10", &url])?;
        let ended = curl.finish(LIMIT)?;
        ensure!(
            ended.status.code() == Some(7),
            "curl to a closed port: {} {}",
            ended.how(),
            ended.err
        );
        ensure!(
            ended.err.contains("Couldn't connect") || ended.err.contains("refused"),
            "{}",
            ended.err
        );
    }
    Ok(String::new())
}
