//! The shim as a program of its own, for this crate's tests; `cox shim` is the real one.

use std::process::ExitCode;

fn main() -> ExitCode {
    coxswain_runtime::shim_main(std::env::args_os().skip(1))
}
