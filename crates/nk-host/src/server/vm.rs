//! VM guests: row 0 and queue set 0 belong to the VM's kernel from the start, and no process attaches.
//!
//! Whoever starts the VM makes the guest, gets its device, and hands it to QEMU as an ivshmem server. The guest lives as long
//! as the connection on which it was made, and not longer than the daemon: of all this the keeper is told nothing.

use std::io;
use std::os::fd::OwnedFd;

use nk_engine::GuestId;

use super::{Reply, Role, Server, Token};
use crate::control::members::Process;

/// The row and the queue set of a VM's kernel.
const ROW: u16 = 0;
const QSET: u16 = 0;

impl Server {
    /// The guest was made for a VM: its kernel is "process" 0, and the connection tells when it ends.
    ///
    /// No pidfd: a VM can write its row, where a process says that it execs and is to outlive its connection.
    pub(super) fn start_vm(
        &mut self,
        id: GuestId,
        connection: Token,
        bell: OwnedFd,
    ) -> io::Result<Reply> {
        let Some(guest) = self.guests.get(&id.0) else {
            return Ok(Reply::refused(libc::ENOENT, "the guest has ended"));
        };
        let fds = [&guest.region.memfd, &*guest.engine_bell].into_iter();
        let fds = match fds.map(OwnedFd::try_clone).collect::<io::Result<Vec<OwnedFd>>>() {
            Ok(fds) => fds,
            Err(e) => {
                self.remove_guest(id)?;
                return Ok(Reply::failed("the daemon has no descriptor left", &e));
            }
        };
        self.ask(move |s| s.notify.set_doorbell(id, QSET, Some(bell)))?;
        self.set_role(connection, Role::Process(id, ROW));
        let Some(guest) = self.guests.get_mut(&id.0) else {
            return Ok(Reply::refused(libc::ENOENT, "the guest has ended"));
        };
        let creator = guest.members.creator.take();
        let pid = creator.as_ref().map_or(0, |c| c.pid);
        let kernel = Process {
            pid,
            control: Some(connection),
            pidfd: None,
            qsets: vec![QSET],
            parent: None,
        };
        guest.members.processes.insert(ROW, kernel);
        let reply = Reply::ok(u64::from(id.0), 0, guest.region.len() as u64, 0).with_fds(fds);
        tracing::info!(guest = guest.name, id = id.0, pid, "VM guest made");
        if let Some(t) = creator.and_then(|c| c.pidfd) {
            self.drop_source(t);
        }
        Ok(reply)
    }
}
