//! redis from Debian's package, on a port and in a directory of the test.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::process::{Running, eventually};
use crate::world::{Side, World, free_port, wait_for_port};

/// A running server.
#[derive(Debug)]
pub struct Redis {
    pub running: Running,
    pub port: u16,
    pub home: PathBuf,
}

impl Redis {
    /// An empty server, or one that loads the dump in `home`.
    pub fn start(world: &World, side: Side, home: Option<PathBuf>) -> Result<Self> {
        Self::start_in(world, side, home, &[])
    }

    /// An empty server, with words before its command, such as `taskset`.
    pub fn start_by(world: &World, side: Side, prefix: &[String]) -> Result<Self> {
        Self::start_in(world, side, None, prefix)
    }

    fn start_in(
        world: &World,
        side: Side,
        home: Option<PathBuf>,
        prefix: &[String],
    ) -> Result<Self> {
        let port = free_port()?;
        let home = home.unwrap_or_else(|| world.dir.join(format!("redis-{port}")));
        fs::create_dir_all(&home)?;
        let (port_text, home_text) = (port.to_string(), home.display().to_string());
        let own = [
            "/usr/bin/redis-server",
            "--port",
            &port_text,
            "--bind",
            "127.0.0.1",
            "::1",
            "--dir",
            &home_text,
            "--save",
            "",
            "--appendonly",
            "no",
            "--enable-debug-command",
            "yes",
            "--daemonize",
            "no",
        ];
        let words: Vec<&str> = prefix.iter().map(String::as_str).chain(own).collect();
        let mut running = world.start("redis", side, &words)?;
        wait_for_port(&mut running, port)?;
        let redis = Redis { running, port, home };
        eventually(Duration::from_secs(15), || {
            let answer = redis.ask("PING")?;
            ensure!(answer == "+PONG", "redis says {answer}");
            Ok(())
        })?;
        Ok(redis)
    }

    /// One command over a connection of its own, from this process; the first line of the answer (a bulk string's
    /// content for `$`).
    pub fn ask(&self, command: &str) -> Result<String> {
        ask(self.port, command)
    }

    /// A checksum over all data.
    pub fn digest(&self) -> Result<String> {
        let digest = self.ask("DEBUG DIGEST")?;
        ensure!(digest.len() >= 40, "DEBUG DIGEST says {digest}");
        Ok(digest)
    }

    /// BGSAVE, awaited.
    pub fn background_save(&self) -> Result<()> {
        let answer = self.ask("BGSAVE")?;
        ensure!(answer.starts_with("+Background saving"), "BGSAVE says {answer}");
        eventually(Duration::from_secs(60), || {
            let info = self.ask("INFO persistence")?;
            ensure!(info.contains("rdb_bgsave_in_progress:0"), "BGSAVE goes on");
            ensure!(info.contains("rdb_last_bgsave_status:ok"), "BGSAVE failed");
            Ok(())
        })
    }

    pub fn stop(self) -> Result<()> {
        let ended = self.running.stop(Signal::TERM, Duration::from_secs(15))?;
        ensure!(ended.status.success(), "redis ended with {}: {}", ended.how(), ended.out);
        Ok(())
    }
}

/// One inline command over a plain connection from this process.
pub fn ask(port: u16, command: &str) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let line = line.trim_end().to_owned();
    match line.strip_prefix('$') {
        None if line.is_empty() => bail!("redis closed the connection after {command}"),
        None => Ok(line),
        Some(length) => {
            let mut body = vec![0; length.parse().with_context(|| line.clone())?];
            std::io::Read::read_exact(&mut reader, &mut body)?;
            Ok(String::from_utf8_lossy(&body).into_owned())
        }
    }
}
