//! Frames into the whole service, in virtual time: whatever a client sends on a stream, the server answers or ends the stream, both laws
//! hold, and an honest client is served afterwards.

#![no_main]

use std::cell::RefCell;
use std::time::Duration;

use ackstream::config::{Config, Defaults, Layers};
use ackstream::server::Server;
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request, StatusCode};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

/// A server is used for so many inputs, since to start one takes longer than most.
const INPUTS: u32 = 200;
/// In virtual time: longer than anything that a stream waits for.
const PATIENCE: Duration = Duration::from_hours(2);

/// In virtual time: a stream that has not ended by then is a tail.
const TAIL: Duration = Duration::from_mins(10);

struct World {
    runtime: Runtime,
    server: Server,
    used: u32,
}

impl World {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        let nothing = std::path::PathBuf::from("/dev/null");
        let variables = [("ACKSTREAM_LOG_LINES_PER_SECOND", "0"), ("ACKSTREAM_MAX_BACKLOG_MESSAGES", "100")];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let config =
            Config::load(&Layers::read(Some(nothing), variables, [], Defaults::Server)).expect("defaults can be used");
        let server = runtime.block_on(async {
            let server = Server::start(&config.settings).await.expect("there are random numbers");
            server.serving().await;
            server
        });
        Self { runtime, server, used: 0 }
    }
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

fuzz_target!(|input: &[u8]| WORLD.with_borrow_mut(|place| {
    let world = place.get_or_insert_with(World::new);
    let all = async { tokio::time::timeout(PATIENCE, converse(&world.server, input)).await };
    world.runtime.block_on(all).expect("every stream ends");
    world.runtime.block_on(async { tokio::time::sleep(TAIL).await }); // no session waits for its client any longer
    for (_, subscription) in world.server.broker().subscriptions() {
        let locked = subscription.lock();
        let (counts, backlog) = (locked.counts(), locked.backlog());
        assert_eq!(counts.published, counts.acked + counts.dropped + backlog.messages());
        let ended = counts.ended;
        let without_ack = ended.nacked + ended.expired + ended.interrupted + ended.released;
        assert_eq!(counts.sent, ended.acked + without_ack + backlog.outstanding);
        assert_eq!(backlog.outstanding, 0, "nobody is left who could hold anything");
    }
    world.used += 1;
    if world.used == INPUTS {
        *place = None;
    }
}));

/// What is sent on the stream: the body as it is, or messages with the prefix that gRPC puts before each.
fn body(input: &[u8]) -> Vec<Bytes> {
    let Some((&kind, mut rest)) = input.split_first() else { return Vec::new() };
    if kind % 4 == 0 {
        return rest.chunks(1 + usize::from(kind)).map(Bytes::copy_from_slice).collect();
    }
    let mut frames = Vec::new();
    while let Some((&length, after)) = rest.split_first() {
        let (message, left) = after.split_at(after.len().min(length.into()));
        let mut frame = BytesMut::with_capacity(5 + message.len());
        frame.put_u8(0);
        frame.put_u32(message.len() as u32);
        frame.put_slice(message);
        frames.push(frame.freeze());
        rest = left;
    }
    frames
}

async fn converse(server: &Server, input: &[u8]) {
    let leaves = input.first().is_some_and(|kind| kind % 8 < 4);
    call(server, "ackstream.v1.MessageStream/Exchange", body(input), leaves).await;
    let question = Bytes::from_static(&[0, 0, 0, 0, 0]);
    let answer = call(server, "grpc.health.v1.Health/Check", vec![question], false).await;
    assert_eq!(answer.as_deref(), Some("0"), "somebody honest is served afterwards");
}

/// Makes a call on a connection of its own; returns its `grpc-status`, where it has come.
async fn call(server: &Server, path: &str, frames: Vec<Bytes>, leaves: bool) -> Option<String> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let stop = CancellationToken::new();
    let served = tokio::spawn({
        let (connections, stop) = (server.connections().clone(), stop.clone());
        async move { connections.serve(far, stop).await }
    });
    let (client, connection) = h2::client::handshake(near).await.expect("memory is there");
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.expect("the server takes streams");
    let status = exchange(&mut client, path, frames, leaves).await;
    drop(client);
    stop.cancel();
    let _ = connection.await; // the server may have ended it
    let _ = served.await;
    status
}

/// Sends the frames and half-closes, or leaves without a word; reads to the end.
async fn exchange(client: &mut SendRequest<Bytes>, path: &str, frames: Vec<Bytes>, leaves: bool) -> Option<String> {
    let request = Request::post(format!("http://memory/{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let (response, mut send) =
        client.send_request(request.body(()).expect("it is one"), false).expect("the connection is open");
    let mut reading = tokio::spawn(async move {
        let response = response.await.ok()?;
        assert_eq!(response.status(), StatusCode::OK);
        let status = |headers: &HeaderMap| Some(headers.get("grpc-status")?.to_str().ok()?.to_owned());
        let at_once = status(response.headers());
        let mut body = response.into_body();
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
        }
        at_once.or(status(&body.trailers().await.ok()??))
    });
    for frame in frames {
        if send.send_data(frame, false).is_err() {
            break; // the server has ended it
        }
        tokio::task::yield_now().await;
    }
    if leaves {
        tokio::time::sleep(Duration::from_secs(1)).await;
        send.send_reset(h2::Reason::CANCEL);
    } else {
        let _ = send.send_data(Bytes::new(), true);
    }
    if let Ok(status) = tokio::time::timeout(TAIL, &mut reading).await {
        return status.expect("nothing panics here");
    }
    reading.abort(); // a tail goes on after its half-close, until it leaves
    send.send_reset(h2::Reason::CANCEL);
    None
}
