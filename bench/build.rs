//! Compiles the wire contract for a plain tonic server: the one that ackstream is measured against.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../proto");
    let descriptors = protox::compile(["ackstream/v1/ackstream.proto"], ["../proto"])?;
    tonic_prost_build::configure().bytes(".").btree_map(".").build_client(false).compile_fds(descriptors)?;
    Ok(())
}
