//! The models, as they are.
#![cfg(loom)]

use nk_models::models::{rings, shared, sockets, streams, wakeups};

macro_rules! models {
    ($($module:ident::$name:ident,)*) => {
        $(#[test]
        fn $name() {
            $module::$name();
        })*
    };
}

models! {
    rings::two_producers_wrap_and_full,
    rings::host_producer_wraps,
    rings::grants_go_to_one,
    streams::publishers_help_and_wrap,
    streams::a_killed_publisher_is_finished,
    streams::two_readers_and_reuse,
    streams::appended_bytes_are_taken_once,
    streams::two_append,
    shared::each_takes_its_own,
    shared::a_send_and_the_death_of_its_process,
    shared::what_was_sent_is_named_no_more,
    sockets::handover_is_never_seen_as_unheld,
    sockets::one_of_two_last_holders_closes,
    sockets::the_closer_sees_what_was_sent,
    sockets::each_connection_is_accepted_once,
    sockets::a_killed_acceptor_loses_nothing,
    sockets::a_closing_listener_and_an_acceptor,
    sockets::a_watch_is_not_overwritten,
    sockets::errors_are_told_once,
    wakeups::engine_sleep_and_bell,
    wakeups::idle_service_and_sender,
    wakeups::blocked_reader_and_service,
    wakeups::polling_guest_and_engine,
    wakeups::new_watcher_and_change,
    wakeups::blocked_senders_and_room,
    wakeups::braked_sender_and_service,
    wakeups::stalled_service_and_reader,
}
