//! From PEM to what TLS is made of.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use super::files::TlsFiles;
use super::watched::Contents;
use crate::config::Problem;

/// The protocol that is agreed on in the handshake: HTTP/2, as gRPC wants it.
pub(crate) const ALPN: &[u8] = b"h2";

/// How the server speaks TLS: 1.2 and 1.3, as rustls has them. The contents are those of the certificate, the key and the authorities.
pub(super) fn server_config(files: &TlsFiles, contents: &Contents) -> Result<Arc<ServerConfig>, Problem> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has all versions");
    let builder = match files.client_ca.as_ref().zip(contents.get(2)) {
        Some((file, ca)) => {
            let authorities = parse_authorities(ca).map_err(|must| file.problem(must))?;
            // Who shows none is told so by gRPC, in a sentence, and not by an alert that clients report as a broken connection.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| file.problem(format!("is no list of authorities: {error}")))?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let chain = parse_certificates(&contents[0]).map_err(|must| files.cert.problem(must))?;
    let key = parse_key(&contents[1]).map_err(|must| files.key.problem(must))?;
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        if matches!(error, rustls::Error::InconsistentKeys(_)) {
            return files.key.problem("is not the key of the certificate in tls_cert");
        }
        files.cert.problem(format!("cannot be used with its key: {error}"))
    })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would bring back a certificate without asking whether it still holds.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The certificates of a PEM file, the first of them the one that counts.
///
/// # Errors
///
/// What is wrong with it.
pub fn parse_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|error| format!("is not PEM: {error}"))?;
    if certificates.is_empty() { Err("has no certificate in PEM".to_owned()) } else { Ok(certificates) }
}

/// The first private key of a PEM file.
///
/// # Errors
///
/// What is wrong with it.
pub fn parse_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| "has no private key in PEM (PKCS #8, PKCS #1 or SEC 1)".to_owned())
}

/// The authorities of a PEM file, by which certificates are trusted.
///
/// # Errors
///
/// What is wrong with it.
pub fn parse_authorities(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut authorities = RootCertStore::empty();
    for (n, certificate) in parse_certificates(pem)?.into_iter().enumerate() {
        authorities
            .add(certificate)
            .map_err(|error| format!("certificate {} of it is no authority: {error}", n + 1))?;
    }
    Ok(authorities)
}

/// The names of a certificate that was verified: DNS names and URIs of its subject's alternative names (RFC 9525 has retired the common
/// name). None where it is not a certificate.
pub fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    certificate.valid_dns_names().chain(certificate.valid_uri_names()).map(str::to_owned).collect()
}
