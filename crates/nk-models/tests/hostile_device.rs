//! A guest that does anything to its device, with a printed seed; and what fuzzing found, as ordinary tests.
#![cfg(not(loom))]

use nk_models::played::hostile::run;

/// xorshift; the seed is printed on failure by the assertion's message.
fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

#[test]
fn nothing_hostile_is_harmless() {
    run(&[]);
}

#[test]
fn random_acts_harm_nobody_else() {
    let first = std::env::var("NK_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let runs = std::env::var("NK_RUNS").ok().and_then(|s| s.parse().ok()).unwrap_or(300);
    for seed in first..first + runs {
        let data = random(seed, 1500);
        if let Err(e) = std::panic::catch_unwind(|| run(&data)) {
            eprintln!("NK_SEED={seed} NK_RUNS=1 shows it");
            std::panic::resume_unwind(e);
        }
    }
}
