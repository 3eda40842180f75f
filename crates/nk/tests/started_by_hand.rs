//! A daemon and its parts, started by hand.

use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What they are given they find by its number: where nothing has it they say so, and take nothing else for it.
#[test]
fn a_part_that_was_given_nothing_says_so() {
    for part in ["keeper /nowhere", "resolver"] {
        let script = format!("exec timeout 20 \"$0\" {part} 3<&-");
        let run = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_nk")])
            .stdin(Stdio::null())
            .output()
            .expect("sh");
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.code() == Some(1) && said.contains("descriptor"), "{part}: {said}");
    }
}

/// What ps, top and ss call a process's children.
fn names_of_children(of: &Child) -> Vec<String> {
    let pid = of.id();
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let children = read(format!("/proc/{pid}/task/{pid}/children"));
    let mut names: Vec<String> = children
        .split_whitespace()
        .map(|child| read(format!("/proc/{child}/comm")).trim().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn an_nsm_process_has_a_name() {
    let socket = std::env::temp_dir().join(format!("nk-names-{}", std::process::id()));
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_nk"))
        .args(["daemon", "--nsm", "process", "--socket"])
        .arg(&socket)
        .stderr(Stdio::null())
        .spawn()
        .expect("a daemon");
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut names = Vec::new();
    while names != ["nk-nsm"] && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
        names = names_of_children(&daemon);
    }
    Command::new("kill").args(["-QUIT", &daemon.id().to_string()]).status().expect("kill");
    daemon.wait().expect("its end");
    let _ = std::fs::remove_file(&socket);
    assert_eq!(names, ["nk-nsm"]);
}

/// So that a service manager does not try again.
#[test]
fn a_wrong_configuration_has_a_status_of_its_own() {
    let file = std::env::temp_dir().join(format!("nk-wrong-{}.toml", std::process::id()));
    std::fs::write(&file, "nonsense = 1").expect("a file");
    let mut nk = Command::new(env!("CARGO_BIN_EXE_nk"));
    let run = nk.args(["daemon", "--socket", "/nowhere/nk.sock", "--config"]).arg(&file).output();
    let _ = std::fs::remove_file(&file);
    let run = run.expect("nk");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.code() == Some(78) && said.contains("nonsense"), "{said}");
}

/// As a hostile guest could, for as long as it likes.
#[test]
fn nobody_fills_the_log() {
    let path = |what| std::env::temp_dir().join(format!("nk-log-{what}-{}", std::process::id()));
    let (socket, log) = (path("socket"), path("log"));
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_nk"))
        .args(["daemon", "--socket"])
        .arg(&socket)
        .stderr(std::fs::File::create(&log).expect("a log"))
        .spawn()
        .expect("a daemon");
    let read = || std::fs::read_to_string(&log).expect("the log");
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut odd = 0;
    while !read().contains(" were not written") && Instant::now() < deadline {
        for _ in 0..100 {
            let Ok(connection) = nk_host::sys::connect(&socket) else { continue };
            rustix::io::write(&connection, b"odd").expect("a message");
            // It is refused.
            let _ = nk_attach::recv(connection.as_raw_fd(), false);
            odd += 1;
        }
    }
    Command::new("kill").args(["-QUIT", &daemon.id().to_string()]).status().expect("kill");
    daemon.wait().expect("its end");
    let log_text = read();
    for file in [&socket, &log] {
        let _ = std::fs::remove_file(file);
    }
    let written = log_text.lines().filter(|l| l.contains("another protocol version")).count();
    assert!(written >= 2000 && written < odd, "{written} of {odd}");
    let end: Vec<&str> = log_text.lines().rev().take(3).collect();
    assert!(log_text.contains(" were not written"), "{end:?}");
    assert!(end.iter().any(|l| l.contains("ends, and all")), "other lines are: {end:?}");
}
