//! Compiles the protos with protox, so that building needs no protoc.

use std::{env, path::PathBuf};

use prost::Message as _;

const ROOT: &str = "proto";
const FILES: &[&str] =
    &["refrain/v1/admin_service.proto", "refrain/v1/cache_service.proto", "refrain/v1/embedding_service.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The code generator prints no rerun lines of its own, and without one cargo would rebuild on
    // every change of any file.
    println!("cargo::rerun-if-changed={ROOT}");
    let descriptors = protox::compile(FILES, [ROOT])?;
    let path = PathBuf::from(env::var("OUT_DIR")?).join("refrain_v1.bin");
    std::fs::write(&path, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Bodies and vectors are handed through without a copy.
        .bytes(".")
        .file_descriptor_set_path(&path)
        .compile_fds(descriptors)?;
    Ok(())
}
