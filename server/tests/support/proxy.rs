//! A TCP proxy between a client and a server, which breaks, stalls, slows and half-closes connections when it is told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What a proxy does with bytes, of both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It forwards them.
    Forwards,
    /// It keeps them until it is told otherwise.
    #[allow(dead_code, reason = "not all tests need it")]
    Stalls,
    /// It forwards so many, then waits for a millisecond.
    #[allow(dead_code, reason = "not all tests need it")]
    Slow(usize),
}

/// A running proxy, ended with the test.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    resets: watch::Sender<u64>,
    half_closes: watch::Sender<u64>,
    mood: watch::Sender<Mood>,
    forwarded: Arc<AtomicU64>,
    hindered: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// In front of this server.
    pub(crate) async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let ((resets, _), (half_closes, _), (mood, _)) =
            (watch::channel(0), watch::channel(0), watch::channel(Mood::Forwards));
        let (told, told_to_close, moods) = (resets.clone(), half_closes.clone(), mood.clone());
        let [forwarded, hindered] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let (counted, hinders) = (Arc::clone(&forwarded), Arc::clone(&hindered));
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("connections can be accepted");
                let (mut reset, closes, mood) = (told.subscribe(), told_to_close.subscribe(), moods.subscribe());
                counted.fetch_add(1, Ordering::Relaxed);
                let hinders = Arc::clone(&hinders);
                tokio::spawn(async move {
                    let Ok(upstream) = TcpStream::connect(server).await else { return };
                    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                        (client.into_split(), upstream.into_split());
                    let never = watch::channel(0);
                    let both = async {
                        tokio::join!(
                            forward(&mut from_client, &mut to_server, mood.clone(), closes, &hinders),
                            forward(&mut from_server, &mut to_client, mood.clone(), never.1, &hinders),
                        );
                    };
                    tokio::select! {
                        () = both => {}
                        _ = reset.changed() => {
                            for side in [to_client.as_ref(), to_server.as_ref()] {
                                let _ = side.set_zero_linger(); // what is under way is lost, and the other side gets RST
                            }
                        }
                    }
                });
            }
        });
        Self { address, resets, half_closes, mood, forwarded, hindered, task }
    }

    /// Resets all connections.
    pub(crate) fn reset(&self) {
        self.resets.send_modify(|resets| *resets += 1);
    }

    /// Says to the server that nothing more will come from any client, and forwards the answers.
    #[allow(dead_code, reason = "not all tests need it")]
    pub(crate) fn half_close(&self) {
        self.half_closes.send_modify(|closes| *closes += 1);
    }

    /// What it does from now on.
    #[allow(dead_code, reason = "not all tests need it")]
    pub(crate) fn set_mood(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// How often so far bytes that had come were kept or slowed.
    #[allow(dead_code, reason = "not all tests need it")]
    pub(crate) fn hindered(&self) -> u64 {
        self.hindered.load(Ordering::Relaxed)
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }
}

/// Forwards to the end, or until it is told to close.
async fn forward(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut mood: watch::Receiver<Mood>,
    mut closes: watch::Receiver<u64>,
    hindered: &AtomicU64,
) {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let read = tokio::select! {
            read = from.read(&mut bytes) => read.unwrap_or_default(),
            Ok(()) = closes.changed() => 0,
        };
        if read == 0 {
            break;
        }
        if forward_all(&bytes[..read], to, &mut mood, hindered).await.is_none() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Forwards these bytes in the mood of each moment, or nothing more, where the other side has gone or the test is over.
///
/// The mood is asked for when they have come: one of before the read would let all of it pass that came with it.
async fn forward_all(
    mut bytes: &[u8],
    to: &mut OwnedWriteHalf,
    mood: &mut watch::Receiver<Mood>,
    hindered: &AtomicU64,
) -> Option<()> {
    while !bytes.is_empty() {
        let now = *mood.borrow();
        let most = match now {
            Mood::Forwards => bytes.len(),
            Mood::Stalls => {
                hindered.fetch_add(1, Ordering::Relaxed);
                mood.wait_for(|mood| *mood != Mood::Stalls).await.ok()?;
                continue;
            }
            Mood::Slow(most) => {
                hindered.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
                most.min(bytes.len())
            }
        };
        let (piece, rest) = bytes.split_at(most);
        to.write_all(piece).await.ok()?;
        bytes = rest;
    }
    Some(())
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
