//! How the binary ends.

use std::process::ExitCode;

/// Every exit code; those from 64 on are the ones of BSD's sysexits.h. A bug of ours ends with 70, wherever it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All is done.
    Done,
    /// A server is not healthy; some of the input was not accepted; the output could not be written.
    Refused,
    /// Wrong usage or configuration; nothing was done.
    Usage,
    /// The input is missing or cannot be read.
    NoInput,
    /// The other side, or a port, cannot be had.
    Unavailable,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Refused => 1,
            Self::Usage => 64,
            Self::NoInput => 66,
            Self::Unavailable => 69,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}
