//! What `nk` makes of answers of daemons, and of a daemon that gives none: it hangs, or was killed and its keeper has the socket.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nk_attach::{Fds, Kind, Message};
use nk_host::sys;

const LIMIT: Duration = Duration::from_secs(60);

/// A directory of the test's own, removed at its end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("nk-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).expect("a directory");
        Directory(path)
    }

    /// A listening socket at a path below it; whoever accepts waits.
    fn listen(&self, below: &str) -> (PathBuf, OwnedFd) {
        let path = self.0.join(below);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        let listener = sys::listen_at(&path, 0o600).expect("listen");
        sys::set_blocking(&listener).expect("blocking");
        (path, listener)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn nk(words: &[&str], engine: Option<&Path>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nk"));
    command.args(words).args(engine.map(|_| "--engine")).args(engine);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Takes the next connection, and what is asked on it.
fn accept(listener: &OwnedFd) -> (OwnedFd, Message, Fds) {
    let fd = sys::accept(listener).expect("a connection");
    sys::set_blocking(&fd).expect("blocking");
    let (m, fds, _) = nk_attach::recv(fd.as_raw_fd(), false).expect("a request");
    (fd, m, fds)
}

/// A line of what the child says, unless it is long in coming.
fn line(child: &mut Child) -> (String, BufReader<impl Read + use<>>) {
    let mut reader = BufReader::new(child.stderr.take().expect("stderr"));
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        let _ = tell.send((line, reader));
    });
    let said = told.recv_timeout(LIMIT);
    if said.is_err() {
        child.kill().expect("kill");
        child.wait().expect("its end");
    }
    said.expect("it waits in silence")
}

/// `nk run` at a daemon that makes no guest.
fn run_at(engine: &Path) -> Child {
    let mut command = nk(&["run"], Some(engine));
    // Any library that loads.
    command.env("NK_LIBRARY", "/lib/x86_64-linux-gnu/libm.so.6");
    command.args(["--", "/bin/true"]).spawn().expect("nk run")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn who_waits_for_a_guest_is_told_once_and_served_by_the_next_daemon() {
    let directory = Directory::new("waits");
    let (path, listener) = directory.listen("nk.sock");
    let mut run = run_at(&path);
    let (first, mut rest) = line(&mut run);
    let names_it = first.contains(&path.display().to_string());
    assert!(first.contains("does not answer") && names_it, "{first:?}");
    // One daemon is killed over the request, the next one answers.
    let (_, m, _) = accept(&listener);
    assert_eq!(m.kind, Kind::CreateGuest as u32);
    let (fd, m, netns) = accept(&listener);
    assert_eq!((m.kind, netns.len()), (Kind::CreateGuest as u32, 1));
    let mut refused = Message::new(Kind::CreateGuest).with_text("not today");
    refused.status = libc::EAGAIN;
    nk_attach::send(fd.as_raw_fd(), &refused, &[]).expect("an answer");
    let mut more = String::new();
    rest.read_to_string(&mut more).expect("the rest");
    assert_eq!(more, "nk: the daemon refuses the guest: not today\n");
    assert_eq!(run.wait().expect("its end").code(), Some(125));
}

#[test]
fn who_waits_for_a_guest_is_told_when_nobody_is_to_come() {
    let directory = Directory::new("nobody");
    let (path, listener) = directory.listen("nk.sock");
    let mut run = run_at(&path);
    let (_, mut rest) = line(&mut run);
    drop(listener);
    let mut more = String::new();
    rest.read_to_string(&mut more).expect("the rest");
    assert!(more.starts_with("nk: the daemon at ") && more.contains(" ended"), "{more}");
    assert_eq!(run.wait().expect("its end").code(), Some(125));
}

#[test]
fn a_question_or_order_ends_without_an_answer() {
    let directory = Directory::new("asks");
    let (path, _listener) = directory.listen("nk.sock");
    let words: [&[&str]; 3] = [&["guests"], &["guest", "move", "g", "--to", "n"], &["metrics"]];
    let all = words.map(|words| nk(words, Some(&path)).spawn().expect("nk"));
    for child in all {
        let output = child.wait_with_output().expect("its end");
        let said = said(&output);
        assert_eq!(said.matches("does not answer").count(), 1, "{said}");
        assert!(said.contains("no daemon answers at ") && said.contains("none in 5 s"), "{said}");
        assert_eq!(output.status.code(), Some(1));
    }
}

/// Answers each request, until the test ends: with an errno and why, or with a text.
fn answers(listener: OwnedFd, errno: i32, text: &'static str) {
    std::thread::spawn(move || {
        while let Ok(fd) = sys::accept(&listener) {
            sys::set_blocking(&fd).expect("blocking");
            // Who only looks whether somebody listens asks nothing.
            if nk_attach::recv(fd.as_raw_fd(), false).is_ok() {
                let answer = sys::memfd_with(text.as_bytes()).expect("memfd");
                let mut reply = Message::new(Kind::Query);
                if errno != 0 {
                    reply = reply.with_text(text);
                    reply.status = errno;
                }
                let _ = nk_attach::send(fd.as_raw_fd(), &reply, &[answer.as_raw_fd()]);
            }
        }
    });
}

#[test]
fn a_private_daemon_that_does_not_answer_hides_no_other() {
    let directory = Directory::new("hides");
    let (silent, _listener) = directory.listen("netkernel/a/nk.sock");
    answers(directory.listen("netkernel/b/nk.sock").1, 0, r#"[{"name": "of-\u001bb"}]"#);
    let all = [&["guests"][..], &["metrics"]]
        .map(|words| nk(words, None).env("XDG_RUNTIME_DIR", &directory.0).spawn().expect("nk"));
    for child in all {
        let output = child.wait_with_output().expect("its end");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("of-"), "{text}");
        let at = format!("no daemon answers at {}", silent.display());
        assert!(said(&output).contains(&at), "{}", said(&output));
        assert_eq!(output.status.code(), Some(1), "not all of it");
    }
}

#[test]
fn who_has_the_guest_says_what_is_wrong_with_an_order() {
    let directory = Directory::new("orders");
    // Neither is asked for its guest: they are other users', and have none of this name.
    answers(directory.listen("netkernel/a/nk.sock").1, libc::EPERM, "not yours");
    answers(directory.listen("netkernel/b/nk.sock").1, libc::ESRCH, "no such guest");
    let order = |name: &str| {
        let mut command = nk(&["guest", "move", "g", "--to", name], None);
        said(&command.env("XDG_RUNTIME_DIR", &directory.0).output().expect("nk"))
    };
    let refused = order("nowhere");
    assert!(refused.contains("not yours"), "{refused}");
    answers(directory.listen("netkernel/c/nk.sock").1, libc::ENOENT, "there is no NSM");
    let refused = order("nowhere");
    assert!(refused.contains("netkernel/c/nk.sock: there is no NSM"), "{refused}");
}

/// As root: what other users' private daemons can do to questions and orders of root's.
#[test]
fn daemons_of_other_users_have_little_time_few_rows_and_no_orders() {
    assert!(rustix::process::geteuid().is_root(), "this test is root's");
    let own = Directory::new("own");
    answers(own.listen("netkernel/a/nk.sock").1, 0, r#"[{"name": "of-own"}]"#);
    // Where root looks for them, and not root's own.
    let others = Directory(format!("/tmp/netkernel-of-others-{}", std::process::id()).into());
    std::fs::create_dir(&others.0).expect("a directory");
    let ask = |words: &[&str]| nk(words, None).env("XDG_RUNTIME_DIR", &own.0).output().expect("nk");
    let listed = || {
        let output = ask(&["guests"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("of-own"), "{text}");
        (text, said(&output))
    };

    answers(others.listen("a/nk.sock").1, 0, r#"[{"name": "of-another"}]"#);
    assert!(listed().0.contains("of-another"));
    let moved = ask(&["guest", "move", "nosuch", "--to", "n"]);
    // One's own says yes to everything, here too.
    assert_eq!(moved.status.code(), Some(0), "{}", said(&moved));
    std::fs::remove_dir_all(own.0.join("netkernel")).expect("remove");
    let moved = ask(&["guest", "move", "nosuch", "--to", "n"]);
    assert_eq!(moved.status.code(), Some(1));
    assert!(said(&moved).contains("--engine names another"), "{}", said(&moved));

    answers(own.listen("netkernel/a/nk.sock").1, 0, r#"[{"name": "of-own"}]"#);
    answers(others.listen("b/nk.sock").1, 0, format!("[{}{{}}]", "{},".repeat(1 << 14)).leak());
    let (text, why) = listed();
    assert!(text.lines().count() < 100 && text.contains("of-another"), "{}", text.len());
    assert!(why.contains("b/nk.sock: an odd answer"), "{why}");

    let silent: Vec<_> = (0..6).map(|n| others.listen(&format!("c{n}/nk.sock")).1).collect();
    let why = listed().1;
    assert!(why.contains("c5/nk.sock: no time was left"), "{why}");
    drop(silent);
}
