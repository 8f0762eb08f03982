//! By what a client trusts a server, and how it says who it is. Its files are read anew for each connection, so that they may change
//! while it runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use super::link::is_final;
use crate::config::Problem;
use crate::security::{ALPN, parse_authorities, parse_certificates, parse_key, read_public, read_secret, read_token};

/// A connection whose requests carry the client's token, where it has one.
pub(crate) type AuthorizedChannel = InterceptedService<Channel, Bearer>;

/// How a client presents itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// How it speaks TLS; `None` = it does not.
    pub tls: Option<Tls>,
    /// The file with its token.
    pub token_file: Option<PathBuf>,
}

/// How a client speaks TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// By what it trusts a server.
    pub trust: Trust,
    /// Its own certificate, and the key of it.
    pub identity: Option<Identity>,
}

/// By what a client trusts a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// By the authorities that this machine trusts.
    #[default]
    System,
    /// By the authorities in this file.
    Authorities(PathBuf),
    /// Whoever it is: a server on this machine is asked for its health, which is no secret, and nothing else is sent. Its certificate
    /// need not be the one that its file has by now.
    Anyone,
}

/// The files of a client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those up to its authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What was read from the files.
pub(crate) struct Presented {
    tls: Option<TlsConnector>,
    bearer: Bearer,
}

/// Adds the token to each request.
#[derive(Clone, Debug)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl Credentials {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// What is wrong with one of them.
    pub(crate) fn present(&self) -> Result<Presented, Problem> {
        let tls = self.tls.as_ref().map(Tls::connector).transpose()?;
        let bearer = self.token_file.as_deref().map(bearer).transpose()?;
        Ok(Presented { tls, bearer: Bearer(bearer) })
    }

    /// Whether the files can be used.
    ///
    /// # Errors
    ///
    /// What is wrong with one of them.
    pub fn check(&self) -> Result<(), Vec<Problem>> {
        self.present().map(|_| ()).map_err(|problem| vec![problem])
    }
}

/// Something is wrong with the file of a flag.
fn problem(flag: &str, path: &Path, must: impl Into<String>) -> Problem {
    // Somebody may have given the secret itself.
    let may_be_secret = matches!(flag, "token-file" | "tls-key") && !path.exists();
    let what = if may_be_secret { flag.to_owned() } else { format!("{flag} = {:?}", path.display().to_string()) };
    Problem { what, source: format!("flag --{flag}"), must: must.into() }
}

fn bearer(path: &Path) -> Result<MetadataValue<Ascii>, Problem> {
    let wrong = |must: String| problem("token-file", path, must);
    let token = read_secret(path).and_then(|file| read_token(&file)).map_err(wrong)?;
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().expect("a token is ASCII");
    value.set_sensitive(true); // neither printed nor kept in HTTP/2's tables
    Ok(value)
}

impl Tls {
    fn connector(&self) -> Result<TlsConnector, Problem> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the provider has all versions");
        let builder = match &self.trust {
            Trust::System => {
                let mut authorities = RootCertStore::empty();
                authorities.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if authorities.is_empty() {
                    let must = "this machine has no certificates of authorities: say --tls-ca FILE".to_owned();
                    return Err(Problem { what: "tls".to_owned(), source: "flag --tls".to_owned(), must });
                }
                builder.with_root_certificates(authorities)
            }
            Trust::Authorities(path) => {
                let authorities = read_public(path).and_then(|pem| parse_authorities(&pem));
                let authorities = authorities.map_err(|must| problem("tls-ca", path, must))?;
                builder.with_root_certificates(authorities)
            }
            Trust::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))),
        };
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(Identity { cert, key }) => {
                let wrong_cert = |must: String| problem("tls-cert", cert, must);
                let chain = read_public(cert).and_then(|pem| parse_certificates(&pem)).map_err(wrong_cert)?;
                let of_key = read_secret(key).and_then(|pem| parse_key(&pem));
                let of_key = of_key.map_err(|must| problem("tls-key", key, must))?;
                builder.with_client_auth_cert(chain, of_key).map_err(|error| {
                    if matches!(error, rustls::Error::InconsistentKeys(_)) {
                        return problem("tls-key", key, "is not the key of the certificate in --tls-cert");
                    }
                    problem("tls-cert", cert, format!("cannot be used with its key: {error}"))
                })?
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

impl Presented {
    /// The scheme of this server's address.
    const fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Connects to HOST:PORT; `set` sets what a connection is to be like.
    ///
    /// # Errors
    ///
    /// Why there is no connection; UNAUTHENTICATED where the server is not trusted.
    pub(crate) async fn connect(
        self,
        authority: &str,
        set: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<AuthorizedChannel, Status> {
        let endpoint = Endpoint::from_shared(format!("{}://{authority}", self.scheme()))
            .map_err(|error| Status::invalid_argument(format!("{authority} is no address: {error}")))?;
        let endpoint = set(endpoint);
        let channel = match self.tls {
            None => endpoint.connect().await,
            Some(tls) => {
                let dial = move |uri: Uri| dial(uri, tls.clone());
                endpoint.connect_with_connector(tower::service_fn(dial)).await
            }
        };
        let channel = channel.map_err(|error| explain(&error))?;
        Ok(InterceptedService::new(channel, self.bearer))
    }
}

/// Opens an encrypted connection.
async fn dial(uri: Uri, tls: TlsConnector) -> std::io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or_default())).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
    tls.connect(name, stream).await.map(TokioIo::new)
}

/// What an error of a connection means: what TLS says of certificates does not change by itself.
pub(crate) fn explain(error: &(dyn std::error::Error + 'static)) -> Status {
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(why)) => {
            Status::unauthenticated(format!("its certificate is not trusted: {why} (--tls-ca)"))
        }
        Some(rustls::Error::InvalidMessage(_)) => Status::unimplemented("it does not speak TLS"),
        Some(rustls::Error::AlertReceived(alert)) => refused_in_handshake(&format!("{alert:?}")),
        _ => {
            let cause = root_cause(error);
            // In TLS 1.3 a server looks at the certificate when the client's handshake is over, and HTTP/2 keeps the words alone.
            match cause.strip_prefix("received fatal alert: ") {
                Some(alert) => refused_in_handshake(alert),
                None => Status::unavailable(cause),
            }
        }
    }
}

fn refused_in_handshake(alert: &str) -> Status {
    Status::unauthenticated(format!("it refuses this client in the handshake of TLS: {alert} (--tls-cert)"))
}

/// What the status of a call means that has brought no answer.
pub(crate) fn explain_call(status: Status, credentials: &Credentials) -> Status {
    let Some(source) = std::error::Error::source(&status) else { return status }; // the server said it
    let explained = explain(source);
    if is_final(explained.code()) || credentials.tls.is_some() {
        return explained;
    }
    let what = explained.message();
    Status::unavailable(format!("{what} (where the server speaks TLS, so must its clients: --tls, --tls-ca)"))
}

/// The error of TLS that is at the root of this one.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| inner.downcast_ref()).or_else(|| error.downcast_ref()) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The innermost error, which says what happened.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Trusts whoever has the key of the certificate that it shows.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
