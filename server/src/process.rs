//! What concerns the process as a whole: its signals, and its end when something is wrong with us.

/// The exit code of a bug of ours.
const EX_SOFTWARE: i32 = 70;

/// The signals that ask the process to stop: SIGINT and, where there is such a thing, SIGTERM. From the moment in which this is made
/// none of them ends the process by itself, and none is missed.
#[derive(Debug)]
pub struct Signals {
    #[cfg(unix)]
    term: tokio::signal::unix::Signal,
    #[cfg(unix)]
    int: tokio::signal::unix::Signal,
    #[cfg(windows)]
    int: tokio::signal::windows::CtrlC,
}

impl Signals {
    /// Takes the signals over. To be called on a Tokio runtime.
    ///
    /// # Errors
    ///
    /// Where the system does not allow it.
    pub fn take_over() -> std::io::Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
        }
        #[cfg(windows)]
        Ok(Self { int: tokio::signal::windows::ctrl_c()? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! { _ = self.term.recv() => {}, _ = self.int.recv() => {} }
        #[cfg(windows)]
        self.int.recv().await;
    }
}

/// Lets this process have as many files and sockets open as the system allows it at all: the usual soft limit of 1,024 is for programs
/// that use `select`.
pub fn raise_descriptor_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }); // where it is refused, fewer connections are accepted
    }
}

/// A panic is a bug of ours, and what it interrupted is in no known state: the process ends.
pub fn fail_stop() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        eprintln!("ackstream: this is a bug of ours; please report it with the lines above");
        std::process::exit(EX_SOFTWARE);
    }));
}
