//! Lets the libraries find the simulator's `getrandom` (see `src/entropy.rs`).

fn main() {
    println!("cargo:rustc-link-arg-bins=-rdynamic");
    println!("cargo:rerun-if-changed=build.rs");
}
