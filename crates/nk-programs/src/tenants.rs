//! Tenants of one host: what each may use, with real programs. Nothing here is timed closely: rates are counted over a window and have
//! wide margins; how well they are kept is `cargo xtask bench isolation`'s to say.

mod crowd;
mod limits;
mod metrics;
mod networks;
mod ownership;

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::suite::{Body, GUESTS_ONLY, Group, Test};
use crate::world::World;

pub(crate) fn tests() -> Vec<Test> {
    [limits::tests(), ownership::tests(), networks::tests(), crowd::tests(), metrics::tests()]
        .concat()
}

fn guests_only(tests: &[(&'static str, Body)]) -> Vec<Test> {
    let test = |&(name, body)| Test {
        name,
        group: Group::Tenants,
        modes: GUESTS_ONLY,
        private: false,
        alone: true,
        native: false,
        body,
    };
    tests.iter().map(test).collect()
}

/// `nk` with words before it (another user's), whatever becomes of it.
fn nk(world: &World, before: &[&str], words: &[&str]) -> Result<Output> {
    let socket = &world.daemon().context("no daemon")?.socket;
    let mut all = before.iter().copied().chain([world.nk()?]);
    let mut command = Command::new(all.next().context("no command")?);
    command.args(all).args(words).arg("--engine").arg(socket);
    command.output().context("nk")
}

/// `nk guest limit`, which must succeed.
fn limit(world: &World, guest: &str, changes: &[&str]) -> Result<()> {
    let output = nk(world, &[], &[&["guest", "limit", guest][..], changes].concat())?;
    ensure!(
        output.status.success(),
        "nk guest limit {changes:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// What `nk guests --json` says of a guest.
fn describe(world: &World, name: &str) -> Result<Value> {
    let guests: Vec<Value> = serde_json::from_str(&world.control(&["guests", "--json"])?)?;
    let found = guests.into_iter().find(|g| g["name"] == name);
    found.with_context(|| format!("there is no guest {name:?}"))
}

fn number(guest: &Value, path: &str) -> Result<u64> {
    let value = guest.pointer(path).and_then(Value::as_u64);
    value.with_context(|| format!("no number {path}: {guest}"))
}
