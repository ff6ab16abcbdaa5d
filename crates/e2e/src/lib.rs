//! End-to-end tests of the binary: `tests/`, and its figures: `examples/figures.rs`. Here is what they share.

pub mod load;
pub mod pods;
