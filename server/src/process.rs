//! What concerns the process as a whole: its signals, what it says, and its end.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::process;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::exit::Exit;

/// The exit code of a bug of ours.
const EX_SOFTWARE: i32 = 70;

/// The signals that ask the process to stop: SIGINT and, where there are such things, SIGTERM and SIGHUP. From the moment in which this
/// is made none of them ends the process by itself, and none is missed.
#[derive(Debug)]
pub struct Signals {
    #[cfg(unix)]
    term: tokio::signal::unix::Signal,
    #[cfg(unix)]
    int: tokio::signal::unix::Signal,
    /// `None`: whoever started the process had it ignore SIGHUP, and so it stays (nohup).
    #[cfg(unix)]
    hangup: Option<tokio::signal::unix::Signal>,
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
            let hangup = if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
            Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())?, hangup })
        }
        #[cfg(windows)]
        Ok(Self { int: tokio::signal::windows::ctrl_c()? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! { _ = self.term.recv() => {}, _ = self.int.recv() => {}, () = hangup(&mut self.hangup) => {} }
        #[cfg(windows)]
        self.int.recv().await;
    }

    /// Waits for the next one that ends a server. Without a terminal a SIGHUP is none: it is `reload` of a service, and is told to
    /// `on_hangup`.
    pub async fn next_for_a_server(&mut self, on_hangup: impl Fn()) {
        #[cfg(unix)]
        loop {
            let has_terminal = io::stdin().is_terminal() || io::stdout().is_terminal();
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                () = hangup(&mut self.hangup) => {
                    if has_terminal {
                        return;
                    }
                    on_hangup();
                }
            }
        }
        #[cfg(windows)]
        {
            let _ = on_hangup;
            self.int.recv().await;
        }
    }
}

#[cfg(unix)]
async fn hangup(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether SIGHUP is ignored, as far as the system tells: Linux has a mask of ignored signals, the first of which is this one.
#[cfg(unix)]
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
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

/// Says on standard error what is wrong. A closed or full one has nobody to tell, and changes no exit code.
pub fn complain(what: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "ackstream: {what}");
}

/// Writes an answer to standard output. Returns how the process ends: a reader that has had enough is no error.
pub fn answer(text: &str) -> Exit {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(format_args!("cannot print: {error}"));
            Exit::Refused
        }
        Ok(()) | Err(_) => Exit::Done,
    }
}

/// Ends the process after so long, whatever it does then. An output that nobody reads holds up whoever writes to it.
pub fn end_within(limit: Duration) {
    let end = move || {
        let (_nobody_says_anything, silence) = mpsc::channel::<()>();
        let _ = silence.recv_timeout(limit);
        process::exit(Exit::Done.code().into());
    };
    let _ = thread::Builder::new().name("end".to_owned()).spawn(end); // without a thread the end takes as long as it takes
}

/// A panic is a bug of ours, and what it interrupted is in no known state: the process ends.
pub fn fail_stop() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        complain("this is a bug of ours; please report it with the lines above");
        process::exit(EX_SOFTWARE);
    }));
}
