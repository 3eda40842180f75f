//! `cargo xtask test`: steps with names, each timed; a failing step fails the run, but later steps still run.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, bail};
use nk_programs::world::{Nsm, Options, Side, World};

use crate::workspace::{build_release, cargo, release, root, run as run_command, target};
use crate::{edges, options, packages};

/// One step.
struct Step {
    name: &'static str,
    about: &'static str,
    body: fn() -> Result<()>,
}

const STEPS: &[Step] = &[
    Step { name: "fmt", about: "formatting", body: fmt },
    Step {
        name: "edges",
        about: "dependency direction, and where unsafe code may be",
        body: edges::check,
    },
    Step { name: "clippy", about: "lints, all targets", body: clippy },
    Step { name: "docs", about: "rustdoc without warnings", body: docs },
    Step { name: "unit", about: "unit and property tests of all crates", body: unit },
    Step { name: "core", about: "GuestLib's core for x86_64-unknown-none", body: core },
    Step { name: "loom", about: "models of rings and wake-ups", body: loom },
    Step { name: "fuzz", about: "10 s of each fuzz target", body: fuzz },
    Step {
        name: "conformance",
        about: "small programs, natively and as guests",
        body: conformance,
    },
    Step {
        name: "conformance-nsm",
        about: "the same with the NSM in a process",
        body: conformance_nsm,
    },
    Step { name: "conformance-epoll", about: "the same without io_uring", body: conformance_epoll },
    Step {
        name: "options",
        about: "every socket option and ioctl, natively and as a guest",
        body: options::check,
    },
    Step {
        name: "programs",
        about: "nginx, redis, curl, python3, node, java, git, rsync, iperf3, shells and more",
        body: programs,
    },
    Step {
        name: "programs-nsm",
        about: "the same with the NSM in a process, where both ends are guests",
        body: programs_nsm,
    },
    Step {
        name: "programs-epoll",
        about: "loads of nginx and redis, without io_uring",
        body: programs_epoll,
    },
    Step {
        name: "tenants",
        about: "limits per guest, who may run which, and where it may listen",
        body: tenants,
    },
    Step { name: "safety", about: "churn, kills, restarts, hostile guests", body: safety },
    Step {
        name: "safety-nsm",
        about: "the same, shorter, with the NSM in a process",
        body: safety_nsm,
    },
    Step { name: "nsms", about: "several NSMs at once, and their guests", body: nsms },
    Step { name: "vm", about: "a stock kernel without a NIC", body: vm },
];

/// Runs all steps, or those named. Whether all passed.
pub(crate) fn run(words: &[String]) -> Result<bool> {
    if words.iter().any(|word| word == "--list") {
        for step in STEPS {
            println!("{:<16} {}", step.name, step.about);
        }
        return Ok(true);
    }
    for word in words {
        if !STEPS.iter().any(|step| step.name == word) {
            bail!("there is no step {word:?}: see `cargo xtask test --list`");
        }
    }
    let chosen: Vec<&Step> = STEPS
        .iter()
        .filter(|step| words.is_empty() || words.iter().any(|word| word == step.name))
        .collect();
    // What all steps stand on; without it there is nothing to run.
    packages::ensure_programs(&[packages::PROGRAMS, packages::FOR_TESTS])?;
    packages::ensure_python()?;
    packages::ensure_rust(&["rustfmt", "clippy"], &["x86_64-unknown-none"])?;
    let begun = Instant::now();
    let mut report = Vec::new();
    if chosen.iter().any(|step| step.needs_build()) {
        // A failed build is a failed step; the steps that need no guests still run.
        report.push(Report::of("build", build_release));
    }
    report.extend(chosen.iter().map(|step| Report::of(step.name, step.body)));
    summary(&report, begun);
    Ok(report.iter().all(|step| step.passed))
}

impl Step {
    fn needs_build(&self) -> bool {
        !["fmt", "edges", "clippy", "docs", "unit", "core", "loom", "fuzz"].contains(&self.name)
    }
}

/// How a step ended.
struct Report {
    name: &'static str,
    seconds: f64,
    passed: bool,
}

impl Report {
    fn of(name: &'static str, body: fn() -> Result<()>) -> Self {
        println!("== {name}");
        let begun = Instant::now();
        let result = body();
        let seconds = begun.elapsed().as_secs_f64();
        match &result {
            Ok(()) => println!("ok {name} ({seconds:.1} s)"),
            Err(error) => println!("FAILED {name} ({seconds:.1} s): {error:#}"),
        }
        Report { name, seconds, passed: result.is_ok() }
    }
}

fn summary(report: &[Report], begun: Instant) {
    println!("== summary");
    for step in report {
        let verdict = if step.passed { "ok" } else { "FAILED" };
        println!("{verdict:<7} {:<16} {:>7.1} s", step.name, step.seconds);
    }
    let passed = report.iter().filter(|step| step.passed).count();
    println!("{:<24} {:>7.1} s", "in all", begun.elapsed().as_secs_f64());
    println!("{passed} passed, {} failed", report.len() - passed);
}

fn fmt() -> Result<()> {
    run_command(&mut cargo(&["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    run_command(&mut cargo(&[
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

fn docs() -> Result<()> {
    let words = ["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"];
    run_command(cargo(&words).env("RUSTDOCFLAGS", "-D warnings"))
}

fn unit() -> Result<()> {
    run_command(&mut cargo(&["test", "--quiet", "--workspace", "--no-fail-fast"]))
}

fn core() -> Result<()> {
    let words = [
        "build",
        "--quiet",
        "--release",
        "-p",
        "nk-device",
        "-p",
        "nk-guestlib",
        "--target",
        "x86_64-unknown-none",
    ];
    run_command(&mut cargo(&words))
}

/// Built apart: the flag changes every crate.
fn loom() -> Result<()> {
    let directory = target()?.join("loom").display().to_string();
    let words = ["test", "--quiet", "--release", "-p", "nk-models", "--target-dir", &directory];
    run_command(cargo(&words).env("RUSTFLAGS", "--cfg loom"))
}

/// The targets need a sanitizer, which only a nightly compiler or one told to behave like it has.
fn fuzz() -> Result<()> {
    let (tools, build) = (target()?.join("tools"), target()?.join("fuzz").display().to_string());
    let program = tools.join("bin").join("cargo-fuzz");
    if !program.exists() {
        let tools = tools.display().to_string();
        let words = [
            "install",
            "--quiet",
            "--locked",
            "--version",
            "^0.13",
            "--root",
            &tools,
            "cargo-fuzz",
        ];
        run_command(&mut cargo(&words))?;
    }
    let fuzz = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("fuzz").args(words).current_dir(root()).env("RUSTC_BOOTSTRAP", "1");
        command
    };
    run_command(&mut fuzz(&["build", "--target-dir", &build]))?;
    // Two at a time: each is one thread.
    for pair in FUZZ_TARGETS.chunks(2) {
        let running: Vec<_> = pair
            .iter()
            .map(|(name, len_max)| {
                let mut command = fuzz(&["run", "--target-dir", &build, name, "--"]);
                command.args(["-max_total_time=10", "-rss_limit_mb=4096", "-print_final_stats=1"]);
                command.arg(format!("-max_len={len_max}"));
                command.stdout(Stdio::null()).stderr(Stdio::piped());
                Ok((name, command.spawn()?))
            })
            .collect::<Result<_>>()?;
        let ended: Vec<_> =
            running.into_iter().map(|(name, child)| (name, child.wait_with_output())).collect();
        for (name, output) in ended {
            let output = output?;
            let said = String::from_utf8_lossy(&output.stderr);
            if !output.status.success() {
                bail!("{name}: {}\n{said}", output.status);
            }
            let runs =
                said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
            let Some(runs) = runs.map(str::trim).filter(|runs| *runs != "0") else {
                bail!("{name} ran no input:\n{said}");
            };
            println!("{name}: {runs} inputs");
        }
    }
    Ok(())
}

/// Names in fuzz/Cargo.toml, and how long an input may be: see fuzz/README.md.
const FUZZ_TARGETS: [(&str, u32); 4] =
    [("nqe", 32), ("device", 2048), ("attach", 512), ("names", 4096)];

fn conformance() -> Result<()> {
    conformance_by(Nsm::Inline, "io_uring")
}

fn conformance_nsm() -> Result<()> {
    conformance_by(Nsm::Separate, "io_uring")
}

fn conformance_epoll() -> Result<()> {
    conformance_by(Nsm::Inline, "epoll")
}

/// The runner is given the words that make a guest: those of a world with a daemon of its own.
fn conformance_by(nsm: Nsm, io: &str) -> Result<()> {
    let io = Some(io.to_owned());
    let options = Options { nk: Some(release("nk")?), nsm, io, ..Options::default() };
    let world = World::new(&options)?;
    let prefix = world.prefix(Side::Guest)?.join(" ");
    let build = target()?.join("conformance");
    let mut runner = Command::new(release("nk-conformance")?);
    runner.current_dir(root()).arg("--guest").arg(prefix).arg("--build-dir").arg(build);
    run_command(&mut runner)?;
    world.close()
}

fn programs() -> Result<()> {
    programs_by(&["--group", "programs", "--jobs", JOBS])
}

/// Real programs mostly wait: for each other, for servers to start, for the end of a guest. Those that keep the machine busy run
/// alone all the same.
const JOBS: &str = "4";

fn programs_nsm() -> Result<()> {
    programs_by(&[
        "--group",
        "programs",
        "--nsm",
        "separate",
        "--filter",
        "(both guests)",
        "--jobs",
        JOBS,
    ])
}

fn programs_epoll() -> Result<()> {
    for program in ["nginx under", "redis-benchmark"] {
        programs_by(&["--group", "programs", "--filter", program, "--io", "epoll"])?;
    }
    Ok(())
}

fn tenants() -> Result<()> {
    programs_by(&["--group", "tenants"])?;
    programs_by(&["--group", "tenants", "--nsm", "separate"])
}

fn safety() -> Result<()> {
    // Each part is killed so often; by hand a hundred times, where nothing is said.
    programs_by(&["--group", "safety", "--kills", "30"])
}

fn safety_nsm() -> Result<()> {
    programs_by(&["--group", "safety", "--nsm", "separate", "--quick"])
}

fn nsms() -> Result<()> {
    programs_by(&["--group", "nsms"])
}

fn programs_by(words: &[&str]) -> Result<()> {
    let mut runner = Command::new(release("nk-programs")?);
    run_command(runner.current_dir(root()).arg("--nk").arg(release("nk")?).args(words))
}

fn vm() -> Result<()> {
    run_command(
        Command::new(release("nk-vmtest")?).current_dir(root()).arg("vm").arg(release("nk")?),
    )
}
