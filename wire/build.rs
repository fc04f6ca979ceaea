//! Compiles the protos with protox, in Rust: no `protoc` is needed on any machine.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "proto/control.proto",
        "proto/holdfast/v1/exec.proto",
        "proto/holdfast/v1/files.proto",
        "proto/holdfast/v1/sandbox.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;

    // For gRPC reflection.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;

    let mut config = prost_build::Config::new();
    // Output and input travel as `Bytes`: decoded without a copy.
    config.bytes(["."]);
    // Environment values must never reach a log: these get a Debug of their own.
    config.skip_debug([".holdfast.v1.EnvVar", ".holdfast.v1.SandboxSpec"]);

    let api = std::env::var_os("CARGO_FEATURE_API").is_some();
    tonic_prost_build::configure()
        .build_client(api)
        .build_server(api)
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
