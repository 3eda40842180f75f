//! Parts of the host that only a daemon starts, started by hand.

use std::process::{Command, Stdio};

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
