//! A terminal's master as an async stream.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

use super::session::Size;
use crate::shim::{resize, set_nonblocking};

/// The master of a terminal.
pub(super) struct Terminal(AsyncFd<File>);

impl Terminal {
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&master)?;
        // SAFETY: the file owns its descriptor and is never replaced, so it stays the one registered.
        Ok(Self(unsafe { AsyncFd::register(File::from(master)) }?))
    }

    /// Reads what is there; 0 once nobody has the terminal open any more.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|file| file.get_ref().read(buffer)) {
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(outcome) => return outcome,
                Err(_) => {}
            }
        }
    }

    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            if let Ok(outcome) = ready.try_io(|file| file.get_ref().write(bytes)) {
                bytes = &bytes[outcome?..];
            }
        }
        Ok(())
    }

    pub fn resize(&self, size: Size) -> io::Result<()> {
        resize(self.0.get_ref(), size.width, size.height)
    }
}
