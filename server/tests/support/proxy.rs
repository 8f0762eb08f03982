//! A TCP proxy between a client and a server, which breaks connections when it is told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A running proxy, ended with the test.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    resets: watch::Sender<u64>,
    forwarded: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// In front of this server.
    pub(crate) async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let (resets, _) = watch::channel(0);
        let (told, forwarded) = (resets.clone(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&forwarded);
        let task = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.expect("connections can be accepted");
                let (mut reset, counted) = (told.subscribe(), Arc::clone(&counted));
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let Ok(mut upstream) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut upstream) => {}
                        _ = reset.changed() => {
                            for side in [client, upstream] {
                                let _ = side.set_zero_linger(); // what is under way is lost, and the other side gets RST
                            }
                        }
                    }
                });
            }
        });
        Self { address, resets, forwarded, task }
    }

    /// Resets all connections.
    pub(crate) fn reset(&self) {
        self.resets.send_modify(|resets| *resets += 1);
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
