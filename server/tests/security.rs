//! Certificates, tokens and rights on the real binary and its own commands: who is let in, what is told, and what never is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "tracing/collector.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod collector;
#[path = "support/process.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod process;

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::certificates::{Authority, write};
use crate::collector::{Collector, Mood};
use crate::process::{Process, ackstream};

/// What a test waits for happens within this time.
const PATIENCE: Duration = Duration::from_secs(30);

const SHOP: &str = "shop-token-0123456789";
const BILLING: &str = "billing-token-0123456789";
const CONFIGURATION: &str = r#"
tls_cert = "server.pem"
tls_key = "server.key"
tls_client_ca = "ca.pem"
tokens = "tokens"
reload_interval = "100ms"

[topics.orders.subscriptions.invoices]
dead_letter_topic = "discard"

[access.shop]
publish = "orders"

[access.billing]
consume = ["invoices"]
"#;

/// A folder with everything that a server and its clients need.
struct Folder {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Folder {
    fn new() -> Self {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let this = Self { folder, authority };
        this.write("ca.pem", &this.authority.pem());
        this.issue("server", &["localhost", "127.0.0.1"]);
        this.issue("shop", &["shop"]);
        this.write("tokens", &format!("shop {SHOP}\nbilling {BILLING}\n"));
        this.write("shop.token", SHOP);
        this.write("billing.token", &format!("{BILLING}\n"));
        this.write("ackstream.toml", CONFIGURATION);
        this.write("one-line", "hello\n");
        this
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, text: &str) {
        write(self.path(), name, text);
    }

    fn issue(&self, name: &str, names: &[&str]) {
        let issued = self.authority.issue(names);
        self.write(&format!("{name}.pem"), &issued.cert);
        self.write(&format!("{name}.key"), &issued.key);
    }

    fn serve(&self, arguments: &[&str]) -> Process {
        self.serve_at(arguments, "127.0.0.1:0")
    }

    fn serve_at(&self, arguments: &[&str], listen: &str) -> Process {
        let mut command = ackstream(&["serve", "--listen", listen]);
        Process::spawn(command.args(arguments).current_dir(self.path()))
    }

    fn run(&self, arguments: &[&str]) -> Output {
        ackstream(arguments).current_dir(self.path()).output().unwrap()
    }

    /// A command against this server; returns its exit code, and what it said.
    fn client(&self, server: &Process, command: &str) -> (Option<i32>, String) {
        let target = format!("localhost:{}", server.address.port());
        let arguments: Vec<&str> = command.split(' ').chain(["--target", &target]).collect();
        let output = self.run(&arguments);
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }
}

const PUBLISH: &str = "publish one-line --topic orders --connect-timeout 1s";
const CONSUME: &str = "consume --topic orders --subscription invoices --count 1 --connect-timeout 1s";
const ASKED: &str = "this server asks who calls";

#[test]
fn commands_are_let_in_by_token_and_by_certificate_and_told_in_a_sentence_where_they_are_not() {
    let folder = Folder::new();
    let server = folder.serve(&[]);
    folder.write("other-ca.pem", &Authority::new().pem());
    let by_shop = "--tls-ca ca.pem --tls-cert shop.pem --tls-key shop.key";
    let cases = [
        (format!("{PUBLISH} --tls-ca ca.pem --token-file shop.token"), 0, "1 published to topic orders"),
        (format!("{PUBLISH} {by_shop}"), 0, "1 published to topic orders"),
        (format!("{CONSUME} --tls-ca ca.pem --token-file billing.token"), 0, "hello"),
        (format!("{PUBLISH} --tls-ca ca.pem"), 64, ASKED),
        (
            format!("{PUBLISH} --tls-ca ca.pem --token-file billing.token"),
            64,
            "\"billing\" may not publish to topic \"orders\"",
        ),
        (format!("{CONSUME} {by_shop}"), 64, "\"shop\" may not consume from subscription \"invoices\""),
        (format!("{PUBLISH} --tls-ca other-ca.pem --token-file shop.token"), 64, "certificate is not trusted"),
        (format!("{PUBLISH} --token-file shop.token"), 69, "where the server speaks TLS, so must its clients"),
        (format!("bench --topic orders --consumers 0 --count 10 --metrics off {by_shop}"), 0, "10 accepted"),
        ("health --tls-ca ca.pem".to_owned(), 0, "SERVING"),
        ("health --tls-ca other-ca.pem".to_owned(), 1, "certificate is not trusted"),
        ("health".to_owned(), 1, "where the server speaks TLS, so must its clients"),
    ];
    for (command, code, says) in cases {
        let (ended, said) = folder.client(&server, &command);
        assert_eq!(ended, Some(code), "{command}: {said}");
        assert!(said.contains(says), "{command}: {said}");
        assert!(!said.contains(SHOP) && !said.contains(BILLING), "{command}: {said}");
    }
}

#[test]
fn a_server_is_asked_for_its_health_without_a_word_about_its_certificate() {
    let folder = Folder::new();
    folder.issue("server", &["broker.example"]); // a name that leads nowhere
    let server = folder.serve(&[]);
    let listen = server.address.to_string();
    let health = folder.run(&["health", "--listen", &listen]);
    assert_eq!(health.stdout, b"SERVING\n");
    folder.write("server.pem", "half a certificate"); // what the server has read before stays in force, and so does its health
    let health = folder.run(&["health", "--listen", &listen]);
    assert_eq!(health.stdout, b"SERVING\n");
}

#[test]
fn everything_that_is_wrong_with_the_files_is_told_at_once_before_a_port_opens() {
    let folder = Folder::new();
    let public = |name: &str| {
        std::fs::set_permissions(folder.path().join(name), std::fs::Permissions::from_mode(0o604)).unwrap();
    };
    public("server.key");
    public("tokens");
    std::fs::remove_file(folder.path().join("ca.pem")).unwrap();
    for arguments in [&["serve"] as &[&str], &["config"]] {
        let output = folder.run(arguments);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{told}");
        let secret =
            "(file ackstream.toml): holds a secret that everyone on this machine can reach (mode 0604): chmod o= it";
        let missing = "cannot be read: No such file or directory (os error 2)";
        let expected = format!(
            "ackstream: tls_key = \"server.key\" {secret}\n\
             ackstream: tls_client_ca = \"ca.pem\" (file ackstream.toml): {missing}\n\
             ackstream: tokens = \"tokens\" {secret}\n"
        );
        assert_eq!(told, expected);
        assert_eq!(output.stdout, b"");
    }
}

#[test]
fn metrics_that_other_hosts_can_read_are_told() {
    let mut server = ackstream(&["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "0.0.0.0:0"]);
    let mut server = server.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
    let serving = lines.nth(1).unwrap();
    assert!(Command::new("kill").arg(server.id().to_string()).status().unwrap().success());
    let address = serving.split("http://").nth(1).unwrap().trim_end_matches("/metrics");
    let line = format!("[RUST SERVER] WARN: {address} is open to other hosts: whoever reaches it may read the metrics");
    assert!(lines.any(|said| said == line), "{line}");
    server.wait().unwrap();
}

#[test]
fn a_client_that_is_given_a_secret_in_the_place_of_its_file_does_not_show_it() {
    const SECRET: &str = "s3cr3t-0123456789";
    let folder = Folder::new();
    for options in [&["--token-file", SECRET][..], &["--tls", "--tls-cert", "server.pem", "--tls-key", SECRET]] {
        let told = folder.run(&[&["health"][..], options].concat());
        let (out, err) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
        assert!(!out.contains(SECRET) && !err.contains(SECRET) && !err.is_empty(), "{out}{err}");
        assert_eq!(told.status.code(), Some(64), "{err}");
        let flag = options[options.len() - 2];
        assert!(
            err.contains(&format!("(flag {flag}): cannot be read")),
            "it is the secret's file that is missing: {err}"
        );
    }
}

#[test]
fn a_client_refuses_its_own_secrets_where_others_can_read_them() {
    let folder = Folder::new();
    for (file, options) in [
        ("shop.token", "--tls-ca ca.pem --token-file shop.token"),
        ("shop.key", "--tls-ca ca.pem --tls-cert shop.pem --tls-key shop.key"),
    ] {
        std::fs::set_permissions(folder.path().join(file), std::fs::Permissions::from_mode(0o644)).unwrap();
        let command = format!("{PUBLISH} {options}");
        let output = folder.run(&command.split(' ').collect::<Vec<_>>());
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{told}");
        assert!(told.contains("holds a secret that everyone on this machine can reach (mode 0644)"), "{told}");
    }
}

#[test]
fn new_tokens_hold_without_a_restart_and_wrong_ones_change_nothing() {
    let folder = Folder::new();
    let mut server = folder.serve(&[]);
    let publish = format!("{PUBLISH} --tls-ca ca.pem --token-file shop.token");
    assert_eq!(folder.client(&server, &publish).0, Some(0));

    folder.write("tokens", "shop short\n");
    assert_eq!(
        server.line_within(PATIENCE),
        "[RUST SERVER] WARN: tokens = \"tokens\" (file ackstream.toml): line 1: a token has 16 to 4096 characters; \
         `openssl rand -hex 32` makes one; what was read before stays in force"
    );
    for _ in 0..8 {
        assert_eq!(folder.client(&server, &publish).0, Some(0)); // which together take longer than some looks
    }

    folder.write("tokens", "shop another-token-0123456789\n");
    let line = server.line_within(PATIENCE); // the next one: what was wrong was said once, however often it was looked at
    assert_eq!(line, "[RUST SERVER] Tokens have changed: the new ones are in force");
    let (code, said) = folder.client(&server, &publish);
    assert_eq!((code, said.contains("this is no token of this server")), (Some(64), true), "{said}");
    folder.write("shop.token", "another-token-0123456789");
    assert_eq!(folder.client(&server, &publish).0, Some(0));
}

#[test]
fn who_can_reach_a_server_beyond_its_host_is_said_in_one_line_where_it_starts() {
    let folder = Folder::new();
    let tls = ["--tls-cert", "server.pem", "--tls-key", "server.key"];
    let off = ["--tls-cert", "off", "--tls-key", "off", "--tls-client-ca", "off", "--tokens", "off"];
    std::fs::remove_file(folder.path().join("ackstream.toml")).unwrap();
    let cases: [(&[&str], Option<&str>); 4] = [
        (
            &off,
            Some("unencrypted, and whoever reaches it may publish and consume everything (see tls_cert and tokens)"),
        ),
        (&tls, Some("whoever reaches it may publish and consume everything (set tokens or tls_client_ca)")),
        (
            &["--tokens", "tokens"],
            Some("unencrypted: whoever is on the way can read tokens and messages (set tls_cert and tls_key)"),
        ),
        (&[&tls[..], &["--tokens", "tokens"]].concat(), None),
    ];
    for (arguments, expected) in cases {
        for (listen, reachable) in [("0.0.0.0:0", true), ("127.0.0.1:0", false)] {
            let server = folder.serve_at(arguments, listen);
            let address = server.address;
            server.signal("-TERM");
            let (said, _) = server.end();
            let lines: Vec<_> = said.lines().filter(|line| line.contains("is open to other hosts")).collect();
            let line = expected
                .filter(|_| reachable)
                .map(|what| format!("[RUST SERVER] WARN: {address} is open to other hosts, {what}"));
            assert_eq!(lines, line.iter().collect::<Vec<_>>(), "{arguments:?} on {listen}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_logged_configured_counted_or_traced() {
    let folder = Folder::new();
    let collector = Collector::start(Mood::Takes).await;
    let mut everything = String::new();
    for format in ["text", "json"] {
        let server = Process::spawn(
            ackstream(&["serve", "--listen", "127.0.0.1:0", "--log-level", "trace", "--log-format", format])
                .current_dir(folder.path())
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address)),
        );
        let right = [
            format!("{PUBLISH} --tls-ca ca.pem --token-file shop.token"),
            format!("{PUBLISH} --tls-ca ca.pem --tls-cert shop.pem --tls-key shop.key"),
            format!("{CONSUME} --tls-ca ca.pem --token-file billing.token"),
        ];
        for command in &right {
            let (code, said) = folder.client(&server, command);
            assert_eq!(code, Some(0), "{said}");
            everything += &said;
        }
        for (name, wrong) in [("unknown", "unknown-token-0123456789"), ("denied", BILLING)] {
            folder.write(name, wrong);
            let (code, said) = folder.client(&server, &format!("{PUBLISH} --tls-ca ca.pem --token-file {name}"));
            assert_eq!(code, Some(64), "{said}");
            everything += &said;
        }
        everything += &server.page();
        server.signal("-TERM");
        everything += &server.end().0;
    }
    everything += &String::from_utf8(folder.run(&["config"]).stdout).unwrap();
    let spans = collector.spans();
    assert!(!spans.is_empty(), "messages were traced");
    write!(everything, "{spans:?}").unwrap();
    for seen in ["stream opens", "tokens = \"tokens\"", "ackstream_messages_published_total", "invoices"] {
        assert!(everything.contains(seen), "the test looks at what there is: {seen}");
    }
    let keys = ["server.key", "shop.key"].map(|name| std::fs::read_to_string(folder.path().join(name)).unwrap());
    let lines_of_keys = keys.iter().flat_map(|key| key.lines().filter(|line| !line.starts_with('-')));
    for secret in [SHOP, BILLING, "unknown-token-0123456789"].into_iter().chain(lines_of_keys) {
        assert!(!everything.contains(secret), "it is in the output: {secret}");
    }
}

#[test]
fn a_token_in_the_place_of_its_file_is_not_told() {
    let folder = Folder::new();
    for arguments in [&["serve"] as &[&str], &["config"]] {
        let mut command = ackstream(arguments);
        let output =
            command.current_dir(folder.path()).env("ACKSTREAM_TOKENS", format!("shop {SHOP}")).output().unwrap();
        let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(64));
        assert_eq!(
            told,
            "ackstream: tokens (environment variable ACKSTREAM_TOKENS): cannot be read: No such file or directory (os error 2)\n"
        );
    }
}

#[test]
fn a_certificate_that_does_not_hold_is_told_and_not_tried_for_long() {
    let folder = Folder::new();
    let expired = folder.authority.issue_expired(&["shop"]);
    folder.write("shop.pem", &expired.cert);
    folder.write("shop.key", &expired.key);
    let server = folder.serve(&[]);
    let command = PUBLISH.replace("1s", "30s") + " --tls-ca ca.pem --tls-cert shop.pem --tls-key shop.key";
    let (code, said) = folder.client(&server, &command);
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("it refuses this client in the handshake of TLS: CertificateExpired (--tls-cert)"), "{said}");
}
