//! Where `consume` prints: a thread of its own, as an output may take its time, or be closed.

use std::io::{self, Write};

use tokio::sync::mpsc;

/// Lines to be printed together.
pub(super) struct Page {
    /// The epoch of the messages' ids.
    pub(super) epoch: u64,
    /// The messages.
    pub(super) ids: Vec<u64>,
    /// Their lines.
    pub(super) text: Vec<u8>,
}

/// What was printed: whatever is in the list has left the process.
pub(super) struct Printed {
    /// The epoch of the messages' ids.
    pub(super) epoch: u64,
    /// The messages.
    pub(super) ids: Vec<u64>,
}

/// The ends of the thread. What waits there is bounded by what a consumer may have outstanding.
pub(super) struct Output {
    pub(super) pages: mpsc::UnboundedSender<Page>,
    pub(super) printed: mpsc::UnboundedReceiver<io::Result<Printed>>,
}

impl Output {
    /// Starts the thread. It ends with its first error.
    pub(super) fn start(to: impl Write + Send + 'static) -> Self {
        let (pages, to_be_printed) = mpsc::unbounded_channel();
        let (tell, printed) = mpsc::unbounded_channel();
        std::thread::spawn(move || print(to, to_be_printed, &tell));
        Self { pages, printed }
    }
}

fn print(
    mut to: impl Write,
    mut pages: mpsc::UnboundedReceiver<Page>,
    tell: &mpsc::UnboundedSender<io::Result<Printed>>,
) {
    while let Some(Page { epoch, ids, text }) = pages.blocking_recv() {
        let printed = to.write_all(&text).and_then(|()| to.flush()).map(|()| Printed { epoch, ids });
        let failed = printed.is_err();
        if tell.send(printed).is_err() || failed {
            return;
        }
    }
}
