//! Who may do what: every verb by every client with every topic, by tokens and by certificates.

use std::sync::Arc;
use std::time::Duration;

use ackstream::proto::message_stream_client::MessageStreamClient;
use ackstream::proto::stream_message::Kind;
use ackstream::proto::{DataMessage, Open, StreamMessage};
use ackstream::security::{
    Access, Files, NamedFile, Names, Rights, Security, SecuritySettings, TlsFiles, TokenFile, parse_authorities,
    parse_certificates, parse_key,
};
use ackstream::server::{SubscriptionSettings, TopicSettings};
use ackstream::telemetry::ConnectionClosing;
use ackstream_core::Policy;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tower::service_fn;

use crate::certificates::{Authority, Issued, write};
use crate::support::{Memory, settle, timed, within};

/// What there is: topics, each with the subscription of the same place.
const TOPICS: [(&str, &str); 2] = [("orders", "invoices"), ("news", "readers")];
/// Who there is.
const CLIENTS: [&str; 5] = ["shop", "billing", "clerk", "ops", "idle"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Publish,
    PublishWhileConsuming,
    Consume,
}

/// The rights of these tests, as a table of their own: who may publish to which topic, and consume from its subscription.
fn may(client: &str, verb: Verb, topic: &str) -> bool {
    let (publish, consume) = match (client, topic) {
        ("shop", "orders") | ("clerk", "news") => (true, false),
        ("billing" | "clerk", "orders") => (false, true),
        ("ops", _) => (true, true),
        _ => (false, false),
    };
    match verb {
        Verb::Publish => publish,
        Verb::PublishWhileConsuming => publish && consume,
        Verb::Consume => consume,
    }
}

fn access() -> Access {
    let these = |names: &[&str]| Names::These(names.iter().map(|&name| name.to_owned()).collect());
    let of = |client: &str, publish: Names, consume: Names| (client.to_owned(), Rights { publish, consume });
    [
        of("shop", these(&["orders"]), these(&[])),
        of("billing", these(&[]), these(&["invoices"])),
        of("clerk", these(&["news"]), these(&["invoices"])),
        of("ops", Names::All, Names::All),
        of("idle", these(&[]), these(&[])),
        of("spiffe://tests/robot", these(&["orders"]), these(&[])),
    ]
    .into_iter()
    .collect()
}

fn token(client: &str) -> String {
    format!("{client}-0123456789abcdef")
}

/// What a server asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Certificate,
    Token,
    Either,
    Nothing,
}

/// A server with both topics, and a message in each that may leak.
struct World {
    memory: Memory,
    authority: Authority,
    encrypted: bool,
    folder: tempfile::TempDir,
}

/// How a client proves who it is.
#[derive(Default)]
struct Proof {
    authorization: Option<String>,
    certificate: Option<Issued>,
}

impl World {
    async fn start(asks: Asks) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let file =
            |key, text: &str| NamedFile { key, path: write(folder.path(), key, text), source: "test".to_owned() };
        let issued = authority.issue(&["localhost"]);
        let encrypted = asks != Asks::Token;
        let tls = encrypted.then(|| TlsFiles {
            cert: file("tls_cert", &issued.cert),
            key: file("tls_key", &issued.key),
            client_ca: matches!(asks, Asks::Certificate | Asks::Either)
                .then(|| file("tls_client_ca", &authority.pem())),
        });
        let lines = CLIENTS.map(|client| format!("{client} {}", token(client))).join("\n");
        let tokens = matches!(asks, Asks::Token | Asks::Either).then(|| TokenFile(file("tokens", &lines)));
        let reload_interval = Duration::from_secs(5);
        let files = Files { tls, tokens };
        let security = Security::load(SecuritySettings { files, access: access(), reload_interval }).unwrap();
        let topic = |(topic, subscription): (&str, &str)| TopicSettings {
            name: topic.to_owned(),
            subscriptions: vec![SubscriptionSettings {
                name: subscription.to_owned(),
                policy: Policy { ack_deadline: Duration::from_mins(10), ..Policy::default() },
                dead_letter_topic: None,
            }],
        };
        let memory = Memory::with(|settings| {
            settings.topics = TOPICS.map(topic).into();
            settings.security = Arc::new(security);
        })
        .await;
        let world = Self { memory, authority, encrypted, folder };
        for (topic, _) in TOPICS {
            let secret = DataMessage { payload: "a secret".into(), ..DataMessage::default() };
            world.memory.server.broker().topic(topic).unwrap().publish(&secret.into()).unwrap();
        }
        world
    }

    fn published(&self, place: usize) -> u64 {
        let (topic, subscription) = TOPICS[place];
        self.memory.server.broker().topic(topic).unwrap().subscription(subscription).unwrap().lock().counts().published
    }

    fn sent(&self, place: usize) -> u64 {
        let (topic, subscription) = TOPICS[place];
        self.memory.server.broker().topic(topic).unwrap().subscription(subscription).unwrap().lock().counts().sent
    }

    /// A proof of being this client, with a certificate or a token.
    fn prove(&self, client: &str, by_certificate: bool) -> Proof {
        if by_certificate {
            Proof { certificate: Some(self.authority.issue(&[client])), ..Proof::default() }
        } else {
            Proof { authorization: Some(format!("Bearer {}", token(client))), ..Proof::default() }
        }
    }

    /// A client's side of TLS, with this certificate.
    fn connector(&self, certificate: Option<&Issued>) -> TlsConnector {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(parse_authorities(self.authority.pem().as_bytes()).unwrap());
        let mut config = match certificate {
            Some(Issued { cert, key }) => {
                let chain = parse_certificates(cert.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, parse_key(key.as_bytes()).unwrap()).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    async fn connect(&self, certificate: Option<&Issued>) -> Result<Channel, tonic::transport::Error> {
        let io = self.memory.dial();
        let tls = self.encrypted.then(|| self.connector(certificate));
        let endpoint = Endpoint::from_static("http://memory");
        let mut io = Some(io);
        match tls {
            None => {
                let connector = service_fn(move |_: Uri| {
                    let io = io.take().ok_or(std::io::Error::other("a connection is made once"));
                    async move { io.map(TokioIo::new) }
                });
                endpoint.connect_with_connector(connector).await
            }
            Some(tls) => {
                let connector = service_fn(move |_: Uri| {
                    let io = io.take().ok_or(std::io::Error::other("a connection is made once"));
                    let tls = tls.clone();
                    async move { tls.connect(ServerName::try_from("localhost").unwrap(), io?).await.map(TokioIo::new) }
                });
                endpoint.connect_with_connector(connector).await
            }
        }
    }

    /// A stream that was opened so, and what it is answered first.
    async fn open(&self, proof: &Proof, open: Open) -> Result<Stream, Status> {
        let channel = within(self.connect(proof.certificate.as_ref())).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let (send, frames) = mpsc::channel(10);
        send.send(StreamMessage { kind: Some(Kind::Open(open)) }).await.unwrap();
        let request = proof.request(ReceiverStream::new(frames));
        let mut frames = within(MessageStreamClient::new(channel).exchange(request)).await?.into_inner();
        match within(frames.message()).await? {
            Some(StreamMessage { kind: Some(Kind::Opened(_)) }) => Ok(Stream { send, frames }),
            other => panic!("`opened` comes first, not {other:?}"),
        }
    }

    /// Does it, and says how that was answered.
    async fn attempt(&self, proof: &Proof, verb: Verb, place: usize) -> Result<(), Status> {
        let (topic, subscription) = TOPICS[place];
        let open = Open {
            topic: topic.to_owned(),
            subscription: subscription.to_owned(),
            publish_only: verb == Verb::Publish,
            ..Open::default()
        };
        let mut stream = self.open(proof, open).await?;
        match verb {
            Verb::Consume => stream.delivery().await,
            Verb::Publish | Verb::PublishWhileConsuming => stream.publish().await,
        }
    }
}

struct Stream {
    send: mpsc::Sender<StreamMessage>,
    frames: Streaming<StreamMessage>,
}

impl Stream {
    async fn delivery(&mut self) -> Result<(), Status> {
        let frame = within(self.frames.message()).await?;
        assert!(matches!(frame, Some(StreamMessage { kind: Some(Kind::Data(_)) })), "{frame:?}");
        Ok(())
    }

    /// Publishes, and waits for the answer between deliveries.
    async fn publish(&mut self) -> Result<(), Status> {
        let data = DataMessage { id: 7, payload: "hello".into(), ..DataMessage::default() };
        self.send.send(StreamMessage { kind: Some(Kind::Data(data)) }).await.unwrap();
        loop {
            match within(self.frames.message()).await?.and_then(|frame| frame.kind) {
                Some(Kind::Data(_)) => {}
                Some(Kind::Ack(_)) => return Ok(()),
                Some(Kind::Nack(nack)) => return Err(Status::new(Code::from_i32(nack.code), nack.reason)),
                other => panic!("an answer was expected, not {other:?}"),
            }
        }
    }
}

impl Proof {
    fn request<T>(&self, body: T) -> Request<T> {
        let mut request = Request::new(body);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.parse().unwrap());
        }
        request
    }

    fn by_header(authorization: &str) -> Self {
        Self { authorization: Some(authorization.to_owned()), certificate: None }
    }
}

/// Which answer this client must get.
fn expected(client: &str, verb: Verb, topic: &str) -> Code {
    if may(client, verb, topic) { Code::Ok } else { Code::PermissionDenied }
}

/// Nothing of what a client may not know is in the sentence.
fn tells_nothing(status: &Status, topic: &str, subscription: &str, client: &str) -> bool {
    let names = TOPICS.iter().flat_map(|&(topic, subscription)| [topic, subscription]).chain(CLIENTS);
    let foreign = names.filter(|name| ![topic, subscription, client].contains(name));
    foreign.into_iter().all(|name| !status.message().contains(name)) && !status.message().contains("0123456789abcdef")
}

#[tokio::test(start_paused = true)]
async fn each_client_may_do_what_it_was_given_and_nothing_else_by_certificate_by_token_and_by_either() {
    for asks in [Asks::Certificate, Asks::Token, Asks::Either] {
        for by_certificate in [true, false] {
            if asks == Asks::Token && by_certificate || asks == Asks::Certificate && !by_certificate {
                continue;
            }
            let world = World::start(asks).await;
            let (mut accepted, mut tried) = ([1, 1], 0);
            for client in CLIENTS {
                for place in [0, 1] {
                    for verb in [Verb::Publish, Verb::PublishWhileConsuming, Verb::Consume] {
                        let (topic, subscription) = TOPICS[place];
                        let sent = world.sent(place);
                        let answer = world.attempt(&world.prove(client, by_certificate), verb, place).await;
                        let code = answer.as_ref().map_or_else(Status::code, |()| Code::Ok);
                        let case = format!("{asks:?}: {client} {verb:?} {topic}: {answer:?}");
                        assert_eq!(code, expected(client, verb, topic), "{case}");
                        if let Err(status) = answer {
                            assert!(tells_nothing(&status, topic, subscription, client), "{case}");
                        }
                        let consumes = verb != Verb::Publish && may(client, Verb::Consume, topic);
                        assert!(consumes || world.sent(place) == sent, "{case}");
                        accepted[place] += u64::from(code == Code::Ok && verb != Verb::Consume);
                        assert_eq!([world.published(0), world.published(1)], accepted, "{case}");
                        tried += 1;
                    }
                }
            }
            assert_eq!(tried, CLIENTS.len() * TOPICS.len() * 3);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_prove_who_it_is_is_unauthenticated_whatever_it_wants() {
    let ops = token("ops");
    for asks in [Asks::Certificate, Asks::Token, Asks::Either] {
        let world = World::start(asks).await;
        let mut proofs = vec![(Proof::default(), Code::Unauthenticated)];
        if asks != Asks::Certificate {
            for header in
                ["Bearer", "Bearer ", "bearer ops", "Bearerops", "Basic b3BzOm9wcw==", "Bearer ops", ops.as_str()]
            {
                proofs.push((Proof::by_header(header), Code::Unauthenticated));
            }
            for wrong in [&ops[1..], &ops[..ops.len() - 1], &format!("{ops}0"), &ops.to_uppercase(), &token("nobody")] {
                proofs.push((Proof::by_header(&format!("Bearer {wrong}")), Code::Unauthenticated));
            }
            let certificate = world.encrypted.then(|| world.authority.issue(&["ops"]));
            // A wrong token is not made good by a certificate.
            proofs.push((Proof { certificate, ..Proof::by_header("Bearer wrong") }, Code::Unauthenticated));
        }
        if asks != Asks::Token {
            let by = |certificate| Proof { certificate: Some(certificate), ..Proof::default() };
            proofs.push((by(world.authority.issue(&[])), Code::Unauthenticated)); // its common name is "ops"
            proofs.push((by(Authority::new().issue(&["ops"])), Code::Unavailable)); // TLS itself says no
            proofs.push((by(world.authority.issue_expired(&["ops"])), Code::Unavailable));
        }
        if asks == Asks::Certificate {
            proofs.push((world.prove("ops", false), Code::Unauthenticated)); // tokens are nothing to this server
        }
        for (proof, code) in &proofs {
            for place in [0, 1] {
                for verb in [Verb::Publish, Verb::PublishWhileConsuming, Verb::Consume] {
                    let status = world.attempt(proof, verb, place).await.unwrap_err();
                    let case = format!("{asks:?}: {:?} {verb:?}: {status:?}", proof.authorization);
                    assert_eq!(status.code(), *code, "{case}");
                    assert!(tells_nothing(&status, "", "", ""), "{case}");
                }
            }
        }
        assert_eq!([world.published(0), world.published(1), world.sent(0), world.sent(1)], [1, 1, 0, 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_may_be_a_uri_and_of_several_names_each_counts() {
    let world = World::start(Asks::Either).await;
    let by = |names: &[&str]| Proof { certificate: Some(world.authority.issue(names)), ..Proof::default() };
    assert!(world.attempt(&by(&["spiffe://tests/robot"]), Verb::Publish, 0).await.is_ok());
    let both = by(&["shop", "billing"]);
    assert!(world.attempt(&both, Verb::Publish, 0).await.is_ok());
    assert!(world.attempt(&both, Verb::Consume, 0).await.is_ok());
    let certificate_and_token = Proof { authorization: world.prove("billing", false).authorization, ..by(&["shop"]) };
    assert!(world.attempt(&certificate_and_token, Verb::PublishWhileConsuming, 0).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn health_is_told_to_anyone_and_the_contract_to_those_who_say_who_they_are() {
    for asks in [Asks::Certificate, Asks::Token, Asks::Either] {
        let world = World::start(asks).await;
        let channel = world.connect(None).await.unwrap();
        let health = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
        assert!(health.is_ok(), "{asks:?}: {health:?}");
        let proof = world.prove("idle", asks == Asks::Certificate);
        for (proof, code) in [(Proof::default(), Code::Unauthenticated), (proof, Code::Ok)] {
            let channel = world.connect(proof.certificate.as_ref()).await.unwrap();
            let asked = proof.request(tokio_stream::once(ServerReflectionRequest::default()));
            let told = ServerReflectionClient::new(channel).server_reflection_info(asked).await;
            assert_eq!(told.map_or_else(|status| status.code(), |_| Code::Ok), code, "{asks:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_client_may_not_know_is_not_listed_where_it_asks_for_what_is_not_there() {
    let world = World::start(Asks::Token).await;
    let mut told = Vec::new();
    for (topic, subscription) in [("zzz", "invoices"), ("news", "invoices")] {
        let open = Open { topic: topic.to_owned(), subscription: subscription.to_owned(), ..Open::default() };
        let status = world.open(&world.prove("billing", false), open).await.err().unwrap();
        assert_eq!(status.code(), Code::NotFound);
        assert!(tells_nothing(&status, topic, subscription, ""), "{status:?}");
        told.push(status.message().replace(topic, "T"));
    }
    assert_eq!(told[0], told[1], "whether there is such a topic is not told");
}

#[tokio::test(start_paused = true)]
async fn who_wants_to_publish_alone_and_may_not_is_told_so_when_it_opens_its_stream() {
    let world = World::start(Asks::Token).await;
    let open = Open { topic: "news".to_owned(), publish_only: true, ..Open::default() };
    let status = world.open(&world.prove("shop", false), open).await.err().unwrap();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(status.message(), "client \"shop\" may not publish to topic \"news\"");
}

#[tokio::test(start_paused = true)]
async fn without_clients_to_ask_tls_alone_lets_everyone_in() {
    let world = World::start(Asks::Nothing).await;
    assert!(world.attempt(&Proof::default(), Verb::PublishWhileConsuming, 0).await.is_ok());
    assert!(world.attempt(&Proof::by_header("Basic whatever"), Verb::Publish, 1).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_taken_away_ends_its_streams_and_those_of_others_go_on() {
    let world = World::start(Asks::Either).await;
    let consume = || Open { topic: "orders".to_owned(), subscription: "invoices".to_owned(), ..Open::default() };
    let mut revoked = world.open(&world.prove("billing", false), consume()).await.unwrap();
    revoked.delivery().await.unwrap();
    let mut by_token = world.open(&world.prove("clerk", false), consume()).await.unwrap();
    let mut by_certificate = world.open(&world.prove("billing", true), consume()).await.unwrap();
    // Its client has another one by now.
    let left = format!("clerk {}\nops {}\nbilling {}\n", token("clerk"), token("ops"), token("another"));
    write(world.folder.path(), "tokens", &left);
    let (ended, took) = timed(revoked.frames.message()).await;
    let status = ended.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(status.message(), "the token is no token of this server any more; what was held is released");
    assert!(took <= Duration::from_secs(11), "two looks, 5 s apart: {took:?}");
    by_token.delivery().await.unwrap(); // what was held, at once, without a retry
    assert_eq!(
        world.attempt(&world.prove("billing", false), Verb::Consume, 0).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    drop(by_token);
    settle().await;
    by_certificate.delivery().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_new_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    let world = World::start(Asks::Nothing).await;
    let consume = Open { topic: "orders".to_owned(), subscription: "invoices".to_owned(), ..Open::default() };
    let mut old = world.open(&Proof::default(), consume).await.unwrap();
    old.delivery().await.unwrap();
    let other = Authority::new();
    let issued = other.issue(&["localhost"]);
    write(world.folder.path(), "tls_cert", &issued.cert);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(world.connect(None).await.is_ok(), "a certificate without its key changes nothing");
    write(world.folder.path(), "tls_key", &issued.key);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(world.connect(None).await.is_err(), "the new certificate is another authority's");
    let world = World { authority: other, ..world };
    assert!(world.attempt(&Proof::default(), Verb::Publish, 0).await.is_ok());
    assert!(old.publish().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_does_not_come_or_is_none_ends_the_connection() {
    let world = World::start(Asks::Certificate).await;
    let counts = Arc::clone(world.memory.server.connections().counts());
    let mut silent = world.memory.dial();
    let (end, took) = timed(silent.read(&mut [0])).await;
    assert_eq!(end.unwrap(), 0);
    assert!(took >= Duration::from_secs(5) && took <= Duration::from_millis(5010), "{took:?}");
    assert_eq!(counts.closed(ConnectionClosing::NoTls), 1);

    let mut plain = world.memory.dial();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    within(plain.read_to_end(&mut said)).await.unwrap();
    assert_eq!(said.first(), Some(&21), "an alert of TLS, and nothing else: {said:?}");
    assert_eq!(counts.closed(ConnectionClosing::NoTls), 2);
}

#[tokio::test(start_paused = true)]
async fn no_session_is_resumed_as_that_would_bring_a_certificate_back_that_holds_no_more() {
    let world = World::start(Asks::Certificate).await;
    let connector = world.connector(Some(&world.authority.issue(&["ops"])));
    for _ in 0..3 {
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(name, world.memory.dial()).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.read_exact(&mut [0; 9]).await.unwrap(); // its settings, and tickets before them
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_sent_once_and_the_case_of_its_scheme_is_nobodys_business() {
    let world = World::start(Asks::Token).await;
    for scheme in ["bearer", "BEARER"] {
        let proof = Proof::by_header(&format!("{scheme} {}", token("shop")));
        assert!(world.attempt(&proof, Verb::Publish, 0).await.is_ok(), "{scheme}");
    }
    let mut twice = world.prove("shop", false).request(tokio_stream::once(ServerReflectionRequest::default()));
    twice.metadata_mut().append("authorization", "Bearer wrong".parse().unwrap());
    let told = ServerReflectionClient::new(world.connect(None).await.unwrap()).server_reflection_info(twice).await;
    assert_eq!(told.unwrap_err().code(), Code::Unauthenticated);
}
