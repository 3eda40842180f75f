//! The simulation of `nk_models::played::simulation` over many seeds. One that fails is printed and can be run alone.
#![cfg(not(loom))]

use std::collections::BTreeMap;

use nk_models::played::faults::FAULTS;
use nk_models::played::simulation::run;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number"))
    })
}

#[test]
fn whatever_dies_no_byte_is_wrong_and_nothing_is_left() {
    let (first, runs) = (number("NK_SEED", 1), number("NK_RUNS", 400));
    let mut all = BTreeMap::new();
    for seed in first..first + runs {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(seen) => seen.into_iter().for_each(|(what, n)| *all.entry(what).or_insert(0) += n),
            Err(e) => {
                eprintln!("NK_SEED={seed} NK_RUNS=1 shows it");
                std::panic::resume_unwind(e);
            }
        }
    }
    eprintln!("{runs} runs saw {all:?}");
    let lacks = FAULTS.iter().find(|f| !all.contains_key(*f));
    assert!(runs < 400 || lacks.is_none(), "no run saw {lacks:?}");
}
