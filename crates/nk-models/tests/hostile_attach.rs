//! Random acts against the attach server; and what fuzzing found, as ordinary tests.
#![cfg(not(loom))]

use nk_models::attach::run;

#[test]
fn random_messages_end_no_daemon() {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..150 {
        let data: Vec<u8> = (0..400)
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                (x >> 32) as u8
            })
            .collect();
        run(&data);
    }
}
