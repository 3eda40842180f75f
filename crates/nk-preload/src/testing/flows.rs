//! Programs in small, over the played host.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::{Duration, Instant};

use super::guest;
use crate::fdtable::{self, Entry};

fn pair() -> (TcpStream, TcpStream, TcpListener) {
    guest();
    let l = TcpListener::bind("127.0.0.1:0").expect("bind");
    let c = TcpStream::connect(l.local_addr().expect("address")).expect("connect");
    let (s, from) = l.accept().expect("accept");
    assert_eq!(from, c.local_addr().expect("address"));
    (c, s, l)
}

fn errno_of<T: std::fmt::Debug>(r: std::io::Result<T>) -> i32 {
    r.expect_err("must fail").raw_os_error().expect("errno")
}

fn id_of(fd: i32) -> u32 {
    match fdtable::get(fd) {
        Entry::Socket { id, .. } => id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn bytes_arrive_whole_and_end_with_eof() {
    let (mut c, mut s, _l) = pair();
    let all: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    let want = all.clone();
    let t = std::thread::spawn(move || {
        c.write_all(&all).expect("write");
        c.shutdown(Shutdown::Write).expect("shutdown");
        let mut back = String::new();
        c.read_to_string(&mut back).expect("read");
        back
    });
    let mut got = Vec::new();
    s.read_to_end(&mut got).expect("read");
    assert!(got == want);
    s.write_all(b"thanks").expect("write");
    drop(s);
    assert_eq!(t.join().expect("join"), "thanks");
}

#[test]
fn descriptors_are_stand_ins_and_counted() {
    let (c, s, l) = pair();
    let id = id_of(c.as_raw_fd());
    let again = c.try_clone().expect("dup");
    assert_eq!((id_of(again.as_raw_fd()), fdtable::holders(id)), (id, 2));
    // SAFETY: plain calls on descriptors of this test.
    unsafe {
        let fd = libc::fcntl(c.as_raw_fd(), libc::F_DUPFD, 1500);
        assert!(fd >= 1500);
        assert_eq!(fdtable::holders(id), 3);
        // Over another socket: that one is gone.
        let other = id_of(s.as_raw_fd());
        assert_eq!(libc::dup2(fd, s.as_raw_fd()), s.as_raw_fd());
        assert_eq!((fdtable::holders(id), fdtable::holders(other)), (4, 0));
        // What escapes interception fails loudly on the stand-in.
        let mut b = [0u8; 1];
        assert_eq!(crate::sys::system_call!(libc::SYS_read, fd, b.as_mut_ptr(), 1usize), -1);
        assert_eq!(libc::close(fd), 0);
    }
    drop((again, s, l));
    assert_eq!(fdtable::holders(id), 1);
    drop(c);
    assert_eq!(fdtable::holders(id), 0);
}

#[test]
fn refused_bound_twice_and_not_connected() {
    guest();
    let l = TcpListener::bind("127.0.0.1:0").expect("bind");
    let a = l.local_addr().expect("address");
    assert_eq!(errno_of(TcpListener::bind(a)), libc::EADDRINUSE);
    drop(l);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(errno_of(TcpStream::connect(a)), libc::ECONNREFUSED);
    // SAFETY: plain calls.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        let s = TcpStream::from_raw_fd(fd);
        assert_eq!(errno_of(s.peer_addr()), libc::ENOTCONN);
        assert_eq!(errno_of(s.shutdown(Shutdown::Both)), libc::ENOTCONN);
        assert_eq!(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 262), -1);
        assert_eq!(*libc::__errno_location(), libc::EPROTONOSUPPORT);
        assert_eq!(libc::socket(libc::AF_INET, 99, 0), -1);
        assert_eq!(*libc::__errno_location(), libc::EINVAL);
    }
}

#[test]
fn flags_of_recv_and_time_limits() {
    let (mut c, s, _l) = pair();
    let fd = s.as_raw_fd();
    let mut b = [0u8; 16];
    let mut recv = |len: usize, flags: i32| -> Result<Vec<u8>, i32> {
        // SAFETY: a local buffer of 16 bytes.
        let n = unsafe { libc::recv(fd, b.as_mut_ptr().cast(), len.min(16), flags) };
        if n < 0 { Err(crate::sys::errno()) } else { Ok(b[..n as usize].to_vec()) }
    };
    assert_eq!(recv(4, libc::MSG_DONTWAIT), Err(libc::EAGAIN));
    c.write_all(b"0123456789").expect("write");
    assert_eq!(recv(4, libc::MSG_PEEK), Ok(b"0123".to_vec()));
    assert_eq!(recv(4, libc::MSG_WAITALL), Ok(b"0123".to_vec()));
    let t = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        c.write_all(b"abcdef").expect("write");
        c
    });
    assert_eq!(recv(12, libc::MSG_WAITALL), Ok(b"456789abcdef".to_vec()));
    let mut c = t.join().expect("join");
    c.write_all(b"xyz").expect("write");
    assert_eq!(recv(1, 0), Ok(b"x".to_vec()));
    // SAFETY: a null buffer with MSG_TRUNC is not touched.
    assert_eq!(unsafe { libc::recv(fd, std::ptr::null_mut(), 1, libc::MSG_TRUNC) }, 1);
    assert_eq!(recv(9, 0), Ok(b"z".to_vec()));
    s.set_read_timeout(Some(Duration::from_millis(40))).expect("timeout");
    assert_eq!(s.read_timeout().expect("timeout"), Some(Duration::from_millis(40)));
    let start = Instant::now();
    assert_eq!(recv(9, 0), Err(libc::EAGAIN));
    assert!(start.elapsed() >= Duration::from_millis(39));
}

#[test]
fn options_local_forwarded_long_and_unknown() {
    let (c, _s, _l) = pair();
    c.set_nodelay(true).expect("nodelay");
    let get = |level, name, len: usize| -> Result<Vec<u8>, i32> {
        let mut b = [0u8; 256];
        let mut n = len as libc::socklen_t;
        // SAFETY: a local buffer.
        let r = unsafe {
            libc::getsockopt(c.as_raw_fd(), level, name, b.as_mut_ptr().cast(), &raw mut n)
        };
        if r < 0 { Err(crate::sys::errno()) } else { Ok(b[..n as usize].to_vec()) }
    };
    assert_eq!(get(libc::SOL_TCP, libc::TCP_NODELAY, 4), Ok(vec![7, 0, 0, 0]));
    let info = get(libc::SOL_TCP, libc::TCP_INFO, 200).expect("info");
    assert_eq!((info.len(), info[96]), (104, 12));
    assert_eq!(get(libc::SOL_TCP, libc::TCP_MAXSEG, 4), Err(libc::EINVAL));
    assert_eq!(get(libc::SOL_SOCKET, libc::SO_TYPE, 4), Ok(vec![1, 0, 0, 0]));
    assert_eq!(get(libc::SOL_SOCKET, 9999, 4), Err(libc::ENOPROTOOPT));
    c.set_nonblocking(true).expect("nonblocking");
    assert_eq!(errno_of((&c).read(&mut [0; 1])), libc::EAGAIN);
}

#[test]
fn poll_sees_what_comes() {
    let (mut c, s, _l) = pair();
    let mut p = libc::pollfd { fd: s.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd.
    assert_eq!(unsafe { libc::poll(&raw mut p, 1, 20) }, 0);
    let t = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        c.write_all(b"x").expect("write");
        c
    });
    // SAFETY: one pollfd.
    assert_eq!(unsafe { libc::poll(&raw mut p, 1, 5000) }, 1);
    assert_eq!(p.revents, libc::POLLIN);
    drop(t.join());
}

#[test]
fn files_and_pipes_move_through_chunks() {
    let (c, mut s, _l) = pair();
    let path = std::env::temp_dir().join(format!("netkernel-{}", std::process::id()));
    let all: Vec<u8> = (0..200_000u32).map(|i| (i % 253) as u8).collect();
    std::fs::write(&path, &all).expect("write");
    let f = std::fs::File::open(&path).expect("open");
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 150_000];
        s.read_exact(&mut got).expect("read");
        (s, got)
    });
    let mut offset: i64 = 1000;
    // SAFETY: plain calls on descriptors of this test.
    unsafe {
        let n = libc::sendfile(c.as_raw_fd(), f.as_raw_fd(), &raw mut offset, 100_000);
        assert_eq!((n, offset), (100_000, 101_000));
        let n = libc::sendfile(c.as_raw_fd(), f.as_raw_fd(), std::ptr::null_mut(), 50_000);
        assert_eq!(n, 50_000);
        assert_eq!(libc::lseek(f.as_raw_fd(), 0, libc::SEEK_CUR), 50_000);
    }
    let (s, got) = reader.join().expect("join");
    assert!(got[..100_000] == all[1000..101_000] && got[100_000..] == all[..50_000]);
    std::fs::remove_file(&path).expect("remove");
    let mut pipe = [0; 2];
    // SAFETY: plain calls on descriptors of this test.
    unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        assert_eq!(libc::write(pipe[1], b"through".as_ptr().cast(), 7), 7);
        let none = std::ptr::null_mut();
        assert_eq!(libc::splice(pipe[0], none, c.as_raw_fd(), none, 100, 0), 7);
        let n = libc::splice(s.as_raw_fd(), none, pipe[1], none, 100, 0);
        assert_eq!(n, 7);
        let mut b = [0u8; 9];
        assert_eq!(libc::read(pipe[0], b.as_mut_ptr().cast(), 9), 7);
        assert_eq!(&b[..7], b"through");
        libc::close(pipe[0]);
        libc::close(pipe[1]);
    }
}

#[test]
fn a_closed_descriptor_leaves_the_blocked_reader_alone() {
    let (mut c, s, _l) = pair();
    let fd = s.as_raw_fd();
    std::mem::forget(s);
    let id = id_of(fd);
    let t = std::thread::spawn(move || {
        let mut b = [0u8; 4];
        // SAFETY: a local buffer.
        let n = unsafe { libc::recv(fd, b.as_mut_ptr().cast(), 4, 0) };
        (n, b)
    });
    std::thread::sleep(Duration::from_millis(40));
    crate::calls::descriptors::close(fd);
    assert_ne!(fdtable::holders(id), 0, "pinned by the reader");
    c.write_all(b"late").expect("write");
    assert_eq!(t.join().expect("join"), (4, *b"late"));
    assert_eq!(fdtable::holders(id), 0);
}

#[test]
fn streams_of_the_c_library_go_through() {
    let (c, mut s, _l) = pair();
    // SAFETY: plain calls; the stream is closed once.
    unsafe {
        let f = libc::fdopen(libc::dup(c.as_raw_fd()), c"r+".as_ptr());
        assert!(!f.is_null());
        assert_eq!(id_of(libc::fileno(f)), id_of(c.as_raw_fd()));
        assert!(libc::fputs(c"line\n".as_ptr(), f) >= 0);
        assert_eq!(libc::fflush(f), 0);
        let mut b = [0u8; 5];
        s.read_exact(&mut b).expect("read");
        assert_eq!(&b, b"line\n");
        assert_eq!(libc::fclose(f), 0);
    }
    assert_eq!(fdtable::holders(id_of(c.as_raw_fd())), 1);
}

#[test]
fn a_refused_socket_connects_at_the_second_try() {
    guest();
    let l = TcpListener::bind("127.0.0.1:0").expect("bind");
    let good = l.local_addr().expect("address").port();
    let connect = |fd: i32, port: u16| {
        let to = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: 0 },
            sin_zero: [0; 8],
        };
        // SAFETY: a local address.
        let r = unsafe { libc::connect(fd, (&raw const to).cast(), 16) };
        if r < 0 { crate::sys::errno() } else { 0 }
    };
    // SAFETY: plain calls.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    assert_eq!(connect(fd, 1), libc::ECONNREFUSED);
    assert_eq!(connect(fd, good), 0);
    assert_eq!(connect(fd, good), libc::EISCONN);
    // SAFETY: the descriptor is this test's own.
    drop(unsafe { TcpStream::from_raw_fd(fd) });
    // SAFETY: plain calls.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0) };
    assert_eq!(connect(fd, good), libc::EINPROGRESS);
    let mut p = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd.
    assert_eq!(unsafe { libc::poll(&raw mut p, 1, 5000) }, 1);
    assert_eq!(p.revents, libc::POLLOUT);
    assert_eq!((connect(fd, good), connect(fd, good)), (0, libc::EISCONN));
    // SAFETY: the descriptor is this test's own.
    drop(unsafe { TcpStream::from_raw_fd(fd) });
}

#[test]
fn a_forked_child_has_the_fork_gate_open_to_its_handlers() {
    crate::gate::close();
    // The forking thread itself passes; another waits until it is open.
    drop(crate::gate::enter());
    let t = std::thread::spawn(|| drop(crate::gate::enter()));
    std::thread::sleep(Duration::from_millis(20));
    assert!(!t.is_finished());
    crate::gate::open();
    t.join().expect("join");
}

#[test]
fn a_thread_blocked_in_recv_can_be_cancelled() {
    let (_c, s, _l) = pair();
    extern "C" fn reader(fd: *mut libc::c_void) -> *mut libc::c_void {
        let mut b = [0u8; 4];
        // SAFETY: a local buffer.
        unsafe { libc::recv(fd as usize as i32, b.as_mut_ptr().cast(), 4, 0) };
        std::ptr::null_mut()
    }
    unsafe extern "C" {
        fn pthread_cancel(t: libc::pthread_t) -> i32;
    }
    crate::next::init();
    // SAFETY: plain calls; the thread's frames hold nothing that needs dropping.
    unsafe {
        let mut t: libc::pthread_t = 0;
        let fd = s.as_raw_fd() as usize as *mut libc::c_void;
        assert_eq!(libc::pthread_create(&raw mut t, std::ptr::null(), reader, fd), 0);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(pthread_cancel(t), 0);
        let mut end = std::ptr::null_mut();
        assert_eq!(libc::pthread_join(t, &raw mut end), 0);
        assert_eq!(end as isize, -1, "PTHREAD_CANCELED");
    }
}
