//! The tokens of clients: a line for each, its client's name and the token.

use std::collections::BTreeMap;
use std::fmt;

use ring::digest::{SHA256, digest};
use subtle::{Choice, ConstantTimeEq as _};

/// The shortest token, in bytes: 16 random ones of 64 kinds are 96 bits.
const SHORTEST: usize = 16;
/// The longest token, in bytes: it travels in a header with every stream.
const LONGEST: usize = 4096;
/// The most tokens: a request is compared with all of them, which takes some 10 ns each.
const MOST: usize = 10_000;

/// Proof that a client has a token: its SHA-256 digest. The token itself is not kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Proof([u8; 32]);

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof(..)")
    }
}

/// The tokens that a server knows.
#[derive(Debug, Default)]
pub struct Tokens(Vec<(String, Proof)>);

impl Tokens {
    /// Reads a file of lines `NAME TOKEN`; empty ones and those that begin with '#' are none. A client may have several tokens.
    ///
    /// # Errors
    ///
    /// What is wrong with a line; never its text, which may be a secret.
    pub fn parse(file: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(file).map_err(|_| "must be text in UTF-8".to_owned())?;
        let (mut tokens, mut line_of) = (Vec::new(), BTreeMap::new());
        for (n, line) in text.lines().enumerate().map(|(n, line)| (n + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut parts = line.split_whitespace();
            let (Some(client), Some(token), None) = (parts.next(), parts.next(), parts.next()) else {
                return Err(format!("line {n} must be NAME TOKEN"));
            };
            check(token).map_err(|must| format!("line {n}: {must}"))?;
            let proof = Proof::of(token.as_bytes());
            if let Some(other) = line_of.insert(proof.0, n) {
                return Err(format!("line {n} has the token of line {other}"));
            }
            tokens.push((client.to_owned(), proof));
        }
        if tokens.len() > MOST {
            return Err(format!("has {} tokens, at most {MOST} are allowed", tokens.len()));
        }
        Ok(Self(tokens))
    }

    /// Whose token this is, with the proof. How long it takes tells nothing about the tokens: all are compared, by their digests.
    pub fn find(&self, token: &[u8]) -> Option<(&str, Proof)> {
        let presented = Proof::of(token);
        let mut found = None;
        for (client, proof) in &self.0 {
            if bool::from(presented.equals(proof)) {
                found = Some((client.as_str(), presented));
            }
        }
        found
    }

    /// Whether this is still the proof of one of these clients.
    pub(super) fn has(&self, clients: &[String], proof: &Proof) -> bool {
        self.0.iter().any(|(client, known)| bool::from(proof.equals(known)) && clients.contains(client))
    }

    /// Whose tokens these are.
    pub fn clients(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(client, _)| client.as_str())
    }
}

impl Proof {
    fn of(token: &[u8]) -> Self {
        let digest = digest(&SHA256, token);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    fn equals(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

/// The one token of a client's file.
///
/// # Errors
///
/// What is wrong with it.
pub fn read_one(file: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(file).map_err(|_| "must be text in UTF-8".to_owned())?;
    let token = text.trim();
    check(token)?;
    Ok(token.to_owned())
}

fn check(token: &str) -> Result<(), String> {
    if !(SHORTEST..=LONGEST).contains(&token.len()) {
        return Err(format!("a token has {SHORTEST} to {LONGEST} characters; `openssl rand -hex 32` makes one"));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a token has letters, digits and signs of ASCII, and no spaces".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0123456789abcdef";
    const OTHER: &str = "fedcba9876543210";

    fn find<'a>(tokens: &'a Tokens, token: &str) -> Option<&'a str> {
        tokens.find(token.as_bytes()).map(|(client, _)| client)
    }

    #[test]
    fn a_token_is_its_clients_and_a_client_may_have_two() {
        let file = format!("# shops\n\nshop {ONE}\n  billing\t{OTHER}  \r\nshop {ONE}{OTHER}\n");
        let tokens = Tokens::parse(file.as_bytes()).unwrap();
        assert_eq!(find(&tokens, ONE), Some("shop"));
        assert_eq!(find(&tokens, OTHER), Some("billing"));
        assert_eq!(find(&tokens, &format!("{ONE}{OTHER}")), Some("shop"));
    }

    #[test]
    fn nothing_but_the_whole_token_is_the_token() {
        let tokens = Tokens::parse(format!("shop {ONE}").as_bytes()).unwrap();
        for wrong in
            ["", "shop", &ONE[1..], &ONE[..15], &format!("{ONE}0"), &ONE.to_uppercase(), &format!(" {ONE}"), OTHER]
        {
            assert_eq!(find(&tokens, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line_and_never_by_its_text() {
        let long = "x".repeat(LONGEST + 1);
        for (file, must) in [
            ("shop".to_owned(), "line 1 must be NAME TOKEN"),
            (format!("\nshop {ONE} more"), "line 2 must be NAME TOKEN"),
            ("shop short".to_owned(), "line 1: a token has 16 to 4096 characters; `openssl rand -hex 32` makes one"),
            (format!("shop {long}"), "line 1: a token has 16 to 4096 characters; `openssl rand -hex 32` makes one"),
            (format!("shop {ONE}ü"), "line 1: a token has letters, digits and signs of ASCII, and no spaces"),
            (format!("shop {ONE}\nbilling {ONE}"), "line 2 has the token of line 1"),
        ] {
            assert_eq!(Tokens::parse(file.as_bytes()).unwrap_err(), must);
        }
        assert_eq!(Tokens::parse(&[b'a', 0xff]).unwrap_err(), "must be text in UTF-8");
        let many = (0..=MOST).map(|n| format!("c {ONE}{n}")).collect::<Vec<_>>().join("\n");
        assert_eq!(Tokens::parse(many.as_bytes()).unwrap_err(), "has 10001 tokens, at most 10000 are allowed");
    }

    #[test]
    fn a_proof_shows_nothing_of_itself() {
        let tokens = Tokens::parse(format!("shop {ONE}").as_bytes()).unwrap();
        assert_eq!(format!("{tokens:?}"), "Tokens([(\"shop\", Proof(..))])");
    }
}
