//! The command `bench`: puts a load on a running server, shows how it goes, and says at the end how fast it was, how long messages
//! took, and whether the laws held.
//!
//! ```text
//!   publisher(s) ═══ Exchange ═══ server ═══ Exchange ═══ consumer(s)         threads, each with its share of the connections
//!        └──────────── load: totals, the goal, when to stop ────────────┘
//!                              └▶ live line, report, laws (the server's metrics)
//! ```

mod consumer;
mod ids;
mod laws;
mod load;
mod publisher;
mod report;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Status;
use tonic::transport::Channel;

use super::{LinkError, Peer, Target, link, say};
use crate::exit::Exit;
use crate::process::Signals;
use crate::proto::Open;
use consumer::Received;
use laws::Ledger;
use load::{Load, Manner};
use publisher::{Published, Task};
use report::{Report, Times};

/// Streams of one kind, and connections, at most.
pub const MAX_STREAMS: u32 = 10_000;
/// Messages that a consumer may hold, at most.
pub const MAX_HELD: u32 = 10_000_000;
/// Bytes of payload, at most: no server takes more.
pub const MAX_PAYLOAD: u64 = 16 << 20;
/// Bytes of payload unless their number is given.
pub const PAYLOAD: usize = 128;
/// How long a load lasts unless it is told.
pub const DURATION: Duration = Duration::from_secs(10);
/// The longest load, and the longest delay of an ack.
pub const LONGEST: Duration = Duration::from_hours(24);
/// Connections that are opened, at most, unless their number is given.
pub const CONNECTIONS: NonZeroU32 = NonZeroU32::new(64).expect("it is not zero");
/// Messages that a consumer may hold unless their number is given: the server's own default.
pub const WINDOW: u32 = 1_000;
/// How often the live line moves.
const LIVE_EVERY: Duration = Duration::from_millis(250);
/// Consumers wait at least so long for a message before they give up on what has not come.
const PATIENCE: Duration = Duration::from_secs(5);

/// The load.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The server and the topic.
    pub peer: Peer,
    /// The subscriptions that are consumed, each by its share of the consumers.
    pub subscriptions: Vec<String>,
    /// Streams that publish.
    pub publishers: u32,
    /// Streams that consume.
    pub consumers: u32,
    /// Connections that carry the streams.
    pub connections: NonZeroU32,
    /// Messages a second that all publishers together publish; `None` = as fast as it goes.
    pub rate: Option<f64>,
    /// Bytes of payload. Latencies need 16.
    pub payload: usize,
    /// Messages in a frame, for publishes, deliveries, answers and acks; 0 = each in a frame of its own.
    pub batch: u32,
    /// Messages that a consumer may have outstanding.
    pub window: u32,
    /// A consumer acks a message only when it holds so many later ones; less than its window.
    pub hold: u32,
    /// Acks go out so long after the delivery.
    pub ack_delay: Duration,
    /// The share of the deliveries that are never acked.
    pub drop_rate: f64,
    /// How long to publish or, without publishers, to consume.
    pub duration: Duration,
    /// Instead of a duration: so many messages to publish or, without publishers, to consume.
    pub count: Option<u64>,
    /// Where the server has its metrics; `None`: the laws are not looked at.
    pub metrics: Option<Target>,
    /// Report in JSON.
    pub json: bool,
}

/// What one stream ended with.
enum Outcome {
    Published(Published),
    Received(Received),
}

/// Puts the load on the server and returns how the process ends: with [`Exit::Refused`] where a law did not hold, a message was not
/// delivered or a publish was refused.
pub async fn run(options: Options) -> Exit {
    let number = match getrandom::u64() {
        Ok(number) => number,
        Err(error) => return failed(&format!("the system has no random numbers: {error}")),
    };
    let Ok(mut signals) = Signals::take_over() else { return failed("cannot wait for signals") };
    if let Err(error) = link::reach(&options.peer).await {
        say(&error.to_string());
        return match error {
            LinkError::Unreachable { .. } => Exit::Unavailable,
            LinkError::Refused(_) => Exit::Usage,
        };
    }
    let load = Arc::new(Load::new(number));
    let (mut ended, began) = start(&options, &load);
    let mut outcomes = Vec::new();
    let times = match watch(&options, &load, &mut ended, &mut outcomes, began, &mut signals).await {
        Ok(times) => times,
        Err(status) => return failed_stream(&status),
    };
    let ledger = ledger(&options).await;
    let report = Report::new(&options, &load, times, outcomes, ledger);
    report.print(options.json);
    if report.is_good() { Exit::Done } else { Exit::Refused }
}

fn failed(why: &str) -> Exit {
    say(why);
    Exit::Unavailable
}

fn failed_stream(status: &Status) -> Exit {
    say(&format!("a stream ended: {}", status.message()));
    if link::is_final(status.code()) { Exit::Usage } else { Exit::Unavailable }
}

async fn ledger(options: &Options) -> Result<Ledger, String> {
    match &options.metrics {
        Some(server) => laws::fetch(server, &options.peer.topic).await,
        None => Err("--metrics off".to_owned()),
    }
}

/// Starts all streams, spread over connections, and those over threads: no more than there are processors. Whatever happens to a
/// stream comes through the receiver; the other tells when all of them are open, and so when the load begins.
fn start(
    options: &Options,
    load: &Arc<Load>,
) -> (mpsc::UnboundedReceiver<Result<Outcome, Status>>, oneshot::Receiver<Instant>) {
    let streams = options.publishers + options.consumers;
    let connections = options.connections.get().min(streams.max(1));
    let threads =
        std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)).min(connections);
    let (tell, ended) = mpsc::unbounded_channel();
    let (all_open, began) = oneshot::channel();
    let gate = Arc::new(Gate::new(streams, all_open));
    for thread in 0..threads {
        let (options, load, tell, gate) = (options.clone(), Arc::clone(load), tell.clone(), Arc::clone(&gate));
        std::thread::spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = tell.send(Err(Status::internal(format!("cannot start a runtime: {error}"))));
                    return;
                }
            };
            let ours = (0..streams).filter(|stream| (stream % connections) % threads == thread);
            let mut places: BTreeMap<u32, Arc<OnceCell<Channel>>> = BTreeMap::new();
            runtime.block_on(async {
                let mut running = tokio::task::JoinSet::new();
                for stream in ours {
                    let place = Arc::clone(places.entry(stream % connections).or_default());
                    let (options, load, tell) = (options.clone(), Arc::clone(&load), tell.clone());
                    let gate = Arc::clone(&gate);
                    running.spawn(async move {
                        let outcome = run_stream(&options, load, stream, &place, &gate).await;
                        let _ = tell.send(outcome); // nobody listens any more
                    });
                }
                running.join_all().await;
            });
        });
    }
    (ended, began)
}

/// Where streams wait until all of them are open.
struct Gate {
    closed: tokio::sync::Barrier,
    all_open: Mutex<Option<oneshot::Sender<Instant>>>,
}

impl Gate {
    fn new(streams: u32, all_open: oneshot::Sender<Instant>) -> Self {
        Self { closed: tokio::sync::Barrier::new(streams as usize), all_open: Mutex::new(Some(all_open)) }
    }

    async fn pass(&self) {
        if self.closed.wait().await.is_leader()
            && let Some(all_open) = self.all_open.lock().expect("a panic ends the process").take()
        {
            let _ = all_open.send(Instant::now()); // nobody listens any more
        }
    }
}

/// Runs stream number `stream`, of which the first ones consume.
async fn run_stream(
    options: &Options,
    load: Arc<Load>,
    stream: u32,
    connection: &OnceCell<Channel>,
    gate: &Gate,
) -> Result<Outcome, Status> {
    let streams = (options.publishers + options.consumers).div_ceil(options.connections.get());
    let channel = connection.get_or_try_init(|| link::connect(&options.peer.target, streams)).await?.clone();
    let open = Open {
        topic: options.peer.topic.clone(),
        client_id: "ackstream bench".to_owned(),
        max_batch_messages: options.batch,
        ..Open::default()
    };
    if let Some(publisher) = stream.checked_sub(options.consumers) {
        let task = Task {
            offset: options.rate.map_or(Duration::ZERO, |rate| {
                Duration::try_from_secs_f64(f64::from(publisher) / rate).unwrap_or(LONGEST)
            }),
            rate: options.rate.map(|rate| rate / f64::from(options.publishers)),
            count: options.count.map(|count| share(count, publisher, options.publishers)),
            payload: options.payload,
            batch: options.batch as usize,
        };
        let open = Open { publish_only: true, ..open };
        publisher::publish(channel, open, task, load, async || gate.pass().await).await.map(Outcome::Published)
    } else {
        let open = Open {
            subscription: options.subscriptions[stream as usize % options.subscriptions.len()].clone(),
            max_outstanding_messages: options.window,
            max_outstanding_bytes: u64::MAX,
            ..open
        };
        let manner = Manner {
            ack_delay: options.ack_delay,
            hold: options.hold as usize,
            drop_rate: options.drop_rate,
            batch: options.batch as usize,
        };
        consumer::consume(channel, open, manner, load, async || gate.pass().await).await.map(Outcome::Received)
    }
}

/// One of `among` nearly equal parts of a whole; together they make it.
const fn share(whole: u64, part: u32, among: u32) -> u64 {
    whole / among as u64 + (whole % among as u64 > part as u64) as u64
}

/// Watches the load until all of its streams have ended, and tells them when to.
///
/// # Errors
///
/// How a stream broke.
async fn watch(
    options: &Options,
    load: &Load,
    ended: &mut mpsc::UnboundedReceiver<Result<Outcome, Status>>,
    outcomes: &mut Vec<Outcome>,
    mut began: oneshot::Receiver<Instant>,
    signals: &mut Signals,
) -> Result<Times, Status> {
    let line = live_line();
    let mut ticks = tokio::time::interval(LIVE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut clock = Clock::default();
    let (mut publishing, mut seen) = (options.publishers, (0, Instant::now()));
    if options.publishers == 0 {
        load.aim(options.count.unwrap_or(u64::MAX));
    }
    loop {
        let out_of_time = clock.began.filter(|_| options.count.is_none()).map(|began| began + options.duration);
        tokio::select! {
            started = &mut began, if clock.began.is_none() => clock.began = started.ok(),
            outcome = ended.recv() => match outcome {
                Some(Ok(Outcome::Published(published))) => {
                    publishing -= 1;
                    outcomes.push(Outcome::Published(published));
                    if publishing == 0 {
                        clock.published = Some(Instant::now());
                        seen = (load.totals.delivered.load(Ordering::Relaxed), Instant::now());
                        let accepted: u64 = outcomes.iter().map(Outcome::accepted).sum();
                        load.aim(accepted * options.subscriptions.len() as u64);
                    }
                }
                Some(Ok(received)) => {
                    clock.consumed = Some(Instant::now());
                    outcomes.push(received);
                }
                Some(Err(status)) => return Err(status),
                None => {
                    line.finish_and_clear();
                    return Ok(clock.times());
                }
            },
            () = tokio::time::sleep_until(out_of_time.unwrap_or_else(Instant::now)), if out_of_time.is_some() && !load.published.is_cancelled() => {
                load.published.cancel();
                if options.publishers == 0 {
                    load.consumed.cancel();
                }
            }
            () = signals.next() => {
                if load.published.is_cancelled() {
                    load.consumed.cancel(); // whoever asks twice does not want to wait
                }
                load.published.cancel();
                if options.publishers == 0 {
                    load.consumed.cancel();
                }
            }
            _ = ticks.tick() => {
                clock.show(&line, load);
                let delivered = load.totals.delivered.load(Ordering::Relaxed);
                if delivered != seen.0 || publishing > 0 {
                    seen = (delivered, Instant::now());
                }
                // What has not come by now is another consumer's, or was dropped.
                let patience = PATIENCE.max(options.ack_delay * 2);
                if options.publishers > 0 && publishing == 0 && seen.1.elapsed() > patience {
                    load.consumed.cancel();
                }
            }
        }
    }
}

impl Outcome {
    const fn accepted(&self) -> u64 {
        match self {
            Self::Published(published) => published.accepted,
            Self::Received(_) => 0,
        }
    }
}

/// When what began and ended, and what the live line showed last.
#[derive(Default)]
struct Clock {
    began: Option<Instant>,
    /// When the last publisher had its last answer.
    published: Option<Instant>,
    /// When the server had read the last ack.
    consumed: Option<Instant>,
    shown: Option<(Instant, u64, u64)>,
}

impl Clock {
    fn times(&self) -> Times {
        let since = |end: Option<Instant>| self.began.zip(end).map(|(began, end)| end - began).unwrap_or_default();
        Times { publishing: since(self.published), consuming: since(self.consumed) }
    }

    fn show(&mut self, line: &ProgressBar, load: &Load) {
        let Some(began) = self.began.filter(|_| !line.is_hidden()) else { return };
        let now = Instant::now();
        let totals = &load.totals;
        let (accepted, acked) = (totals.accepted.load(Ordering::Relaxed), totals.acked.load(Ordering::Relaxed));
        let (then, accepted_then, acked_then) = self.shown.replace((now, accepted, acked)).unwrap_or((began, 0, 0));
        let a_second = |count: u64| HumanCount(report::per_second(count, now - then));
        line.set_message(format!(
            "{:>3} s   published {} ({}/s)   acked {} ({}/s)   retries {}   refused {}",
            (now - began).as_secs(),
            HumanCount(accepted),
            a_second(accepted - accepted_then),
            HumanCount(acked),
            a_second(acked - acked_then),
            HumanCount(totals.retries.load(Ordering::Relaxed)),
            HumanCount(totals.refused.load(Ordering::Relaxed)),
        ));
    }
}

/// A line that moves, on a terminal.
fn live_line() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg}").expect("the template is right");
    ProgressBar::new_spinner().with_style(style)
}
