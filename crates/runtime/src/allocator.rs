//! The allocator of the process: mimalloc, but in a pod's shim the system's, whose first block costs half a megabyte less.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU8, Ordering};

use libmimalloc_sys as mimalloc;

/// How mimalloc's blocks are aligned by themselves, even the smallest; to ask for it makes every allocation slower.
const OWN_ALIGNMENT: usize = size_of::<usize>();

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
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise; the block is as long and aligned as it asks.
        unsafe {
            if is_system() {
                System.alloc(layout)
            } else if layout.align() <= OWN_ALIGNMENT {
                mimalloc::mi_malloc(layout.size()).cast()
            } else {
                mimalloc::mi_malloc_aligned(layout.size(), layout.align()).cast()
            }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise; the block is as long and aligned as it asks.
        unsafe {
            if is_system() {
                System.alloc_zeroed(layout)
            } else {
                mimalloc::mi_zalloc_aligned(layout.size(), layout.align()).cast()
            }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe {
            if is_system() {
                System.dealloc(block, layout);
            } else {
                mimalloc::mi_free(block.cast());
            }
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise; the block stays aligned as it was.
        unsafe {
            if is_system() {
                System.realloc(block, layout, size)
            } else if layout.align() <= OWN_ALIGNMENT {
                mimalloc::mi_realloc(block.cast(), size).cast()
            } else {
                mimalloc::mi_realloc_aligned(block.cast(), size, layout.align()).cast()
            }
        }
    }
}
