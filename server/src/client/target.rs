//! The server that a client is told to talk to.

use std::fmt;
use std::str::FromStr;

/// HOST:PORT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target(String);

/// A text that names no server.
#[derive(Debug, PartialEq, Eq)]
pub struct NoTarget;

impl fmt::Display for NoTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be HOST:PORT such as \"localhost:50051\" or \"[::1]:50051\"")
    }
}

impl std::error::Error for NoTarget {}

impl FromStr for Target {
    type Err = NoTarget;

    fn from_str(text: &str) -> Result<Self, NoTarget> {
        let authority: http::uri::Authority = text.parse().map_err(|_| NoTarget)?;
        let names_both = !authority.host().is_empty() && authority.port_u16().is_some_and(|port| port != 0);
        if names_both && !text.contains('@') { Ok(Self(text.to_owned())) } else { Err(NoTarget) }
    }
}

impl Target {
    /// Where the server may be, in the order in which to try: a server listens on `[::1]` by default, and there are machines where
    /// `localhost` means 127.0.0.1 alone.
    pub(super) fn authorities(&self) -> Vec<String> {
        let named = self.0.clone();
        match self.0.strip_prefix("localhost:") {
            Some(port) => vec![named, format!("[::1]:{port}")],
            None => vec![named],
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_host_and_a_port() {
        for text in ["localhost:50051", "[::1]:50051", "10.1.2.3:1", "broker.example:65535"] {
            assert_eq!(text.parse::<Target>().map(|target| target.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn localhost_is_looked_for_at_the_loopback_address_of_ipv6_too() {
        let authorities = |text: &str| text.parse::<Target>().unwrap().authorities();
        assert_eq!(authorities("localhost:5"), ["localhost:5", "[::1]:5"]);
        assert_eq!(authorities("10.1.2.3:5"), ["10.1.2.3:5"]);
    }

    #[test]
    fn what_names_no_host_or_no_port_is_refused() {
        for text in [
            "",
            "localhost",
            ":50051",
            "localhost:",
            "localhost:0",
            "localhost:70000",
            "http://localhost:50051",
            "a b:1",
            "u@h:1",
        ] {
            assert_eq!(text.parse::<Target>(), Err(NoTarget), "{text}");
        }
    }
}
