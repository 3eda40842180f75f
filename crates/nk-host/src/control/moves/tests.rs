use super::*;
use crate::guest::Region;
use nk_device::Layout;
use nk_device::sync::AtomicU32;

const GUEST: GuestId = GuestId(1);
const A: NsmId = NsmId(0);
const B: NsmId = NsmId(1);

/// A guest of which the engine does not know, on NSMs that are noted only.
struct Noted {
    engine: Engine,
    place: Place<()>,
    removed: Vec<NsmId>,
    alone: Vec<NsmId>,
    _devices: [Region; 2],
}

struct Silent;

impl Notify for Silent {
    fn doorbell(&mut self, _: GuestId, _: u16) {}
    fn futex_wake(&mut self, _: &AtomicU32, _: u32) {}
    fn nsm_doorbell(&mut self, _: NsmId) {}
    fn guest_idle(&mut self, _: GuestId) {}
}

impl Noted {
    fn new() -> Noted {
        let devices = [A, B].map(|_| Region::new("nsm", Layout::NSM, 0).expect("a device"));
        let mut engine = Engine::new();
        for (nsm, device) in [A, B].into_iter().zip(&devices) {
            engine.add_nsm(nsm, device.device).expect("an NSM");
        }
        let place = Place::new(A);
        Noted { engine, place, removed: Vec::new(), alone: Vec::new(), _devices: devices }
    }
}

impl Host for Noted {
    type Ledger = ();

    fn guests(&self) -> Vec<GuestId> {
        vec![GUEST]
    }
    fn place(&mut self, _: GuestId) -> Option<&mut Place<()>> {
        Some(&mut self.place)
    }
    fn is_up(&self, _: NsmId) -> bool {
        true
    }
    fn engine<R: Send + 'static>(
        &mut self,
        ask: impl FnOnce(&mut Engine, &mut dyn Notify) -> R + Send + 'static,
    ) -> io::Result<R> {
        Ok(ask(&mut self.engine, &mut Silent))
    }
    fn new_ledger(&mut self, _: GuestId) -> io::Result<()> {
        Ok(())
    }
    fn clear_ledger(&mut self, _: GuestId, _: NsmId) {}
    fn add(&mut self, _: NsmId, _: GuestId) -> io::Result<()> {
        Ok(())
    }
    fn remove(&mut self, nsm: NsmId, _: GuestId) -> io::Result<()> {
        self.removed.push(nsm);
        Ok(())
    }
    fn leave(&mut self, _: NsmId, _: GuestId) -> io::Result<Vec<MovedSocket>> {
        Ok(Vec::new())
    }
    fn enter(&mut self, _: NsmId, _: GuestId) -> io::Result<()> {
        Ok(())
    }
    fn give(&mut self, _: NsmId, _: NsmId, _: MovedSocket) -> io::Result<bool> {
        Ok(true)
    }
    fn give_kept(&mut self, _: NsmId, _: NsmId, _: Key, _: u32) -> io::Result<bool> {
        Ok(true)
    }
    fn alone(&mut self, nsm: NsmId, _: GuestId) -> io::Result<()> {
        self.alone.push(nsm);
        Ok(())
    }
    fn give_options(&mut self, _: NsmId, _: GuestId) -> io::Result<()> {
        Ok(())
    }
    fn drop_stale_options(&mut self, _: GuestId) -> io::Result<()> {
        Ok(())
    }
    fn limit(&mut self, _: GuestId) -> io::Result<()> {
        Ok(())
    }
    fn note(&mut self, _: GuestId) {}
}

#[test]
fn a_dead_nsm_has_no_leave_for_guests_that_were_moved_from_it() {
    let mut h = Noted::new();
    h.place.share(());
    h.place.moved(B);
    nsm_died(&mut h, A).expect("nothing fails");
    assert_eq!((&*h.removed, &*h.alone), (&[A][..], &[B][..]));
    assert_eq!((h.place.nsm(), h.place.all(), h.place.ledger()), (B, vec![B], None));
}

#[test]
fn a_dead_nsm_is_to_serve_its_own_guests_again() {
    let mut h = Noted::new();
    nsm_died(&mut h, A).expect("nothing fails");
    h.place.share(());
    h.place.moved(B);
    nsm_died(&mut h, B).expect("nothing fails");
    assert_eq!((h.removed.len(), h.alone.len(), h.place.is_on(A)), (0, 0, true));
}
