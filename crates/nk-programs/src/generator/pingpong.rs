//! Round trips on one connection: the plainest blocking client and server.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Round trips before any is counted.
const WARM_UP: u32 = 200;

/// Sends back what comes, one connection after the other, until it is killed.
pub fn echo(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("bind")?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (mut stream, _) = listener.accept().context("accept")?;
        stream.set_nodelay(true)?;
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(buffer.get(..count).unwrap_or_default()).is_err() {
                break;
            }
        }
    }
}

/// Sends a message, waits for all of it to come back, and so on; each round trip's nanoseconds.
pub fn ping(port: u16, bytes: usize, time: Duration) -> Result<Vec<u64>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let message: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
    let mut answer = vec![0; bytes];
    let mut once = || -> Result<u64> {
        let begun = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut answer).context("an echo")?;
        let took = begun.elapsed().as_nanos() as u64;
        ensure!(answer == message, "the echo is not what was sent");
        Ok(took)
    };
    for _ in 0..WARM_UP {
        once()?;
    }
    let begun = Instant::now();
    let mut trips = Vec::new();
    while begun.elapsed() < time {
        trips.push(once()?);
    }
    Ok(trips)
}
