//! The threads that serve connections. Each has a runtime of its own, and a connection stays on one of them with all of its streams:
//! a delivery, its ack and the wake between them never cross from one processor to another. One busy stream is served a quarter
//! faster than on a runtime that moves its tasks between threads (measured); many are spread over all threads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// All of them. When this is dropped, they end with whatever they still serve.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    _running: DropGuard,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// How many connections it serves.
    load: Arc<AtomicUsize>,
}

/// A connection's place with a worker.
#[derive(Debug)]
pub struct Place {
    load: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts as many as there are processors.
    ///
    /// # Errors
    ///
    /// Where the system gives no thread, or nothing to wait for sockets with.
    pub fn start() -> io::Result<Self> {
        let stop = CancellationToken::new();
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let workers = (0..threads).map(|number| Worker::start(number, stop.clone())).collect::<io::Result<_>>()?;
        Ok(Self { workers, _running: stop.drop_guard() })
    }

    /// The runtime of the worker with the fewest connections, and a place there.
    pub fn assign(&self) -> (&Handle, Place) {
        let worker = self.workers.iter().min_by_key(|worker| worker.load.load(Ordering::Relaxed));
        let Worker { runtime, load } = worker.expect("there is at least one");
        load.fetch_add(1, Ordering::Relaxed);
        (runtime, Place { load: Arc::clone(load) })
    }
}

impl Worker {
    fn start(number: usize, stop: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            runtime.block_on(stop.cancelled_owned());
            runtime.shutdown_background(); // whatever still blocks must not keep the process
        })?;
        Ok(Self { runtime: handle, load: Arc::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_goes_where_the_fewest_are() {
        let workers = Workers::start().expect("there are threads");
        let loads = || workers.workers.iter().map(|worker| worker.load.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let count = workers.workers.len();
        let mut places: Vec<Place> = (0..2 * count).map(|_| workers.assign().1).collect();
        assert_eq!(loads(), vec![2; count], "all have the same share");
        drop(places.remove(0));
        assert_eq!(loads()[0], 1);
        let (_, _place) = workers.assign();
        assert_eq!(loads(), vec![2; count], "the place that was given back is taken first");
    }

    #[test]
    fn what_is_assigned_runs_on_a_thread_of_its_own() {
        let workers = Workers::start().expect("there are threads");
        let (runtime, _place) = workers.assign();
        let (tell, told) = std::sync::mpsc::channel();
        runtime.spawn(async move { tell.send(thread::current().name().map(str::to_owned)) });
        let name = told.recv().expect("it runs").expect("the thread has a name");
        assert!(name.starts_with("worker-"), "{name}");
    }
}
