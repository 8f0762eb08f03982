//! Where `consume` prints: a thread of its own, as an output may take its time, or be closed.
//!
//! What is in a pipe and was not taken by its reader is lost when that ends. So nothing counts as printed before it is taken.

use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::mpsc as tokio_mpsc;

/// Lines to be printed together.
pub(super) struct Page {
    /// The epoch of the messages' ids.
    pub(super) epoch: u64,
    /// The messages.
    pub(super) ids: Vec<u64>,
    /// Their lines.
    pub(super) text: Vec<u8>,
}

/// What was printed: whatever is in the list has left the process, and the pipe where it is one.
pub(super) struct Printed {
    /// The epoch of the messages' ids.
    pub(super) epoch: u64,
    /// The messages.
    pub(super) ids: Vec<u64>,
}

/// The ends of the thread. What waits there is bounded by what a consumer may have outstanding.
pub(super) struct Output {
    pub(super) pages: mpsc::Sender<Page>,
    pub(super) printed: tokio_mpsc::UnboundedReceiver<io::Result<Printed>>,
}

impl Output {
    /// Starts the thread on the standard output. It ends with its first error.
    pub(super) fn start() -> Self {
        let (pages, to_be_printed) = mpsc::channel();
        let (tell, printed) = tokio_mpsc::unbounded_channel();
        std::thread::spawn(move || print(&to_be_printed, &tell));
        Self { pages, printed }
    }
}

/// While there is nothing to print, so often is it asked whether the reader is still there.
const LOOK_EVERY: Duration = Duration::from_millis(200);

fn print(pages: &mpsc::Receiver<Page>, tell: &tokio_mpsc::UnboundedSender<io::Result<Printed>>) {
    let mut to = io::stdout();
    loop {
        let printed = match pages.recv_timeout(LOOK_EVERY) {
            Ok(Page { epoch, ids, text }) => {
                let written = to.write_all(&text).and_then(|()| to.flush()).and_then(|()| pipe::wait_until_taken(&to));
                written.map(|()| Printed { epoch, ids })
            }
            Err(RecvTimeoutError::Timeout) => match pipe::check_reader(&to) {
                Ok(()) => continue,
                Err(error) => Err(error),
            },
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let failed = printed.is_err();
        if tell.send(printed).is_err() || failed {
            return;
        }
    }
}

/// Whether the process was started without a standard output. The runtime has put `/dev/null` in its place then, for reading and
/// writing, as no shell opens it.
pub(super) fn is_closed() -> bool {
    pipe::is_replaced(&io::stdout())
}

#[cfg(unix)]
mod pipe {
    use std::io;
    use std::os::fd::AsFd;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, stat};

    /// So long is waited before it is asked again what is in the pipe, in nanoseconds.
    const PAUSE: i64 = 500_000;

    /// Waits until the reader of a pipe has taken all that is in it. It may be gone by then; an error where it went and left some.
    pub(super) fn wait_until_taken(out: &impl AsFd) -> io::Result<()> {
        let mut reader = Ok(());
        while is_pipe(out) && rustix::io::ioctl_fionread(out)? > 0 {
            reader?;
            reader = wait_for_end_of_reader(out, PAUSE);
        }
        Ok(())
    }

    /// An error where the output is a pipe that nobody reads any more.
    pub(super) fn check_reader(out: &impl AsFd) -> io::Result<()> {
        if is_pipe(out) { wait_for_end_of_reader(out, 0) } else { Ok(()) }
    }

    /// Whether this is `/dev/null`, opened for reading, too.
    pub(super) fn is_replaced(out: &impl AsFd) -> bool {
        let same = fstat(out).ok().zip(stat("/dev/null").ok()).is_some_and(|(out, null)| {
            FileType::from_raw_mode(out.st_mode) == FileType::CharacterDevice && out.st_rdev == null.st_rdev
        });
        same && fcntl_getfl(out).is_ok_and(|flags| flags & OFlags::ACCMODE == OFlags::RDWR)
    }

    fn is_pipe(out: &impl AsFd) -> bool {
        fstat(out).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
    }

    fn wait_for_end_of_reader(out: &impl AsFd, nanos: i64) -> io::Result<()> {
        let mut of_pipe = [PollFd::new(out, PollFlags::empty())]; // an error is told unasked
        poll(&mut of_pipe, Some(&Timespec { tv_sec: 0, tv_nsec: nanos }))?;
        if of_pipe[0].revents().contains(PollFlags::ERR) { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }
}

#[cfg(not(unix))]
mod pipe {
    use std::io;

    pub(super) fn wait_until_taken(_: &io::Stdout) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn check_reader(_: &io::Stdout) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn is_replaced(_: &io::Stdout) -> bool {
        false
    }
}
