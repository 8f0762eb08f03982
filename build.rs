//! Compiles the wire contract with protox, so that nobody needs a `protoc`.

use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use tonic_build::manual::{Builder, Method, Service};

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
        .build_server(false)
        .compile_fds(descriptors)?;
    // The server writes its frames with a codec of its own.
    let exchange = Method::builder()
        .name("exchange")
        .route_name("Exchange")
        .input_type("crate::proto::StreamMessage")
        .output_type("crate::exchange::Frame")
        .codec_path("crate::exchange::FrameCodec")
        .client_streaming()
        .server_streaming()
        .build();
    let service = Service::builder().name("MessageStream").package("ackstream.v1").method(exchange).build();
    Builder::new().build_client(false).build_transport(false).compile(&[service]);
    tell_build_info();
    Ok(())
}

/// What `ackstream_build_info` says. Where there is no git, for example in an image's build, the environment may name the revision.
fn tell_build_info() {
    println!("cargo::rerun-if-env-changed=GIT_REVISION");
    let revision = std::env::var("GIT_REVISION").ok().filter(|revision| !revision.is_empty());
    let revision = revision.or_else(|| {
        let log = output("git", &["rev-parse", "--git-path", "logs/HEAD"])?; // a line for each move of HEAD
        if Path::new(&log).exists() {
            println!("cargo::rerun-if-changed={log}");
        }
        output("git", &["rev-parse", "--short=12", "HEAD"])
    });
    let rustc = std::env::var("RUSTC").ok().and_then(|rustc| output(&rustc, &["--version"]));
    let unknown = || "unknown".to_owned();
    println!("cargo::rustc-env=ACKSTREAM_REVISION={}", revision.unwrap_or_else(unknown));
    println!("cargo::rustc-env=ACKSTREAM_RUSTC={}", rustc.unwrap_or_else(unknown));
}

/// The first line that a command prints; `None` where it cannot be run or fails.
fn output(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(str::to_owned)
}
