//! What a run has met. What a few hundred runs never meet is no more played.

use std::collections::BTreeMap;

/// How often what was seen.
pub type Seen = BTreeMap<&'static str, u64>;

/// What must be seen in a few hundred runs, or a fault is no more played.
pub const FAULTS: &[&str] = &[
    "reload",
    "reload of NSMs",
    "reload refused",
    "next daemon without an NSM",
    "a guest followed its list",
    "a guest moved on to its next NSM",
    "a guest did not wait for an NSM that rests",
    "the daemon ended in the middle of something",
    "the daemon ended while it took over",
    "the daemon ended while the next keeper was told",
    "the keeper ended under a daemon",
    "the keeper ended in the middle of something",
    "the next keeper ended while it was told",
    "the next keeper has everything",
    "the keeper ended without a daemon",
    "daemon and keeper were gone",
    "the keeper had nobody left",
    "no daemon was to follow",
    "an NSM ended without a daemon",
    "a process ended without a daemon",
    "a guest waited for the next daemon",
    "a guest lost its connections with the daemon",
    "a process attached",
    "an end was heard of because somebody asked",
    "a process exec'ed",
    "a process exec'ed and the daemon ended",
    "a process ended in its exec",
    "a process forked",
    "a fork failed",
    "a child ended before its hello",
    "somebody ended in the middle of asking",
    "the next daemon was asked again",
    "a row that the last daemon gave was given",
    "refused: no row left",
    "refused: attached already",
    "refused: another user",
    "refused: no such guest",
    "refused: no doorbell",
    "refused: no descriptor left",
    "a queue set came and went",
    "a socket travelled",
    "a guest ended with its last process",
];
