//! A tokio program that the tests run as a guest and natively: `nk-tokio server PORT` echoes at PORT and forwards what comes to
//! PORT + 1 there; `nk-tokio client PORT CLOSED` checks every byte, time limits, half-closes, cancelled reads and a closed port.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const CONNECTIONS: u64 = 200;
const LARGE: usize = 8 << 20;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build()?;
    match words[..] {
        ["server", port] => runtime.block_on(server(port.parse()?)),
        ["client", port, closed] => runtime.block_on(client(port.parse()?, closed.parse()?)),
        _ => bail!("usage: nk-tokio server PORT | client PORT CLOSED"),
    }
}

async fn server(port: u16) -> Result<()> {
    let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let proxy = TcpListener::bind((Ipv4Addr::LOCALHOST, port + 1)).await?;
    println!("listening");
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            accepted = echo.accept() => {
                let (mut one, _) = accepted?;
                tokio::spawn(async move {
                    let (mut from, mut to) = one.split();
                    let _ = copy(&mut from, &mut to).await;
                    let _ = to.shutdown().await;
                });
            }
            accepted = proxy.accept() => {
                let (mut one, _) = accepted?;
                tokio::spawn(async move {
                    if let Ok(mut there) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                        let _ = copy_bidirectional(&mut one, &mut there).await;
                    }
                });
            }
            _ = end.recv() => return Ok(()),
        }
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// Writes and reads at once; the end of one direction must not end the other.
async fn there_and_back(port: u16, seed: u64, len: usize) -> Result<()> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.context("connect")?;
    stream.set_nodelay(seed.is_multiple_of(2))?;
    let (mut from, mut to) = stream.into_split();
    let sent = bytes(seed, len);
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        to.write_all(&sent).await?;
        to.shutdown().await
    });
    let mut got = Vec::new();
    from.read_to_end(&mut got).await.context("read")?;
    writer.await?.context("write")?;
    ensure!(got == expected, "{} bytes of {len} came back, or others", got.len());
    Ok(())
}

async fn client(port: u16, closed: u16) -> Result<()> {
    let mut all = JoinSet::new();
    for n in 0..CONNECTIONS {
        let at = port + (n % 2) as u16;
        all.spawn(async move { there_and_back(at, n, n as usize * 511).await });
    }
    while let Some(one) = all.join_next().await {
        one??;
    }
    there_and_back(port, 1, LARGE).await?;
    there_and_back(port + 1, 2, LARGE).await?;
    cancelled(port).await?;
    let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, closed)).await;
    let kind = refused.err().map(|error| error.kind());
    ensure!(kind == Some(ErrorKind::ConnectionRefused), "a closed port: {kind:?}");
    println!("{CONNECTIONS} connections at once, and {} MiB twice", LARGE >> 20);
    Ok(())
}

/// A read that is given up loses nothing, and the next one is woken.
async fn cancelled(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let mut buffer = [0u8; 16];
    let begun = Instant::now();
    let given_up = timeout(Duration::from_millis(50), stream.read(&mut buffer)).await;
    ensure!(given_up.is_err() && begun.elapsed() >= Duration::from_millis(50), "nothing was sent");
    for round in 0..20u8 {
        let (mut from, mut to) = stream.split();
        let read = async {
            let n = from.read(&mut buffer).await?;
            anyhow::Ok(buffer.get(..n).map(<[u8]>::to_vec).unwrap_or_default())
        };
        let write = async {
            sleep(Duration::from_millis(2)).await;
            to.write_all(&[round]).await?;
            anyhow::Ok(())
        };
        let (got, ()) = tokio::try_join!(read, write)?;
        ensure!(got == [round], "round {round}: {got:?}");
    }
    Ok(())
}
