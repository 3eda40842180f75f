//! Datagrams on stacks in memory.

use nk_device::datagram::{DF_PEER, Header};
use nk_servicelib::{Datagram, Errno, RawSpan};

use super::net::Net;

/// Datagrams that wait on one socket; more are dropped.
const INBOX: usize = 16;

impl Net {
    pub(super) fn send_datagram(
        &mut self,
        socket: &usize,
        header: &Header,
        spans: &[RawSpan],
    ) -> Result<(), Errno> {
        self.fault(*socket)?;
        let port = self.free_port();
        let s = self.at(socket);
        if s.local.port == 0 {
            s.local.port = port;
        }
        let (from, namespace) = (s.local, s.namespace);
        let to = if header.flags & DF_PEER != 0 { header.peer } else { s.remote };
        let mut bytes = Vec::new();
        for span in spans {
            for i in 0..span.len() {
                // SAFETY: ServiceLib promises that the span is mapped; a hostile guest may change the bytes, not the mapping.
                bytes.push(unsafe { span.as_ptr().add(i).read_volatile() });
            }
        }
        assert_eq!(bytes.len(), header.len as usize, "the spans are the datagram");
        let there = self.socks.iter().position(|s| {
            s.as_ref()
                .is_some_and(|s| s.datagram && s.namespace == namespace && s.local.port == to.port)
        });
        let Some(there) = there else { return Err(Errno(libc::ECONNREFUSED)) };
        let s = self.at(&there);
        if s.inbox.len() < INBOX {
            s.inbox.push_back((from, bytes));
        }
        self.event(there, |e| e.readable = true);
        Ok(())
    }
    pub(super) fn recv_datagrams(
        &mut self,
        socket: &usize,
        into: &mut [Datagram],
    ) -> Result<usize, Errno> {
        self.fault(*socket)?;
        let s = self.at(socket);
        let mut n = 0;
        for d in into {
            let Some((from, bytes)) = s.inbox.pop_front() else { break };
            d.header = Header { len: bytes.len() as u32, flags: DF_PEER, peer: from, ..d.header };
            let mut bytes = bytes.into_iter();
            for span in &d.spans {
                for (i, b) in bytes.by_ref().take(span.len()).enumerate() {
                    // SAFETY: ServiceLib promises that the span is mapped; a hostile guest may change the bytes, not the mapping.
                    unsafe { span.as_ptr().add(i).write_volatile(b) };
                }
            }
            assert_eq!(bytes.len(), 0, "room for the longest datagram");
            n += 1;
        }
        if n == 0 { Err(Errno(libc::EAGAIN)) } else { Ok(n) }
    }
}
