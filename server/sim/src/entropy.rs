//! All chance in the process comes from the seed: the standard library's hash maps, tokio's choices and the generators of
//! the product draw from `getrandom` of the C library, and this takes its place. So the product needs no door for a
//! simulator, and what it does by chance is what it does in earnest.
#![allow(unsafe_code, reason = "a symbol of the C library is replaced; it writes where its caller says")]

use std::sync::atomic::{AtomicU64, Ordering};

static STATE: AtomicU64 = AtomicU64::new(0);

/// Everything after this is drawn from `seed`.
pub fn seed(seed: u64) {
    STATE.store(seed ^ 0x5eed_0fe7_c4a1_1e55, Ordering::Relaxed);
}

/// The C library's call, for everybody in this process.
///
/// # Safety
/// `bytes` must be valid for writes of `length` bytes, as the C library asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(bytes: *mut u8, length: usize, _flags: u32) -> isize {
    for at in 0..length {
        let z = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // SAFETY: the caller owns `length` bytes from `bytes` on.
        unsafe { bytes.add(at).write((z >> 56) as u8) };
    }
    length as isize
}
