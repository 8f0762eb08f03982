//! Files of tokens, certificates and keys: whatever is in them, they are understood or refused, and no refusal tells a secret.

#![no_main]

use ackstream::security::{Tokens, names_of, parse_authorities, parse_certificates, parse_key, read_token};
use libfuzzer_sys::fuzz_target;
use rustls::pki_types::CertificateDer;

fuzz_target!(|input: &[u8]| {
    let Some((&kind, file)) = input.split_first() else { return };
    match kind % 4 {
        0 => tokens(file),
        1 => {
            if let Ok(chain) = parse_certificates(file) {
                chain.iter().for_each(|certificate| drop(names_of(certificate)));
            }
            drop(parse_authorities(file));
        }
        2 => drop(parse_key(file)),
        _ => drop(names_of(&CertificateDer::from(file))),
    }
});

fn tokens(file: &[u8]) {
    let text = String::from_utf8_lossy(file);
    let words = text.split_whitespace().filter(|word| word.len() >= 16);
    match Tokens::parse(file) {
        Ok(tokens) => {
            for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
                let (client, token) = line.split_once(char::is_whitespace).expect("a line is NAME TOKEN");
                assert_eq!(tokens.find(token.trim().as_bytes()).map(|(client, _)| client), Some(client));
            }
        }
        Err(told) => words.for_each(|word| assert!(!told.contains(word), "{told}")),
    }
    if let Ok(token) = read_token(file) {
        assert!(token.bytes().all(|byte| byte.is_ascii_graphic()), "{token:?} can be sent");
    }
}
