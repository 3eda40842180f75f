//! Safety: what must hold however guests come, go and misbehave.

mod attaching;
mod chaos;
mod churn;
mod datagrams;
mod exhaust;
mod hostile;
mod kills;
mod manager;
mod restart;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::suite::Test;

pub(crate) fn tests() -> Vec<Test> {
    [
        attaching::tests(),
        churn::tests(),
        exhaust::tests(),
        restart::tests(),
        hostile::tests(),
        datagrams::tests(),
        chaos::tests(),
        kills::tests(),
        manager::tests(),
    ]
    .concat()
}

/// A plain connection to a server of this host.
fn connect(port: u16) -> Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).context("connect")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Sends `bytes` and expects them back.
fn echo(stream: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes).context("send")?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).context("receive")?;
    ensure!(back == bytes, "other bytes came back");
    Ok(())
}

/// One exchange over a new connection to programs/greedy.py.
fn greedy_echo(port: u16) -> Result<()> {
    let mut stream = connect(port)?;
    stream.write_all(b"E")?;
    echo(&mut stream, &[7; 3000])
}
