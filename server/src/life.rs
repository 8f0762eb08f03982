//! Signs of life on a socket, below TLS: bytes, whatever they belong to. A slow line moves few frames, but never no bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// What has moved on one socket.
#[derive(Debug)]
pub struct Life {
    began: Instant,
    /// When the last sign came, in nanoseconds after the beginning.
    last: AtomicU64,
    /// Bytes that the system took to be sent.
    taken: AtomicU64,
}

impl Life {
    /// A socket that is alive at this moment.
    pub fn begin() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), last: AtomicU64::new(0), taken: AtomicU64::new(0) })
    }

    /// The bytes that the system has taken to be sent, from the beginning.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Returns once there was no sign of life for so long.
    pub async fn ends_after(&self, silence: Duration) {
        loop {
            let last = Duration::from_nanos(self.last.load(Ordering::Relaxed));
            let quiet = self.began.elapsed().saturating_sub(last);
            if quiet >= silence {
                return;
            }
            tokio::time::sleep(silence.saturating_sub(quiet)).await;
        }
    }

    fn sign(&self) {
        let since = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX); // 584 years
        self.last.store(since, Ordering::Relaxed);
    }
}

/// A socket whose signs of life are kept. A byte that is read is one. So is a byte that the system takes where it took none before: the
/// peer has read, and what is ahead of our question for a sign of life moves.
pub struct Watched<IO> {
    io: IO,
    life: Arc<Life>,
    was_full: bool,
}

impl<IO> Watched<IO> {
    /// Keeps the signs of this socket there.
    pub const fn new(io: IO, life: Arc<Life>) -> Self {
        Self { io, life, was_full: false }
    }

    fn wrote(&mut self, polled: &Poll<io::Result<usize>>) {
        match polled {
            Poll::Pending => self.was_full = true,
            Poll::Ready(Ok(bytes)) => {
                self.life.taken.fetch_add(*bytes as u64, Ordering::Relaxed);
                if std::mem::take(&mut self.was_full) {
                    self.life.sign();
                }
            }
            Poll::Ready(Err(_)) => {}
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, out))?;
        if out.filled().len() > before {
            self.life.sign();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(context, bytes);
        self.wrote(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(context, pieces);
        self.wrote(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
