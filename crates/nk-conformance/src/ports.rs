//! Ports for tests, below the range from which the kernel picks by itself. Two runs on one machine are never given the same.
//!
//! A port that something still has, an earlier case's connection in TIME_WAIT too, is passed over: cases bind without SO_REUSEADDR.
//!
//! A run owns blocks of ports. The owner of a block has bound an abstract Unix name, which belongs to a network namespace, as ports do,
//! and goes with the process.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

const FIRST: u16 = 10_000;
const BLOCK: u16 = 1000;
const BLOCKS: u16 = 22;

/// Ports of one run. Given out in turn, and again when all were.
#[derive(Debug)]
pub struct Ports {
    blocks: Vec<Block>,
    next: usize,
}

#[derive(Debug)]
struct Block {
    first: u16,
    _owner: UnixListener,
}

impl Ports {
    /// Takes so many blocks of a thousand ports.
    ///
    /// # Errors
    /// When other runs have them.
    pub fn claim(count: usize) -> io::Result<Ports> {
        let mut blocks = Vec::new();
        // Not all from the same end, so that what a run before this one left in TIME_WAIT is rarely met.
        let start = std::process::id() % u32::from(BLOCKS);
        for i in 0..BLOCKS {
            if blocks.len() == count {
                break;
            }
            let number = (start as u16 + i) % BLOCKS;
            let name = SocketAddr::from_abstract_name(format!("netkernel-test-ports-{number}"))?;
            match UnixListener::bind_addr(&name) {
                Ok(owner) => blocks.push(Block { first: FIRST + number * BLOCK, _owner: owner }),
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
                Err(e) => return Err(e),
            }
        }
        if blocks.len() < count {
            return Err(io::Error::other("other runs have all the ports that there are for tests"));
        }
        Ok(Ports { blocks, next: 0 })
    }

    /// The first of so many ports in a row that nothing has; of any when there are none.
    pub fn take(&mut self, count: u16) -> u16 {
        let tries = self.blocks.len() * usize::from(BLOCK / count.max(1));
        let mut first = self.next_in_turn(count);
        for _ in 0..tries {
            if (first..first + count).all(is_free) {
                break;
            }
            first = self.next_in_turn(count);
        }
        first
    }

    fn next_in_turn(&mut self, count: u16) -> u16 {
        let (size, count) = (usize::from(BLOCK), usize::from(count));
        if self.next % size + count > size {
            self.next = (self.next / size + 1) * size;
        }
        let at = self.next % (self.blocks.len() * size);
        self.next = at + count;
        let first = self.blocks.get(at / size).map_or(FIRST, |block| block.first);
        first + (at % size) as u16
    }
}

/// Close-on-exec: another thread may start a program meanwhile, and a guest that was given a socket is refused.
fn stream(family: AddressFamily) -> rustix::io::Result<OwnedFd> {
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

/// Whether a TCP socket could have the port to itself, on all addresses of both families. (The standard library's listener would set
/// SO_REUSEADDR.)
fn is_free(port: u16) -> bool {
    let tried = stream(AddressFamily::INET6)
        .and_then(|s| bind(&s, &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0)));
    match tried {
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => stream(AddressFamily::INET)
            .and_then(|s| bind(&s, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))
            .is_ok(),
        tried => tried.is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_owners_have_a_port_in_common() {
        let (mut one, mut other) = (Ports::claim(2).unwrap(), Ports::claim(1).unwrap());
        let taken: Vec<u16> = (0..600).map(|_| one.take(3)).collect();
        assert!((0..300).map(|_| other.take(3)).all(|port| !taken.contains(&port)));
        let in_block = |port: u16| (port - FIRST) / BLOCK == (port + 2 - FIRST) / BLOCK;
        assert!(taken.iter().all(|port| in_block(*port)), "three in a row are of one block");
        assert!(Ports::claim(usize::from(BLOCKS)).is_err(), "some are taken");
    }

    #[test]
    fn a_port_that_a_connection_had_is_passed_over() {
        use std::net::{Shutdown, TcpListener, TcpStream};
        let mut ports = Ports::claim(1).unwrap();
        let first = ports.take(1);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, first)).unwrap();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, first)).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert!(!is_free(first), "it has a listener");
        // Whoever closes first keeps the port in TIME_WAIT: the listener's side.
        server.shutdown(Shutdown::Both).unwrap();
        drop((server, client, listener));
        assert!(!is_free(first), "a connection of it is in TIME_WAIT");
        ports.next = 0;
        assert!(ports.take(1) > first);
    }
}
