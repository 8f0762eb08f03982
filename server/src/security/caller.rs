//! Who sends a request, and what they may do.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::tokens::{Proof, Tokens};
use super::{Access, Verb};

/// Who sends a request.
#[derive(Clone, Debug)]
pub struct Caller(Option<Arc<Known>>);

/// Somebody who said who they are, and proved it.
#[derive(Debug)]
pub(super) struct Known {
    /// By its certificate, its token, or both.
    pub(super) names: Vec<String>,
    /// Its token, and those that there are.
    pub(super) token: Option<(Proof, watch::Receiver<Arc<Tokens>>)>,
    pub(super) access: Arc<Access>,
}

/// Why a caller is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unauthenticated {
    /// It does not say who it is.
    Nameless {
        /// Whether it could do so by a token.
        by_token: bool,
        /// Whether it could do so by a certificate.
        by_certificate: bool,
    },
    /// The header says something else.
    NoBearer,
    /// No client has this token.
    UnknownToken,
    /// The client's token is none any more.
    Revoked,
}

impl fmt::Display for Unauthenticated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nameless { by_token: true, by_certificate: false } => {
                "this server asks who calls: send a token, in the header `authorization: Bearer TOKEN`"
            }
            Self::Nameless { by_token: false, .. } => {
                "this server asks who calls: show a certificate of a client, with a DNS name or a URI in it"
            }
            Self::Nameless { by_token: true, by_certificate: true } => {
                "this server asks who calls: send a token, in the header `authorization: Bearer TOKEN`, or show a certificate of a \
                 client, with a DNS name or a URI in it"
            }
            Self::NoBearer => "the header `authorization` must be `Bearer TOKEN`, and there must be one",
            Self::UnknownToken => "this is no token of this server",
            Self::Revoked => "the token is no token of this server any more; what was held is released",
        })
    }
}

impl std::error::Error for Unauthenticated {}

impl Caller {
    /// Anyone, where the server does not ask.
    pub const fn anyone() -> Self {
        Self(None)
    }

    pub(super) fn known(known: Known) -> Self {
        Self(Some(Arc::new(known)))
    }

    /// Whether it may do that with the topic or subscription of this name: where one of its names may.
    pub fn may(&self, verb: Verb, name: &str) -> bool {
        self.0.as_ref().is_none_or(|known| known.names.iter().any(|client| known.access.allows(client, verb, name)))
    }

    /// Whether it may know what it did not ask for by name.
    pub const fn may_know_all(&self) -> bool {
        self.0.is_none()
    }

    /// Whether this is the same client as another caller. Where the server does not ask, all are.
    pub fn is(&self, other: &Self) -> bool {
        let names = |caller: &Self| caller.0.as_ref().map(|known| known.names.clone());
        names(self) == names(other)
    }

    /// Returns when its token is none any more; for a caller without one, never.
    pub async fn revoked(&self) {
        let with_token = self.0.as_ref().and_then(|known| Some((&known.names, known.token.as_ref()?)));
        let Some((names, (proof, tokens))) = with_token else { return std::future::pending().await };
        if tokens.clone().wait_for(|tokens| !tokens.has(names, proof)).await.is_err() {
            std::future::pending::<()>().await; // the server ends, and says so itself
        }
    }
}

/// How it calls itself, as sentences name it.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("anyone"),
            Some(known) => f.write_str(&known.names.join(", ")),
        }
    }
}
