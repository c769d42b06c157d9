//! Compiles `proto/` to Rust with protox, a protobuf compiler in Rust: no machine needs protoc.

use std::path::PathBuf;

const FILES: [&str; 4] = [
    "quorate/v1/types.proto",
    "quorate/v1/registry.proto",
    "quorate/v1/admin.proto",
    "quorate/peer/v1/peer.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build.rs");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(false).open_files(FILES)?;
    std::fs::write(out_dir.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".quorate.peer.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
