//! `cargo xtask options`: docs/socket-options.md, from what conformance/options/probe.c finds natively and as a guest.
//!
//! `cargo xtask test options` finds it anew and fails when the committed table says otherwise.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nk_guestlib::options::{OPTIONS, Policy, lookup};
use nk_programs::world::{Nsm, Options, Side, World};

use crate::packages;
use crate::workspace::{build_release, release, root};

const LIMIT: Duration = Duration::from_secs(90);
/// Steps of a probe's line that are about the value, and those about what is looked at before it.
const EDGES: [(&str, &str); 5] = [
    ("get1", "1 byte of room"),
    ("get0", "no room"),
    ("set1", "1 byte given"),
    ("set0", "none given"),
    ("setnull", "a null pointer"),
];

/// What one run of the probe said about one option or ioctl on one kind of socket: its steps, or why there is no such socket.
type Steps = BTreeMap<String, String>;

/// One option or ioctl, on each kind of socket, in the order of the probe's list.
struct Probed {
    ioctl: bool,
    name: String,
    level: String,
    number: i64,
    level_number: i32,
    sockets: Vec<(String, Steps)>,
}

fn path() -> PathBuf {
    root().join("docs").join("socket-options.md")
}

/// Writes the table.
pub(crate) fn write() -> Result<()> {
    packages::ensure_programs(&[packages::PROGRAMS, packages::FOR_TESTS])?;
    build_release()?;
    fs::write(path(), found()?).with_context(|| path().display().to_string())?;
    println!("wrote {}", path().display());
    Ok(())
}

/// Compares it with what is found now.
pub(crate) fn check() -> Result<()> {
    let committed = fs::read_to_string(path()).with_context(|| path().display().to_string())?;
    let found = found()?;
    let (mut old, mut new): (Vec<&str>, Vec<&str>) =
        (committed.lines().collect(), found.lines().collect());
    let kernel = |lines: &[&str]| {
        lines.iter().find(|line| line.starts_with("Linux ")).copied().map(str::to_owned)
    };
    if kernel(&old) != kernel(&new) {
        // What Linux itself answers changes with it; who answers a guest does not.
        println!(
            "the table is of another kernel ({:?}): only who answers is compared",
            kernel(&old)
        );
        for lines in [&mut old, &mut new] {
            lines.retain(|line| line.starts_with("| "));
            for line in lines.iter_mut() {
                *line = line
                    .match_indices(" | ")
                    .nth(1)
                    .map_or(*line, |(at, _)| line.get(..at).unwrap_or(line));
            }
        }
    }
    let gone = old.iter().filter(|line| !new.contains(line)).map(|line| format!("- {line}"));
    let come = new.iter().filter(|line| !old.contains(line)).map(|line| format!("+ {line}"));
    let differ: Vec<String> = gone.chain(come).collect();
    if !differ.is_empty() {
        bail!(
            "{} is not what the probe finds; `cargo xtask options` writes it:\n{}",
            path().display(),
            differ.join("\n")
        );
    }
    println!(
        "{} rows are as the probe finds them",
        old.iter().filter(|line| line.starts_with("| ")).count()
    );
    Ok(())
}

fn found() -> Result<String> {
    let options = Options { nk: Some(release("nk")?), nsm: Nsm::Inline, ..Options::default() };
    let world = World::new(&options)?;
    let directory = root().join("conformance").join("options");
    let source = directory.join("probe.c").display().to_string();
    let program = world.path("probe");
    let words = ["/usr/bin/gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", &program, &source];
    world.run(Side::Plain, &words, LIMIT)?;
    let native = parse(&world.run(Side::Plain, &[&program], LIMIT)?)?;
    let guest = parse(&world.run(Side::Guest, &[&program], LIMIT)?)?;
    world.close()?;
    let same = native.iter().map(|one| &one.name).eq(guest.iter().map(|one| &one.name));
    ensure!(same, "the guest's probe tried other options than the native one");
    complete(&native)?;
    Ok(table(&native, &guest))
}

fn parse(said: &str) -> Result<Vec<Probed>> {
    let mut all: Vec<Probed> = Vec::new();
    for line in said.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [kind, name, level, level_number, number, socket, steps @ ..] = &fields[..] else {
            bail!("the probe printed {line:?}")
        };
        if all.last().is_none_or(|last| last.name != *name) {
            all.push(Probed {
                ioctl: *kind == "ioctl",
                name: (*name).to_owned(),
                level: (*level).to_owned(),
                number: number.parse()?,
                level_number: level_number.parse()?,
                sockets: Vec::new(),
            });
        }
        let steps = steps.iter().map(|step| {
            let (what, result) = step.split_once(' ').unwrap_or((step, ""));
            (what.to_owned(), result.to_owned())
        });
        if let Some(last) = all.last_mut() {
            last.sockets.push(((*socket).to_owned(), steps.collect()));
        }
    }
    ensure!(all.len() > 200, "the probe ended early: {} options", all.len());
    Ok(all)
}

/// Every option that NetKernel knows is probed, and stands in its table under the number that the headers have for it.
fn complete(probed: &[Probed]) -> Result<()> {
    for option in OPTIONS {
        // Some names stand for an option of either level.
        let found = probed
            .iter()
            .filter(|one| one.name == option.label)
            .max_by_key(|one| one.level_number == option.level);
        let found = found
            .with_context(|| format!("{} is not in conformance/options/list.h", option.label))?;
        ensure!(
            (found.level_number, found.number) == (option.level, i64::from(option.name)),
            "{} is {}, {} in the headers and not {}, {}",
            option.label,
            found.level_number,
            found.number,
            option.level,
            option.name
        );
    }
    Ok(())
}

fn who(one: &Probed) -> &'static str {
    let number = i32::try_from(one.number).unwrap_or(-1);
    match lookup(one.level_number, number).map(|option| option.policy) {
        Some(Policy::Local) => "GuestLib",
        Some(Policy::Forward | Policy::ForwardSync) => "stack",
        Some(Policy::ReadOnly(_)) => "stack, read only",
        Some(Policy::Off(_)) => "off",
        Some(Policy::Refuse(_)) => "refused",
        None => "unknown",
    }
}

/// The sockets of one kind that a guest has, with what both runs said.
fn pairs<'a>(
    native: &'a Probed,
    guest: &'a Probed,
    kind: &'a str,
) -> impl Iterator<Item = (&'a Steps, &'a Steps)> {
    let both = native.sockets.iter().zip(&guest.sockets);
    both.filter(move |((socket, _), (_, steps))| {
        socket.starts_with(kind) && !steps.contains_key("no")
    })
    .map(|((_, native), (_, guest))| (native, guest))
}

/// Both results where they differ, and "as native" where they do not in any state of the socket.
fn cell(native: &Probed, guest: &Probed, kind: &str, steps: &[&str]) -> String {
    let mut differ: Vec<String> = Vec::new();
    let mut same: Vec<&str> = Vec::new();
    for (native, guest) in pairs(native, guest, kind) {
        let set_alike = text(native, "set") == text(guest, "set");
        for step in steps {
            // What is read after it was set natively and not here differs as it has to.
            if !set_alike && ["back", "get1", "get0"].contains(step) {
                continue;
            }
            let (n, g) = (text(native, step), text(guest, step));
            if n == g {
                same.push(plain(n));
                continue;
            }
            let words = match (plain(n), plain(g)) {
                ("ok", "ok") => "another value".to_owned(),
                (n, g) => format!("{g} (native {n})"),
            };
            if !differ.contains(&words) {
                differ.push(words);
            }
        }
    }
    same.sort_unstable();
    same.dedup();
    match (differ.is_empty(), same.is_empty()) {
        (true, true) => "-".to_owned(),
        (true, false) => format!("as native: {}", same.join(", ")),
        (false, true) => differ.join("; "),
        (false, false) => format!("{}; else as native", differ.join("; ")),
    }
}

fn text<'a>(steps: &'a Steps, step: &str) -> &'a str {
    steps.get(step).map_or("", String::as_str)
}

/// `ok` or an errno.
fn plain(result: &str) -> &str {
    let is_errno = result.starts_with('E')
        && result.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    if is_errno { result } else { "ok" }
}

fn edges(native: &Probed, guest: &Probed) -> String {
    let all: Vec<String> = EDGES
        .iter()
        .filter_map(|(step, words)| {
            let found = cell(native, guest, "", &[step]);
            (!found.starts_with("as native") && found != "-").then(|| format!("{words}: {found}"))
        })
        .collect();
    if all.is_empty() { "as native".to_owned() } else { all.join("; ") }
}

fn table(native: &[Probed], guest: &[Probed]) -> String {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let version: Vec<&str> = release.split('.').take(2).collect();
    let both: Vec<(&Probed, &Probed)> = native.iter().zip(guest).collect();
    let datagrams = both.iter().any(|(n, g)| pairs(n, g, "udp").next().is_some());
    let mut out = HEAD.to_owned();
    out += &format!("Linux {} here.", version.join("."));
    out += if datagrams { "\n" } else { " Guests have no UDP sockets yet.\n" };
    let mut level = "";
    for (n, g) in both.iter().filter(|(n, _)| !n.ioctl) {
        if level != n.level {
            level = &n.level;
            out += &format!("\n## {level}\n\n| option | who answers | TCP: get | TCP: set |");
            out += if datagrams { " UDP: get | UDP: set |" } else { "" };
            out += " edges |\n|---|---|---|---|";
            out += if datagrams { "---|---|---|\n" } else { "---|\n" };
        }
        out += &format!("| {} | {} |", n.name, who(n));
        for kind in if datagrams { &["tcp", "udp"][..] } else { &["tcp"] } {
            let (get, set) = (cell(n, g, kind, &["get", "back"]), cell(n, g, kind, &["set"]));
            out += &format!(" {get} | {set} |");
        }
        out += &format!(" {} |\n", edges(n, g));
    }
    out += "\n## ioctl\n\n| request | TCP |";
    out += if datagrams { " UDP |\n|---|---|---|\n" } else { "\n|---|---|\n" };
    for (n, g) in both.iter().filter(|(n, _)| n.ioctl) {
        out += &format!("| {} | {} |", n.name, cell(n, g, "tcp", &["get"]));
        if datagrams {
            out += &format!(" {} |", cell(n, g, "udp", &["get"]));
        }
        out.push('\n');
    }
    out
}

const HEAD: &str = "\
# Socket options and ioctls: what happens to each

Written by `cargo xtask options`, checked by `cargo xtask test options`; not by hand. A [program](../conformance/options/probe.c) tries
every option that the kernel's headers name on fresh, connected and listening sockets of both families, natively (without rights over
the network) and as a guest, and this is the difference. What NetKernel means to do with each stands in
[options.rs](../crates/nk-guestlib/src/options.rs).

| who answers | |
|---|---|
| stack | the NSM's stack: the option is set on, or read from, the socket there |
| stack, read only | the stack is asked for the value; setting gives an errno |
| GuestLib | GuestLib itself: what the option is about happens there |
| off | a switch that is not served: reads 0, may be set to 0, and refuses anything else |
| refused | setting gives an errno, and is counted (`nk why PID`) |
| unknown | ENOPROTOOPT, and counted |

\"As native\" means the same result, value and errno in every state; otherwise the guest's comes first. \"get\" is before setting, and
after it where setting gave the same. \"edges\" are too little room or value, and null pointers. Of an ioctl, a value is compared where
it is a number.

";
