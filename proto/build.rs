//! Compiles every .proto file of the `proto` folder: protox parses them (no protoc needed), tonic generates the code.

use std::{error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    // The folder itself, so that a new file is noticed as well.
    println!("cargo:rerun-if-changed=proto");
    let mut files =
        fs::read_dir("proto")?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>, std::io::Error>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    files.sort();

    let descriptors = protox::compile(&files, ["proto"])?;
    tonic_prost_build::configure()
        // Keys and values are shared with the decoded message instead of copied.
        .bytes(".")
        .include_file("packages.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
