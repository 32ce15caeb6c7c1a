//! The wall clock of this process jumps by years, forward and back, between any two looks at it: nothing that members promise may
//! depend on it. A seed does the same to the byte whatever it says (`tests/seeds.rs`).
#![allow(unsafe_code, reason = "a symbol of the C library is replaced; it writes where its caller says")]

use rustix::time::{ClockId, Timespec, clock_gettime as real};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Jumps are drawn from here; 0 lets it tell the time.
static STATE: AtomicU64 = AtomicU64::new(0);

/// Lets the clock jump from now on. The product's own chance is not drawn from.
///
/// # Panics
/// Where the standard library does not ask the call below: no seed would show anything of clocks then.
pub fn jump() {
    STATE.store(1, Ordering::Relaxed);
    let looks = [(); 3].map(|()| SystemTime::now());
    let apart = |a: SystemTime, b: SystemTime| a.duration_since(b).or_else(|_| b.duration_since(a));
    let jumps = looks.windows(2).any(|pair| apart(pair[0], pair[1]).is_ok_and(|by| by > Duration::from_secs(86_400)));
    assert!(jumps, "the wall clock does not jump: {looks:?}");
}

/// The C library's call, for everybody in this process. The monotonic clock stays as it is: the simulation has its own.
///
/// # Safety
/// `time` must be valid for a write, as the C library asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: i32, time: *mut Timespec) -> i32 {
    const WALL: i32 = 0;
    let now = match clock {
        WALL if STATE.load(Ordering::Relaxed) > 0 => {
            let draw = STATE.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            // From 1970 to 2106.
            Timespec { tv_sec: (draw >> 32) as i64, tv_nsec: (draw % 1_000_000_000) as i64 }
        }
        WALL => real(ClockId::Realtime),
        _ => real(ClockId::Monotonic),
    };
    // SAFETY: the caller owns what `time` points to.
    unsafe { time.write(now) };
    0
}
