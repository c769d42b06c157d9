//! Compiles `proto/` to Rust with protox, a protobuf compiler in Rust: no machine needs protoc.

use std::path::{Path, PathBuf};

use prost_types::{DescriptorProto, FileDescriptorSet, field_descriptor_proto};

const FILES: [&str; 4] = [
    "quorate/v1/types.proto",
    "quorate/v1/registry.proto",
    "quorate/v1/admin.proto",
    "quorate/peer/v1/peer.proto",
];

/// What servers need.
const ENCODED_FILES: [&str; 3] =
    ["quorate/v1/types.proto", "quorate/v1/registry.proto", "quorate/v1/admin.proto"];

/// Messages that servers make with parts that are encoded already, and these parts.
const ENCODED: [(&str, &[&str]); 3] =
    [("FetchResponse", &["services"]), ("WatchDelta", &["changes"]), ("WatchResponse", &[])];

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
        .compile_fds(descriptors.clone())?;
    compile_encoded(descriptors, &out_dir)
}

/// The clients' services once more, for servers: what they cannot read is the caller's mistake
/// (`server_codec.rs`), and they may have parts of an answer encoded already. In the place of each
/// message of [`ENCODED`] stands `Encoded...`, in which those parts are bytes. On the wire, an
/// encoded message in a field of bytes is the same as the message.
fn compile_encoded(
    mut descriptors: FileDescriptorSet,
    out_dir: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut config = tonic_prost_build::Config::new();
    config.bytes(["."]);
    descriptors.file.retain(|file| ENCODED_FILES.contains(&file.name()));
    for file in &mut descriptors.file {
        file.source_code_info = None; // it knows nothing of what is added
        let names = file.message_type.iter().map(|message| message.name());
        for name in names.chain(file.enum_type.iter().map(|known| known.name())) {
            config.extern_path(format!(".quorate.v1.{name}"), format!("crate::v1::{name}"));
        }
        let encoded: Vec<_> = file.message_type.iter().filter_map(encoded_message).collect();
        file.message_type.extend(encoded);
        let methods = file.service.iter_mut().flat_map(|service| &mut service.method);
        for method in methods {
            use_encoded(&mut method.output_type);
        }
    }
    let encoded_dir = out_dir.join("encoded");
    std::fs::create_dir_all(&encoded_dir)?;
    tonic_prost_build::configure()
        .build_client(false)
        .codec_path("crate::server_codec::ServerCodec")
        .out_dir(encoded_dir)
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}

/// The message with encoded parts, if it is one of [`ENCODED`].
fn encoded_message(message: &DescriptorProto) -> Option<DescriptorProto> {
    let (_, bytes) = ENCODED.iter().find(|(name, _)| *name == message.name())?;
    let mut encoded = message.clone();
    encoded.name = Some(format!("Encoded{}", message.name()));
    for field in &mut encoded.field {
        if bytes.contains(&field.name()) {
            field.set_type(field_descriptor_proto::Type::Bytes);
            field.type_name = None;
        }
        use_encoded(&mut field.type_name);
    }
    Some(encoded)
}

/// Puts the name of the message with encoded parts in the place of one of [`ENCODED`].
fn use_encoded(type_name: &mut Option<String>) {
    let name = type_name.as_deref().and_then(|name| name.strip_prefix(".quorate.v1."));
    if let Some(name) = name.filter(|name| ENCODED.iter().any(|(encoded, _)| encoded == name)) {
        *type_name = Some(format!(".quorate.v1.Encoded{name}"));
    }
}
