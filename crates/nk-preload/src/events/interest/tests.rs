use core::ptr::NonNull;
use std::alloc::{Layout as Memory, alloc_zeroed, dealloc};

use nk_device::cell::{SF_CONNECTED, SF_CONNECTING, SF_DEAD, SF_EOF};
use nk_device::stream::{Span, publish_single};
use nk_device::{Device, Layout};

use super::*;
use crate::events::{EPOLLIN, EPOLLOUT};

const LAYOUT: Layout = Layout { rows: 1, qsets: 1, cells: 64, chunks: 8 };
const RDHUP: u32 = libc::EPOLLRDHUP as u32;
const HUP: u32 = libc::EPOLLHUP as u32;

/// A device on the heap; the test plays the service.
struct World {
    base: NonNull<u8>,
    memory: Memory,
    device: Device,
    interest: Option<Interest>,
    rx_tail: [u32; 64],
}

impl World {
    fn new() -> World {
        let memory = Memory::from_size_align(LAYOUT.region_len(), 4096).expect("layout");
        // SAFETY: not empty, page-aligned, zeroed, freed in drop.
        let (base, device) = unsafe {
            let base = NonNull::new(alloc_zeroed(memory)).expect("memory");
            (base, Device::with_layout(base, memory.size(), LAYOUT).expect("device"))
        };
        for id in 0..64 {
            let c = device.cell(id).expect("cell");
            c.generation.store(1, Ordering::Relaxed);
            c.state.store(SF_CONNECTED, Ordering::Relaxed);
        }
        World { base, memory, device, interest: Interest::map(64), rx_tail: [0; 64] }
    }
    fn look(&self) -> Look {
        Look { device: self.device, can_send: true, is_gone: false }
    }
    fn i(&mut self) -> &mut Interest {
        self.interest.as_mut().expect("mapped")
    }
    fn cell(&self, id: u32) -> &Cell {
        self.device.cell(id).expect("cell")
    }
    fn add(&mut self, id: u32, events: u32) {
        let look = self.look();
        self.i().add(&look, key(id), events, u64::from(id)).expect("room");
    }
    /// Data arrives: what the service does, and the event that it sends.
    fn receive(&mut self, id: u32) {
        self.receive_silently(id);
        self.event(id);
    }
    fn receive_silently(&mut self, id: u32) {
        let payload = Span { chunk: 0, offset: 0, len: 1 }.to_payload();
        let mut tail = self.rx_tail[id as usize];
        let cell = self.cell(id);
        publish_single(&cell.rx_tail, &cell.rx_slots, &mut tail, cell.position().index, payload)
            .expect("room");
        let _ = cell.announce_rx();
        self.rx_tail[id as usize] = tail;
    }
    fn event(&mut self, id: u32) {
        let look = self.look();
        self.i().mark(&look, id, 1);
    }
    /// The program reads everything.
    fn read_all(&mut self, id: u32) {
        let word = u64::from(self.rx_tail[id as usize]) << 32;
        self.cell(id).rx_pos.store(word, Ordering::Release);
    }
    fn fill_tx(&mut self, id: u32) {
        self.cell(id).tx_tail.store(32, Ordering::Release);
    }
    fn free_tx(&mut self, id: u32) {
        self.cell(id).tx_head.store(32, Ordering::Release);
        let _ = self.cell(id).announce_tx();
        self.event(id);
    }
    fn walk(&mut self, max: usize) -> Vec<(u64, u32)> {
        let look = self.look();
        let mut out = Vec::new();
        let n = self.i().walk(&look, max, |e, d| out.push((d, e)));
        assert_eq!(n, out.len());
        out
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(i) = self.interest.take() {
            i.unmap();
        }
        // SAFETY: made with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.memory) };
    }
}

fn key(id: u32) -> Key {
    Key { socket: id, generation: 1, fd: id as c_int + 10 }
}

#[test]
fn level_triggered_goes_on_until_read() {
    let mut w = World::new();
    w.add(3, EPOLLIN);
    assert!(w.walk(8).is_empty());
    w.receive(3);
    assert_eq!(w.walk(8), [(3, EPOLLIN)]);
    assert_eq!(w.walk(8), [(3, EPOLLIN)], "again");
    w.read_all(3);
    assert!(w.walk(8).is_empty());
    assert!(!w.i().has_queued(), "dropped from the queue");
    w.receive(3);
    assert_eq!(w.walk(8), [(3, EPOLLIN)], "queued again by the event");
}

#[test]
fn an_edge_is_reported_once() {
    let mut w = World::new();
    w.add(3, EPOLLIN | EPOLLET);
    w.receive(3);
    assert_eq!(w.walk(8), [(3, EPOLLIN)]);
    assert!(w.walk(8).is_empty());
    w.event(3);
    assert!(w.walk(8).is_empty(), "an event for what was seen is no edge");
    w.receive(3);
    assert_eq!(w.walk(8), [(3, EPOLLIN)], "more data is an edge, read or not");
    w.read_all(3);
    w.receive(3);
    w.read_all(3);
    assert!(w.walk(8).is_empty(), "read before anybody looked");
    w.receive(3);
    w.receive(3);
    assert_eq!(w.walk(8), [(3, EPOLLIN)], "two arrivals, one report");
    assert!(w.walk(8).is_empty());
}

#[test]
fn an_event_that_add_overtook_is_no_second_edge() {
    let mut w = World::new();
    w.receive_silently(3);
    w.add(3, EPOLLIN | EPOLLET);
    assert_eq!(w.walk(8), [(3, EPOLLIN)], "ADD on a ready socket");
    w.event(3);
    assert!(w.walk(8).is_empty());
}

#[test]
fn edges_of_one_direction_do_not_report_the_other() {
    let mut w = World::new();
    w.add(3, EPOLLOUT | EPOLLET);
    assert_eq!(w.walk(8), [(3, EPOLLOUT)]);
    w.receive(3);
    assert!(w.walk(8).is_empty(), "data is no edge for a writer");
    w.fill_tx(3);
    w.event(3);
    assert!(w.walk(8).is_empty());
    w.free_tx(3);
    assert_eq!(w.walk(8), [(3, EPOLLOUT)]);
    // A reset counts for everybody.
    w.cell(3).state.store(SF_CONNECTED | SF_DEAD, Ordering::Relaxed);
    let _ = w.cell(3).announce_rx();
    w.event(3);
    assert_eq!(w.walk(8), [(3, EPOLLOUT | HUP)]);
}

#[test]
fn one_shot_is_spent_until_modified() {
    let mut w = World::new();
    w.add(3, EPOLLIN | EPOLLONESHOT);
    w.receive(3);
    assert_eq!(w.walk(8), [(3, EPOLLIN)]);
    w.receive(3);
    assert!(w.walk(8).is_empty());
    let look = w.look();
    assert!(w.i().modify(&look, key(3), EPOLLIN | EPOLLONESHOT, 77));
    assert_eq!(w.walk(8), [(77, EPOLLIN)], "MOD on a ready socket reports at once");
    assert!(!w.i().modify(&look, key(4), EPOLLIN, 0), "no such entry");
}

#[test]
fn modify_reports_a_ready_edge_again() {
    let mut w = World::new();
    w.add(3, EPOLLIN | EPOLLET);
    w.receive(3);
    assert_eq!(w.walk(8).len(), 1);
    let look = w.look();
    assert!(w.i().modify(&look, key(3), EPOLLIN | EPOLLOUT | EPOLLET, 3));
    assert_eq!(w.walk(8), [(3, EPOLLIN | EPOLLOUT)]);
}

#[test]
fn few_slots_serve_all_in_turn() {
    let mut w = World::new();
    for id in 0..5 {
        w.add(id, EPOLLIN);
        w.receive(id);
    }
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.extend(w.walk(2).iter().map(|(d, _)| *d));
    }
    assert_eq!(seen, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
    assert_eq!(w.walk(100).len(), 5, "nothing twice in one call");
}

#[test]
fn removal_in_the_queue_and_reuse_of_entries() {
    let mut w = World::new();
    for id in 0..3 {
        w.add(id, EPOLLIN);
        w.receive(id);
    }
    assert!(w.i().remove(key(1)));
    assert!(!w.i().remove(key(1)));
    assert_eq!(w.i().len(), 2);
    w.add(1, EPOLLIN);
    assert_eq!(w.walk(8).iter().map(|(d, _)| *d).collect::<Vec<_>>(), [0, 2, 1]);
    for round in 0..1000 {
        let look = w.look();
        let k = Key { fd: 500 + round, ..key(9) };
        w.i().add(&look, k, EPOLLIN, 0).expect("entries are reused");
        assert!(w.i().remove(k));
    }
    assert!(!w.i().has_socket(9));
}

#[test]
fn two_descriptors_of_a_socket_are_two_entries() {
    let mut w = World::new();
    w.add(3, EPOLLIN);
    let (look, twin) = (w.look(), Key { fd: 99, ..key(3) });
    w.i().add(&look, twin, EPOLLIN | EPOLLET, 99).expect("room");
    assert_eq!(w.i().events_of(twin), Some(EPOLLIN | EPOLLET));
    w.receive(3);
    let mut got = w.walk(8);
    got.sort_unstable();
    assert_eq!(got, [(3, EPOLLIN), (99, EPOLLIN)]);
    assert!(w.i().remove(key(3)));
    assert!(w.i().has_socket(3));
    w.i().sweep(3, |_| true);
    assert!(!w.i().has_socket(3));
    assert_eq!(w.i().len(), 0);
}

#[test]
fn another_life_of_an_id_is_not_reported() {
    let mut w = World::new();
    w.add(3, EPOLLIN);
    w.receive(3);
    w.cell(3).generation.store(2, Ordering::Relaxed);
    assert!(w.walk(8).is_empty());
    w.event(3);
    let look = w.look();
    w.i().mark(&look, 3, 2);
    assert!(w.walk(8).is_empty(), "the entry is of generation 1");
    w.i().mark(&look, 4_000_000, 1);
}

#[test]
fn lost_events_queue_everything() {
    let mut w = World::new();
    for id in 0..4 {
        w.add(id, EPOLLIN | if id % 2 == 0 { EPOLLET } else { 0 });
    }
    w.receive_silently(1);
    w.receive_silently(2);
    let look = w.look();
    w.i().mark_all(&look);
    assert_eq!(w.walk(8), [(1, EPOLLIN), (2, EPOLLIN)]);
    w.i().mark_all(&look);
    assert_eq!(w.walk(8), [(1, EPOLLIN)], "the edge was reported");
}

#[test]
fn writers_wait_for_chunks() {
    let mut w = World::new();
    let none = Look { can_send: false, ..w.look() };
    w.i().add(&none, key(3), EPOLLOUT | EPOLLET, 3).expect("room");
    assert!(w.i().is_starved());
    assert!(w.walk(8).is_empty());
    w.i().mark_anew(true);
    assert_eq!(w.walk(8), [(3, EPOLLOUT)]);
    assert!(!w.i().is_starved());
    // No chunks is not told of sockets that would not send anyway.
    w.cell(4).state.store(SF_CONNECTED | SF_EOF, Ordering::Relaxed);
    w.i().add(&none, key(4), EPOLLIN | RDHUP, 4).expect("room");
    assert_eq!(w.walk(8), [(4, EPOLLIN | RDHUP)]);
    assert!(!w.i().is_starved());
}

#[test]
fn a_connect_becomes_writable() {
    let mut w = World::new();
    w.cell(3).state.store(SF_CONNECTING, Ordering::Relaxed);
    w.add(3, EPOLLIN | EPOLLOUT | EPOLLET);
    assert!(w.walk(8).is_empty());
    w.cell(3).state.store(SF_CONNECTED, Ordering::Relaxed);
    let _ = w.cell(3).announce_tx();
    w.event(3);
    assert_eq!(w.walk(8), [(3, EPOLLOUT)]);
}

#[test]
fn settle_finds_the_first_that_is_ready() {
    let mut w = World::new();
    for id in 0..3 {
        w.add(id, EPOLLIN | EPOLLET);
        w.receive(id);
    }
    w.read_all(0);
    let look = w.look();
    assert!(w.i().settle(&look));
    assert!(w.i().settle(&look));
    assert_eq!(w.walk(8), [(1, EPOLLIN), (2, EPOLLIN)], "a settled edge is still reported");
    assert!(!w.i().settle(&look));
}

#[test]
fn a_full_table_is_told() {
    let mut w = World::new();
    let look = w.look();
    let mut n = 0;
    while w.i().add(&look, Key { fd: n, ..key(n as u32 % 64) }, EPOLLIN, 0).is_ok() {
        n += 1;
    }
    assert_eq!(n, 128);
    assert_eq!(w.i().add(&look, key(64), EPOLLIN, 0), Err(libc::ENOSPC), "no such socket");
}
