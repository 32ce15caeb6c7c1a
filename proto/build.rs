//! Compiles every .proto file of the `proto` folder: protox parses them (no protoc needed), tonic generates the code.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    // The folder itself, so that a new file is noticed as well.
    println!("cargo:rerun-if-changed=proto");
    let mut files =
        fs::read_dir("proto")?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>, std::io::Error>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    files.sort();

    let descriptors = protox::compile(&files, ["proto"])?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Keys and values are shared with the decoded message instead of copied.
        .bytes(".")
        .include_file("packages.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
