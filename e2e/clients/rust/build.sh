# Makes the program $1. The client's build asks for `protoc`: protox is one, made by cargo as well.
set -eu
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
cargo install --quiet --debug --locked --features bin --root protox protox@0.10.0
PROTOC="$PWD/protox/bin/protox" cargo build --quiet --locked
cp "$CARGO_TARGET_DIR/debug/rust-clients" "$1"
