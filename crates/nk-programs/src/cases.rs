//! Real programs, one module per program.

mod curl;
mod forking;
mod iperf3;
mod more;
mod names;
mod nginx;
mod python;
mod redis;
mod refused;
mod runtimes;
mod shell;
mod transfer;
mod udp;

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::process::{Running, eventually, tail};
use crate::suite::{ALL_MODES, Body, Group, Test};

pub(crate) fn tests() -> Vec<Test> {
    [
        shell::tests(),
        curl::tests(),
        nginx::tests(),
        redis::tests(),
        python::tests(),
        more::tests(),
        forking::tests(),
        names::tests(),
        iperf3::tests(),
        transfer::tests(),
        runtimes::tests(),
        udp::tests(),
        refused::tests(),
    ]
    .concat()
}

/// Tests of a server and a client, each in turn a guest, then both.
fn both_sides(tests: &[(&'static str, Body)]) -> Vec<Test> {
    let test = |&(name, body)| Test {
        name,
        group: Group::Programs,
        modes: ALL_MODES,
        private: false,
        alone: false,
        native: true,
        body,
    };
    tests.iter().map(test).collect()
}

/// As [`both_sides`], for tests that keep the whole machine busy.
fn loads(tests: &[(&'static str, Body)]) -> Vec<Test> {
    both_sides(tests).into_iter().map(|test| Test { alone: true, ..test }).collect()
}

/// Waits until a program has printed a word that often.
pub(crate) fn says(running: &mut Running, word: &str, times: usize) -> Result<()> {
    eventually(Duration::from_secs(30), || {
        if running.ended_within(Duration::ZERO)? {
            return Ok(());
        }
        let out = running.out();
        ensure!(out.matches(word).count() >= times, "no {word:?}:{}", tail(&out));
        Ok(())
    })?;
    running.must_live()
}

/// Bytes that do not compress, differ from seed to seed, and do not repeat with the size of any buffer on the way.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
