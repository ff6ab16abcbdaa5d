//! How many files this process may have open: as many as it can, but what it starts as many as it was given itself, as programs of
//! Go do it. Some programs close, or reserve memory for, every file that they might have.

use std::io;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

static GIVEN: OnceLock<u64> = OnceLock::new();

/// Lets this process open as many files as it may raise itself to; containers do not inherit that.
///
/// # Errors
/// The kernel does not tell or take the limit.
pub fn raise_open_files() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let _ = GIVEN.set(soft);
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// The limit that was given to this process; none where it still holds.
pub(crate) fn given_open_files() -> Option<u64> {
    GIVEN.get().copied()
}

/// Takes a limit that was given to another process, as far as one may.
pub(crate) fn take_open_files(soft: u64) -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)?)
}
