//! Makes sled fsync. On Linux sled 0.34 ends each write with `sync_file_range`, which neither flushes the disk's cache
//! nor persists the file's new size, so a power cut loses or corrupts what was "flushed". A sync of our own
//! at each flush does not make up for it: recovery believes what a segment says of those before it, so one of them that
//! was written and not synced leaves a store that cannot be opened. When the call fails with
//! ENOSYS, sled falls back to fsync, at no measurable cost. So this crate defines the symbol and refuses every call; the
//! linker prefers it to libc's. sled itself stays untouched.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many calls were refused, and so became an fsync, in this process.
static REFUSED: AtomicU64 = AtomicU64::new(0);

/// The number of writes that fell back from `sync_file_range` to fsync since the process started.
pub(crate) fn refused() -> u64 {
    REFUSED.load(Ordering::SeqCst)
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)] // An exported symbol and errno cannot be had without; the reason is at the top of the file.
mod interposed {
    use std::ffi::{c_int, c_uint};
    use std::sync::atomic::Ordering;

    /// The generic Linux number (x86, arm, riscv). Were it another one, every write would fail loudly.
    const ENOSYS: c_int = 38;

    unsafe extern "C" {
        /// Where the calling thread's errno lives; the same name in glibc and musl.
        safe fn __errno_location() -> *mut c_int;
    }

    /// Stands in for libc's function in the whole process: always "not implemented".
    #[unsafe(no_mangle)]
    pub extern "C" fn sync_file_range(_file: c_int, _offset: i64, _length: i64, _flags: c_uint) -> c_int {
        super::REFUSED.fetch_add(1, Ordering::SeqCst);
        // SAFETY: libc returns a valid pointer to an int of this thread.
        unsafe { *__errno_location() = ENOSYS };
        -1
    }
}
