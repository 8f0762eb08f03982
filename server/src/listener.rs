//! The accept loop: whoever connects is served in a task of its own, or closed at once where too many are connected.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::connection::{ConnectionLimits, Connections};
use crate::telemetry::ConnectionRefusal;
use crate::workers::Workers;

/// How long the loop waits after the system has refused a connection, for example because no file descriptor is left,
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// and how long when it goes on refusing.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Accepts connections until `stop`; what is open goes on in `tasks`, which run on the `workers`.
pub async fn accept(
    listener: TcpListener,
    connections: Connections,
    stop: CancellationToken,
    tasks: TaskTracker,
    workers: Arc<Workers>,
) {
    let admission = Arc::new(Admission::new(connections.limits()));
    let mut pause = SHORTEST_PAUSE;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!("cannot accept a connection: {error}");
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(LONGEST_PAUSE);
                continue;
            }
        };
        pause = SHORTEST_PAUSE;
        let admitted = match admission.admit(peer.ip()) {
            Ok(admitted) => admitted,
            Err(why) => {
                connections.counts().count_refused(why);
                debug!(%peer, ?why, "connection refused");
                continue;
            }
        };
        let limits = connections.limits();
        prepare(&stream, limits.tcp_user_timeout, limits.send_buffer_bytes);
        let (connections, stop) = (connections.clone(), stop.clone());
        let (runtime, place) = workers.assign();
        let serve = async move {
            let served = match move_here(stream) {
                Ok(stream) => connections.serve(stream, stop).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = served {
                debug!(%peer, error, "connection ends");
            }
            drop((admitted, place));
        };
        tasks.spawn_on(serve, runtime);
    }
}

/// Sets what the system does for a connection. One that is gone already says so when it is read.
#[cfg_attr(not(target_os = "linux"), allow(unused_variables, reason = "no other system has it"))]
fn prepare(stream: &TcpStream, user_timeout: Duration, send_buffer_bytes: usize) {
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    {
        let _ = SockRef::from(stream).set_tcp_user_timeout(Some(user_timeout));
        // What waits is in our hands, where a question for a sign of life goes ahead of it.
        let most = u32::try_from(send_buffer_bytes).unwrap_or(u32::MAX);
        let _ = SockRef::from(stream).set_tcp_notsent_lowat(most);
    }
}

/// A socket waits with the runtime on which it was made: from here on with this one.
fn move_here(stream: TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.into_std()?)
}

/// Who may connect: how many connections are open, in all and from each address.
#[derive(Debug)]
struct Admission {
    max: usize,
    max_per_address: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Admission {
    fn new(limits: &ConnectionLimits) -> Self {
        let ConnectionLimits { max_connections: max, max_connections_per_address: max_per_address, .. } = *limits;
        Self { max, max_per_address, open: Mutex::default() }
    }

    /// Lets one more connection in, until what is returned is dropped.
    fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Admitted, ConnectionRefusal> {
        let address = address.to_canonical(); // an IPv4 address is the same one on a socket of both families
        let mut open = self.open.lock().expect("a panic ends the process");
        let Open { all, by_address } = &mut *open;
        if *all >= self.max {
            return Err(ConnectionRefusal::TooMany);
        }
        if by_address.get(&address).is_some_and(|&open| open >= self.max_per_address) {
            return Err(ConnectionRefusal::TooManyOfAddress);
        }
        *all += 1;
        *by_address.entry(address).or_default() += 1;
        Ok(Admitted { admission: Arc::clone(self), address })
    }
}

/// A connection that is among the open ones.
#[derive(Debug)]
struct Admitted {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.admission.open.lock().expect("a panic ends the process");
        open.all -= 1;
        if let Some(left) = open.by_address.get_mut(&self.address) {
            *left -= 1;
            if *left == 0 {
                open.by_address.remove(&self.address); // addresses come and go without bound
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(max: usize, max_per_address: usize) -> Arc<Admission> {
        Arc::new(Admission { max, max_per_address, open: Mutex::default() })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("it is one")
    }

    #[test]
    fn no_address_has_more_connections_than_it_may() {
        let admission = admission(10, 2);
        let open = [admission.admit(address("192.0.2.1")), admission.admit(address("::ffff:192.0.2.1"))];
        assert!(open.iter().all(Result::is_ok));
        assert_eq!(admission.admit(address("192.0.2.1")).err(), Some(ConnectionRefusal::TooManyOfAddress));
        assert!(admission.admit(address("192.0.2.2")).is_ok(), "another one may");
    }

    #[test]
    fn no_more_connections_are_open_than_may_be() {
        let admission = admission(2, 2);
        let _open = [admission.admit(address("192.0.2.1")), admission.admit(address("192.0.2.2"))];
        assert_eq!(admission.admit(address("192.0.2.3")).err(), Some(ConnectionRefusal::TooMany));
    }

    #[test]
    fn a_place_is_given_again_and_an_address_without_connections_is_forgotten() {
        let admission = admission(1, 1);
        let first = admission.admit(address("192.0.2.1"));
        drop(first);
        assert!(admission.open.lock().expect("it is whole").by_address.is_empty());
        assert!(admission.admit(address("192.0.2.1")).is_ok());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_system_gives_up_a_connection_whose_bytes_nobody_acknowledges() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        prepare(&stream, Duration::from_secs(7), 1 << 17);
        assert_eq!(SockRef::from(&stream).tcp_user_timeout().unwrap(), Some(Duration::from_secs(7)));
        assert_eq!(SockRef::from(&stream).tcp_notsent_lowat().unwrap(), 1 << 17);
        assert!(stream.nodelay().unwrap());
    }
}
