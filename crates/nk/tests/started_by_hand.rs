//! A daemon and its parts, started by hand.

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
