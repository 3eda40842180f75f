//! CoreEngine and ServiceLib over a guest's device that changes between, and in the middle of, their polls.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| nk_models::played::hostile::run(data));
