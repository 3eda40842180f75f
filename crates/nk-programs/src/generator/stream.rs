//! One stream of bytes: a plain blocking writer, and a reader that takes as much as there is.
//!
//! iperf3 reads in pieces of the length that it writes, so with short writes its reader is what is measured.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// What the reader asks for at once: a buffer that stays in an L2 cache, so that the reader's copy is not what is measured.
const READ: usize = 64 << 10;
/// Writes between two looks at the clock.
const WRITES: u32 = 16;

/// Reads one connection to its end; then says how many bytes came.
pub fn sink(port: u16) -> Result<u64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("bind")?;
    let (mut stream, _) = listener.accept().context("accept")?;
    let mut buffer = vec![0; READ];
    let mut sum = 0;
    loop {
        match stream.read(&mut buffer).context("read")? {
            0 => break,
            count => sum += count as u64,
        }
    }
    stream.write_all(&sum.to_le_bytes()).context("the count")?;
    Ok(sum)
}

/// Writes for so long; how many bytes arrived, and when the last of them had.
pub fn source(port: u16, bytes: usize, time: Duration) -> Result<(u64, Duration)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connect")?;
    let message = vec![0x5a; bytes];
    let begun = Instant::now();
    let mut sum = 0;
    while begun.elapsed() < time {
        for _ in 0..WRITES {
            stream.write_all(&message)?;
            sum += bytes as u64;
        }
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut count = [0; 8];
    stream.read_exact(&mut count).context("the reader's count")?;
    let took = begun.elapsed();
    ensure!(u64::from_le_bytes(count) == sum, "the reader counts other bytes than were written");
    Ok((sum, took))
}
