//! Progress lines: what is being done, with the seconds since the command began, on the error stream, so that standard
//! output holds nothing but results.

use std::sync::OnceLock;
use std::time::Instant;

static BEGAN: OnceLock<Instant> = OnceLock::new();

/// Prints one line with the seconds since the first call of this function.
pub fn say(message: impl AsRef<str>) {
    let began = BEGAN.get_or_init(Instant::now);
    eprintln!("[{:4}s] {}", began.elapsed().as_secs(), message.as_ref());
}
