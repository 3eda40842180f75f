//! Processes that ask a daemon for their row, and it dies before it answers.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cases::says;
use crate::suite::{GUESTS_ONLY, Group, Test};
use crate::world::{Mode, Side, World};

const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn tests() -> Vec<Test> {
    let test = Test::alone(Group::Safety, GUESTS_ONLY);
    vec![test("a process whose daemon dies while it attaches asks the next one", asks_again)]
}

fn asks_again(world: &mut World, _: Mode) -> Result<String> {
    let script = world.write("dying_daemon.py", include_str!("../../programs/dying_daemon.py"))?;
    let socket = world.path("dying");
    let mut daemon =
        world.start("dying daemon", Side::Plain, &["/usr/bin/python3", &script, &socket])?;
    says(&mut daemon, "listens", 1)?;
    let library = Path::new(world.nk()?).with_file_name("libnetkernel.so");
    let library = library.to_str().context("the path of GuestLib is not UTF-8")?;
    let words = [
        "/usr/bin/env",
        &format!("LD_PRELOAD={library}"),
        &format!("NK_SOCKET={socket}"),
        &format!("NK_TOKEN={}", "7".repeat(32)),
        "/bin/true",
    ];
    let ended = world.start("asker", Side::Plain, &words)?.finish(LIMIT)?;
    ensure!(ended.err.contains("it was asked again"), "{}: {}", ended.how(), ended.err);
    daemon.finish(LIMIT)?;
    Ok("over another connection, and over the one that was kept".to_owned())
}
