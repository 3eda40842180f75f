//! Programs into which GuestLib cannot load are refused, with a message, at the start and in children. They must
//! never reach any network, neither the host's nor their own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::process::eventually;
use crate::suite::{GUESTS_ONLY, Group, Test};
use crate::world::{Mode, Side, World};

const LIMIT: Duration = Duration::from_secs(30);

/// Prints `ran` when it runs at all.
const PROGRAM: &str = "#include <stdio.h>\nint main(void) { puts(\"ran\"); return 0; }\n";

pub(super) fn tests() -> Vec<Test> {
    vec![Test {
        name: "static and setuid programs are refused",
        group: Group::Programs,
        modes: GUESTS_ONLY,
        private: false,
        alone: false,
        native: false,
        body: refused,
    }]
}

fn refused(world: &mut World, mode: Mode) -> Result<String> {
    let source = world.write("program.c", PROGRAM)?;
    let (fixed, plain, setuid) = (world.path("static"), world.path("plain"), world.path("setuid"));
    world.run(Side::Plain, &["/usr/bin/gcc", "-static", "-o", &fixed, &source], LIMIT)?;
    world.run(Side::Plain, &["/usr/bin/gcc", "-o", &plain, &source], LIMIT)?;
    ensure!(world.run(mode.client, &[&plain], LIMIT)? == "ran\n", "an ordinary program must run");
    let script = world.write("script", format!("#!{fixed}\n"))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let mut programs = vec![(fixed.clone(), "static"), (script, "its interpreter: it is static")];
    if rustix::process::geteuid().is_root() {
        // Another user's, so that it is set-uid in effect even for root.
        fs::copy(&plain, &setuid)?;
        chown(&setuid, Some(65534), Some(65534))?;
        fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755))?;
        programs.push((setuid, "setuid"));
    }
    for (program, why) in &programs {
        let in_child = format!("{program}; echo status $?");
        let at_start: [&str; 1] = [program];
        let by_shell = ["/bin/sh", "-c", &in_child];
        for words in [&at_start[..], &by_shell[..]] {
            let ended = world.start("refused", mode.client, words)?.finish(LIMIT)?;
            ensure!(!ended.out.contains("ran"), "{why} program ran: {words:?}");
            ensure!(
                !ended.out.contains("status 0"),
                "{why} program pretends to have run: {words:?}"
            );
            let said = ended.err.to_lowercase().replace('-', "");
            ensure!(
                said.contains(why),
                "the message does not say {why:?}: {:?} ({})",
                ended.err,
                ended.how()
            );
        }
    }
    counted(world, mode, &fixed)?;
    if rustix::process::geteuid().is_root() {
        without_rights(world, mode, &plain)?;
    }
    Ok(format!("{} kinds", programs.len()))
}

/// Root of a container that may make no namespaces is told what else there is.
fn without_rights(world: &World, mode: Mode, program: &str) -> Result<()> {
    let mut words =
        ["/usr/bin/setpriv", "--inh-caps=-all", "--bounding-set=-all"].map(str::to_owned).to_vec();
    words.extend(world.prefix(mode.client)?);
    words.push(program.to_owned());
    let ended = world.start("without rights", Side::Plain, &words)?.finish(LIMIT)?;
    ensure!(ended.err.contains("give --share-net"), "{:?} ({})", ended.err, ended.how());
    words.insert(words.len() - 2, "--share-net".to_owned());
    let said = world.run(Side::Plain, &words, LIMIT)?;
    ensure!(said == "ran\n", "with --share-net: {said:?}");
    Ok(())
}

/// `nk why` tells of what a child met that has ended.
fn counted(world: &World, mode: Mode, program: &str) -> Result<()> {
    let line = format!("{program}; echo refused; sleep 20");
    let mut shell = world.start("shell", mode.client, &["/bin/sh", "-c", &line])?;
    super::says(&mut shell, "refused", 1)?;
    eventually(Duration::from_secs(5), || {
        let why = world.control(&["why", &shell.pid().to_string()])?;
        ensure!(why.contains("exec refused") && why.contains("statically linked"), "nk why: {why}");
        Ok(())
    })?;
    shell.stop(Signal::TERM, LIMIT).map(drop)
}
