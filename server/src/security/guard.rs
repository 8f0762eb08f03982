//! Asks of every request who sends it. What it finds is in the request's extensions.

use std::sync::Arc;

use http::Request;
use tonic::Status;

use super::{Security, Unauthenticated};

/// Health is told to anyone: balancers and probes have neither certificate nor token.
const OPEN_TO_ANYONE: &str = "/grpc.health.v1.Health/";

/// The names of the certificate that a connection has shown, in the extensions of its requests.
#[derive(Clone, Debug, Default)]
pub struct CertificateNames(pub Arc<[String]>);

/// Asks who calls; a handle to share.
#[derive(Clone, Debug)]
pub struct Guard(Arc<Security>);

impl Guard {
    /// Asks what this security asks for.
    pub const fn new(security: Arc<Security>) -> Self {
        Self(security)
    }

    /// Finds out who sends a request.
    ///
    /// # Errors
    ///
    /// UNAUTHENTICATED, where it has to say so and does not.
    pub fn admit<B>(&self, request: &mut Request<B>) -> Result<(), Status> {
        if request.uri().path().starts_with(OPEN_TO_ANYONE) {
            // Who has not said who it is has nothing kept: not its headers, and of its path no slice of the frame that brought both.
            request.headers_mut().clear();
            if let Ok(copied) = request.uri().path().parse() {
                *request.uri_mut() = copied;
            }
            return Ok(());
        }
        let names = request.extensions_mut().remove::<CertificateNames>().unwrap_or_default();
        let caller = self.0.authenticate(&names.0, request.headers())?;
        request.extensions_mut().insert(caller);
        Ok(())
    }
}

impl From<Unauthenticated> for Status {
    fn from(why: Unauthenticated) -> Self {
        Self::unauthenticated(why.to_string())
    }
}
