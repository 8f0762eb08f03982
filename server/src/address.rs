//! Where the server listens.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be accepted, at most; the system may allow fewer.
const BACKLOG: i32 = 1024;

/// An address to listen on, as it was configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Loopback, as nobody said otherwise: `[::1]`, or 127.0.0.1 where the host has no IPv6.
    Loopback(u16),
    /// `:PORT`: all addresses of both families; of IPv4 only where the host has no IPv6.
    All(u16),
    /// This one and no other.
    One(SocketAddr),
}

/// A text that names no address.
#[derive(Debug, PartialEq, Eq)]
pub struct NoAddress;

impl fmt::Display for NoAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "must be ADDRESS:PORT such as \"[::1]:50051\" or \"127.0.0.1:50051\", or \":50051\" for all addresses",
        )
    }
}

impl std::error::Error for NoAddress {}

impl FromStr for Listen {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        match text.strip_prefix(':') {
            Some(port) => port.parse().map(Self::All).map_err(|_| NoAddress),
            None => text.parse().map(Self::One).map_err(|_| NoAddress),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(port) => write!(f, "[::1]:{port}"),
            Self::All(port) => write!(f, ":{port}"),
            Self::One(address) => address.fmt(f),
        }
    }
}

impl Listen {
    /// `[::1]` as a default: where the host has no IPv6, 127.0.0.1 will do.
    #[must_use]
    pub fn or_loopback(self) -> Self {
        match self {
            Self::One(address) if address.ip() == Ipv6Addr::LOCALHOST => Self::Loopback(address.port()),
            Self::One(_) | Self::Loopback(_) | Self::All(_) => self,
        }
    }

    /// Where a client on this machine reaches what listens here, in the order in which to try; none where the system picks the port.
    pub fn reached_at(self) -> Vec<SocketAddr> {
        let loopback = |port| vec![(Ipv6Addr::LOCALHOST, port).into(), (Ipv4Addr::LOCALHOST, port).into()];
        match self {
            Self::Loopback(0) | Self::All(0) => vec![],
            Self::One(address) if address.port() == 0 => vec![],
            Self::Loopback(port) | Self::All(port) => loopback(port),
            Self::One(address) if address.ip() == Ipv4Addr::UNSPECIFIED => {
                vec![(Ipv4Addr::LOCALHOST, address.port()).into()]
            }
            Self::One(address) if address.ip().is_unspecified() => loopback(address.port()),
            Self::One(address) => vec![address],
        }
    }

    /// Opens the port.
    ///
    /// # Errors
    ///
    /// What the system says, for example that the port is taken.
    pub fn bind(self) -> io::Result<TcpListener> {
        let without_ipv6 = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
                || error.raw_os_error() == Some(EAFNOSUPPORT)
        };
        match self {
            Self::One(address) => open(address),
            Self::Loopback(port) => match open((Ipv6Addr::LOCALHOST, port).into()) {
                Err(error) if without_ipv6(&error) => open((Ipv4Addr::LOCALHOST, port).into()),
                result => result,
            },
            Self::All(port) => match open((Ipv6Addr::UNSPECIFIED, port).into()) {
                Err(error) if without_ipv6(&error) => open((Ipv4Addr::UNSPECIFIED, port).into()),
                result => result,
            },
        }
    }
}

/// The system knows no such address family (Linux 97, macOS 47); `io::ErrorKind` has no stable name for it.
const EAFNOSUPPORT: i32 = if cfg!(target_os = "linux") { 97 } else { 47 };

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?; // all addresses means both families
    }
    #[cfg(unix)]
    socket.set_reuse_address(true)?; // a restarted server takes its port back at once
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_means_all_addresses() {
        assert_eq!(":50051".parse(), Ok(Listen::All(50051)));
    }

    #[test]
    fn an_address_that_was_given_is_taken_as_it_is() {
        assert_eq!("[::1]:0".parse(), Ok(Listen::One("[::1]:0".parse().unwrap())));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "50051", "localhost:50051", ":x", "[::1]", "127.0.0.1:70000"] {
            assert_eq!(text.parse::<Listen>(), Err(NoAddress), "{text}");
        }
    }

    #[test]
    fn whoever_asks_from_this_machine_asks_a_loopback_address_where_all_are_listened_on() {
        let reached_at = |text: &str| {
            text.parse::<Listen>().unwrap().reached_at().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(reached_at(":50051"), ["[::1]:50051", "127.0.0.1:50051"]);
        assert_eq!(reached_at("[::]:50051"), ["[::1]:50051", "127.0.0.1:50051"]);
        assert_eq!(reached_at("0.0.0.0:50051"), ["127.0.0.1:50051"]);
        assert_eq!(reached_at("10.1.2.3:50051"), ["10.1.2.3:50051"]);
        assert_eq!(reached_at("[::1]:0"), [""; 0]);
        let by_default = Listen::Loopback(50051).reached_at();
        assert_eq!(by_default.len(), 2); // where the host has no IPv6, the server is at the second
    }

    #[tokio::test]
    async fn all_addresses_are_of_both_families() {
        let listener = Listen::All(0).bind().unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        if open((Ipv6Addr::LOCALHOST, 0).into()).is_ok() {
            tokio::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
        }
    }
}
