//! CoreEngine (paper §4.4): the trusted switch between guests and NSMs.
//!
//! A value that is polled: it does no I/O, reads no clock and starts no thread. It owns what a guest must not be able to
//! forge: which ids are in use and by whom, which generation they have, who owns a port, limits and counts.
#![forbid(unsafe_code)]

mod api;

pub use api::*;
use nk_device::Device;

/// CoreEngine.
#[derive(Debug, Default)]
pub struct Engine {}

#[allow(unused_variables, clippy::missing_errors_doc)]
impl Engine {
    /// An engine without guests or NSMs.
    #[must_use]
    pub fn new() -> Engine {
        Engine::default()
    }
    /// Adds an NSM. `device` is the NSM's own (layout [`nk_device::Layout::NSM`], formatted); its queue set 0 is reset.
    pub fn add_nsm(&mut self, id: NsmId, device: Device) -> Result<(), ControlError> {
        Ok(())
    }
    /// An NSM died: its connections get ECONNRESET, its listeners wait for the next one ([`Engine::nsm_back`]).
    pub fn nsm_dead(&mut self, id: NsmId, notify: &mut dyn Notify) -> Result<(), ControlError> {
        Ok(())
    }
    /// A new NSM takes the place of a dead one. Its ServiceLib must have been given the guests (`Service::add_guest`) first.
    /// Returns the listeners of its guests: give each to ServiceLib (`adopt_listener`) with the descriptor that the keeper has,
    /// or, where there is none, call [`Engine::listener_lost`].
    pub fn nsm_back(
        &mut self,
        id: NsmId,
        device: Device,
    ) -> Result<Vec<(GuestId, AdoptedListener)>, ControlError> {
        Ok(Vec::new())
    }
    /// The keeper had no descriptor for a listener: it is dead, accept fails.
    pub fn listener_lost(
        &mut self,
        guest: GuestId,
        socket: u32,
        generation: u16,
        notify: &mut dyn Notify,
    ) -> Result<(), ControlError> {
        Ok(())
    }
    /// Adds a guest with a fresh, formatted device.
    pub fn add_guest(&mut self, setup: GuestSetup) -> Result<(), ControlError> {
        Ok(())
    }
    /// Adds a guest that another engine served until it died. Everything is rebuilt from the device: rings start at 0,
    /// `header.epoch` is bumped, connections become dead with ECONNRESET, kept listeners live on (give each to ServiceLib with
    /// `adopt_listener`), sockets that nobody holds are freed.
    pub fn adopt_guest(
        &mut self,
        setup: GuestSetup,
        adoption: &Adoption,
        notify: &mut dyn Notify,
    ) -> Result<(), ControlError> {
        Ok(())
    }
    /// Forgets a guest at once. Its sockets on the NSM are the host's to end (`Service::remove_guest`). To let what it sent
    /// last drain, wait for [`Notify::guest_idle`] (or [`Engine::guest_sockets`] 0) after its last row died.
    pub fn remove_guest(&mut self, id: GuestId) -> Result<(), ControlError> {
        Ok(())
    }
    /// Sockets in use by a guest, with those that the NSM is finishing.
    #[must_use]
    pub fn guest_sockets(&self, id: GuestId) -> u32 {
        0
    }
    /// Makes a row for a process, with its primary queue set.
    pub fn add_row(&mut self, guest: GuestId, pid: u32) -> Result<NewRow, ControlError> {
        Err(ControlError::Guest)
    }
    /// Says which process a row belongs to (a forked child that said hello).
    pub fn set_row_pid(&mut self, guest: GuestId, row: u16, pid: u32) -> Result<(), ControlError> {
        Ok(())
    }
    /// Whether the row's process said that it is about to exec (`row.phase`, a hint of the guest's).
    #[must_use]
    pub fn is_row_execing(&self, guest: GuestId, row: u16) -> bool {
        false
    }
    /// The process of a row is dead: its holder bits are cleared, sockets with none left are closed, its queue sets dropped, what
    /// was leased to it taken back.
    pub fn row_dead(
        &mut self,
        guest: GuestId,
        row: u16,
        notify: &mut dyn Notify,
    ) -> Result<(), ControlError> {
        Ok(())
    }
    /// The process of a row exec'ed and attached again: holder bits stay, all old queue sets go, what the old image had taken and
    /// not used comes back. Returns the new primary queue set. Call before the attach reply is sent.
    pub fn row_exec_kept(
        &mut self,
        guest: GuestId,
        row: u16,
        notify: &mut dyn Notify,
    ) -> Result<u16, ControlError> {
        Err(ControlError::Guest)
    }
    /// One more queue set for a row.
    pub fn add_qset(&mut self, guest: GuestId, row: u16) -> Result<u16, ControlError> {
        Err(ControlError::Guest)
    }
    /// A queue set of the row goes (not the primary one). What is on its job and send rings is served first.
    pub fn drop_qset(
        &mut self,
        guest: GuestId,
        row: u16,
        qset: u16,
        notify: &mut dyn Notify,
    ) -> Result<(), ControlError> {
        Ok(())
    }
    /// The host holds a socket itself (row 0's bit), while its stand-in is in flight.
    pub fn hold(&mut self, guest: GuestId, socket: u32, generation: u16) -> Result<(), ControlError> {
        Ok(())
    }
    /// Undoes [`Engine::hold`]; closes the socket when that was the last.
    pub fn unhold(
        &mut self,
        guest: GuestId,
        socket: u32,
        generation: u16,
        notify: &mut dyn Notify,
    ) -> Result<(), ControlError> {
        Ok(())
    }
    /// Moves NQEs, at most about `budget`.
    pub fn poll(&mut self, budget: u32, notify: &mut dyn Notify) -> PollResult {
        PollResult::default()
    }
    /// Before the poll thread sleeps: asks all peers for the doorbell and looks again. `true`: sleep (the guests' engine eventfd
    /// and, for a separate NSM, its doorbell end the sleep). `false`: there is work. Call [`Engine::finish_sleep`] in both cases.
    pub fn prepare_sleep(&mut self) -> bool {
        true
    }
    /// After the sleep (or instead of it).
    pub fn finish_sleep(&mut self) {}
    /// Counters of one guest, or of all.
    #[must_use]
    pub fn stats(&self, guest: Option<GuestId>) -> Stats {
        Stats::default()
    }
    /// The sockets in use of one guest, or of all.
    #[must_use]
    pub fn flows(&self, guest: Option<GuestId>) -> Vec<Flow> {
        Vec::new()
    }
}
