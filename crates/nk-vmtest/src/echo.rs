//! Plain programs on the host, with the kernel's own sockets: the other ends of the guest's connections.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Result;

/// No read or write of the client takes longer.
const CLIENT_LIMIT: Duration = Duration::from_secs(20);

/// A port of the loopback address that refuses connections.
#[derive(Debug)]
pub struct ClosedPort {
    /// The port.
    pub port: u16,
    _bound: OwnedFd,
}

impl ClosedPort {
    /// Takes a free port.
    ///
    /// # Errors
    /// There is none.
    pub fn new() -> Result<ClosedPort> {
        use rustix::net::{AddressFamily, SocketAddrV4, SocketFlags, SocketType};
        let made = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        );
        let bound = made.map_err(io::Error::from)?;
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        rustix::net::bind(&bound, &any).map_err(io::Error::from)?;
        let at = rustix::net::getsockname(&bound).map_err(io::Error::from)?;
        let at = SocketAddrV4::try_from(at).map_err(io::Error::from)?;
        Ok(ClosedPort { port: at.port(), _bound: bound })
    }
}

/// An echo server with plain kernel sockets.
#[derive(Debug)]
pub struct EchoServer {
    /// Where it listens.
    pub address: SocketAddr,
    connections: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicU64>,
    acceptor: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Starts one on the loopback address.
    ///
    /// # Errors
    /// It cannot listen.
    pub fn start() -> Result<EchoServer> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (connections, bytes, stop) =
            <(Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let counters = (Arc::clone(&connections), Arc::clone(&bytes), Arc::clone(&stop));
        let acceptor = std::thread::spawn(move || {
            let (connections, bytes, stop) = counters;
            for stream in listener.incoming().map_while(|s| s.ok()) {
                if stop.load(Ordering::SeqCst) != 0 {
                    break;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let bytes = Arc::clone(&bytes);
                // Ends with its connection, at the latest when the daemon that holds the other end does.
                std::thread::spawn(move || echo(stream, &bytes));
            }
        });
        Ok(EchoServer { address, connections, bytes, stop, acceptor: Some(acceptor) })
    }

    /// Ends it: connections and bytes seen.
    #[must_use]
    pub fn stop(mut self) -> (u64, u64) {
        self.end();
        (self.connections.load(Ordering::SeqCst), self.bytes.load(Ordering::SeqCst))
    }

    fn end(&mut self) {
        self.stop.store(1, Ordering::SeqCst);
        // Wakes the acceptor, which then sees the flag.
        let woken = TcpStream::connect(self.address);
        if let (Ok(_), Some(a)) = (woken, self.acceptor.take()) {
            let _ = a.join();
        }
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        if self.acceptor.is_some() {
            self.end();
        }
    }
}

fn echo(mut stream: TcpStream, bytes: &AtomicU64) {
    let mut buffer = vec![0u8; 64 * 1024];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        bytes.fetch_add(n as u64, Ordering::SeqCst);
        if stream.write_all(buffer.get(..n).unwrap_or_default()).is_err() {
            break;
        }
    }
}

/// A client of an echo server on the loopback address: sends `len` bytes, half-closes, and gives what came back if it is the same.
///
/// # Errors
/// Of the socket; [`std::io::ErrorKind::InvalidData`] when something else came back.
pub fn client(port: u16, len: usize) -> std::io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(CLIENT_LIMIT))?;
    stream.set_write_timeout(Some(CLIENT_LIMIT))?;
    let sent: Vec<u8> = (0..len).map(|i| (i % 241) as u8).collect();
    let mut writing = stream.try_clone()?;
    let back = std::thread::scope(|s| {
        let writer = s.spawn(|| {
            writing.write_all(&sent)?;
            writing.shutdown(Shutdown::Write)
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back)?;
        writer.join().unwrap_or_else(|_| Err(std::io::Error::other("the writer panicked")))?;
        Ok::<_, std::io::Error>(back)
    })?;
    if back == sent {
        return Ok(());
    }
    let what = format!(
        "{} of {len} bytes came back, the first wrong one at {:?}",
        back.len(),
        back.iter().zip(&sent).position(|(a, b)| a != b)
    );
    Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what))
}
