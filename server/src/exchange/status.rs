//! Every error that a client can see, and the one place where each gets its gRPC code and sentence.

use std::fmt;
use std::time::Duration;

use ackstream_core::Refusal;
use tonic::{Code, Status};

use crate::broker::{Denied, PublishError, UnknownName};
use crate::exchange::Ending;
use crate::security::Unauthenticated;

/// Why the server ends a stream, or does not open it. What the stream's consumer held is released.
#[derive(Debug)]
pub(super) enum Refused {
    /// No first frame came in time.
    NotOpened,
    /// The first frame was something else.
    OpenNotFirst,
    /// `open` came twice.
    OpenedTwice,
    /// A member came that only the server sends.
    ServersMember(&'static str),
    /// The client calls itself by too long a name.
    ClientIdTooLong { length: usize },
    /// No such topic or subscription.
    Unknown(UnknownName),
    /// The client may not do that.
    Denied(Denied),
    /// It is not known who the client is any more.
    Unauthenticated(Unauthenticated),
    /// A frame could not be read.
    Unreadable(Status),
    /// The client publishes and does not read the answers.
    AnswersNotRead { unsent: usize },
    /// The consumer took nothing of what was due to it.
    Stuck { after: Duration },
    /// Its connection is as old as a connection may be.
    ConnectionTooOld,
    /// Another stream has taken its session over.
    Resumed,
    /// The client names more deliveries that it holds than a session may have.
    TooManyHeld { held: usize },
    /// The system gives no random numbers for the session.
    NoRandomNumbers,
    /// Too many streams are open.
    TooManyStreams { max: usize },
    /// The server ends all streams, but not with OK.
    Stopping,
}

/// How long the first frame may take.
pub(super) const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// The most deliveries that `resume` names: with ids of ten bytes 100 kB.
pub(super) const MAX_HELD: usize = 10_000;
/// The longest `client_id`, in bytes.
pub(super) const MAX_CLIENT_ID: usize = 256;

impl Refused {
    const fn code(&self) -> Code {
        match self {
            Self::NotOpened => Code::DeadlineExceeded,
            Self::OpenNotFirst
            | Self::OpenedTwice
            | Self::ServersMember(_)
            | Self::ClientIdTooLong { .. }
            | Self::TooManyHeld { .. }
            | Self::Unreadable(_) => Code::InvalidArgument,
            Self::Unknown(_) => Code::NotFound,
            Self::Denied(_) => Code::PermissionDenied,
            Self::Unauthenticated(_) => Code::Unauthenticated,
            Self::AnswersNotRead { .. } | Self::Stuck { .. } | Self::TooManyStreams { .. } => Code::ResourceExhausted,
            Self::ConnectionTooOld | Self::Resumed | Self::NoRandomNumbers | Self::Stopping => Code::Unavailable,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOpened => write!(f, "no `open` came within {} s; send it first", OPEN_WITHIN.as_secs()),
            Self::OpenNotFirst => write!(f, "the first frame must be `open`; {{\"open\":{{}}}} is enough"),
            Self::OpenedTwice => write!(f, "`open` came twice; a stream is opened once"),
            Self::ServersMember(member) => write!(f, "`{member}` comes from the server only"),
            Self::ClientIdTooLong { length } => {
                write!(f, "client_id has {length} bytes, at most {MAX_CLIENT_ID} are allowed")
            }
            Self::Unknown(unknown) => unknown.fmt(f),
            Self::Denied(denied) => denied.fmt(f),
            Self::Unauthenticated(why) => why.fmt(f),
            Self::Unreadable(status) => write!(f, "a frame could not be read: {}", status.message()),
            Self::AnswersNotRead { unsent } => write!(
                f,
                "{unsent} answers to publishes wait to be read; what was published after them is not stored, send it again"
            ),
            Self::Stuck { after } => write!(
                f,
                "nothing was read and nothing was sent for {} while messages were due (consumer_stuck_after); what was held is released",
                humantime::format_duration(*after)
            ),
            Self::ConnectionTooOld => {
                write!(
                    f,
                    "the connection has reached its age (max_connection_age); reconnect, what was held is released"
                )
            }
            Self::Resumed => write!(f, "another stream has resumed this session, and goes on with what was held here"),
            Self::TooManyHeld { held } => {
                write!(
                    f,
                    "resume names {held} deliveries that are held, at most {MAX_HELD} are allowed; leave out the newest"
                )
            }
            Self::NoRandomNumbers => write!(f, "the system has no random numbers for a session; try again"),
            Self::TooManyStreams { max } => write!(f, "{max} streams are open, and no more are allowed (max_streams)"),
            Self::Stopping => write!(
                f,
                "the server is stopping; messages that are not acked are gone with it, reconnect to the next server"
            ),
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        Self::new(refused.code(), refused.to_string())
    }
}

impl From<UnknownName> for Refused {
    fn from(unknown: UnknownName) -> Self {
        Self::Unknown(unknown)
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl Ending {
    /// How a stream ends.
    pub(super) fn result(self) -> Result<(), Refused> {
        match self {
            Self::Completed => Ok(()),
            Self::Stopping => Err(Refused::Stopping),
        }
    }
}

impl PublishError {
    /// The gRPC code that tells a publisher what to do: RESOURCE_EXHAUSTED try again later, UNAVAILABLE try another server,
    /// INVALID_ARGUMENT and `PERMISSION_DENIED` do not try again.
    pub(super) const fn code(&self) -> Code {
        match self {
            Self::Refused { refusal: Refusal::TooManyMessages { .. } | Refusal::TooManyBytes { .. }, .. } => {
                Code::ResourceExhausted
            }
            Self::Refused { refusal: Refusal::Draining, .. } => Code::Unavailable,
            Self::TooLarge { .. } | Self::Invalid(_) => Code::InvalidArgument,
            Self::Denied(_) => Code::PermissionDenied,
        }
    }
}
