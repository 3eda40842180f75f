use super::*;
use std::fs::File;
use std::os::fd::AsRawFd;

#[test]
fn a_number_that_another_thread_took_is_left_to_it() {
    let p = crate::testing::guest();
    let _changing = gate::enter();
    let id = crate::grants::take_id(p).expect("an id");
    let generation = p.cell(id).expect("cell").generation.load(Ordering::Acquire) as u16;
    let fd = share(libc::SOCK_CLOEXEC).expect("a stand-in");
    enter_shared(p, fd, id, generation);
    let mut others = None;
    let made = make_in_place(p, fd, (id, generation), || {
        let file = File::open("/dev/null").expect("null");
        // SAFETY: no memory is involved.
        let r = unsafe { sys::system_call!(libc::SYS_dup3, file.as_raw_fd(), fd, 0) };
        assert!(r >= 0 || file.as_raw_fd() == fd);
        others = Some(file);
        make(id, generation, libc::SOCK_CLOEXEC)
    });
    assert_eq!(made, Err(libc::EMFILE));
    assert_eq!(fdtable::get(fd), fdtable::Entry::None);
    assert_eq!((fdtable::holders(id), read_tag(fd)), (0, None));
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).expect("open");
    assert_eq!(link.to_str(), Some("/dev/null"), "the other thread's file");
    if others.is_some_and(|file| file.as_raw_fd() != fd) {
        sys::close(fd);
    }
}
