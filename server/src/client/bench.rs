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
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use tokio::sync::{Barrier, OnceCell, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Status;

use super::credentials::AuthorizedChannel;
use super::{LinkError, Peer, Target, link, say};
use crate::exit::Exit;
use crate::process::Signals;
use crate::proto::Open;
use consumer::Received;
use laws::Ledger;
use load::{Load, Manner, Policy};
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
/// Messages a second, at most: none is so fast, and a day of it can be counted.
pub const MAX_RATE: f64 = 1e9;
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
/// Consumers wait so long, and while a message may come again, before they give up on what has not come.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of very many retries no more are waited for.
const MAX_RETRIES_WAITED_FOR: u32 = 10;

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
/// delivered, a publish was refused, or somebody did not want to wait for the end.
pub async fn run(options: Options) -> Exit {
    let number = match getrandom::u64() {
        Ok(number) => number,
        Err(error) => return failed(&format!("the system has no random numbers: {error}")),
    };
    let Ok(mut signals) = Signals::take_over() else { return failed("cannot wait for signals") };
    let reached = tokio::select! {
        reached = link::reach(&options.peer) => reached,
        () = signals.next() => return Exit::Refused,
    };
    if let Err(error) = reached {
        say(&error.to_string());
        return match error {
            LinkError::Unreachable { .. } => Exit::Unavailable,
            LinkError::Refused(_) => Exit::Usage,
        };
    }
    let load = Arc::new(Load::new(number, options.subscriptions.len()));
    let (ended, began) = start(&options, &load);
    let mut watch = Watch::new(&options, &load, began);
    let end = watch.run(ended, &mut signals).await;
    if let End::Broke(status) = &end {
        say(&format!("a stream ended: {}", status.message()));
    }
    let printed = match watch.times() {
        None => Exit::Refused, // it never began
        Some(times) => {
            let report = Report::new(&options, &load, times, watch.outcomes, ledger(&options).await);
            let printed = report.print(options.json);
            if report.is_good() { printed } else { Exit::Refused }
        }
    };
    match end {
        End::Complete => printed,
        End::Abandoned => Exit::Refused,
        End::Broke(status) if link::is_final(status.code()) => Exit::Usage,
        End::Broke(_) => Exit::Unavailable,
    }
}

fn failed(why: &str) -> Exit {
    say(why);
    Exit::Unavailable
}

async fn ledger(options: &Options) -> Result<Ledger, String> {
    match &options.metrics {
        Some(server) => laws::fetch(server, &options.peer.topic).await,
        None => Err("--metrics off".to_owned()),
    }
}

/// Starts all streams, spread over connections, and those over threads: no more than there are processors. Whatever happens to a
/// stream comes through the receiver; the other tells when the load begins.
fn start(
    options: &Options,
    load: &Arc<Load>,
) -> (mpsc::UnboundedReceiver<Result<Outcome, Status>>, oneshot::Receiver<Instant>) {
    let streams = options.publishers + options.consumers;
    let connections = options.connections.get().min(streams.max(1));
    let threads =
        std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)).min(connections);
    let (tell, ended) = mpsc::unbounded_channel();
    let (tell_begin, began) = oneshot::channel();
    let gate = Arc::new(Gate::new(options, tell_begin));
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
            let mut places: BTreeMap<u32, Arc<OnceCell<AuthorizedChannel>>> = BTreeMap::new();
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

/// Where streams wait for one another.
struct Gate {
    /// All connections are there: consumers open their streams.
    connected: Barrier,
    /// One for each consumer whose stream is open.
    open: Semaphore,
    consumers: u32,
    publishers: u32,
    begin: Mutex<Option<oneshot::Sender<Instant>>>,
}

impl Gate {
    fn new(options: &Options, begin: oneshot::Sender<Instant>) -> Self {
        let Options { publishers, consumers, .. } = *options;
        let connected = Barrier::new((publishers + consumers) as usize);
        Self { connected, open: Semaphore::new(0), consumers, publishers, begin: Mutex::new(Some(begin)) }
    }

    /// A stream has its connection. Without publishers the load begins when all have: no delivery comes before its clock runs.
    async fn connected(&self) {
        if self.connected.wait().await.is_leader() && self.publishers == 0 {
            self.begin();
        }
    }

    /// A consumer's stream is open.
    fn opened(&self) {
        self.open.add_permits(1);
    }

    /// A publisher's stream is open; it publishes once all consumers' are, and with that the load begins.
    async fn pass(&self) {
        let _all = self.open.acquire_many(self.consumers).await;
        self.begin();
    }

    fn begin(&self) {
        if let Some(begin) = self.begin.lock().expect("a panic ends the process").take() {
            let _ = begin.send(Instant::now()); // nobody listens any more
        }
    }
}

/// Runs stream number `stream`, of which the first ones consume.
async fn run_stream(
    options: &Options,
    load: Arc<Load>,
    stream: u32,
    connection: &OnceCell<AuthorizedChannel>,
    gate: &Gate,
) -> Result<Outcome, Status> {
    let streams = (options.publishers + options.consumers).div_ceil(options.connections.get());
    let channel = connection.get_or_try_init(|| link::connect(&options.peer, streams)).await?.clone();
    gate.connected().await;
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
        let subscription = stream as usize % options.subscriptions.len();
        let open = Open {
            subscription: options.subscriptions[subscription].clone(),
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
        consumer::consume(channel, open, subscription, manner, load, || gate.opened()).await.map(Outcome::Received)
    }
}

/// One of `among` nearly equal parts of a whole; together they make it.
const fn share(whole: u64, part: u32, among: u32) -> u64 {
    whole / among as u64 + (whole % among as u64 > part as u64) as u64
}

/// How a load ended.
enum End {
    /// All of its streams have.
    Complete,
    /// Somebody did not want to wait for that.
    Abandoned,
    /// A stream broke, or was not opened.
    Broke(Status),
}

/// Watches a load until all of its streams have ended, tells them when to, and shows how it goes.
struct Watch<'a> {
    options: &'a Options,
    load: &'a Load,
    /// Tells when the load begins.
    begins: oneshot::Receiver<Instant>,
    began: Option<Instant>,
    /// When the last publisher had its last answer.
    published: Option<Instant>,
    /// When the server had read the last ack.
    consumed: Option<Instant>,
    /// When the last message came, where the others were waited for in vain.
    given_up: Option<Instant>,
    /// How many publishers have not ended.
    publishing: u32,
    /// Somebody has asked that the consumers stop.
    asked_of_consumers: bool,
    /// How many messages were answered, and when that was last seen to move.
    progress: (u64, Instant),
    outcomes: Vec<Outcome>,
    line: ProgressBar,
    /// When the line last moved, and what was accepted and acked by then.
    shown: Option<(Instant, u64, u64)>,
}

impl<'a> Watch<'a> {
    fn new(options: &'a Options, load: &'a Load, begins: oneshot::Receiver<Instant>) -> Self {
        if options.publishers == 0 {
            load.published.cancel();
            load.aim(options.count.unwrap_or(u64::MAX));
        }
        Self {
            options,
            load,
            begins,
            began: None,
            published: None,
            consumed: None,
            given_up: None,
            publishing: options.publishers,
            asked_of_consumers: false,
            progress: (0, Instant::now()),
            outcomes: Vec::new(),
            line: live_line(),
            shown: None,
        }
    }

    async fn run(&mut self, mut ended: mpsc::UnboundedReceiver<Result<Outcome, Status>>, signals: &mut Signals) -> End {
        let mut ticks = tokio::time::interval(LIVE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = loop {
            let out_of_time = self.began.filter(|_| self.options.count.is_none() && !self.is_stopping());
            let out_of_time = out_of_time.map(|began| began + self.options.duration);
            tokio::select! {
                began = &mut self.begins, if self.began.is_none() => self.began = began.ok(),
                outcome = ended.recv() => match outcome {
                    Some(Ok(outcome)) => self.take(outcome),
                    Some(Err(status)) => break End::Broke(status),
                    None => break End::Complete,
                },
                () = tokio::time::sleep_until(out_of_time.unwrap_or_else(Instant::now)), if out_of_time.is_some() => self.stop(),
                () = signals.next() => {
                    if self.asked_of_consumers {
                        break End::Abandoned;
                    }
                    self.asked_of_consumers = self.load.published.is_cancelled();
                    self.stop();
                }
                _ = ticks.tick() => {
                    self.show();
                    self.look_for_progress();
                }
            }
        };
        self.line.finish_and_clear();
        end
    }

    /// Whether those who are told to stop when the time is over have been.
    fn is_stopping(&self) -> bool {
        if self.options.publishers > 0 { self.load.published.is_cancelled() } else { self.load.consumed.is_cancelled() }
    }

    /// Stops the publishers or, where they have stopped, the consumers.
    fn stop(&self) {
        if self.load.published.is_cancelled() {
            self.load.consumed.cancel();
        }
        self.load.published.cancel();
    }

    fn take(&mut self, outcome: Outcome) {
        match &outcome {
            Outcome::Received(received) => self.consumed = self.consumed.max(Some(received.done_at)),
            Outcome::Published(_) => self.publishing -= 1,
        }
        self.outcomes.push(outcome);
        if self.publishing == 0 && self.options.publishers > 0 && self.published.is_none() {
            self.published = Some(Instant::now());
            self.progress.1 = Instant::now();
            self.load.published.cancel();
            let accepted = self.load.totals.accepted.load(Ordering::Relaxed);
            self.load.aim(accepted * self.options.subscriptions.len() as u64);
        }
    }

    /// What has not come by now is another consumer's, or was dropped.
    fn look_for_progress(&mut self) {
        let answered = self.load.totals.answered.load(Ordering::Relaxed);
        if answered != self.progress.0 || self.publishing > 0 {
            self.progress = (answered, Instant::now());
        }
        let is_fixed = self.published.is_some() || (self.options.publishers == 0 && self.options.count.is_some());
        let waits = is_fixed && !self.load.consumed.is_cancelled();
        if waits && self.progress.1.elapsed() > self.patience() {
            self.given_up = Some(self.progress.1);
            self.load.consumed.cancel();
        }
    }

    /// A message that is not acked may come again for so long.
    fn patience(&self) -> Duration {
        let longest = |&Policy { ack_deadline, max_retries }: &Policy| {
            let retried = self.options.drop_rate > 0.0;
            ack_deadline * if retried { max_retries.min(MAX_RETRIES_WAITED_FOR) + 1 } else { 1 }
        };
        PATIENCE + self.load.policies.iter().filter_map(OnceLock::get).map(longest).max().unwrap_or_default()
    }

    /// `None`: it never began.
    fn times(&self) -> Option<Times> {
        let began = self.began?;
        let until = |end: Option<Instant>| end.unwrap_or_else(Instant::now).saturating_duration_since(began);
        Some(Times { publishing: until(self.published), consuming: until(self.given_up.or(self.consumed)) })
    }

    fn show(&mut self) {
        let Some(began) = self.began.filter(|_| !self.line.is_hidden()) else { return };
        let now = Instant::now();
        let totals = &self.load.totals;
        let (accepted, acked) = (totals.accepted.load(Ordering::Relaxed), totals.acked.load(Ordering::Relaxed));
        let (then, accepted_then, acked_then) = self.shown.replace((now, accepted, acked)).unwrap_or((began, 0, 0));
        let a_second = |count: u64| HumanCount(report::per_second(count, now - then));
        self.line.set_message(format!(
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
