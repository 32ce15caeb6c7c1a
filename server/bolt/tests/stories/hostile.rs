//! Damaged and hostile files: refused with a reason, never a panic, never a loop.
