#![no_main]
//! Expressions.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| coxswain_apiserver::fuzzing::evaluate(source));
