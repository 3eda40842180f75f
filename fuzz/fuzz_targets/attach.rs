//! The daemon's attach server under messages that no honest process sends.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| nk_models::attach::run(data));
