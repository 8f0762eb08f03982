//! Who may do what: a server's certificate, its clients' certificates and tokens, and what each client may publish to and consume from.
//! The files are read anew while the server runs, and what is wrong with a new one leaves the old one in force.
//!
//! ```text
//!   files ─▶ watched (reads them again and again) ─▶ TLS, tokens in force
//!                                                         │
//!   connection ─▶ TLS ─▶ names of its certificate ─▶ authenticate ─▶ caller ─▶ may it?  ─▶ access
//!                        token of the request ─────────────┘
//! ```

mod access;
mod caller;
mod certificates;
mod files;
mod guard;
mod tokens;
mod watched;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use tokio_rustls::TlsAcceptor;
use tracing::warn;

pub use access::{Access, Names, Rights, Verb};
pub use caller::{Caller, Unauthenticated};
pub(crate) use certificates::ALPN;
pub use certificates::{names_of, parse_authorities, parse_certificates, parse_key};
pub use files::{Files, NamedFile, TlsFiles, TokenFile, read_public, read_secret};
pub use guard::{CertificateNames, Guard};
pub use tokens::{Tokens, read_one as read_token};

use crate::config::Problem;
use caller::Known;
use watched::Watched;

/// Before a token in its header.
const BEARER: &[u8] = b"Bearer ";

/// What a server's security is made of.
#[derive(Clone, Debug)]
pub struct SecuritySettings {
    /// The files.
    pub files: Files,
    /// What each client may do.
    pub access: Access,
    /// The files are read anew so often.
    pub reload_interval: Duration,
}

/// The security of a server. By default there is none: whoever reaches it may do everything.
#[derive(Debug, Default)]
pub struct Security {
    tls: Option<Watched<TlsFiles>>,
    asks_for_certificates: bool,
    tokens: Option<Watched<TokenFile>>,
    access: Arc<Access>,
    reload_interval: Duration,
}

impl Security {
    /// Reads all files.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with them.
    pub fn load(settings: SecuritySettings) -> Result<Self, Vec<Problem>> {
        let SecuritySettings { files, access, reload_interval } = settings;
        let asks_for_certificates = files.asks_for_certificates();
        let Files { tls, tokens } = files;
        let (tls, tokens) = (tls.map(Watched::load).transpose(), tokens.map(Watched::load).transpose());
        match (tls, tokens) {
            (Ok(tls), Ok(tokens)) => {
                Ok(Self { tls, asks_for_certificates, tokens, access: Arc::new(access), reload_interval })
            }
            (tls, tokens) => Err([tls.err(), tokens.err()].into_iter().flatten().flatten().collect()),
        }
    }

    /// What new connections are to be encrypted with; `None` = they are not.
    pub fn tls(&self) -> Option<TlsAcceptor> {
        self.tls.as_ref().map(|tls| TlsAcceptor::from(Arc::unwrap_or_clone(tls.current())))
    }

    /// How often files are read anew.
    pub const fn reload_interval(&self) -> Duration {
        self.reload_interval
    }

    /// Whether clients have to say who they are.
    pub const fn asks_who_calls(&self) -> bool {
        self.tokens.is_some() || self.asks_for_certificates
    }

    /// Who calls: by the names of the certificate that its connection showed, and by the token of the request. Each that is there counts.
    ///
    /// # Errors
    ///
    /// Where clients have to say who they are, and this one does not, or has a token that is none.
    pub fn authenticate(&self, certificate: &[String], headers: &HeaderMap) -> Result<Caller, Unauthenticated> {
        if !self.asks_who_calls() {
            return Ok(Caller::anyone());
        }
        let (mut names, mut token) = (certificate.to_vec(), None);
        if let Some(tokens) = self.tokens.as_ref().filter(|_| headers.contains_key(AUTHORIZATION)) {
            let bearer = bearer(headers).ok_or(Unauthenticated::NoBearer)?;
            let known = tokens.current();
            let (client, proof) = known.find(bearer).ok_or(Unauthenticated::UnknownToken)?;
            names.push(client.to_owned());
            token = Some((proof, tokens.subscribe()));
        }
        if names.is_empty() {
            let (by_token, by_certificate) = (self.tokens.is_some(), self.asks_for_certificates);
            return Err(Unauthenticated::Nameless { by_token, by_certificate });
        }
        Ok(Caller::known(Known { names, token, access: Arc::clone(&self.access) }))
    }

    /// Reads the files anew, again and again. Never ends.
    pub async fn keep_current(&self) {
        let tls = async {
            if let Some(tls) = &self.tls {
                tls.keep_current(self.reload_interval).await;
            }
        };
        let tokens = async {
            if let Some(tokens) = &self.tokens {
                tokens.keep_current(self.reload_interval).await;
            }
        };
        let powerless = async {
            if let Some(tokens) = &self.tokens {
                let mut tokens = tokens.subscribe();
                while tokens.changed().await.is_ok() {
                    self.warn_of_the_powerless();
                }
            }
        };
        tokio::join!(tls, tokens, powerless);
    }

    /// Says which clients have a token and may do nothing: a misspelt name, most likely.
    pub fn warn_of_the_powerless(&self) {
        if self.asks_who_calls() && self.access.is_empty() {
            warn!("No client may do anything: there is no [access.CLIENT]");
            return;
        }
        let Some(tokens) = &self.tokens else { return };
        let tokens = tokens.current();
        let clients: BTreeSet<_> = tokens.clients().filter(|client| !self.access.names(client)).collect();
        if !clients.is_empty() {
            let clients = clients.into_iter().collect::<Vec<_>>().join(", ");
            warn!("They have tokens and may do nothing (add [access.CLIENT]): {clients}");
        }
    }

    /// What whoever starts a server on this address should know about who can reach it; `None` = nothing.
    pub fn exposure(&self, address: SocketAddr) -> Option<String> {
        if !is_open_to_others(address) {
            return None;
        }
        let what = match (self.asks_who_calls(), self.tls.is_some()) {
            (true, true) => return None,
            (true, false) => {
                "unencrypted: whoever is on the way can read tokens and messages (set tls_cert and tls_key)"
            }
            (false, true) => "whoever reaches it may publish and consume everything (set tokens or tls_client_ca)",
            (false, false) => {
                "unencrypted, and whoever reaches it may publish and consume everything (see tls_cert and tokens)"
            }
        };
        Some(format!("{address} is open to other hosts, {what}"))
    }
}

/// The same of the address of the metrics, which anyone may read.
pub fn exposure_of_metrics(address: SocketAddr) -> Option<String> {
    is_open_to_others(address)
        .then(|| format!("{address} is open to other hosts: whoever reaches it may read the metrics"))
}

fn is_open_to_others(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

/// The one token of these headers, where they have just that.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(one), None) = (all.next(), all.next()) else { return None };
    let (scheme, token) = one.as_bytes().split_at_checked(BEARER.len())?;
    // The scheme's case is nobody's business (RFC 9110, section 11.1).
    scheme.eq_ignore_ascii_case(BEARER).then(|| token.trim_ascii())
}
