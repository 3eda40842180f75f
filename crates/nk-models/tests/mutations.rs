//! The models can fail: with the fences, or the orderings, taken out of the code under test, each of these must.
//!
//! The mutation holds for a process, so each model runs in one of its own: this binary, called again.
#![cfg(loom)]

use std::process::Command;

use nk_device::sync::modelled::{Mutation, mutate};
use nk_models::models::{rings, shared, sockets, streams, wakeups};

const MUTATED: &str = "NK_MODEL_MUTATED";

fn must_fail(name: &str, mutation: Mutation, model: fn()) {
    if std::env::var_os(MUTATED).is_some() {
        println!("begins {name}");
        mutate(mutation);
        model();
        return;
    }
    let out = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", name, "--nocapture"])
        .env(MUTATED, "1")
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("run");
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(told.contains(&format!("begins {name}")), "the model did not run: {told}");
    assert!(!out.status.success(), "the model passes with {mutation:?}: it proves nothing");
}

macro_rules! caught {
    ($($mutation:ident: $($module:ident::$name:ident,)*;)*) => {
        $($(#[test]
        fn $name() {
            must_fail(stringify!($name), Mutation::$mutation, $module::$name);
        })*)*
    };
}

caught! {
    // What these do wrong is in the model.
    None:
        streams::reuse_without_looking,
        shared::freed_before_the_head_moves,
    ;
    NoFences:
        wakeups::engine_sleep_and_bell,
        wakeups::idle_service_and_sender,
        wakeups::polling_guest_and_engine,
        wakeups::new_watcher_and_change,
        wakeups::blocked_senders_and_room,
        wakeups::braked_sender_and_service,
        wakeups::stalled_service_and_reader,
    ;
    Relaxed:
        rings::two_producers_wrap_and_full,
        rings::host_producer_wraps,
        rings::grants_go_to_one,
        streams::publishers_help_and_wrap,
        streams::two_readers_and_reuse,
        streams::appended_bytes_are_taken_once,
        shared::what_was_sent_is_named_no_more,
        sockets::handover_is_never_seen_as_unheld,
        sockets::one_of_two_last_holders_closes,
        sockets::the_closer_sees_what_was_sent,
        wakeups::blocked_reader_and_service,
    ;
}
