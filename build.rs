//! Compiles the wire contract with protox, so that nobody needs a `protoc`.

use std::path::PathBuf;

use prost::Message;

const PROTO: &str = "ackstream/v1/ackstream.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile([PROTO], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("ackstream.v1.bin"), descriptors.encode_to_vec())?; // reflection serves it, comments included
    tonic_prost_build::configure()
        .bytes(".") // payloads are shared, not copied
        .btree_map(".") // attributes have one order
        .build_transport(false) // the client takes any transport
        .compile_fds(descriptors)?;
    Ok(())
}
