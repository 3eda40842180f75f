//! `nk-vmtest core` builds the core for a bare target; `nk-vmtest vm NK [inline|process]` boots the VM test
//! with the daemon `NK` and its NSM there.

use std::path::Path;
use std::process::ExitCode;

use nk_vmtest::{Paths, Result};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let paths = Paths::default();
    let done = match words.as_slice() {
        ["core"] => nk_vmtest::build_core_none(&paths.root, &paths.out).map(|()| {
            println!("nk-device and nk-guestlib build for x86_64-unknown-none");
        }),
        ["vm", nk] => vm(&paths, nk.as_ref(), "inline"),
        ["vm", nk, nsm @ ("inline" | "process")] => vm(&paths, nk.as_ref(), nsm),
        _ => {
            eprintln!("usage: nk-vmtest core | nk-vmtest vm PATH-OF-NK [inline|process]");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("nk-vmtest: {e}");
            ExitCode::FAILURE
        }
    }
}

fn vm(paths: &Paths, nk: &Path, nsm: &str) -> Result<()> {
    let report = nk_vmtest::run(paths, nk, nsm)?;
    for (name, detail) in &report.results {
        println!("{name:20} {detail}");
    }
    println!(
        "the VM ran {:.1} s; the echo server saw {} connections and {} bytes",
        report.took.as_secs_f64(),
        report.connections,
        report.bytes
    );
    Ok(())
}
