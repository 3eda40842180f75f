//! A guest that scribbles over its whole device, while another guest's transfers end with the right checksum.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::greedy_echo;
use crate::nginx::Nginx;
use crate::suite::{GUESTS_ONLY, Group, Test};
use crate::world::{Mode, World, free_port};

const SECONDS: u64 = 20;

pub(super) fn tests() -> Vec<Test> {
    vec![Test {
        name: "a guest scribbles over its device",
        group: Group::Safety,
        modes: GUESTS_ONLY,
        private: false,
        alone: true,
        native: false,
        body: hostile,
    }]
}

fn hostile(world: &mut World, mode: Mode) -> Result<String> {
    let program = world.compile("scribbler", include_str!("../../programs/scribbler.c"))?;
    let nginx = Nginx::start(world, mode.server)?;
    let original: Vec<u8> =
        (0..8u32 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(nginx.files(world).join("original"), &original)?;
    let url = format!("{}files/original", nginx.url());
    let seconds = world.scaled(SECONDS);
    let words = [program, free_port()?.to_string(), seconds.to_string()];
    let scribbler = world.start("scribbler", mode.server, &words)?;
    let copy = world.path("copy");
    let mut transfers = 0;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end || transfers == 0 {
        let curl = ["/usr/bin/curl", "-sS", "--fail", "-m", "30", "-o", &copy, &url];
        world.run(mode.client, &curl, Duration::from_secs(40))?;
        ensure!(fs::read(&copy)? == original, "transfer {transfers} brought other bytes");
        transfers += 1;
    }
    let said = scribbler.ok(Duration::from_secs(30))?;
    // And a new guest works afterwards, in both directions.
    let script = world.write("greedy.py", include_str!("../../programs/greedy.py"))?;
    let port = free_port()?;
    let mut server =
        world.start("greedy", mode.server, &["/usr/bin/python3", &script, &port.to_string()])?;
    crate::world::wait_for_port(&mut server, port)?;
    greedy_echo(port)?;
    drop(server);
    nginx.stop()?;
    Ok(format!("{}; {transfers} transfers of {} MiB intact", said.trim(), original.len() >> 20))
}
