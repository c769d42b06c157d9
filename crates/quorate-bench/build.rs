//! Compiles `proto/` with protox, as the root package does with the wire contract.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build.rs");
    let etcd = protox::compile(["etcd.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).bytes(".").compile_fds(etcd)?;
    let echo = protox::compile(["echo.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(echo)?;
    Ok(())
}
