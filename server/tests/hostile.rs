//! Hostile clients against the real binary: bytes and HTTP/2 frames that no library would send. During each attack the server stays
//! alive and small, and an honest client on a connection of its own notices nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")] // which tells how much memory a process has

#[path = "support/process.rs"]
mod process;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ackstream::proto::stream_message::Kind;
use ackstream::proto::{AckMessage, DataMessage, Open, StreamMessage};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::process::{Process, ack, next};

/// An attack may make the server grow by so much.
const GROWTH: u64 = 20 << 20;
/// An honest client waits at most so long for its answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// The server does not read all that is sent to it.
const WRITTEN_WITHIN: Duration = Duration::from_secs(1);

/// Honest clients are on the topic `demo`, hostile ones on `other`.
const TOPICS: &str = "
[topics.demo.subscriptions.demo]
ack_deadline = \"10s\"
dead_letter_topic = \"discard\"
[topics.other.subscriptions.other]
dead_letter_topic = \"discard\"
";

// Types and flags of HTTP/2 frames (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
/// An error of a stream (section 7).
const REFUSED_STREAM: u32 = 7;
/// The largest window (section 6.9.1).
const LARGEST_WINDOW: u32 = 0x7fff_ffff;

/// A connection on which anything can be said.
struct Hostile(TcpStream);

impl Hostile {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_write_timeout(Some(WRITTEN_WITHIN)).unwrap();
        stream.set_read_timeout(Some(ANSWERED_WITHIN)).unwrap();
        Self(stream)
    }

    /// A connection on which HTTP/2 has begun, with these settings.
    fn http2(address: SocketAddr, settings: &[u8]) -> Self {
        let mut hostile = Self::connect(address);
        assert!(hostile.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
        assert!(hostile.frame(SETTINGS, 0, 0, settings));
        hostile
    }

    /// The same, and stream 1 has been opened.
    fn opened(address: SocketAddr, settings: &[u8], open: Open) -> Self {
        let mut hostile = Self::http2(address, settings);
        assert!(hostile.frame(HEADERS, END_HEADERS, 1, &exchange()));
        assert!(hostile.frame(DATA, 0, 1, &message(Kind::Open(open))));
        hostile
    }

    /// `false`: the server has closed the connection, or reads no more.
    fn say(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.say(&frame(kind, flags, stream, payload))
    }

    /// Says it so often, as long as the server takes it.
    fn repeat(&mut self, times: u32, bytes: impl Fn(u32) -> Vec<u8>) {
        let numbers: Vec<u32> = (0..times).collect();
        let mut bursts = numbers.chunks(100);
        while bursts.next().is_some_and(|burst| self.say(&burst.iter().flat_map(|&n| bytes(n)).collect::<Vec<_>>())) {}
    }

    /// The next frame of the server: its type, flags, stream and payload. `None`: it has closed the connection, or says nothing.
    fn read_frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }

    /// Sends it as data, no more at a time than the server allows for the connection; for a stream that is 1 MiB.
    fn upload(&mut self, stream: u32, mut bytes: &[u8]) {
        let mut window = 65_000; // of 65,535: a stream has been opened
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(window).min(16 << 10));
            if part.is_empty() {
                match self.read_frame() {
                    Some((WINDOW_UPDATE, _, 0, more)) => {
                        window += u32::from_be_bytes(more.try_into().unwrap()) as usize;
                    }
                    Some((SETTINGS, 0, ..)) => {
                        self.frame(SETTINGS, ACK, 0, &[]); // now a stream's window is as large as they say
                    }
                    Some(_) => {}
                    None => return,
                }
                continue;
            }
            self.frame(DATA, 0, stream, part);
            window -= part.len();
            bytes = rest;
        }
    }

    /// What the server makes of all that was said to it.
    fn outcome(&mut self) -> Outcome {
        const QUESTION: &[u8; 8] = b"and now?";
        self.frame(PING, 0, 0, QUESTION);
        let mut outcome = Outcome::NeverServed;
        while let Some((kind, flags, _, payload)) = self.read_frame() {
            outcome = match kind {
                GOAWAY => return Outcome::SentAway,
                PING if flags == ACK && payload == QUESTION => return Outcome::Served,
                _ => Outcome::Broken,
            };
        }
        outcome
    }

    /// Whether the server closes the connection.
    fn is_closed(&mut self) -> bool {
        loop {
            match self.0.read(&mut [0; 4096]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}

/// Streams that have ended with that code.
const INVALID: &str = "ackstream_streams_closed_total{grpc_code=\"INVALID_ARGUMENT\"}";

/// How a hostile connection fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It was never spoken to: it was refused when it came.
    NeverServed,
    /// It was spoken to, and then it broke.
    Broken,
    /// It was told to go.
    SentAway,
    /// All was read, and it goes on.
    Served,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn exchange() -> Vec<u8> {
    call("/ackstream.v1.MessageStream/Exchange")
}

/// The headers of a call, without compression (RFC 7541).
fn call(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let (post, http) = (vec![0x83], vec![0x86]);
    let path = [vec![0x04], text(path)].concat();
    let content_type = [vec![0x0f, 0x10], text("application/grpc")].concat();
    let te = [vec![0x00], text("te"), text("trailers")].concat();
    [post, http, path, content_type, te].concat()
}

/// A gRPC message with one frame of ours.
fn message(kind: Kind) -> Vec<u8> {
    let message = StreamMessage { kind: Some(kind) }.encode_to_vec();
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat()
}

/// One that goes on working.
struct Honest {
    send: mpsc::Sender<StreamMessage>,
    receive: Streaming<StreamMessage>,
    published: u64,
}

impl Honest {
    async fn connect(server: &Process) -> Self {
        let (send, receive) = server.open(Open::default()).await;
        Self { send, receive, published: 0 }
    }

    /// Publishes a message, has it answered and delivered, and acks it.
    async fn works(&mut self, during: &str) {
        self.published += 1;
        let data = DataMessage { id: self.published, payload: "honest".into(), ..DataMessage::default() };
        let round = async {
            self.send.send(StreamMessage { kind: Some(Kind::Data(data)) }).await.unwrap();
            let (mut answered, mut delivered) = (false, false);
            while !(answered && delivered) {
                let frame = next(&mut self.receive).await.unwrap().expect("the stream goes on");
                if let Kind::Ack(answer) = &frame {
                    answered = answer.ack_id == self.published;
                } else {
                    let Kind::Data(data) = frame else { panic!("{during}: {frame:?}") };
                    assert_eq!((&data.payload[..], data.delivery_attempt), (&b"honest"[..], 1), "{during}");
                    ack(&self.send, data.id).await;
                    delivered = true;
                }
            }
        };
        let answered = tokio::time::timeout(ANSWERED_WITHIN, round).await;
        assert!(answered.is_ok(), "during {during}, an honest client had no answer");
    }
}

/// A server with both topics, and as many descriptors on either side as there may be.
fn with_topics(options: &[&str]) -> Process {
    ackstream::process::raise_descriptor_limit();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("ackstream.toml");
    std::fs::write(&config, TOPICS).unwrap();
    let serve = ["serve", "--log-lines-per-second", "0", "--config", config.to_str().unwrap()];
    Process::start(&[&serve[..], options].concat()) // which has read the file once it is started
}

fn other(publish_only: bool) -> Open {
    Open { topic: "other".into(), subscription: "other".into(), publish_only, ..Open::default() }
}

type Attack = (&'static str, fn(SocketAddr) -> Vec<Hostile>, Proof);

/// What shows that the server has seen an attack.
#[derive(Clone, Copy, Debug)]
enum Proof {
    /// So many connections are open at the same time.
    Open(u64),
    /// The connection is told to go.
    SentAway,
    /// A stream has ended with INVALID_ARGUMENT.
    Refused,
    /// The connection was spoken to, and goes on or not, as the bursts happen to be read.
    Spoken,
}

const ATTACKS: [Attack; 16] = [
    ("silence", |server| (0..200).map(|_| Hostile::connect(server)).collect(), Proof::Open(200)),
    (
        "half a preface",
        |server| {
            let mut hostile = Hostile::connect(server);
            hostile.say(b"PRI * HTTP/2.0\r\n");
            vec![hostile]
        },
        Proof::Open(2),
    ),
    (
        "rapid reset",
        |server| {
            let mut hostile = Hostile::http2(server, &[]);
            let headers = exchange();
            hostile.repeat(20_000, |number| {
                let stream = 2 * number + 1;
                [frame(HEADERS, END_HEADERS, stream, &headers), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
            });
            vec![hostile]
        },
        Proof::SentAway,
    ),
    (
        "made you reset",
        |server| {
            let mut hostile = Hostile::http2(server, &[]);
            let headers = exchange();
            hostile.repeat(20_000, |number| {
                let stream = 2 * number + 1; // a window that is moved by 0 is an error of the stream
                [frame(HEADERS, END_HEADERS, stream, &headers), frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
            });
            vec![hostile]
        },
        Proof::SentAway,
    ),
    (
        "continuations without end",
        |server| {
            let mut hostile = Hostile::http2(server, &[]);
            hostile.frame(HEADERS, 0, 1, &exchange());
            let header = [&[0x00, 1, b'x', 100][..], &[b'x'; 100]].concat();
            hostile.repeat(100_000, |_| frame(CONTINUATION, 0, 1, &header));
            vec![hostile]
        },
        Proof::SentAway,
    ),
    (
        "empty data",
        |server| {
            let mut hostile = Hostile::opened(server, &[], other(true));
            hostile.repeat(100_000, |_| frame(DATA, 0, 1, &[]));
            vec![hostile]
        },
        Proof::Spoken,
    ),
    (
        "settings",
        |server| {
            let mut hostile = Hostile::opened(server, &[], other(true));
            hostile.repeat(100_000, |_| frame(SETTINGS, 0, 0, &[]));
            vec![hostile]
        },
        Proof::Spoken,
    ),
    (
        "pings",
        |server| {
            let mut hostile = Hostile::opened(server, &[], other(true));
            hostile.repeat(100_000, |_| frame(PING, 0, 0, &[7; 8]));
            vec![hostile]
        },
        Proof::Spoken,
    ),
    (
        "windows of zero",
        |server| {
            let mut publisher = Hostile::opened(server, &[], other(true));
            let data =
                message(Kind::Data(DataMessage { id: 1, payload: vec![7; 1_000].into(), ..DataMessage::default() }));
            publisher.repeat(1_000, |_| frame(DATA, 0, 1, &data));
            let no_window = [0, 4, 0, 0, 0, 0];
            let consumers = (0..20).map(|_| Hostile::opened(server, &no_window, other(false)));
            consumers.chain([publisher]).collect()
        },
        Proof::Spoken,
    ),
    (
        "huge headers",
        |server| {
            let mut hostile = Hostile::http2(server, &[]);
            let huge = [&[0x00, 1, b'x', 0x7f, 0x81, 0x7e][..], &[b'x'; 16_256]].concat(); // 127 + 1 + 126 * 128 bytes
            let headers = [exchange(), huge].concat();
            hostile.repeat(200, |number| {
                let stream = 2 * number + 1;
                let (first, second) = headers.split_at(10_000);
                [frame(HEADERS, 0, stream, first), frame(CONTINUATION, END_HEADERS, stream, second)].concat()
            });
            vec![hostile]
        },
        Proof::Spoken,
    ),
    (
        "health checks that never end, with headers as large as they may be",
        |server| {
            let mut hostile = Hostile::http2(server, &[]);
            let large = [&[0x00, 1, b'x', 0x7f, 0x99, 0x74][..], &[b'x'; 15_000]].concat(); // 127 + 25 + 116 * 128 bytes
            let headers = [call("/grpc.health.v1.Health/Check"), large].concat();
            hostile.repeat(1_000, |number| frame(HEADERS, END_HEADERS, 2 * number + 1, &headers));
            vec![hostile]
        },
        Proof::Spoken,
    ),
    (
        "batches of half a million empty messages",
        |server| {
            let empty = [0x0a, 0x00].repeat(500_000);
            let length = [0xc0, 0x84, 0x3d]; // 1,000,000 = 64 + 4 * 128 + 61 * 16,384
            let batch = [&[0x3a][..], &length, &empty].concat();
            let batch = [&[0][..], &u32::try_from(batch.len()).unwrap().to_be_bytes(), &batch].concat();
            let attackers = (0..10).map(|_| {
                let mut hostile = Hostile::opened(server, &[], other(true));
                hostile.upload(1, &batch);
                hostile
            });
            attackers.collect()
        },
        Proof::Refused,
    ),
    (
        "a length of 4 GiB",
        |server| {
            let mut hostile = Hostile::opened(server, &[], other(true));
            hostile.frame(DATA, 0, 1, &[0, 0xff, 0xff, 0xff, 0xff]);
            hostile.repeat(1_000, |_| frame(DATA, 0, 1, &[7; 10_000]));
            vec![hostile]
        },
        Proof::Refused,
    ),
    (
        "garbage",
        |server| {
            let mut hostile = Hostile::opened(server, &[], other(true));
            hostile.repeat(1_000, |_| frame(DATA, 0, 1, &[0, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]));
            vec![hostile]
        },
        Proof::Refused,
    ),
    ("3,000 connections", |server| (0..3_000).map(|_| Hostile::connect(server)).collect(), Proof::Open(1_000)),
    (
        "tiny acks",
        |server| {
            let mut hostile = Hostile::opened(server, &[], other(false));
            let ack = message(Kind::Ack(AckMessage { ack_id: 1 << 40, ..AckMessage::default() }));
            hostile.repeat(200_000, |_| frame(DATA, 0, 1, &ack));
            vec![hostile]
        },
        Proof::Spoken,
    ),
];

/// Whether the server's metrics come to show it.
async fn shows(server: &Process, seen: impl Fn(&Process) -> bool) -> bool {
    let began = Instant::now();
    while !seen(server) {
        if began.elapsed() > ANSWERED_WITHIN {
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attack_harms_the_server_or_its_honest_clients() {
    let server = with_topics(&[]);
    let mut honest = Honest::connect(&server).await;
    for (name, attack, proof) in ATTACKS {
        honest.works(name).await;
        let (before, invalid) = (server.rss(), server.metric(INVALID));
        let address = server.address;
        let attackers = tokio::task::spawn_blocking(move || attack(address));
        honest.works(name).await;
        let mut attackers = attackers.await.unwrap();
        honest.works(name).await;
        let is_seen = match proof {
            Proof::Open(least) => shows(&server, |server| server.metric("ackstream_connections") >= least).await,
            Proof::Refused => shows(&server, |server| server.metric(INVALID) > invalid).await,
            Proof::SentAway | Proof::Spoken => {
                let mut first = attackers.swap_remove(0);
                let outcome = tokio::task::spawn_blocking(move || (first.outcome(), first));
                let (outcome, first) = outcome.await.unwrap();
                attackers.push(first);
                match outcome {
                    Outcome::NeverServed => false,
                    Outcome::SentAway => true,
                    Outcome::Served | Outcome::Broken => matches!(proof, Proof::Spoken),
                }
            }
        };
        let grown = server.rss().saturating_sub(before);
        drop(attackers);
        assert!(is_seen, "the server has not seen {name}: {proof:?}");
        assert!(grown < GROWTH, "by {name}, the server grew by {} KiB", grown >> 10);
        while server.metric("ackstream_connections") > 1 {
            tokio::task::yield_now().await; // the next attack finds every place free
        }
    }
    honest.works("the end").await;
}

#[test]
fn connections_beyond_a_bound_are_closed_at_once_and_counted() {
    let server = Process::start(&["serve", "--max-connections", "3", "--max-connections-per-address", "2"]);
    let _first = Hostile::http2(server.address, &[]);
    let second = Hostile::http2(server.address, &[]);
    let mut third = Hostile::connect(server.address);
    assert!(third.is_closed());
    assert_eq!(server.metric("ackstream_connections_refused_total{reason=\"max_connections_per_address\"}"), 1);
    drop(second);
    while server.metric("ackstream_connections") > 1 {
        std::thread::yield_now();
    }
    let mut again = Hostile::http2(server.address, &[]);
    assert_eq!(again.0.read(&mut [0; 9]).unwrap(), 9, "there is a place, and the server speaks");

    let server = Process::start(&["serve", "--max-connections", "2", "--max-connections-per-address", "3"]);
    let _open = [Hostile::http2(server.address, &[]), Hostile::http2(server.address, &[])];
    assert!(Hostile::connect(server.address).is_closed());
    assert_eq!(server.metric("ackstream_connections_refused_total{reason=\"max_connections\"}"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_that_never_read_are_bounded_and_soon_gone() {
    let server = with_topics(&[
        "--consumer-stuck-after",
        "5s",
        "--ack-deadline",
        "100ms",
        "--min-backoff",
        "0s",
        "--max-backoff",
        "0s",
    ]);
    let address = server.address;
    let mut honest = Honest::connect(&server).await;

    let (publish, mut answers) = server.open(other(true)).await;
    for id in 1..=5_000 {
        let data = Kind::Data(DataMessage { id, payload: vec![7; 10_000].into(), ..DataMessage::default() });
        publish.send(StreamMessage { kind: Some(data) }).await.unwrap();
        assert!(matches!(next(&mut answers).await, Ok(Some(Kind::Ack(_)))));
    }
    drop((publish, answers));
    // Windows as large as they can be: the server is stopped by its own bound and by TCP alone.
    let settings = [&[0, 4][..], &LARGEST_WINDOW.to_be_bytes()].concat();
    let attack = move || {
        let open = Open { max_outstanding_messages: u32::MAX, max_outstanding_bytes: u64::MAX, ..other(false) };
        let attackers = (0..100).map(|_| {
            let mut hostile = Hostile::http2(address, &settings);
            hostile.frame(WINDOW_UPDATE, 0, 0, &(LARGEST_WINDOW - 65_535).to_be_bytes());
            for stream in (1..20).step_by(2) {
                hostile.frame(HEADERS, END_HEADERS, stream, &exchange());
                hostile.frame(DATA, 0, stream, &message(Kind::Open(open.clone())));
            }
            hostile
        });
        attackers.collect::<Vec<_>>()
    };
    let attackers = tokio::task::spawn_blocking(attack).await.unwrap();

    let (began, mut most) = (Instant::now(), 0);
    while server.metric("ackstream_connections") > 1 {
        honest.works("a thousand streams that never read").await;
        most = most.max(server.rss());
        assert!(began.elapsed() < Duration::from_secs(5 + 15), "they are not gone");
    }
    assert!(most < 600 << 20, "{} MiB", most >> 20);
    let [stuck, closed] =
        ["ackstream_consumers_stuck_total", "ackstream_connections_closed_total{reason=\"end_not_read\"}"]
            .map(|series| server.metric(series));
    assert_eq!((stuck, closed), (1_000, 100), "each stream was stuck, and each connection was closed once");
    drop(attackers);
}

#[test]
fn streams_headers_and_frames_beyond_a_bound_are_refused_and_the_others_go_on() {
    let bounds = ["--max-streams-per-connection", "2", "--max-header-bytes", "1KiB", "--max-frame-bytes", "20KiB"];
    let server = Process::start(&[&["serve"][..], &bounds].concat());
    let mut hostile = Hostile::opened(server.address, &[], Open { publish_only: true, ..Open::default() });
    hostile.frame(HEADERS, END_HEADERS, 3, &exchange());
    hostile.frame(HEADERS, END_HEADERS, 5, &exchange());
    let refused = std::iter::from_fn(|| hostile.read_frame()).find(|(kind, ..)| *kind == RST_STREAM);
    assert_eq!(refused, Some((RST_STREAM, 0, 5, REFUSED_STREAM.to_be_bytes().to_vec())));
    assert_eq!(hostile.outcome(), Outcome::Served);

    let mut hostile = Hostile::http2(server.address, &[]);
    let large = [exchange(), [&[0x00, 1, b'x', 0x7f, 0x81, 0x07][..], &[b'x'; 1_024]].concat()].concat(); // 127 + 1 + 7 * 128 bytes
    hostile.frame(HEADERS, END_HEADERS, 1, &large);
    let answer = std::iter::from_fn(|| hostile.read_frame()).find(|(_, _, stream, _)| *stream == 1);
    let (kind, .., headers) = answer.unwrap();
    // `:status`, and its three digits in the code of RFC 7541.
    assert_eq!((kind, &headers[..5]), (HEADERS, &[0x48, 0x83, 0x69, 0x90, 0xff][..]), "431 is the answer");

    let mut hostile = Hostile::http2(server.address, &[]);
    hostile.frame(DATA, 0, 1, &vec![0; 20_481]);
    assert_eq!(hostile.outcome(), Outcome::SentAway, "a frame of more than 20 KiB");

    let mut hostile = Hostile::opened(server.address, &[], Open { publish_only: true, ..Open::default() });
    let payload = vec![7; 20_000];
    let data = message(Kind::Data(DataMessage { id: 1, payload: payload.into(), ..DataMessage::default() }));
    hostile.frame(DATA, 0, 1, &data);
    assert_eq!(hostile.outcome(), Outcome::Served, "a frame of less");
}
