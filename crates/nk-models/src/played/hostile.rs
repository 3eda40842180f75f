//! The hostile guest: any bytes are its acts.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use nk_device::datagram::{ALIGN, DF_PEER, DF_REPORT, Header};
use nk_device::nqe::{Nqe, Op};
use nk_device::stream::Span;
use nk_device::sync::Ordering;
use nk_device::{Addr, Device, Layout};
use nk_engine::{Engine, GuestId, NewRow};
use nk_servicelib::{Key, Service};

use super::region::Region;
use super::shell::Shell;
use super::stack::MemoryStack;
use super::world::{Bells, NSM, World, datagrams, transfer};

/// So small that it is used up often.
const LAYOUT: Layout = Layout { rows: 4, qsets: 6, cells: 200, chunks: 200 };
const HOSTILE: GuestId = GuestId(1);
const HONEST: GuestId = GuestId(2);
/// Acts of one run at most.
const ACTS_MAX: usize = 400;

/// Reads acts from bytes; zeros when they are used up.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn u8(&mut self) -> u8 {
        match self.0.split_first() {
            Some((b, rest)) => {
                self.0 = rest;
                *b
            }
            None => 0,
        }
    }
    fn u16(&mut self) -> u16 {
        u16::from(self.u8()) | u16::from(self.u8()) << 8
    }
    fn u64(&mut self) -> u64 {
        (0..4).fold(0, |w, _| w << 16 | u64::from(self.u16()))
    }
    /// Values that break things are few; any word is rarely one of them.
    fn value(&mut self, old: u64) -> u64 {
        match self.u8() % 8 {
            0 => self.u64(),
            1 => u64::MAX,
            2 => 0,
            3 => old.wrapping_add(1),
            4 => old.wrapping_sub(1),
            5 => old ^ 1 << (self.u8() % 64),
            6 => u64::from(self.u16()),
            _ => u64::from(self.u8()) << 32 | u64::from(self.u8()),
        }
    }
}

/// Runs the hostile guest's acts, then the honest guest's transfer.
///
/// # Panics
/// When the host does what it must not.
pub fn run(data: &[u8]) {
    let hostile = Region::new(LAYOUT, HOSTILE.0);
    let honest = Region::new(LAYOUT, HONEST.0);
    let nsm = Region::new(Layout::NSM, 0);
    let hostile = Rc::new(hostile);
    let armed: Rc<RefCell<VecDeque<(usize, u64)>>> = Rc::default();
    let meanwhile: Rc<RefCell<dyn FnMut()>> = {
        let (hostile, armed) = (Rc::clone(&hostile), Rc::clone(&armed));
        Rc::new(RefCell::new(move || {
            if let Some((word, value)) = armed.borrow_mut().pop_front() {
                hostile.scribble(word, value);
            }
        }))
    };
    let mut engine = Engine::new();
    engine.add_nsm(NSM, nsm.device).expect("nsm");
    let stack = MemoryStack::new(Some(Rc::clone(&meanwhile)));
    let service = Service::new(stack, nsm.device);
    let mut w = World { engine, services: vec![service], bells: Bells::new(meanwhile), now_ms: 1 };
    let mut shells = vec![w.add_guest(&hostile, HOSTILE)];
    let good = w.add_guest(&honest, HONEST);
    w.settle();
    let mut bytes = Bytes(data);
    for _ in 0..ACTS_MAX {
        if bytes.0.is_empty() {
            break;
        }
        act(&mut w, &mut bytes, &hostile, &armed, &mut shells);
    }
    w.settle();
    w.assert_chunks(HOSTILE, LAYOUT.chunks);
    w.assert_chunks(HONEST, LAYOUT.chunks);
    armed.borrow_mut().clear();
    w.services[0].stack_mut().net.borrow_mut().faults.next.clear();
    transfer(&mut w, &good, HONEST, 40_000);
    datagrams(&mut w, &good, HONEST);
    w.services[0].remove_guest(HOSTILE.0);
    w.engine.remove_guest(HOSTILE).expect("known");
    transfer(&mut w, &good, HONEST, 5_000);
    datagrams(&mut w, &good, HONEST);
    w.assert_chunks(HONEST, LAYOUT.chunks);
}

/// The word of the device that an act aims at: any, but mostly those that the host reads.
fn aim(bytes: &mut Bytes<'_>, device: &Device) -> usize {
    let base = device.base().as_ptr() as usize;
    let word = |at: usize| (at - base) / 8;
    let n = usize::from(bytes.u8());
    match bytes.u8() % 7 {
        0 => n,
        1 => {
            device.row((n % 4) as u16).map_or(0, |r| word(core::ptr::from_ref(r) as usize))
                + usize::from(bytes.u16()) % 512
        }
        2 => {
            device.qset((n % 6) as u16).map_or(0, |q| word(core::ptr::from_ref(q) as usize))
                + usize::from(bytes.u8()) % 24
        }
        3 => {
            device.qset((n % 6) as u16).map_or(0, |q| word(core::ptr::from_ref(q) as usize))
                + usize::from(bytes.u16())
        }
        4 => {
            device.cell((n % 24) as u32).map_or(0, |c| word(core::ptr::from_ref(c) as usize))
                + usize::from(bytes.u8()) % 128
        }
        5 => {
            device.chunk(n as u32).map_or(0, |c| word(c.as_ptr() as usize))
                + usize::from(bytes.u8())
        }
        _ => usize::from(bytes.u16()) << 8 | n,
    }
}

fn act(
    w: &mut World,
    bytes: &mut Bytes<'_>,
    hostile: &Region,
    armed: &RefCell<VecDeque<(usize, u64)>>,
    shells: &mut Vec<Shell>,
) {
    let which = bytes.u8();
    let shell = shells[usize::from(which >> 5) % shells.len()].clone();
    let id = u32::from(bytes.u8()) % 24;
    match which % 28 {
        0 | 1 => {
            let word = aim(bytes, &hostile.device);
            hostile.scribble(word, bytes.value(hostile.peek(word)));
        }
        2 => {
            for _ in 0..bytes.u8() % 8 {
                let word = aim(bytes, &hostile.device);
                armed.borrow_mut().push_back((word, bytes.value(hostile.peek(word))));
            }
        }
        3 => {
            let words = [bytes.u64(), bytes.u64(), bytes.u64(), bytes.u64()];
            shell.push(&Nqe::from_words(words), bytes.u8() & 1 != 0);
        }
        4 | 5 => {
            let op = Op::from_u8(bytes.u8() % 14).unwrap_or(Op::Close);
            let (ticket, size, data) = (bytes.u8() % 64, bytes.u16(), bytes.value(0));
            shell.job(op, id, |n| {
                (n.ticket, n.size, n.op_data, n.data) = (ticket, u32::from(size), data, data >> 7);
            });
        }
        6 | 7 => w.poll_engine(),
        8 | 9 => w.poll_service(),
        10 => {
            let _ = shell.open();
        }
        11 => shell.address(Op::Bind, id, 80 + u16::from(bytes.u8() % 3)),
        12 => shell.job(Op::Listen, id, |n| n.op_data = 4),
        13 => shell.address(Op::Connect, id, 80 + u16::from(bytes.u8() % 3)),
        14 => {
            let _ = shell.accept(id);
        }
        15 => {
            let _ = shell.send(id, 0, usize::from(bytes.u16()));
        }
        16 => {
            let _ = shell.recv(id, 0, usize::from(bytes.u16()), false);
        }
        17 => shell.close(id),
        18 => {
            if let Some(s) = shell.socket(id) {
                let (chunk, offset, len) = (bytes.u8(), bytes.u16(), bytes.u16());
                let span = Span { chunk: chunk.into(), offset: offset.into(), len: len.into() };
                let _ = s.cell.tx().publish(span.to_payload());
                shell.job(Op::Send, id, |_| ());
            }
        }
        19 => match bytes.u8() % 3 {
            0 => {
                if let Ok(NewRow { row, qset }) = w.engine.add_row(HOSTILE, 7) {
                    shells.push(Shell::new(shell.device, row, qset));
                }
            }
            1 if shells.len() > 1 => {
                shells.retain(|s| s.row != shell.row);
                if shells.is_empty() {
                    shells.push(shell);
                } else {
                    let _ = w.engine.row_dead(HOSTILE, shell.row, &mut w.bells);
                }
            }
            _ => {
                if let Ok(qset) = w.engine.row_exec_kept(HOSTILE, shell.row, &mut w.bells) {
                    for s in shells.iter_mut().filter(|s| s.row == shell.row) {
                        s.qset = qset;
                    }
                }
            }
        },
        20 => {
            if bytes.u8() & 1 == 0 {
                if let Ok(qset) = w.engine.add_qset(HOSTILE, shell.row) {
                    shells.push(Shell { qset, ..shell });
                }
            } else {
                let q = u16::from(bytes.u8());
                if shells.iter().filter(|s| s.row == shell.row).count() > 1
                    && w.engine.drop_qset(HOSTILE, shell.row, q, &mut w.bells).is_ok()
                {
                    shells.retain(|s| s.qset != q);
                }
            }
        }
        21 => {
            let generation = bytes.u16();
            let generation = if generation & 1 == 0 {
                hostile.device.cell(id).map_or(0, |c| c.generation.load(Ordering::Relaxed) as u16)
            } else {
                generation
            };
            if bytes.u8() & 1 == 0 {
                let _ = w.engine.hold(HOSTILE, id, generation, &mut w.bells);
            } else {
                let _ = w.engine.unhold(HOSTILE, id, generation, &mut w.bells);
            }
        }
        22 => w.now_ms += u64::from(bytes.u16()),
        23 => {
            let _ = shell.open_datagram();
        }
        24 => {
            let header = hostile_header(bytes);
            let len = usize::from(bytes.u16());
            if let Some(index) = shell.send_datagram(id, 0, len, header) {
                shell.job(Op::Report, id, |n| (n.ticket, n.op_data) = (9, index.into()));
            }
        }
        25 => {
            // A header that lies, in a chunk that may be leased or not.
            if let Some(s) = shell.socket(id) {
                let leased = hostile.device.row(shell.row).and_then(|r| r.chunk_grants.pop());
                let chunk = leased.unwrap_or(u32::from(bytes.u8()));
                let span = lying_datagrams(bytes, &hostile.device, chunk);
                let _ = s.cell.tx().publish(span.to_payload());
                shell.job(Op::Send, id, |_| ());
            }
        }
        26 => {
            let _ = shell.recv_datagram(id, 0, usize::from(bytes.u16()), false);
        }
        _ => {
            let stack = w.services[0].stack_mut();
            match bytes.u8() % 3 {
                0 => {
                    let errno = [0, libc::EAGAIN, libc::ENOMEM, libc::EPIPE, libc::ECONNRESET];
                    stack
                        .net
                        .borrow_mut()
                        .faults
                        .next
                        .push_back(errno[usize::from(bytes.u8()) % errno.len()]);
                }
                1 => stack.net.borrow_mut().reset(usize::from(bytes.u8())),
                _ => {
                    let key =
                        Key { guest: HOSTILE.0, socket: id, generation: u16::from(bytes.u8()) };
                    stack.tell(key, bytes.u8());
                }
            }
        }
    }
}

/// Datagrams in a chunk, one at least, as a hostile guest might pack them: lengths that reach into the next header, past the span or the chunk, headers
/// beside the places where they belong, spans that end anywhere or begin behind some.
fn lying_datagrams(bytes: &mut Bytes<'_>, device: &Device, chunk: u32) -> Span {
    let (n, lies) = (bytes.u8() % 8, bytes.u8());
    let (mut at, mut end) = (0, 0);
    for i in 0..n.max(1) {
        let mut header = hostile_header(bytes);
        if n > 1 && i != lies % 16 {
            header.len %= 400;
        }
        let span = Header::span_for(chunk, header.len as usize);
        device.put_header(Span { offset: at, ..span }, &header);
        end = at + span.len;
        at = end.next_multiple_of(ALIGN as u32) + if i == lies / 16 { ALIGN as u32 } else { 0 };
    }
    let offset = u32::from(bytes.u8() % 8 / 7) * 192;
    let len = end.saturating_sub(offset).wrapping_add(u32::from(bytes.u8() % 2));
    Span { chunk, offset, len }
}

/// A header as a hostile guest might write it.
fn hostile_header(bytes: &mut Bytes<'_>) -> Header {
    let flags = u32::from(bytes.u8()) | DF_PEER | if bytes.u8() & 1 == 0 { DF_REPORT } else { 0 };
    let chunk = |bytes: &mut Bytes<'_>| {
        let old = bytes.u8();
        bytes.value(old.into()) as u32
    };
    Header {
        len: u32::from(bytes.u16()) + u32::from(bytes.u8() % 3),
        flags,
        peer: Addr::v4([127, 0, 0, 1], 80 + u16::from(bytes.u8() % 3)),
        more: [chunk(bytes), u32::from(bytes.u8())],
        ..Header::default()
    }
}
