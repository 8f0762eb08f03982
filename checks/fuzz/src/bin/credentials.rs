//! Files of tokens, certificates and keys: whatever is in them, they are understood or refused, and no refusal tells a secret.

#![no_main]

use ackstream::security::{Tokens, names_of, parse_authorities, parse_certificates, parse_key, read_token};
use libfuzzer_sys::fuzz_target;
use rustls::pki_types::CertificateDer;

/// A word of so many bytes may be a secret.
const SECRET: usize = 16;

fuzz_target!(|input: &[u8]| {
    let Some((&kind, file)) = input.split_first() else { return };
    let check = |told: Option<String>| {
        let text = String::from_utf8_lossy(file);
        for word in text.split_whitespace().filter(|word| word.len() >= SECRET) {
            assert!(told.as_ref().is_none_or(|told| !told.contains(word)), "{told:?}");
        }
    };
    match kind % 4 {
        0 => {
            check(tokens(file));
            let token = read_token(file);
            assert!(
                token.as_ref().is_ok_and(|token| token.bytes().all(|byte| byte.is_ascii_graphic())) || token.is_err()
            );
            check(token.err());
        }
        1 => {
            if let Ok(chain) = parse_certificates(file) {
                chain.iter().for_each(|certificate| drop(names_of(certificate)));
            }
            drop(parse_authorities(file));
        }
        2 => check(parse_key(file).err()),
        _ => drop(names_of(&CertificateDer::from(file))),
    }
});

/// Reads it as tokens, and returns what was told of it.
fn tokens(file: &[u8]) -> Option<String> {
    let tokens = match Tokens::parse(file) {
        Ok(tokens) => tokens,
        Err(told) => return Some(told),
    };
    let text = std::str::from_utf8(file).expect("tokens are text");
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (client, token) = line.split_once(char::is_whitespace).expect("a line is NAME TOKEN");
        assert_eq!(tokens.find(token.trim().as_bytes()).map(|(client, _)| client), Some(client));
    }
    None
}
