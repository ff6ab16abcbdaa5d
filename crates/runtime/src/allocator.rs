//! The allocator of the process: mimalloc, but in a pod's shim the system's, whose first block costs half a megabyte less.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU8, Ordering};

use mimalloc::MiMalloc;

const UNDECIDED: u8 = 0;
const SYSTEM: u8 = 1;
const MIMALLOC: u8 = 2;

static CHOICE: AtomicU8 = AtomicU8::new(UNDECIDED);

/// Decides with the first allocation what the process is, and stays with it.
pub struct Allocator;

/// Whether the system's is the process's.
fn is_system() -> bool {
    match CHOICE.load(Ordering::Relaxed) {
        UNDECIDED => choose(),
        choice => choice == SYSTEM,
    }
}

/// Threads that come here at once come to the same.
#[cold]
fn choose() -> bool {
    let system = is_shim();
    CHOICE.store(if system { SYSTEM } else { MIMALLOC }, Ordering::Relaxed);
    system
}

/// Whether this process was started as `cox shim …`. Nothing here allocates.
fn is_shim() -> bool {
    let mut line = [0_u8; 512];
    // SAFETY: the path ends with a zero, and the buffer is as long as is said.
    let read = unsafe {
        let file = libc::open(c"/proc/self/cmdline".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return false;
        }
        let read = libc::read(file, line.as_mut_ptr().cast(), line.len());
        libc::close(file);
        read
    };
    let line = usize::try_from(read).ok().and_then(|read| line.get(..read)).unwrap_or_default();
    line.split(|byte| *byte == 0).nth(1) == Some(b"shim")
}

// SAFETY: both are allocators, and every block goes back to the one that gave it: the choice never changes.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { if is_system() { System.alloc(layout) } else { MiMalloc.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { if is_system() { System.alloc_zeroed(layout) } else { MiMalloc.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { if is_system() { System.dealloc(block, layout) } else { MiMalloc.dealloc(block, layout) } }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if is_system() {
                System.realloc(block, layout, size)
            } else {
                MiMalloc.realloc(block, layout, size)
            }
        }
    }
}
