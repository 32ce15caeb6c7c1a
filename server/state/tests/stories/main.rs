//! Stories of the state machine, told through its public face on the memory engine.

mod kv;
mod member;
