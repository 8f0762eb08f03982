//! The files of a server's security, and how they are read: a secret is refused where others than its owner and group can read it.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;

use super::certificates;
use super::tokens::Tokens;
use super::watched::{Contents, Material};
use crate::config::Problem;

/// The longest file, in bytes; a bundle of all public authorities has a quarter of it.
const LONGEST: u64 = 1 << 20;

/// A file that a key of the configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// The key.
    pub key: &'static str,
    /// Where the file is.
    pub path: PathBuf,
    /// Where the key's value came from.
    pub source: String,
}

/// The files of a server's security; none = there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Those of TLS.
    pub tls: Option<TlsFiles>,
    /// The tokens.
    pub tokens: Option<TokenFile>,
}

/// The files of TLS, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and its authority.
    pub cert: NamedFile,
    /// The private key of it.
    pub key: NamedFile,
    /// The authorities of clients' certificates; `None` = clients are not asked for one.
    pub client_ca: Option<NamedFile>,
}

/// The file of the tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFile(pub NamedFile);

impl NamedFile {
    /// Something is wrong with this file.
    pub(super) fn problem(&self, must: impl Into<String>) -> Problem {
        let what = format!("{} = {:?}", self.key, self.path.display().to_string());
        Problem { what, source: self.source.clone(), must: must.into() }
    }
}

impl Files {
    /// Whether clients are asked for a certificate.
    pub const fn asks_for_certificates(&self) -> bool {
        matches!(self.tls, Some(TlsFiles { client_ca: Some(_), .. }))
    }
}

impl Material for TlsFiles {
    type Made = Arc<ServerConfig>;
    const NAME: &str = "Certificates";

    fn read(&self) -> Result<Contents, Vec<Problem>> {
        let Self { cert, key, client_ca } = self;
        let files = [(cert, false), (key, true)].into_iter().chain(client_ca.iter().map(|ca| (ca, false)));
        read_all(files)
    }

    fn make(&self, contents: &Contents) -> Result<Self::Made, Problem> {
        certificates::server_config(self, contents)
    }
}

impl Material for TokenFile {
    type Made = Tokens;
    const NAME: &str = "Tokens";

    fn read(&self) -> Result<Contents, Vec<Problem>> {
        read_all([(&self.0, true)])
    }

    fn make(&self, contents: &Contents) -> Result<Tokens, Problem> {
        Tokens::parse(&contents[0]).map_err(|must| self.0.problem(must))
    }
}

/// Reads files, each a secret or not.
fn read_all<'a>(files: impl IntoIterator<Item = (&'a NamedFile, bool)>) -> Result<Contents, Vec<Problem>> {
    let (mut contents, mut problems) = (Vec::new(), Vec::new());
    for (file, secret) in files {
        match read(&file.path, secret) {
            Ok(text) => contents.push(text),
            // Somebody may have given the secret itself.
            Err(must) if secret && !file.path.exists() => {
                problems.push(Problem { what: file.key.to_owned(), ..file.problem(must) });
            }
            Err(must) => problems.push(file.problem(must)),
        }
    }
    if problems.is_empty() { Ok(contents) } else { Err(problems) }
}

/// Reads a file that is no secret.
///
/// # Errors
///
/// Why it cannot be read.
pub fn read_public(path: &Path) -> Result<Vec<u8>, String> {
    read(path, false)
}

/// Reads a file that holds a secret.
///
/// # Errors
///
/// Why it cannot be read, or that others can read it too.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, String> {
    read(path, true)
}

fn read(path: &Path, secret: bool) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    if !path.metadata().map_err(cannot)?.is_file() {
        return Err("is no file".to_owned()); // and nothing to wait at
    }
    let file = std::fs::File::open(path).map_err(cannot)?;
    if secret {
        check_hidden(&file.metadata().map_err(cannot)?)?;
    }
    let mut contents = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut contents).map_err(cannot)?;
    if contents.len() as u64 > LONGEST { Err("has more than 1 MiB".to_owned()) } else { Ok(contents) }
}

/// Others than the owner and the group must not reach a secret. The group may: so a container's orchestrator hands a secret to a process
/// that is not root.
#[cfg(unix)]
fn check_hidden(metadata: &std::fs::Metadata) -> Result<(), String> {
    const OTHERS: u32 = 0o007;
    use std::os::unix::fs::PermissionsExt as _;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & OTHERS == 0 {
        return Ok(());
    }
    Err(format!("holds a secret that everyone on this machine can reach (mode {mode:04o}): chmod o= it"))
}

#[cfg(not(unix))]
const fn check_hidden(_: &std::fs::Metadata) -> Result<(), String> {
    Ok(())
}
